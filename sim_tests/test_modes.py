"""The table of modes: tiles taken apart byte by byte, as docs/architecture.md describes them."""
import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from meadowlark_hdl.isa import Header, Mode
from meadowlark_hdl.weights.decoder_golden import decode_tile, encode_tile, tile_chunks
from meadowlark_hdl.weights.modes import BLOCK_MODES, MODES

#: Of each mode: bits of a code, what is taken from it, halves of a block.
WANT = {Mode.INT8: (8, None, 0), Mode.INT16: (16, None, 0), Mode.Q8_0: (8, None, 1),
        Mode.Q4_0: (4, 8, 1), Mode.Q4_1: (4, 0, 2)}


def padded(size, W):
    return -(-size // W) * W


def by_hand(raw, mode, values, W):
    """Weights of a tile of so many values, without headers, one after the other."""
    bits, offset, halves = WANT[mode]
    at = padded(values // 32 * 2 * halves, W)
    out = []
    for k in range(values):
        if bits == 16:
            code = int.from_bytes(raw[2 * k:2 * k + 2], "little", signed=True)
        elif bits == 8:
            code = int.from_bytes(raw[at + k:at + k + 1], "little", signed=True)
        else:               # beats in turn in the low and the high halves of a chunk
            byte = raw[at + k // (2 * W) * W + k % W]
            code = (byte >> 4 if k // W % 2 else byte & 15) - offset
        if halves:
            d, m = (*struct.unpack_from(f"<{halves}e", raw, k // 32 * 2 * halves), 0.0)[:2]
            code = math.floor(4 * (Fraction(d) * code + Fraction(m)) + Fraction(1, 2))
        out.append(code)
    return out


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("W", [4, 8, 16, 32])
def test_a_tile_by_hand(mode, W, seed):
    """Sizes, order and values; numbers are such that nothing is rounded before the sum."""
    rng = np.random.default_rng(seed)
    bits, offset, halves = WANT[mode]
    for rows, row_beats in ((1, 32 // W), (3, 32 // W), (2, 64 // W), (5, 32 // W)):
        values = rows * row_beats * W
        scales = rng.integers(-1000, 1000, (values // 32, halves)) / 256
        head = scales.astype("<f2").tobytes()
        raw = head + bytes(-len(head) % W) + rng.bytes(padded(values * bits // 8, W))
        shape = dict(W=W, rows=rows, row_beats=row_beats, mode=mode, header=Header.NONE)
        assert tile_chunks(mode, Header.NONE, rows, row_beats, W) * W == len(raw)
        assert decode_tile(raw, **shape)[3].ravel().tolist() == by_hand(raw, mode, values, W)
        low, high = (-offset, 15 - offset) if bits == 4 else (-1 << bits - 1, (1 << bits - 1) - 1)
        codes = rng.integers(low, high + 1, (rows, row_beats * W))
        parts = {name: half.reshape(rows, -1) for name, half in zip(("scale", "minimum"), scales.T)}
        raw = encode_tile(codes, W=W, mode=mode, **parts)
        assert raw.startswith(head)
        assert decode_tile(raw, **shape)[3].ravel().tolist() == by_hand(raw, mode, values, W)
        assert len(raw) == tile_chunks(mode, Header.NONE, rows, row_beats, W) * W


def test_every_mode_has_a_row():
    """In order, those of blocks last: the decoder compares modes."""
    assert [*MODES] == [*Mode] == [*WANT] and [*BLOCK_MODES] == [*Mode][-len(BLOCK_MODES):]
