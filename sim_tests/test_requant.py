"""Requant equals its golden model at its latency, one result a cycle."""
from fractions import Fraction
from math import floor

import cocotb
import numpy as np

from bench import simulate, start
from meadowlark_hdl.compute.requant import Requant
from meadowlark_hdl.compute.requant_golden import requant
from pipelines import through

ACC = [0, 1, -1, 2**16, -2**16, 2**17 - 1, 2**17, -2**17, 2**34 - 1, 2**34, -2**34, -2**34 - 1,
       2**44 - 1, -2**44]
BIAS = [0, 1, -1, 2**31 - 1, -2**31]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    rows = [(a, mant, s, bias) for a in ACC for mant in (0, 1, 32768, 65535)
            for s in (0, 1, 15, 31, 60, 63) for bias in BIAS]
    n = 3000
    acc = rng.integers(-2**44, 2**44, n) >> rng.integers(0, 45, n)
    mant = rng.integers(0, 2**16, n)
    # Mostly shifts that leave something between 0 and the limits.
    size = np.log2(np.abs(acc * mant) + 1).astype(int)
    s = np.clip(size - rng.integers(-2, 36, n), 0, 63)
    bias = rng.integers(-2**31, 2**31, n) >> rng.integers(0, 32, n)
    columns = [np.concatenate([fixed, drawn]) for fixed, drawn in zip(
        np.array(rows, np.int64).T, (acc, mant, s, bias), strict=True)]
    await start(dut)
    got, = await through(dut, Requant().latency, dict(zip(
        ("acc", "mant", "shift", "bias"), columns, strict=True)), {"o": True})
    np.testing.assert_array_equal(got, requant(*columns))


def test_requant(seed):
    simulate(Requant(), __name__, seed=seed)


def test_golden_against_exact_rationals():
    for acc in ACC:
        for mant, shift in ((1, 0), (1, 1), (3, 2), (65535, 16), (65535, 43), (32768, 63)):
            for bias in BIAS:
                exact = floor(Fraction(acc * mant, 1 << shift) + Fraction(1, 2)) + bias
                assert requant(acc, mant, shift, bias) == max(-2**31, min(2**31 - 1, exact))
