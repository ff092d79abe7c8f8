"""Nucleus: the sum of random weights, and which of them it holds."""
import random

import cocotb
import numpy as np
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.nucleus import Nucleus
from meadowlark_hdl.sampler.sampler_golden import nucleus, weights
from with_tables import WithTables


async def pulse(dut, **inputs):
    for name, value in inputs.items():
        getattr(dut, name).value = int(value)
    await RisingEdge(dut.clk)
    for name in inputs:
        if name != "scaled":
            getattr(dut, name).value = 0


async def round_(dut, rising):
    """-> which are kept."""
    kept = []

    async def take():
        await ClockCycles(dut.clk, Nucleus.LATENCY)
        await ReadOnly()
        kept.append(int(dut.kept.value))
    for z in rising:
        task = cocotb.start_soon(take())
        await pulse(dut, valid=1, scaled=z)
        await ClockCycles(dut.clk, random.choice([4, 4, 5, 7]))
    await task
    await RisingEdge(dut.clk)
    return kept


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def equals_the_golden_model(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for k in range(120):
        count = int(rng.choice([1, 2, 4, 32, rng.integers(1, 33)]))
        spread = int(rng.choice([1, 100, 2**13, 2**17, 2**29]))
        falling = -np.sort(-rng.integers(-spread, spread, count))
        top_p = int(rng.choice([1, 32768, 65535, rng.integers(1, 65536)]))
        if k % 4 == 0:
            falling[:] = falling[0]         # the limit falls between two of equal weight
        await pulse(dut, lead=1, scaled=falling[0])
        await round_(dut, falling[::-1])
        await pulse(dut, sum=1)
        await ReadOnly()
        weight = weights(falling)
        assert int(dut.total.value) == weight.sum()
        await RisingEdge(dut.clk)
        await pulse(dut, limit_en=1, limit=top_p * weight.sum())
        kept = await round_(dut, falling[::-1])
        np.testing.assert_array_equal(kept[::-1], nucleus(weight, top_p))


def test_nucleus(seed):
    simulate(WithTables(Nucleus(), "other"), __name__, seed=seed)
