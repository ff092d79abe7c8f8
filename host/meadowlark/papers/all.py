"""Rows of all papers."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import etap, ffn_fusion, flash_decoding, flash_former, meadow
from .lab import Lab
from .rows import PAPERS, Row

#: What makes the rows of a paper; a new one is a row here and in :data:`.rows.PAPERS`.
_ROWS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "meadow": meadow.rows, "flash-decoding": flash_decoding.rows, "etap": etap.rows,
    "flash-former": flash_former.rows, "ffn-fusion": ffn_fusion.rows}
assert [*_ROWS] == [*PAPERS]


def rows(lab: Lab, papers: Sequence[str] = ()) -> Iterator[Row]:
    """Of some papers, by default all."""
    for paper in papers or PAPERS:
        yield from _ROWS[paper](lab)
