"""What goes into runs, and what comes out of them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: A message of a conversation: "role" (system, user or assistant) and "content".
Message = Mapping[str, str]
#: A text to go on with, the same as token ids, or a conversation to answer.
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a run gave.

    text: up to a stop text. tokens: ids, a stop id among them. ended: "stop id", "stop text",
    "number of tokens", "context", or "left" where the caller took no more. prompt_tokens: ids of
    the prompt. cached_tokens: those at its front that the KV cache held from earlier runs.
    counters: of the core, see docs/registers.md; the golden model has few.
    """
    text: str
    tokens: tuple[int, ...]
    ended: str
    prompt_tokens: int
    cached_tokens: int
    counters: Mapping[str, int]

    @property
    def cycles_per_token(self) -> float | None:
        """Of the tokens behind the first one, or None: there are none, or nobody counts cycles."""
        if "cycles" not in self.counters or len(self.tokens) < 2:
            return None
        spent = self.counters["cycles"] - self.counters["cycles_first_token"]
        return spent / (len(self.tokens) - 1)


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
