"""LogitCrc equals the golden CRC of logits as fast as they may come, begun anew at any time."""
import random

import cocotb
import numpy as np
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.logit_crc import LogitCrc
from meadowlark_hdl.sampler.sampler_golden import logits_crc


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def equals_the_golden_model(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for _ in range(50):
        logits = rng.integers(-2**31, 2**31, int(rng.integers(30)))
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for value in logits:
            dut.logit__valid.value, dut.logit__value.value = 1, int(value) & 0xFFFFFFFF
            await RisingEdge(dut.clk)
            dut.logit__valid.value, dut.logit__value.value = 0, random.getrandbits(32)
            await ClockCycles(dut.clk, random.choice([3, 3, 4, 9]))
        await ClockCycles(dut.clk, 2)           # 6 after the last one
        await ReadOnly()
        assert int(dut.crc.value) == logits_crc(logits)
        await RisingEdge(dut.clk)
        dut.logit__valid.value = 1              # in mid logit
        await RisingEdge(dut.clk)
        dut.logit__valid.value = 0
        await ClockCycles(dut.clk, random.randrange(6))


def test_logit_crc(seed):
    simulate(LogitCrc(), __name__, seed=seed)
