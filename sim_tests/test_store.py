"""StoreUnit: chunks where they belong, completions when they are in memory, clean flush."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import send, simulate
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from memory_model import begin

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.store import StoreUnit
from meadowlark_hdl.signatures import StoreCommand

SIZE = 1 << 16


def config() -> Config:
    return Config(W=int(os.environ["W"]), P=4, bus_bytes=int(os.environ["BUS"]), fifo_words=64,
                  burst_words=16)


async def setup(dut, **timing):
    c = config()
    return c, await begin(dut, "mem", SIZE, bus_bytes=c.bus_bytes, **timing)


def random_words(c, chunks):
    """Parts of words, as the lanes give them."""
    return [random.getrandbits(8 * c.store_bytes) for _ in range(chunks * c.W // c.store_bytes)]


def random_commands(c, count, base=0):
    """Commands with room between them, and their words."""
    commands, words, at = [], [], base
    for _ in range(count):
        n = random.choice([1, 2, 8, random.randint(1, 30)])
        at += random.randrange(3)
        commands.append({"addr": at, "chunks": n})
        words.append(random_words(c, n))
        at += n
    return commands, words


def put(c, shadow, command, words):
    raw = b"".join(value.to_bytes(c.store_bytes, "little") for value in words)
    at = command["addr"] * c.W
    shadow[at:at + len(raw)] = np.frombuffer(raw, np.uint8)


async def run(dut, c, memory, commands, words, stall):
    """Sends all; at each ``done`` the command's data must be in memory."""
    shadow = memory.data.copy()
    cocotb.start_soon(send(dut, "cmd", commands, stall, layout=StoreCommand()))
    cocotb.start_soon(send(dut, "words", [w for ws in words for w in ws], stall))
    for command, values in zip(commands, words):
        while True:
            await ReadOnly()
            done, pending = bool(dut.done.value), int(dut.pending.value)
            assert pending <= StoreUnit.COMMANDS
            await RisingEdge(dut.clk)
            if done:
                break
        put(c, shadow, command, values)
        span = slice(command["addr"] * c.W, (command["addr"] + command["chunks"]) * c.W)
        np.testing.assert_array_equal(memory.data[span], shadow[span])
    np.testing.assert_array_equal(memory.data, shadow)
    await ClockCycles(dut.clk, 4)
    assert dut.idle.value and dut.pending.value == 0 and not dut.done.value


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5], command_first=[False, True], latency=[2, 60])
async def data_and_completions(dut, stall, command_first, latency):
    c, memory = await setup(dut, stall=stall, command_first=command_first, latency=latency)
    commands, words = random_commands(c, 40)
    await run(dut, c, memory, commands, words, stall)
    want = []
    for command in commands:
        at, left = command["addr"] * c.bus_per_chunk, command["chunks"] * c.bus_per_chunk
        while left:
            n = min(left, c.burst_words)
            want.append((at, n))
            at, left = at + n, left - n
    assert [(a, n) for _, a, n in memory.writes] == want


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles_of_a_long_store(dut):
    """Bursts: a bus word a cycle and 3 cycles in between (4 where a burst starts with a chunk)."""
    c, memory = await setup(dut, latency=2)
    n = 64
    times = []
    cocotb.start_soon(send(dut, "cmd", [{"addr": 5, "chunks": n}], layout=StoreCommand(),
                           times=times))
    cocotb.start_soon(send(dut, "words", random_words(c, n)))
    while not dut.done.value:
        await RisingEdge(dut.clk)
        await ReadOnly()
    assert memory.writes[0][0] - times[0] == 3
    period = {b - a for (a, _, _), (b, _, _) in zip(memory.writes, memory.writes[1:])}
    assert period == {c.burst_words + 3}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def pending_from_acceptance_to_completion(dut):
    c, memory = await setup(dut, latency=30)
    await send(dut, "cmd", [{"addr": 2, "chunks": 1}], layout=StoreCommand())
    await ReadOnly()
    assert dut.pending.value == 1
    await ClockCycles(dut.clk, 50)              # no data yet
    assert dut.pending.value == 1 and not dut.idle.value
    await send(dut, "words", random_words(c, 1))
    for _ in range(30):
        await ReadOnly()
        assert dut.pending.value == 1 and not dut.done.value
        await RisingEdge(dut.clk)
    await ClockCycles(dut.clk, 10)
    assert dut.pending.value == 0 and dut.idle.value


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def flush_in_mid_transfer(dut, stall):
    c, memory = await setup(dut, stall=stall, latency=6)
    for at in [*range(14), *(random.randrange(14, 300) for _ in range(20))]:
        before = memory.data.copy()
        commands, words = random_commands(c, 30)
        tasks = [cocotb.start_soon(send(dut, "cmd", commands, stall, layout=StoreCommand())),
                 cocotb.start_soon(send(dut, "words", [w for ws in words for w in ws], stall))]
        await ClockCycles(dut.clk, 1 + at)
        for task in tasks:
            task.cancel()
        dut.flush.value = 1
        # What is offered during a flush is dropped.
        dut.cmd__valid.value = random.randrange(2)
        dut.words__valid.value = random.randrange(2)
        await ClockCycles(dut.clk, 1)
        if random.random() < 0.5:               # a pulse is enough
            dut.cmd__valid.value = dut.words__valid.value = dut.flush.value = 0
        await ClockCycles(dut.clk, 2)
        for _ in range(1000):
            await ReadOnly()
            assert not dut.done.value
            idle = bool(dut.idle.value)
            await RisingEdge(dut.clk)
            if idle:
                break
        else:
            raise AssertionError("never idle")
        dut.cmd__valid.value = dut.words__valid.value = dut.flush.value = 0
        assert dut.pending.value == 0
        # Each byte is as before or as it was to be written; nothing else was touched.
        shadow = before.copy()
        for command, values in zip(commands, words):
            put(c, shadow, command, values)
        assert ((memory.data == before) | (memory.data == shadow)).all()
        await ClockCycles(dut.clk, 1 + random.randrange(3))
        await run(dut, c, memory, *random_commands(c, 5, base=2000), stall)
        await RisingEdge(dut.clk)


@pytest.mark.parametrize("w, bus", [(8, 2), (16, 16), (8, 4), (16, 2), (8, 8)])
def test_store(w, bus, seed):
    c = Config(W=w, P=4, bus_bytes=bus, fifo_words=64, burst_words=16)
    simulate(StoreUnit(c), __name__, seed=seed, w=w, bus=bus)
