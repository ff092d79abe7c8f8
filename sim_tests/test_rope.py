"""Rope, shifted and saturated, equals its golden model at its latency, one pair a cycle."""
import cocotb
import numpy as np

from bench import simulate, start
from meadowlark_hdl.compute.rope import Rope
from meadowlark_hdl.compute.rope_golden import rope
from meadowlark_hdl.fixed import rshift, saturate
from pipelines import through


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    edges = [0, 1, -1, 2**14, -2**14, 2**15 - 1, -2**15]
    columns = np.concatenate([
        np.stack(np.meshgrid(*[edges] * 4), -1).reshape(-1, 4),
        rng.integers(-2**15, 2**15, (1000, 4))]).T
    await start(dut)
    a, b = await through(dut, Rope().latency, dict(zip(("a", "b", "cos", "sin"), columns,
                                                     strict=True)), {"o_a": True, "o_b": True})
    for shift, bits in ((14, 16), (21, 8), (0, 16)):
        want_a, want_b = rope(*columns, shift, bits)
        np.testing.assert_array_equal(saturate(rshift(a, shift), bits), want_a)
        np.testing.assert_array_equal(saturate(rshift(b, shift), bits), want_b)


def test_rope(seed):
    simulate(Rope(), __name__, seed=seed)
