"""FlashMLA-ETAP (arXiv:2506.01969): keys on the long axis of the array."""
from __future__ import annotations

from collections.abc import Iterator

from .lab import Lab
from .rows import Row


def rows(lab: Lab) -> Iterator[Row]:
    for mechanism, needs in (
            ("transposed mapping", "keys on the lanes: another walk of keys in Issue, and a sum "
                                   "over lanes"),
            ("lane pairs", "two lanes for a head in decode, where a KV head has few query heads")):
        yield Row(paper="etap", mechanism=mechanism, needs=needs)
