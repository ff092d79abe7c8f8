"""Which of the settings that read a DDR3 chip right is the safest."""
from collections.abc import Sequence


def choose(works: Sequence[Sequence[bool]]) -> tuple[int, int] | None:
    """Middle of the longest run of delays that work, the first of equals.

    Parameters
    ----------
    works : sequence of sequences of bool, [bitslip][delay]
        A run does not go on from the last delay to the first: there the data are a cycle apart.

    Returns
    -------
    (bitslip, delay), or None if nothing works. With two middles, the earlier one.
    """
    best, found = 0, None
    for slip, row in enumerate(works):
        for first in range(len(row)):
            length = next((n for n, ok in enumerate(row[first:]) if not ok), len(row) - first)
            if length > best:
                best, found = length, (slip, first + (length - 1) // 2)
    return found
