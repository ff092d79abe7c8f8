"""Golden model of the context match: where the text went on after its last tokens stood before."""
from __future__ import annotations

from collections.abc import Sequence

#: Tokens that are compared at most, and at least.
LONGEST, SHORTEST = 4, 2
#: Tokens that are swept at most, the newest: a cycle each.
WINDOW = 896


def match(tokens: Sequence[int], window: int = WINDOW) -> tuple[int, int] | None:
    """The longest of the last 4, 3 or 2 tokens that stand earlier too; of equal ones the newest.

    Source: Saxena, "Prompt lookup decoding" (github.com/apoorvumang/prompt-lookup-decoding).
    Newest first in one sweep: a token is compared with the last four at once, and what a token
    before it began goes on or not.

    Parameters
    ----------
    tokens : sequence of int
        The text so far. Its last token is not swept.
    window : int
        Tokens before the last one that are swept; a match lies within them.

    Returns
    -------
    (position of the token behind the match, length of the match: 2..4), or None
    """
    n = len(tokens)
    last = [tokens[n - 1 - j] if j < n else None for j in range(LONGEST)]
    found: dict[int, int] = {}
    going = [True] + [False] * LONGEST      # [j]: the j tokens behind this one match
    for i in range(n - 2, max(0, n - 1 - window) - 1, -1):
        equal = [tokens[i] == token for token in last]
        going = [True] + [going[j] and equal[j] for j in range(LONGEST)]
        for length in range(SHORTEST, LONGEST + 1):
            if going[length]:
                found.setdefault(length, i + length)
        if LONGEST in found:                # no better one can come
            break
    return next(((found[length], length) for length in range(LONGEST, SHORTEST - 1, -1)
                 if length in found), None)
