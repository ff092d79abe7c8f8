"""Counters: no event lost, cleared by a run, readable at rest and held."""
import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from bench import simulate, start
from meadowlark_hdl.control.counters import Counters
from meadowlark_hdl.link.counters_table import COUNTER_BITS, COUNTER_SLOTS, COUNTERS

INDEX = {c.name: i for i, c in enumerate(COUNTERS)}
CAUSES = [c for c in COUNTERS if c.name not in ("cycles", "cycles_first_token")]
EVENTS = [c.name for c in CAUSES if c.kind == "event"]


async def read(dut, index):
    dut.index.value = index
    await ClockCycles(dut.clk, 1)
    await ReadOnly()
    value = int(dut.data.value)
    await RisingEdge(dut.clk)
    return value


async def read_all(dut):
    assert [await read(dut, i) for i in range(len(COUNTERS), COUNTER_SLOTS)] == (
        [0] * (COUNTER_SLOTS - len(COUNTERS)))
    return {c.name: await read(dut, INDEX[c.name]) for c in COUNTERS}


async def run(dut, length, rates, first):
    """Drives one run; returns what must have been counted."""
    counts = dict.fromkeys(INDEX, 0)
    dut.busy.value = dut.clear.value = 1
    for cycle in range(length):
        for name in EVENTS:
            hit = random.random() < rates[name]
            getattr(dut, f"causes__{name}").value = int(hit)
            counts[name] += hit
        dut.first_token.value = int(cycle in first)
        counts["cycles"] += 1
        counts["cycles_first_token"] += cycle <= min(first, default=length)
        await RisingEdge(dut.clk)
        dut.clear.value = 0
    dut.busy.value = 0
    for name in EVENTS:         # a unit may still stir: not counted
        getattr(dut, f"causes__{name}").value = 1
    counts["saturations"] = random.getrandbits(32)
    dut.causes__saturations.value = counts["saturations"]
    return counts


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(rate=[0.0, 0.3, 1.0, None])
async def counts(dut, rate):
    await start(dut)
    for length in (1, 7, 16, 17, 33, 700):
        rates = {name: random.random() if rate is None else rate for name in EVENTS}
        first = [random.randrange(1, length), length - 1] if length > 16 else []
        expected = await run(dut, length, rates, first)
        await ClockCycles(dut.clk, 40)
        assert await read_all(dut) == expected


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def hold_keeps_what_can_be_read(dut):
    await start(dut)
    await run(dut, 100, dict.fromkeys(EVENTS, 0.5), [50])
    await ClockCycles(dut.clk, 40)
    before = await read_all(dut)
    dut.hold.value = 1
    await ClockCycles(dut.clk, 2)
    later = await run(dut, 200, dict.fromkeys(EVENTS, 0.5), [50])
    await ClockCycles(dut.clk, 40)
    assert await read_all(dut) == before
    dut.hold.value = 0
    await ClockCycles(dut.clk, 20)
    assert await read_all(dut) == later


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def values_during_a_run_are_at_most_twenty_cycles_old(dut):
    await start(dut)
    dut.busy.value = dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    done = 1
    for _ in range(50):
        wait = random.randrange(20, 60)
        await ClockCycles(dut.clk, wait)
        seen = await read(dut, INDEX["cycles"])
        done += wait
        assert done - 19 <= seen <= done + 2
        done += 2


def test_counters(sim, seed):
    simulate(Counters(), __name__, seed=seed, sim=sim)


def test_table():
    assert len(COUNTERS) <= COUNTER_SLOTS and COUNTER_BITS == 40
    assert len(INDEX) == len(COUNTERS)
    assert all(c.doc and c.kind in ("event", "value") for c in COUNTERS)


@pytest.mark.parametrize("name", ["cycles", "cycles_first_token"])
def test_causes_of_the_run_itself_are_not_inputs(name):
    assert not hasattr(Counters().causes, name)
