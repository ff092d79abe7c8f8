"""Glu, shifted and saturated, equals its golden model at its latency, one value a cycle."""
import itertools

import cocotb
import numpy as np

from bench import simulate, start
from meadowlark_hdl.compute.glu import Glu
from meadowlark_hdl.compute.glu_golden import alone, glu
from meadowlark_hdl.fixed import rshift, saturate
from meadowlark_hdl.functions import FUNCTIONS
from pipelines import through


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    """All functions of each value, one behind the other."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    gates = [0, 1, -1, 127, -128, 2**15, -2**15, 2**17 - 1, -2**17]
    ups = [0, 1, -1, 2**15 - 1, -2**15]
    fixed = np.stack(np.meshgrid(gates, ups), -1).reshape(-1, 2)
    drawn = np.stack([rng.integers(-2**17, 2**17, 2000) >> rng.integers(0, 8, 2000),
                      rng.integers(-2**15, 2**15, 2000)], -1)
    gate, up = np.concatenate([fixed, drawn]).T
    gate, up = (np.repeat(values, len(FUNCTIONS)) for values in (gate, up))
    fns = np.resize(list(FUNCTIONS), len(gate))
    await start(dut)
    got, = await through(dut, Glu().latency, {"fn": fns, "gate": gate, "up": up}, {"o": True})
    for fn, shift in itertools.product(FUNCTIONS, (0, 11, 20, 63)):
        of, single = fns == fn, (fns == fn) & (up == 1)
        given = saturate(rshift(got, shift), 16)
        np.testing.assert_array_equal(given[of], glu(fn, gate[of], up[of], shift))
        np.testing.assert_array_equal(given[single], alone(fn, gate[single], shift))


def test_glu(seed):
    simulate(Glu(), __name__, seed=seed)
