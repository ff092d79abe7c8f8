"""ArgMax: the first or the last of the largest values, as fast as they may come."""
import random

import cocotb
import numpy as np
from bench import simulate, start
from cocotb.triggers import ClockCycles, RisingEdge, ReadOnly

from meadowlark_hdl.config import Config
from meadowlark_hdl.sampler.argmax import ArgMax


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(rising=[0, 1])
async def finds_the_largest(dut, rising):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    for kind in range(40):
        await start(dut, rising=rising)
        count = int(rng.integers(1, 30))
        first = int(rng.choice([7, (1 << Config.TOKEN_BITS) - count]))
        values = rng.choice([-2**31, 2**31 - 1, 0, -1], count) if kind % 2 else \
            rng.integers(-3, 3, count)
        for token, value in enumerate(values, first):
            dut.valid.value, dut.token.value = 1, token
            dut.value.value = int(value) & 0xFFFFFFFF
            await RisingEdge(dut.clk)
            dut.valid.value = 0
            await RisingEdge(dut.clk)
            dut.value.value, dut.token.value = random.getrandbits(32), random.getrandbits(9)
            await ClockCycles(dut.clk, random.choice([0, 0, 1, 5]) or 1)
        await ReadOnly()
        want = count - 1 - np.argmax(values[::-1]) if rising else np.argmax(values)
        assert int(dut.best.value) == want + first
        await RisingEdge(dut.clk)


def test_argmax(seed):
    simulate(ArgMax(), __name__, seed=seed)
