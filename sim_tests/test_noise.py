"""Noise equals its golden model, at its latency, for tokens as close as they may be."""
import random

import cocotb
import numpy as np
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.noise import Noise
from meadowlark_hdl.sampler.sampler_golden import gumbel, noise_key
from with_tables import WithTables


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(gap=[4, 6, 0])
async def equals_the_golden_model(dut, gap):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for seed in (0, 2**32 - 1, int(rng.integers(2**32))):
        position = int(rng.integers(2**13))
        key = noise_key(seed, position)
        tokens = [0, 1, 2**19 - 1, *rng.integers(0, 2**19, 150)]
        dut.seed.value, dut.position.value, dut.start.value = seed, position, 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await ClockCycles(dut.clk, Noise.KEYED)
        got = []

        async def take():
            await ClockCycles(dut.clk, Noise.LATENCY)
            await ReadOnly()
            got.append(dut.noise.value.to_signed())
        for token in tokens:
            dut.valid.value, dut.token.value = 1, int(token)
            last = cocotb.start_soon(take())
            await RisingEdge(dut.clk)
            dut.valid.value, dut.token.value = 0, random.getrandbits(19)
            await ClockCycles(dut.clk, (gap or random.choice([4, 6, 7, 8, 10])) - 1)
        await last
        await RisingEdge(dut.clk)
        np.testing.assert_array_equal(got, gumbel(key, np.array(tokens)))


def test_noise(seed):
    simulate(WithTables(Noise(), "urgent"), __name__, seed=seed)
