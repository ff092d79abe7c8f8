"""Golden model of the table of drafts: which token follows the last ones, by a hashed table."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

#: Tokens of context that entries stand for. All are looked up at once, and the longest counts.
LENGTHS = (1, 2, 3, 5)
#: Entries of a bucket, which one burst reads.
SLOTS = 4
BUCKET_BYTES = 4 * SLOTS
#: An entry is 32 bits: the token below, the tag above it.
TOKEN_BITS, TAG_BITS = 19, 13
#: No entry: a token that no model has.
EMPTY = 0xFFFFFFFF
#: A bucket's number comes from so many bits of the hash: a multiplier of 18 signed bits takes them.
BUCKET_BITS = 17
#: Buckets of a table at most.
MOST_BUCKETS = (1 << BUCKET_BITS) - 1

#: The hash of no token, and its bits.
START, STATE_BITS = 0x9E3779B9, 32

_WORD = (1 << STATE_BITS) - 1

#: A number, or an array of them (int64).
Numbers = TypeVar("Numbers", int, np.ndarray)


def mix(state: Numbers, token: Numbers) -> Numbers:
    """The hash with one more token, the next older one: an exclusive or, and a step of xorshift32.

    Source: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003, section 3:
    shifts 11, 17 and 13. No bit is lost, so two states stay two; of the triples there it is one
    that brings all bits of small tokens too into the upper bits, which choose the bucket.
    """
    state = state ^ token
    state = state ^ (state << 11 & _WORD)
    state = state ^ (state >> 17)
    return state ^ (state << 13 & _WORD)


def start(like: Numbers) -> Numbers:
    """The hash of no token; of an array's shape."""
    return like * 0 + START


def bucket(state: Numbers, buckets: int) -> Numbers:
    """The bucket of a hash: its upper 17 bits, times 1..2**17 - 1 buckets, without the lower 17."""
    return (state >> STATE_BITS - BUCKET_BITS) * buckets >> BUCKET_BITS


def tag(state: Numbers) -> Numbers:
    """The lower 13 bits of a hash."""
    return state & (1 << TAG_BITS) - 1


def lookup(table: np.ndarray, tokens: Sequence[int]) -> tuple[int, int] | None:
    """What the longest entry says that fits the last tokens.

    Parameters
    ----------
    table : uint32[buckets, 4]
    tokens : sequence of int
        The text so far.

    Returns
    -------
    (token, length of the entry's context), or None
    """
    state, found = START, None
    for n in range(1, min(len(tokens), LENGTHS[-1]) + 1):
        state = mix(state, int(tokens[-n]))
        if n not in LENGTHS:
            continue
        for entry in table[bucket(state, len(table))].tolist():
            if entry >> TOKEN_BITS == tag(state) and entry != EMPTY:
                found = entry & (1 << TOKEN_BITS) - 1, n
                break
    return found
