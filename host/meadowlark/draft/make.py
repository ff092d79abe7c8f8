"""A table of drafts from conversations: which entries bring most, and where they lie.

Pruned from the shortest context up: an entry is worth the tokens that it has right and the entries
for shorter contexts, as far as they are in the table, have wrong, less those that it spoils. What
these say anyway brings nothing and is left out.

Source: the n-gram tables are those of He et al., REST, arXiv:2311.08252, section 3, made of what
the model writes; pruning by what an entry adds to its back-off is that of Stolcke,
arXiv:cs/0006025, with right drafts in place of entropy.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from meadowlark_hdl.draft.context_match_golden import LONGEST, SHORTEST
from meadowlark_hdl.draft.drafter_golden import NEVER
from meadowlark_hdl.draft.table_lookup_golden import (BUCKET_BYTES, EMPTY, LENGTHS,
                                                      MOST_BUCKETS, SLOTS, TOKEN_BITS, bucket, tag)

from ..errors import UserError
from .conversations import Conversations
from .replay import contexts, hashes, lookups, matches, replay, right

#: Bytes of a table at most.
LARGEST = BUCKET_BYTES * MOST_BUCKETS
#: One conversation of so many is held out to see from which length on matches of the context stand
#: before the table, with so many drafts.
HELD_OUT, DRAFTS = 8, 7
#: A table has at most so many places for an entry, or so many buckets.
ROOM, FEW = 2, 64

#: Gets a sentence.
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Entries:
    """Candidates: hash of each context, the token behind it, what it brings, how often it was."""
    state: np.ndarray
    token: np.ndarray
    gain: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.state)


class _Counts:
    """What follows each context where the table is asked."""

    def __init__(self, said: Conversations, numbers: list[np.ndarray], asked: np.ndarray) -> None:
        self.at = np.nonzero(asked)[0]
        self.tokens = said.tokens[self.at]
        self.states = hashes(said)
        self.numbers = {n: numbers[n][self.at] for n in LENGTHS}
        self.best = {n: self._best(n) for n in LENGTHS}

    def _best(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """By number of the context: the token that follows most often, and how often it does; of
        equals the smallest. Where none is asked for: 0, 0 times."""
        number, token = self.numbers[n], self.tokens
        known = number >= 0
        pairs, times = np.unique(number[known] << TOKEN_BITS | token[known], return_counts=True)
        of = pairs >> TOKEN_BITS
        order = np.lexsort((-pairs, times, of))         # the last of a context is the best
        of, last = of[order], np.append(np.diff(of[order]) > 0, True)[:len(of)]
        best = np.zeros((2, number.max(initial=NEVER) + 1), np.int64)
        best[:, of[last]] = pairs[order][last] & (1 << TOKEN_BITS) - 1, times[order][last]
        return best[0], best[1]

    def entries(self, least: int) -> _Entries:
        """Those that bring at least so much."""
        behind = np.zeros(len(self.at), bool)           # shorter contexts are right
        found = []
        for n in LENGTHS:
            number, (token, times) = self.numbers[n], self.best[n]
            known = number >= 0
            good = known & (token[number] == self.tokens)
            gain = np.bincount(number[known], minlength=len(token),
                               weights=good[known].astype(np.int64) - behind[known])
            gain = gain.astype(np.int64)
            kept = gain >= least
            has = known & kept[number]
            behind = np.where(has, good, behind)
            where = np.zeros(len(token), np.int64)
            where[number[has]] = self.at[has]           # any place where the context is
            found.append(_Entries(state=self.states[n][where[kept]], token=token[kept],
                                  gain=gain[kept], count=times[kept]))
        return _Entries(**{name: np.concatenate([getattr(part, name) for part in found])
                           for name in ("state", "token", "gain", "count")})


def _placed(entries: _Entries, buckets: int) -> np.ndarray:
    """uint32[buckets, 4]: of the entries that belong in a bucket those that bring most."""
    at = bucket(entries.state, buckets)
    order = np.lexsort((entries.state, -entries.count, -entries.gain, at))
    at = at[order]
    rank = np.arange(len(at)) - np.searchsorted(at, at)
    there = rank < SLOTS
    table = np.full((buckets, SLOTS), EMPTY, np.uint32)
    table[at[there], rank[there]] = (tag(entries.state) << TOKEN_BITS
                                     | entries.token)[order][there]
    return table


def _table(said: Conversations, numbers: list[np.ndarray],
           matched: tuple[np.ndarray, np.ndarray], buckets: int, least: int) -> np.ndarray:
    counts = _Counts(said, numbers, said.drafted & (matched[1] < least))
    # The highest bar that still fills the table: what is left out brings least.
    low, high = 1, 2
    while len(counts.entries(high)) >= SLOTS * buckets:
        low, high = high, 2 * high
    while high - low > 1:
        bar = (low + high) // 2
        low, high = (bar, high) if len(counts.entries(bar)) >= SLOTS * buckets else (low, bar)
    entries = counts.entries(low)
    # Where all fit twice over, few find their bucket full.
    return _placed(entries, min(buckets, max(FEW, ROOM * len(entries) // SLOTS)))


def make(said: Conversations, size: int, progress: Progress = lambda text: None,
         ) -> tuple[np.ndarray, int]:
    """A table of a size.

    Parameters
    ----------
    said : Conversations
    size : int
        Bytes at most, 16 to 2,097,136; a smaller one where the entries that bring anything are so
        few.
    progress : callable, optional

    Returns
    -------
    table : uint32[buckets, 4]
    least : int, 2..5
        See :func:`meadowlark_hdl.draft.drafter_golden.draft`: what was best for conversations that
        were held out.

    Raises
    ------
    UserError
        The size is not one, or nothing is to be drafted.
    """
    if not BUCKET_BYTES <= size <= LARGEST:
        raise UserError(f"a table of drafts has {BUCKET_BYTES} to {LARGEST:,} bytes, not {size:,}")
    if not said.drafted.any():
        raise UserError("there are no answers of two tokens or more to make a table from")
    progress("looking for what the text repeats")
    longest = max(LONGEST, *LENGTHS)
    numbers = contexts(said, longest)
    matched = matches(said, numbers)
    buckets = size // BUCKET_BYTES
    least = SHORTEST
    if len(said) >= HELD_OUT:
        progress("weighing the table against the context")
        kept = len(said) - len(said) // HELD_OUT
        first, rest = said.part(slice(None, kept)), said.part(slice(kept, None))
        cut = len(first.tokens)
        table = _table(first, [number[:cut] for number in numbers],
                       (matched[0][:cut], matched[1][:cut]), buckets, NEVER)
        says, found = lookups(rest, table), matches(rest, contexts(rest, LONGEST))
        least = max(range(SHORTEST, NEVER + 1), key=lambda n: replay(
            rest, DRAFTS, right(rest, DRAFTS, found, says, n)).tokens_per_pass)
    progress("choosing entries")
    table = _table(said, numbers, matched, buckets, least)
    return table, least
