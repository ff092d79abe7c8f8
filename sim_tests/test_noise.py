"""Noise equals its golden model, at its latency, for tokens as close as they may be."""
import random

import cocotb
import numpy as np
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.noise import Noise
from meadowlark_hdl.sampler.sampler_golden import gumbel, lane_seed, noise_key
from with_tables import WithTables


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(gap=[4, 6, 0])
async def equals_the_golden_model(dut, gap):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for seed in (0, 2**32 - 1, int(rng.integers(2**32))):
        tokens = [0, 1, 2**19 - 1, *rng.integers(0, 2**19, 150).tolist()]
        positions = [0, 2**13 - 1, *rng.integers(0, 2**13, len(tokens) - 2).tolist()]
        lanes = [0, 2**32 - 1, *rng.integers(0, 2**32, len(tokens) - 2).tolist()]   # their seeds
        dut.seed.value, dut.start.value = seed, 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await RisingEdge(dut.clk)
        dut.seed.value = random.getrandbits(32)
        await ClockCycles(dut.clk, Noise.SEEDED - 1)
        got = []

        async def one(token):
            await ClockCycles(dut.clk, Noise.HASH)
            dut.token.value = token
            await RisingEdge(dut.clk)
            dut.token.value = random.getrandbits(19)
            await ClockCycles(dut.clk, Noise.LATENCY - Noise.HASH - 1)
            await ReadOnly()
            got.append(dut.noise.value.to_signed())
        for token, position, lane in zip(tokens, positions, lanes, strict=True):
            dut.valid.value, dut.draw.value = 1, position ^ lane_seed(seed, lane)
            last = cocotb.start_soon(one(token))
            await RisingEdge(dut.clk)
            dut.valid.value, dut.draw.value = 0, random.getrandbits(32)
            await ClockCycles(dut.clk, (gap or random.choice([4, 8])) - 1)
        await last
        await RisingEdge(dut.clk)
        assert got == [int(gumbel(noise_key(lane, position), token)) for token, position, lane in
                       zip(tokens, positions, lanes, strict=True)]


def test_noise(seed):
    simulate(WithTables(Noise(), "urgent"), __name__, seed=seed)
