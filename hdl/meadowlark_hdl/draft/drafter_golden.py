"""Golden model of the drafter: the context's match and the table by one rule."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .context_match_golden import LONGEST, WINDOW, match
from .table_lookup_golden import lookup

#: No match of the context stands before an entry of the table.
NEVER = LONGEST + 1


def draft(tokens: Sequence[int], k: int, table: np.ndarray | None = None, *, least: int = 2,
          context: bool = True, window: int = WINDOW) -> list[int]:
    """The next tokens, as far as the context and the table say anything of them.

    The context is matched once. Its match goes on, and becomes longer, as long as it is what is
    drafted. A step takes what the match goes on with if it has ``least`` tokens; else what the
    table says; else what a shorter match goes on with.

    Parameters
    ----------
    tokens : sequence of int
        The text so far, with the token that was last drawn.
    k : int
        Drafts at most.
    table : uint32[buckets, 4], optional
        See :func:`.table_lookup_golden.lookup`; without it the context drafts alone.
    least : int, 2..5
        Tokens of a match that stands before the table; 5: none does.
    context : bool
        False: the table drafts alone.
    window : int
        See :func:`.context_match_golden.match`.

    Returns
    -------
    list of 0..k ids
        Ends where neither says anything.
    """
    text = list(tokens)
    at, length = (match(text, window) if context else None) or (0, 0)
    for _ in range(k):
        goes_on = text[at] if length else None
        token = goes_on
        if table is not None and length < least:
            entry = lookup(table, text)
            token = goes_on if entry is None else entry[0]
        if token is None:
            break
        at, length = (at + 1, min(length + 1, LONGEST)) if token == goes_on else (0, 0)
        text.append(token)
    return text[len(tokens):]
