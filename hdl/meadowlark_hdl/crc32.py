"""CRC-32 (ISO-HDLC, as zlib's) as sums of bits."""
from __future__ import annotations

from zlib import crc32


def crc32_shares(width: int) -> tuple[list[int], list[int]]:
    """What each bit of a state adds to the state after the next word, and what each bit of that
    word adds: exclusive ors, since a CRC is linear.

    A state is a CRC without its last inversion, the first one all ones. Words come lowest byte
    first.

    Parameters
    ----------
    width : int
        Bits of a word, a multiple of 8.

    Raises
    ------
    ValueError
        It is none.
    """
    if width < 8 or width % 8:
        raise ValueError(f"width must be a multiple of 8 from 8 on, not {width!r}")

    def after(state: int, word: int) -> int:
        return ~crc32(word.to_bytes(width // 8, "little"), ~state & 0xFFFFFFFF) & 0xFFFFFFFF
    return [after(1 << k, 0) for k in range(32)], [after(0, 1 << k) for k in range(width)]
