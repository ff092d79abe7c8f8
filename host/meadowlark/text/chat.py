"""Chat: messages -> the text, and the tokens, that a model was trained to answer."""
from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import UserError, brief

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

#: Longest template, and longest text it may give, in characters.
MAX_TEMPLATE = 1 << 16
MAX_TEXT = 1 << 22
#: Characters of nobody's, one of which stands for each that is hidden: planes 15 and 16 of Unicode.
_STAND_INS = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


class _Generation(Extension):
    """``{% generation %}``: marks what the model wrote, for those who train it."""
    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes what HTML reserves."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The chat template that came with a model, in Jinja.

    It gets what Hugging Face's ``transformers`` gives it: ``messages``, ``add_generation_prompt``,
    ``bos_token``, ``eos_token``, ``tools`` and ``documents`` (none), ``raise_exception``,
    ``strftime_now``, ``tojson``, loop controls and ``{% generation %}``. The same messages at the
    same time give the same text. It runs in Jinja's sandbox, where it cannot reach Python's
    objects, files or the network.

    template: the text. bos, eos: texts of the model's tokens that begin and end a text; "" where it
    has none. opened: the model's bos stands in front of a conversation, whether or not the template
    puts it there. source: where it came from, for messages.
    """
    template: str
    bos: str = ""
    eos: str = ""
    opened: bool = False
    source: str = field(default="the chat template", compare=False)

    @classmethod
    def from_json(cls, raw: bytes, source: str) -> ChatTemplate:
        """Inverse of :meth:`as_json`. ValueError if the bytes are anything else."""
        values = json.loads(raw)
        kinds = {"template": str, "bos": str, "eos": str, "opened": bool}
        if not isinstance(values, dict) or set(values) != set(kinds) or \
                not all(isinstance(values[key], kind) for key, kind in kinds.items()):
            raise ValueError("a chat template is template, bos, eos (texts) and opened (a flag)")
        return cls(**values, source=source)

    def as_json(self) -> bytes:
        """The template and its tokens, without the source."""
        return json.dumps({"template": self.template, "bos": self.bos, "eos": self.eos,
                           "opened": self.opened}).encode()

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True,
               now: datetime | None = None) -> str:
        """The text of a conversation.

        A system message that the template refuses or leaves out is put in front of the first
        question.

        Parameters
        ----------
        messages : sequence of {"role": "system", "user" or "assistant", "content": text}
        add_generation_prompt : bool
            End where the answer begins.
        now : datetime, optional
            What ``strftime_now`` tells; by default the time it is.

        Raises
        ------
        UserError
            The template is not valid, or it refuses the messages.
        """
        if len(messages) > 1 and messages[0]["role"] == "system" and not self._knows_system:
            system, first, *others = messages
            messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
        return self._render(messages, add_generation_prompt, now)

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True,
                now: datetime | None = None) -> str:
        moment = now or datetime.now()
        try:
            pieces, length = [], 0
            for piece in self._compiled.generate(
                    messages=[dict(m) for m in messages], tools=None, documents=None,
                    add_generation_prompt=add_generation_prompt, bos_token=self.bos,
                    eos_token=self.eos, raise_exception=_refuse,
                    strftime_now=lambda form: moment.strftime(form)):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_TEXT:
                    raise TemplateError(f"it gives more than {MAX_TEXT:,} characters")
        # A template is a program: it can divide by zero or miss a key as any other.
        except Exception as e:
            raise UserError(f"the chat template of {self.source} cannot be used ({brief(e)}); "
                            "leave --chat out or use another model.") from e
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> Template:
        if len(self.template) > MAX_TEMPLATE:
            raise TemplateError(f"it has {len(self.template):,} characters")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation])
        environment.filters["tojson"] = _to_json
        return environment.from_string(self.template)

    @cached_property
    def _knows_system(self) -> bool:
        said = "xylophone"
        try:
            return said in self._render([{"role": "system", "content": said},
                                         {"role": "user", "content": "a"}]).lower()
        except UserError:
            return False

    @cached_property
    def words(self) -> str:
        """What it writes itself: its source, and a conversation about nothing."""
        try:
            return self.template + self._render([{"role": role, "content": "a"} for role in (
                "user", "assistant", "user")])
        except UserError:
            return self.template


class _Markers:
    """Finds markers in what was said.

    texts: of the markers.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        self._heads = {t[:n] for t in self.texts for n in range(1, len(t))}
        self._tails = {t[n:] for t in self.texts for n in range(1, len(t))}
        self._longest = max(map(len, self.texts), default=0)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where a text has markers, or parts of them at its ends that what stands beside it could
        complete."""
        out: list[tuple[int, int]] = []
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())     # it may get trimmed
        core = text[start:end]
        for marker in self.texts:
            at = text.find(marker)
            while at >= 0:
                out.append((at, at + len(marker)))
                at = text.find(marker, at + 1)
            if core and core in marker:
                out.append((start, end))
        for n in range(1, min(len(core), self._longest) + 1):
            if core[:n] in self._tails:
                out.append((start, start + n))
            if core[-n:] in self._heads:
                out.append((end - n, end))
        return out


class Conversation:
    """A conversation as token ids.

    What is said is text: only the template's own markers become control tokens. Each prompt begins
    with all ids before it, prompts and answers, wherever the template lets it: what a target has
    in its KV cache can stay there.

    Parameters
    ----------
    template : ChatTemplate
    tokenizer : Tokenizer
    system : str
        A message of the system in front of all others; "" is none.
    bos : int, optional
        Put in front where the template has none and is ``opened``.
    stop_ids : collection of int
        Tokens that end an answer and are no part of its text.
    now : datetime, optional
        The time that the template is told, in all of the conversation; by default that of now.

    Attributes
    ----------
    messages : list
        What was asked and answered, as :meth:`ChatTemplate.render` takes it.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, *, system: str = "",
                 bos: int | None = None, stop_ids: Collection[int] = (),
                 now: datetime | None = None) -> None:
        self._template, self._tokenizer, self._stop_ids = template, tokenizer, stop_ids
        self._bos = bos if template.opened else None
        self._now = now or datetime.now()
        self._system = [{"role": "system", "content": system}] if system else []
        # A token that a file calls a word is a marker where the template writes it.
        self._control = _Markers(t for t, control in tokenizer.added.items() if control)
        self._markers = _Markers(self._control.texts | {
            t for t in tokenizer.added
            if t[0] in "<[{" and t[-1] in ">]}" and t in template.words})
        self.reset()

    def reset(self) -> None:
        """Begin anew: nothing was said."""
        self.messages: list[dict[str, str]] = list(self._system)
        self._ids: list[int] = []       # all that was said,
        self._text = ""                 # and the text it stands for
        self._asked = (self.messages, self._ids, self._text)

    def continued(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt that asks the last of these messages, behind all others, whoever took part.
        Where this conversation has said the same, its tokens stay as they are.

        messages: of the system at most one, in front, then questions and answers in turn.

        Raises
        ------
        UserError
            They are others; or as :meth:`ask`.
        """
        for number, m in enumerate(messages, 1):
            if set(m) != {"role", "content"} or not all(isinstance(v, str) for v in m.values()):
                raise UserError(f"message {number} must have a role and a content, which are texts")
        at = 1 if messages and messages[0]["role"] == "system" else 0
        *said, last = messages[at:] or [{"role": ""}]
        if last["role"] != "user" or len(said) % 2 or any(
                m["role"] != ("user", "assistant")[k % 2] for k, m in enumerate(said)):
            raise UserError("a conversation is a message of the system at most, then messages of "
                            "user and assistant in turn, the user's first and last")
        if not last["content"].strip():
            raise UserError("the question is empty; give at least one word")
        if [dict(m) for m in messages[:-1]] != self.messages:
            self._system = [dict(m) for m in messages[:at]]
            self.reset()
            self.messages += [dict(m) for m in said]
        return self.ask(last["content"])

    def forget(self) -> bool:
        """Forget the oldest question and its answer; False if nothing was asked yet."""
        at = len(self._system)
        if len(self.messages) == at:
            return False
        self.messages = self.messages[:at] + self.messages[at + 2:]
        self._ids, self._text = [], ""
        return True

    def ask(self, question: str) -> list[int]:
        """The prompt that asks a question: ids from position 0 to where the answer begins.

        It is part of the conversation when :meth:`answered` has its answer.

        Raises
        ------
        UserError
            See :meth:`ChatTemplate.render`; or a marker in what was said cannot be told from the
            template's.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        cover, hidden = self._hide(messages)
        covered = self._template.render(hidden, now=self._now)
        text = covered.translate({ord(stand_in): c for c, stand_in in cover.items()})
        ids, at = self._ids, len(self._text)
        if not text.startswith(self._text):     # the template tells the past in other words
            ids, at = [], 0
        new = self._encode(covered, at, cover)
        if not at and self._bos is not None and new[:1] != [self._bos]:
            new = [self._bos, *new]
        self._asked = messages, [*ids, *new], text
        return list(self._asked[1])

    def answered(self, tokens: Iterable[int], said: str | None = None) -> str:
        """Take the tokens of the answer, a stop id included; its text.

        said: what counts as the answer, where that is not all of the text.
        """
        tokens = [int(t) for t in tokens]
        ended = tokens[-1:] != [] and tokens[-1] in self._stop_ids
        text = self._tokenizer.decode(tokens[:-1] if ended else tokens)
        messages, self._ids, self._text = self._asked
        if said is None or said == text:
            self._ids = [*self._ids, *tokens]
            self._text += self._tokenizer.decode(tokens, special=True)
        else:
            text = said
        self.messages = [*messages, {"role": "assistant", "content": text}]
        return text

    def _encode(self, text: str, at: int, cover: Mapping[str, str]) -> list[int]:
        """The ids of text[at:] as they are behind text[:at], if tokens part there."""
        def encode(text: str) -> list[int]:
            return self._tokenizer.encode_covered(text, cover, self._markers.texts)
        whole, before = encode(text), encode(text[:at])
        return whole[len(before):] if whole[:len(before)] == before else encode(text[at:])

    def _hide(self, messages: Sequence[Mapping[str, str]],
              ) -> tuple[dict[str, str], list[dict[str, str]]]:
        """Stand-ins for the characters of all markers in what was said, and the messages with them.

        A stand-in is one character for one, so the template may cut, trim and join what was said.
        In answers the words that a template looks for, as the end of a thought, are not hidden: the
        control tokens are not in their text.
        """
        found = [(self._control if m["role"] == "assistant" else self._markers).spans(m["content"])
                 for m in messages]
        if not any(found):
            return {}, [dict(m) for m in messages]
        # Always all of them: the tokenizer is then made ready for them once.
        covered = sorted(set().union(*self._markers.texts))
        used = set(self._template.template).union(*(m["content"] for m in messages))
        free = (chr(c) for c in _STAND_INS if chr(c) not in used)
        cover = dict(zip(covered, free))
        if len(cover) < len(covered):
            raise UserError("what was said has all characters of the private planes of Unicode in "
                            "it; leave some of them out")
        table, out = str.maketrans(cover), []
        for m, spans in zip(messages, found):
            content = m["content"]
            for a, b in spans:
                content = content[:a] + content[a:b].translate(table) + content[b:]
            out.append({**m, "content": content})
        return cover, out
