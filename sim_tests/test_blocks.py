"""Blocks of 32 codes: against the gguf package, bit for bit, and against the definition."""
from fractions import Fraction

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from meadowlark.models.blocks import BLOCK, KINDS, BlockTensor


def random_blocks(kind, rows, columns, seed):
    """uint8[rows, bytes]: any codes, scales of any size and sign."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // BLOCK, KINDS[kind]), np.uint8)
    for at in (0, 2) if kind == "Q4_1" else (0,):
        half = rng.normal(size=raw.shape[:2]) * 2.0 ** rng.integers(-24, 15, raw.shape[:2])
        raw[..., at:at + 2] = half.astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_library(kind, seed):
    raw = random_blocks(kind, 48, 160, seed)
    blocks = BlockTensor.from_bytes(kind, raw)
    want = quants.dequantize(raw, GGMLQuantizationType[kind])
    got = blocks.dequantised()
    assert got.dtype == np.float32 and (blocks.rows, blocks.columns) == got.shape == (48, 160)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("kind, low, high", [("Q8_0", -128, 127), ("Q4_0", -8, 7), ("Q4_1", 0, 15)])
def test_parts(kind, low, high, seed):
    """Codes use their whole range; weight = code * scale + minimum, to two roundings."""
    blocks = BlockTensor.from_bytes(kind, random_blocks(kind, 64, 256, seed))
    assert blocks.codes.dtype == np.int8 and blocks.codes.shape == (64, 256)
    assert (blocks.codes.min(), blocks.codes.max()) == (low, high)
    assert blocks.scale.dtype == np.float16 and blocks.scale.shape == (64, 8)
    assert (blocks.minimum is not None) == (kind == "Q4_1")
    weights = blocks.dequantised()
    for row, column in ((0, 0), (5, 31), (6, 32), (63, 255)):
        at = row, column // BLOCK
        exact = int(blocks.codes[row, column]) * Fraction(float(blocks.scale[at]))
        bound = abs(exact)
        if blocks.minimum is not None:
            exact += Fraction(float(blocks.minimum[at]))
            bound += abs(exact)
        assert abs(Fraction(float(weights[row, column])) - exact) <= bound / 2**24


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, seed):
    """What the library quantised comes back within half a step of its block."""
    weights = np.random.default_rng(seed).normal(size=(16, 96)).astype(np.float32)
    blocks = BlockTensor.from_bytes(kind, quants.quantize(weights, GGMLQuantizationType[kind]))
    step = np.repeat(np.abs(blocks.scale.astype(np.float32)), BLOCK, axis=1)
    # Q4_0 has one code more below than above: the other end may be a step away.
    share = 1.01 if kind == "Q4_0" else 0.51
    assert (np.abs(blocks.dequantised() - weights) <= share * step + 1e-2).all()
