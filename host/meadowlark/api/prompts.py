"""What a chip takes: prompts, and options of runs."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import UserError
from .results import Prompt

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image
    from ..run.prepare import Source
    from ..run.targets import Drafting, Target
    from ..text.chat import Conversation
    from ..text.tokenizer import Tokenizer


class Taker:
    """A model on a target, as far as it is about what goes into runs; the rest is :class:`.Chip`.
    """

    def __init__(self, target: Target, source: Source) -> None:
        self._target, self._source = target, source
        self._talk: Conversation | None = None

    @property
    def board(self) -> Board:
        """The board it is."""
        return self._target.board

    @cached_property
    def image(self) -> Image:
        """The image that is loaded."""
        return self._source.image

    def check(self, *, max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0,
              top_p: float = 1.0, seed: int = 0, stop: str | Sequence[str] = (),
              draft: str | int = "auto") -> tuple[Sampling, list[str]]:
        """What options of :meth:`steps` ask of the sampler, and the stop texts; any thread may ask.

        Raises
        ------
        UserError
            One is out of its range.
        """
        from ..quant.sampling import sampling
        from ..run.drafting import parse
        parse(str(draft))
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {max_tokens}")
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(stops):
            raise UserError("a stop text must not be empty")
        return sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                        max_top_k=self.board.config.topk), stops

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, whatever was said before; a text's begin with the model's bos. A run
        of them goes on where it can from what the KV cache holds.

        Raises
        ------
        UserError
            As :meth:`steps`.
        """
        self._source.check_reads(images=False)
        if (ids := self._given(prompt)) is not None:
            return ids              # any thread may ask
        before, self._talk = self._talk, None
        try:
            return self._ids(prompt)[0]
        finally:
            self._talk = before

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model: texts of its tokens."""
        return self._source.tokenizer

    @property
    def has_template(self) -> bool:
        """The model came with a chat template, so that it answers conversations."""
        return self._source.has_template

    def drafting(self, draft: str | int, draw: Sampling | None = None) -> Drafting:
        """What an option ``draft`` of :meth:`steps` stands for.

        draw: how tokens are drawn, greedily by default; with top-k "auto" is none.

        Raises
        ------
        UserError
            The chip makes no such drafts, or not with this sampling.
        """
        from meadowlark_hdl.sampler.sampler_golden import Sampling

        from ..run.drafting import drafting, parse
        asked, draw = parse(str(draft)), draw or Sampling()
        if asked is None and not draw.top_k:
            return self._cheapest
        return drafting(asked, draw, self.image, self._target)

    @cached_property
    def _cheapest(self) -> Drafting:
        """What "auto" stands for; weighed once, as that may take seconds."""
        from meadowlark_hdl.sampler.sampler_golden import Sampling

        from ..run.drafting import drafting
        self._source.tell("weighing drafts")
        return drafting(None, Sampling(), self.image, self._target)

    def _given(self, prompt: Prompt) -> list[int] | None:
        """The ids of a prompt that is some."""
        given = [part for part in prompt if isinstance(part, int)]
        return self._source.given(given) if given and len(given) == len(prompt) else None

    def _ids(self, prompt: Prompt) -> tuple[list[int], Conversation | None]:
        """The prompt's ids, and the conversation that its answer belongs to."""
        from ..run.prepare import check_text
        source = self._source
        source.check_reads(images=False)
        if isinstance(prompt, str):
            return source.prompt(prompt), None
        if (ids := self._given(prompt)) is not None:
            return ids, None
        messages = [part for part in prompt if isinstance(part, Mapping)]
        if not messages or len(messages) != len(prompt) or messages[-1].get("role") != "user":
            raise UserError("a conversation ends with a message of the user, which is to be "
                            "answered; add one")
        system = [message for message in messages if message.get("role") == "system"]
        what, remedy = ("the prompt", "shorten the prompt") if len(messages) == len(system) + 1 \
            else ("the conversation", "leave out the oldest messages")
        for name, said in (("the system message", system), (what, messages)):
            check_text("".join(str(message.get("content")) for message in said), name)
        if not str(messages[-1].get("content")).strip():
            raise UserError("the question is empty; give at least one word")
        if self._talk is None:
            self._talk = source.conversation()
        return source.fitting(self._talk.continued(messages), what, remedy), self._talk
