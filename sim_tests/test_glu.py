"""Glu, shifted and saturated, equals its golden model at its latency, one value a cycle."""
import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from bench import simulate, start
from meadowlark_hdl.compute.glu import Glu
from meadowlark_hdl.compute.glu_golden import alone, glu
from meadowlark_hdl.fixed import rshift, saturate
from meadowlark_hdl.functions import FUNCTIONS
from pipelines import through


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(fn=list(FUNCTIONS))
async def matches_golden(dut, fn):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    gates = [0, 1, -1, 127, -128, 2**15, -2**15, 2**17 - 1, -2**17]
    ups = [0, 1, -1, 2**15 - 1, -2**15]
    fixed = np.stack(np.meshgrid(gates, ups), -1).reshape(-1, 2)
    drawn = np.stack([rng.integers(-2**17, 2**17, 2000) >> rng.integers(0, 8, 2000),
                      rng.integers(-2**15, 2**15, 2000)], -1)
    gate, up = np.concatenate([fixed, drawn]).T
    await start(dut, fn=fn)
    await ClockCycles(dut.clk, 2)
    got, = await through(dut, Glu().latency, {"gate": gate, "up": up}, {"o": True})
    for shift in (0, 11, 20, 63):
        given = saturate(rshift(got, shift), 16)
        np.testing.assert_array_equal(given, glu(fn, gate, up, shift))
        np.testing.assert_array_equal(given[up == 1], alone(fn, gate[up == 1], shift))


def test_glu(seed):
    simulate(Glu(), __name__, seed=seed)
