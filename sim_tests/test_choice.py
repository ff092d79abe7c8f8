"""Choice equals its golden model."""
import random

import cocotb
from bench import simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from meadowlark_hdl.draft import choice_golden
from meadowlark_hdl.draft.choice import Choice
from meadowlark_hdl.draft.choice_golden import MOST_PRICE


async def pulse(dut, name, rest):
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0
    await ClockCycles(dut.clk, rest)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def equals_the_golden_model(dut):
    await start(dut)
    for price in (0, 5, 6, 7, 255, 256, 257, MOST_PRICE, *random.choices(range(1024), k=8)):
        golden, rate = choice_golden.Choice(price), random.choice([0, 0.1, 1, 3])
        dut.price.value = price
        await pulse(dut, "begin", Choice.LATENCY - 1)
        for _ in range(400):
            await ReadOnly()
            had = int(dut.drafts.value)
            await RisingEdge(dut.clk)
            assert had == golden.drafts()
            accepted = had * random.choice([0, int(2 * rate)])
            await pulse(dut, "asked", 1 if accepted else Choice.LATENCY - 1)
            for j in range(accepted):
                golden.accepted()
                await pulse(dut, "accepted", 1 if j + 1 < accepted else Choice.LATENCY - 1)


def test_choice(seed):
    simulate(Choice(), __name__, seed=seed)
