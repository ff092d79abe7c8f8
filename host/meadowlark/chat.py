"""Chat: messages -> the text a model was trained to answer."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import UserError, brief

if TYPE_CHECKING:
    from .model import Tokenizer

#: Longest template, and longest text it may give, in characters.
MAX_TEMPLATE = 1 << 16
MAX_TEXT = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The chat template that came with a model, in Jinja.

    It gets what Hugging Face's ``transformers`` gives it (``messages``, ``add_generation_prompt``,
    ``bos_token``, ``eos_token``, ``raise_exception``, ``tojson``, loop controls), except the time
    of day: the same messages give the same text. It runs in Jinja's sandbox, where it cannot reach
    Python's objects, files or the network.

    template: the text. bos, eos: texts of the model's tokens that begin and end a text; "" where it
    has none. source: where it came from, for messages.
    """
    template: str
    bos: str = ""
    eos: str = ""
    source: str = field(default="the chat template", compare=False)

    @classmethod
    def from_json(cls, raw: bytes, source: str) -> ChatTemplate:
        """Inverse of :meth:`as_json`. ValueError if the bytes are anything else."""
        values = json.loads(raw)
        if not isinstance(values, dict) or set(values) != {"template", "bos", "eos"} or \
                not all(isinstance(value, str) for value in values.values()):
            raise ValueError("a chat template is template, bos and eos, all text")
        return cls(**values, source=source)

    def as_json(self) -> bytes:
        """The template and its tokens, without the source."""
        return json.dumps({"template": self.template, "bos": self.bos, "eos": self.eos}).encode()

    def render(self, messages: Sequence[Mapping[str, str]], *,
               add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Parameters
        ----------
        messages : sequence of {"role": "system", "user" or "assistant", "content": text}
        add_generation_prompt : bool
            End where the answer begins.

        Raises
        ------
        UserError
            The template is not valid, or it refuses the messages.
        """
        def refuse(reason: str):
            raise TemplateError(reason)

        try:
            if len(self.template) > MAX_TEMPLATE:
                raise TemplateError(f"it has {len(self.template):,} characters")
            environment = ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
            environment.filters["tojson"] = lambda value, indent=None: json.dumps(
                value, ensure_ascii=False, indent=indent)
            environment.globals["raise_exception"] = refuse
            pieces, length = [], 0
            for piece in environment.from_string(self.template).generate(
                    messages=[dict(m) for m in messages],
                    add_generation_prompt=add_generation_prompt, bos_token=self.bos,
                    eos_token=self.eos):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_TEXT:
                    raise TemplateError(f"it gives more than {MAX_TEXT:,} characters")
        # A template is a program: it can divide by zero or miss a key as any other.
        except Exception as e:
            raise UserError(f"the chat template of {self.source} cannot be used ({brief(e)}); "
                            "leave --chat out or use another model.") from e
        return "".join(pieces)


class Conversation:
    """A conversation as token ids.

    Each prompt begins with all ids before it, prompts and answers, wherever the template lets it:
    what a target has in its KV cache can stay there.

    Parameters
    ----------
    template : ChatTemplate
    tokenizer : Tokenizer
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []        # all that was said,
        self._text = ""                 # and the text it stands for

    def ask(self, question: str) -> list[int]:
        """The prompt that asks a question: ids from position 0 to where the answer begins.

        Raises
        ------
        UserError
            See :meth:`ChatTemplate.render`.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        text = self._template.render(messages)
        if not text.startswith(self._text):     # the template tells the past in other words
            self.ids, self._text = [], ""
        self.ids += self._tokenizer.encode(text[len(self._text):], special=False)
        self.messages, self._text = messages, text
        return list(self.ids)

    def answered(self, tokens: Sequence[int]) -> str:
        """Take the tokens of the answer, a stop id included; its text."""
        text = self._tokenizer.decode(tokens)
        self.messages.append({"role": "assistant", "content": text})
        self.ids += map(int, tokens)
        self._text += self._tokenizer.decode(tokens, special=True)
        return text
