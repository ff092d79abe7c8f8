"""SwiGlu, shifted and saturated, equals its golden model at its latency, one value a cycle."""
import cocotb
import numpy as np

from bench import simulate, start
from meadowlark_hdl.compute.swiglu import SwiGlu
from meadowlark_hdl.compute.swiglu_golden import swiglu
from meadowlark_hdl.fixed import rshift, saturate
from pipelines import through


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    gates = [0, 1, -1, 127, -128, 2**15, -2**15, 2**17 - 1, -2**17]
    ups = [0, 1, -1, 2**15 - 1, -2**15]
    fixed = np.stack(np.meshgrid(gates, ups), -1).reshape(-1, 2)
    drawn = np.stack([rng.integers(-2**17, 2**17, 2000) >> rng.integers(0, 8, 2000),
                      rng.integers(-2**15, 2**15, 2000)], -1)
    gate, up = np.concatenate([fixed, drawn]).T
    await start(dut)
    got, = await through(dut, SwiGlu().latency, {"gate": gate, "up": up}, {"o": True})
    for shift in (0, 11, 20, 63):
        np.testing.assert_array_equal(saturate(rshift(got, shift), 16), swiglu(gate, up, shift))


def test_swiglu(seed):
    simulate(SwiGlu(), __name__, seed=seed)
