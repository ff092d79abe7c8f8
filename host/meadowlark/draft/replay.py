"""Drafts for recorded conversations, all positions at once.

Equal to :mod:`meadowlark_hdl.draft.drafter_golden`, pass by pass. That rests on one thing: a draft
counts only if all before it in its pass were right, and then the text it is drafted from is the
recorded one.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meadowlark_hdl.draft.context_match_golden import LONGEST, SHORTEST, WINDOW
from meadowlark_hdl.draft.drafter_golden import NEVER
from meadowlark_hdl.draft.table_lookup_golden import (EMPTY, LENGTHS, TOKEN_BITS, bucket, mix,
                                                      start, tag)

from .conversations import Conversations

#: No token.
NONE = -1


def contexts(said: Conversations, longest: int) -> list[np.ndarray]:
    """For each token a number for the n tokens before it, for n = 0..longest: equal where they are,
    -1 where the conversation has fewer."""
    before = np.roll(said.tokens, 1)
    numbers = [np.zeros(len(said.tokens), np.int64)]
    for n in range(1, longest + 1):
        # The n - 1 tokens before the token before, and that one.
        both = np.roll(numbers[-1], 1) << TOKEN_BITS | before
        both[said.positions < n] = NONE
        numbers.append(np.unique(both, return_inverse=True)[1] + both.min(initial=0))
    return numbers


def _latest(said: Conversations, number: np.ndarray) -> np.ndarray:
    """int64[all]: the last token before each that has the same tokens before it; NONE."""
    at = np.nonzero(number >= 0)[0]
    at = at[np.lexsort((at, number[at], said.conversation[at]))]
    same = (number[at][1:] == number[at][:-1]) \
        & (said.conversation[at][1:] == said.conversation[at][:-1])
    found = np.full(len(number), NONE)
    found[at[1:][same]] = at[:-1][same]
    return found


def matches(said: Conversations, numbers: list[np.ndarray],
            window: int = WINDOW) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`meadowlark_hdl.draft.context_match_golden.match` finds before each token.

    numbers: of :func:`contexts`.

    Returns
    -------
    at : int64[all]
        Index of the token behind the match, NONE where there is none.
    length : int64[all]
        0, or 2..4.
    """
    at, length = np.full(len(said.tokens), NONE), np.zeros(len(said.tokens), np.int64)
    for n in range(SHORTEST, LONGEST + 1):
        latest = _latest(said, numbers[n])
        # The first token of the match is one of those swept, which end before the last one.
        ok = (latest >= 0) & (latest - n >= np.arange(len(latest)) - 1 - window)
        at[ok], length[ok] = latest[ok], n
    return at, length


def hashes(said: Conversations) -> dict[int, np.ndarray]:
    """For each length of an entry's context int64[all]: hash of so many tokens before each."""
    state, found = start(said.tokens), {}
    for n in range(1, LENGTHS[-1] + 1):
        state = mix(state, np.roll(said.tokens, n))
        found[n] = state
    return {n: found[n] for n in LENGTHS}


def lookups(said: Conversations, table: np.ndarray) -> np.ndarray:
    """int64[all]: what :func:`meadowlark_hdl.draft.table_lookup_golden.lookup` says before each
    token, NONE where nothing."""
    says = np.full(len(said.tokens), NONE)
    for n, state in hashes(said).items():
        entries = table[bucket(state, len(table))].astype(np.int64)
        fits = (entries >> TOKEN_BITS == tag(state)[:, None]) & (entries != EMPTY)
        first = entries[np.arange(len(entries)), fits.argmax(axis=1)] & (1 << TOKEN_BITS) - 1
        says = np.where(fits.any(axis=1) & (said.positions >= n), first, says)
    return says


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Passes that drafts lead to. accepted[j]: those of which j drafts were right, j = 0..k."""
    accepted: tuple[int, ...]

    @property
    def passes(self) -> int:
        return sum(self.accepted)

    @property
    def tokens(self) -> int:
        """Tokens of all passes."""
        return sum((1 + j) * passes for j, passes in enumerate(self.accepted))

    @property
    def tokens_per_pass(self) -> float:
        """1 where nothing was to be drafted."""
        return self.tokens / self.passes if self.passes else 1.0

    def as_dict(self) -> dict:
        return {"tokens_per_pass": self.tokens_per_pass, "tokens": self.tokens,
                "passes": self.passes, "accepted": list(self.accepted)}


def right(said: Conversations, k: int, matched: tuple[np.ndarray, np.ndarray] | None,
          says: np.ndarray | None, least: int) -> np.ndarray:
    """int64[all]: how many of the k drafts would be right, of a pass that draws this token next.

    matched: of :func:`matches`; None: the table drafts alone. says: of :func:`lookups`; None: the
    context drafts alone. least: see :func:`meadowlark_hdl.draft.drafter_golden.draft`.
    """
    size = len(said.tokens)
    true = np.append(said.tokens, [NONE - 1] * k)
    table = np.append(np.full(size, NONE) if says is None else says, [NONE] * k)
    if says is None:
        least = SHORTEST
    if matched is None:
        at, length = np.full(size, NONE), np.zeros(size, np.int64)
    else:
        at, length = (array.copy() for array in matched)
    count, good = np.zeros(size, np.int64), np.ones(size, bool)
    for j in range(k):
        here = np.arange(j, size + j)
        goes_on = np.where(length > 0, true[at], NONE)
        first = (length >= least) | (table[here] == NONE)
        token = np.where(first, goes_on, table[here])
        good &= token == true[here]
        good[size - j:] = False             # beyond the last token
        count += good
        on = (goes_on == true[here]) & (length > 0)
        at, length = np.where(on, at + 1, NONE), np.where(on, np.minimum(length + 1, LONGEST), 0)
    return count


def replay(said: Conversations, k: int, count: np.ndarray) -> Replay:
    """The passes from the second token of each answer to its last.

    count: of :func:`right`.
    """
    accepted = [0] * (k + 1)
    ends = (said.starts + said.lengths).tolist()
    counts = count.tolist()
    for begin, end in zip((said.starts + said.prompt_lengths + 1).tolist(), ends, strict=True):
        at = begin
        while at < end:
            n = min(counts[at], end - at - 1)
            accepted[n] += 1
            at += 1 + n
    return Replay(accepted=tuple(accepted))


def measure(said: Conversations, k: int, table: np.ndarray | None, least: int) -> dict[str, Replay]:
    """Table and context together, and each alone; without a table the context alone.

    Parameters
    ----------
    said : Conversations
    k : int
        Drafts of a pass.
    table : uint32[buckets, 4] or None
    least : int, 2..5

    Returns
    -------
    dict of Replay
        By ``together``, ``context`` and ``table``.
    """
    matched = matches(said, contexts(said, LONGEST))
    ways: dict[str, tuple] = {"context": (matched, None, NEVER)}
    if table is not None:
        says = lookups(said, table)
        ways = {"together": (matched, says, least), **ways, "table": (None, says, least)}
    return {name: replay(said, k, right(said, k, *way)) for name, way in ways.items()}
