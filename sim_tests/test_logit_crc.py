"""LogitCrc equals the golden CRC of each turn's logits, as fast as they may come."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.logit_crc import LogitCrc
from meadowlark_hdl.sampler.sampler_golden import logits_crc


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def equals_the_golden_model(dut):
    rng, turns = np.random.default_rng(cocotb.RANDOM_SEED), int(os.environ["TURNS"])
    await start(dut)
    for _ in range(40):
        logits = rng.integers(-2**31, 2**31, (int(rng.integers(1, turns + 1)),
                                              int(rng.integers(1, 30))))
        for k in range(logits.shape[1]):
            for turn in range(len(logits)):
                dut.valid.value, dut.value.value = 1, int(logits[turn, k]) & 0xFFFFFFFF
                dut.first.value = int(k == 0)
                if turns > 1:
                    dut.turn.value = turn
                await RisingEdge(dut.clk)
                dut.valid.value, dut.value.value = 0, random.getrandbits(32)
                dut.first.value = random.getrandbits(1)
                await ClockCycles(dut.clk, random.choice([3, 3, 4, 9]))
        await ClockCycles(dut.clk, LogitCrc.LATENCY - 4)
        for turn in rng.permutation(len(logits)):
            if turns > 1:
                dut.turn.value = int(turn)
                await RisingEdge(dut.clk)
            await ReadOnly()
            assert int(dut.crc.value) == logits_crc(logits[turn])
            await RisingEdge(dut.clk)


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_logit_crc(seed, turns):
    simulate(LogitCrc(turns), __name__, seed=seed, turns=turns)
