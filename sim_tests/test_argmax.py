"""ArgMax: the first or the last of the largest values of each turn, as fast as they may come."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import simulate, start
from cocotb.triggers import ClockCycles, RisingEdge, ReadOnly

from meadowlark_hdl.config import Config
from meadowlark_hdl.sampler.argmax import ArgMax


async def best_of(dut, turns, turn):
    if turns > 1:
        dut.turn.value = turn
        await RisingEdge(dut.clk)
    await ReadOnly()
    found = int(dut.best.value)
    await RisingEdge(dut.clk)
    return found


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(rising=[0, 1])
async def finds_the_largest(dut, rising):
    rng, turns = np.random.default_rng(cocotb.RANDOM_SEED), int(os.environ["TURNS"])
    await start(dut, rising=rising)
    for kind in range(40):              # begun anew by what comes first
        count = int(rng.integers(1, 30))
        first = int(rng.choice([7, (1 << Config.TOKEN_BITS) - count]))
        shape = int(rng.integers(1, turns + 1)), count
        values = rng.choice([-2**31, 2**31 - 1, 0, -1], shape) if kind % 2 else \
            rng.integers(-3, 3, shape)
        for token in range(count):
            for turn in range(len(values)):
                dut.valid.value, dut.token.value = 1, first + token
                dut.first.value = int(token == 0)
                if turns > 1:
                    dut.turn.value = turn
                dut.value.value = int(values[turn, token]) & 0xFFFFFFFF
                await RisingEdge(dut.clk)
                dut.valid.value, dut.first.value = 0, random.getrandbits(1)
                await ClockCycles(dut.clk, 2)
                dut.value.value, dut.token.value = random.getrandbits(32), random.getrandbits(9)
                await ClockCycles(dut.clk, random.choice([0, 0, 1, 5]) or 1)
        for turn in rng.permutation(len(values)):
            x = values[turn]
            want = count - 1 - np.argmax(x[::-1]) if rising else np.argmax(x)
            assert await best_of(dut, turns, int(turn)) == want + first


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_argmax(seed, turns):
    simulate(ArgMax(turns), __name__, seed=seed, turns=turns)
