"""Turns: rows as close as they may come, of any number of logits; begun anew at any time."""
import os
import random

import cocotb
import pytest
from bench import cycles, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.sampler.turns import Turns


async def rows(dut, values, gap):
    """Rows of logits, one a cycle; what stands between them means nothing."""
    for row, logits in enumerate(values):
        for value in logits:
            dut.i__valid.value, dut.i__row.value, dut.i__value.value = 1, row, value & 0xFFFFFFFF
            await RisingEdge(dut.clk)
            dut.i__valid.value = 0
            dut.i__row.value, dut.i__value.value = random.getrandbits(19), random.getrandbits(32)
        rest = max(4 * len(logits), 4) + gap() - len(logits)
        if rest:
            await ClockCycles(dut.clk, rest)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def logits_take_turns(dut):
    turns, got = int(os.environ["TURNS"]), []

    async def take():
        while True:
            await ReadOnly()
            if int(dut.o__valid.value):
                got.append((cycles(dut), int(dut.o__row.value), dut.o__value.value.to_signed(),
                            int(dut.o__turn.value) if turns > 1 else 0, int(dut.o__first.value)))
            await RisingEdge(dut.clk)
    await start(dut)
    cocotb.start_soon(take())
    for k in range(60):
        count, length = random.randrange(1, turns + 1), random.randrange(1, 9)
        values = [[random.randrange(-2**31, 2**31) for _ in range(count)] for _ in range(length)]
        dut.start.value = 1
        if turns > 1:
            dut.last.value = count - 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await ClockCycles(dut.clk, random.randrange(3))
        got.clear()
        begun = cycles(dut)
        coming = cocotb.start_soon(rows(
            dut, values, [lambda: 0, lambda: random.randrange(9)][k % 2]))
        if k % 3 == 2:                  # in the midst of it
            await ClockCycles(dut.clk, random.randrange(1, 4 * count * length))
            coming.cancel()
            dut.i__valid.value = dut.finish.value = 0
            if random.random() < 0.5:   # an end that is asked for and not reached is forgotten too
                dut.finish.value = 1
                await RisingEdge(dut.clk)
                dut.finish.value = 0
            continue
        # Asked for with the last logit, or later: it comes with the last one that is given.
        await coming
        dut.finish.value = 1
        await ReadOnly()
        while not int(dut.finished.value):
            await RisingEdge(dut.clk)
            dut.finish.value = 0
            await ReadOnly()
        await RisingEdge(dut.clk)
        dut.finish.value = 0
        assert [x[1:] for x in got] == [
            (row, value, turn, int(row == 0))
            for row, logits in enumerate(values) for turn, value in enumerate(logits)]
        times = [x[0] for x in got]
        assert all(b - a >= 4 for a, b in zip(times, times[1:], strict=False))
        if k % 2 == 0:
            assert times[0] == begun + (2 if turns > 1 else 0)
            assert times[-1] - times[0] == 4 * (len(times) - 1)
        await ClockCycles(dut.clk, 3)
        await ReadOnly()
        assert not int(dut.finished.value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_end_waits_for_the_last_turn(dut):
    turns = int(os.environ["TURNS"])
    await start(dut)
    for count in range(1, turns + 1):
        dut.start.value = 1
        if turns > 1:
            dut.last.value = count - 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for k in range(count):
            dut.i__valid.value, dut.finish.value = 1, int(k == count - 1)
            await RisingEdge(dut.clk)
        dut.i__valid.value = dut.finish.value = 0
        if turns > 1:                   # a cycle behind the last one, which came ``count`` before
            first = cycles(dut) - count
            await ReadOnly()
            while not int(dut.finished.value):
                await RisingEdge(dut.clk)
                await ReadOnly()
            assert cycles(dut) - first == 4 * (count - 1) + 3
        await ClockCycles(dut.clk, 4 * turns + 4)


@pytest.mark.parametrize("turns", [1, 4, 7])
def test_turns(seed, turns):
    simulate(Turns(turns), __name__, seed=seed, turns=turns)
