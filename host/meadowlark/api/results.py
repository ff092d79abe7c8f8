"""What goes into runs, and what comes out of them."""
from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict

from ..text.stopped import StoppedText, why_ended

if TYPE_CHECKING:
    import numpy as np
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..run.targets import Drafting, Event

#: A message of a conversation: "role" (system, user or assistant) and "content".
Message = Mapping[str, str]
#: A text to go on with, the same as token ids, or a conversation to answer.
Prompt = str | Sequence[int] | Sequence[Message]


class DrawingOptions(TypedDict, total=False):
    """How tokens are drawn, and how many; see :meth:`.Chip.steps`."""
    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float


class TextOptions(DrawingOptions, total=False):
    """How a text goes on, and where it ends; see :meth:`.Chip.steps`."""
    stop: str | Sequence[str]
    ignore_eos: bool


class Options(TextOptions, total=False):
    """Of a run; see :meth:`.Chip.steps`."""
    seed: int
    draft: str | int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a run gave.

    text: up to a stop text. tokens: ids, a stop id among them. ended: "stop id", "stop text",
    "number of tokens", "context", or "left" where the caller took no more. prompt_tokens: ids of
    the prompt. cached_tokens: those at its front that the KV cache held from earlier runs.
    counters: of the core, see docs/registers.md; the golden model has few, and a run that failed
    none. seconds: here, from the start to the last token.
    """
    text: str
    tokens: tuple[int, ...]
    ended: str
    prompt_tokens: int
    cached_tokens: int
    counters: Mapping[str, int]
    seconds: float = field(compare=False)

    @property
    def cycles_per_token(self) -> float | None:
        """Of the tokens behind the first one, or None: there are none, or nobody counts cycles."""
        if "cycles" not in self.counters or len(self.tokens) < 2:
            return None
        spent = self.counters["cycles"] - self.counters["cycles_first_token"]
        return spent / (len(self.tokens) - 1)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second here: of a simulation that is not the speed of the board."""
        return len(self.tokens) / max(self.seconds, 1e-9)

    @property
    def drafted(self) -> int:
        """Drafts that passes checked."""
        return self.counters.get("drafted", 0)

    @property
    def accepted(self) -> int:
        """Drafts that were right."""
        return self.counters.get("accepted", 0)

    @property
    def tokens_per_pass(self) -> float:
        """Of the passes behind the prompt's last one, which gives the first token; 1 where there
        were none."""
        return 1 + self.accepted / max(len(self.tokens) - 1 - self.accepted, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A token of a run, and the text that is sure with it.

    text: often "", where a token has part of a character or what may begin a stop text. token: None
    with the rest of the text at the end. logits: int32[vocab] it was drawn from, in units of
    ``2**-LOGIT_FRAC`` (:mod:`meadowlark.quant.quantise`), or None where the target shows none.
    """
    text: str
    token: int | None = None
    logits: np.ndarray | None = None


#: A run as it goes on; closing it ends the run.
Steps = Generator[Step, None, None]


@dataclass(kw_only=True, eq=False)
class Run:
    """A text on its way: what was asked for, and what came of it so far.

    prompt: ids. sampling, drafts: how its tokens are drawn, and guessed; None: nobody guesses.
    max_tokens: as it was asked for. stop_ids: tokens that end it and are no part of the text.
    whole: it was not left, nor did it fail. comparable: logits are kept, to be compared.
    """
    prompt: Sequence[int]
    sampling: Sampling
    drafts: Drafting | None = None
    max_tokens: int | None
    stop_ids: Sequence[int]
    text: StoppedText
    events: list[Event] = field(default_factory=list)
    counters: Mapping[str, int] = field(default_factory=dict)
    whole: bool = False
    comparable: bool = True
    begun: float = field(default_factory=time.monotonic)
    latest: float = field(default_factory=time.monotonic)

    def push(self, event: Event) -> Step:
        """A token has come."""
        self.latest = time.monotonic()
        self.events.append(event if self.comparable else replace(event, logits=None))
        over = event.token in self.stop_ids
        return Step(text="" if over else self.text.push(event.token), token=event.token,
                    logits=event.logits)

    def end(self, *, cached: int, counters: Mapping[str, int]) -> Completion:
        """Nothing more comes."""
        self.counters, tokens = counters, tuple(event.token for event in self.events)
        return Completion(
            text=self.text.text, tokens=tokens, prompt_tokens=len(self.prompt),
            cached_tokens=cached, counters=counters, seconds=self.latest - self.begun,
            ended=why_ended(tokens, self.stop_ids, self.text.stopped,
                            len(tokens) == self.max_tokens) if self.whole else "left")
