"""Reciprocal and Share equal the golden functions at their latency, one value a cycle."""
import cocotb
import numpy as np
import pytest

from bench import simulate, start
from meadowlark_hdl import fixed, functions
from meadowlark_hdl.compute.function import Reciprocal, Share
from meadowlark_hdl.functions import FUNCTIONS
from pipelines import through


def _positive(rng, bits):
    """Powers of two, their neighbours, and numbers of every size."""
    powers = [1 << k for k in range(bits)]
    edges = {x for p in powers for x in (p - 1, p, p + 1)} | {(1 << bits) - 1}
    drawn = rng.integers(0, 2**64, 1500, np.uint64, endpoint=False) >> rng.integers(
        64 - bits, 64, 1500).astype(np.uint64)
    return sorted(x for x in edges | {int(x) for x in drawn} if 0 < x < 1 << bits)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reciprocal(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    linear, roots = _positive(rng, 32), _positive(rng, 64)
    x = np.array(linear + roots, object)
    root = np.repeat([0, 1], [len(linear), len(roots)])
    mixed = rng.permutation(len(x))
    x, root = x[mixed], root[mixed]
    await start(dut)
    t, k = await through(dut, Reciprocal().latency, {"x": x, "root": root},
                         {"t": False, "k": False})
    is_root = root.astype(bool)
    want_t, want_k = fixed.recip(x[~is_root].astype(np.int64))
    np.testing.assert_array_equal(t[~is_root], want_t)
    np.testing.assert_array_equal(k[~is_root], want_k)
    want_t, want_j = fixed.rsqrt(x[is_root].astype(np.uint64))
    np.testing.assert_array_equal(t[is_root], want_t)
    np.testing.assert_array_equal(k[is_root] >> 1, want_j)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def share(dut):
    """All functions of each value, one behind the other."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    steps = np.arange(-256, 257) * 64
    ends = [way * end + k for end in (2**13, 2**14, 2**15) for way in (-1, 1) for k in (-1, 0, 1)]
    g = np.concatenate([steps, steps - 1, steps + 1, [2**17 - 1, -2**17], ends,
                        rng.integers(-2**17, 2**17, 1000), rng.integers(-2**13, 2**13, 1000)])
    g, fn = np.repeat(g, len(FUNCTIONS)), np.tile(list(FUNCTIONS), len(g))
    await start(dut)
    got, = await through(dut, Share().latency, {"fn": fn, "g": g}, {"o": False})
    for each in FUNCTIONS:
        np.testing.assert_array_equal(got[fn == each], functions.share(each, g[fn == each]))


@pytest.mark.parametrize("unit", [Reciprocal, Share])
def test_function(unit, seed):
    simulate(unit(), __name__, seed=seed, testcase=unit.__name__.lower())
