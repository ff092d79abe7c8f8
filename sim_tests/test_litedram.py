"""LiteDramPort against a model of LiteDRAM's native port: every byte, order, cycle counts."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import cycles, recv, send, simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from native_model import NativeMemory

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.litedram import LiteDramPort
from meadowlark_hdl.signatures import ReadCommand

SIZE = 1 << 15
BUS = 8
LIMIT = dict(timeout_time=20, timeout_unit="ms")


def config() -> Config:
    return Config(W=16, P=4, bus_bytes=BUS)


def native_bytes() -> int:
    return BUS * int(os.environ["RATIO"])


async def begin(dut, **timing):
    await start(dut, enable=1)
    return NativeMemory(dut, "native", SIZE, native_bytes=native_bytes(), **timing).start()


def bursts(count, first, words, most):
    """(address, words) within ``words`` from ``first`` on: every alignment, short ones, long."""
    out = []
    for _ in range(count):
        n = min(random.choice([1, 2, 3, random.randint(1, 20), random.randint(1, most)]), words)
        out.append((first + random.randrange(words - n + 1), n))
    return out


def commands(ranges):
    return [{"addr": a, "len": n - 1} for a, n in ranges]


async def until_done(dut, count):
    """The cycles of ``count`` pulses of w_done."""
    times = []
    while len(times) < count:
        await ReadOnly()
        if dut.port__w_done.value:
            times.append(cycles(dut))
        await RisingEdge(dut.clk)
    return times


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5], pace=[1, 2])
async def reads_and_writes(dut, stall, pace):
    """At once, in separate halves; a write is there when it is said to be done, no byte beside it
    is touched, and a read that follows it finds it."""
    c = config()
    memory = await begin(dut, pace=pace, stall=stall)
    half = SIZE // 2 // BUS
    shadow = memory.data.copy()
    reads = bursts(150, 0, half, c.burst_words)
    writes = bursts(150, half, half, c.burst_words)
    after = random.sample(writes, 30)

    def natives(a, n):
        return (a + n - 1) * BUS // memory.bytes - a * BUS // memory.bytes + 1

    async def read():
        cocotb.start_soon(send(dut, "port__r_cmd", commands(reads), stall, layout=ReadCommand(c)))
        for a, n in reads:
            got = await recv(dut, "port__r_data", n, stall)
            assert b"".join(w.to_bytes(BUS, "little") for w in got) == \
                shadow[a * BUS:(a + n) * BUS].tobytes(), (a, n)

    async def write():
        beats = [(i, random.randbytes(BUS), random.choice([random.getrandbits(BUS), 255]))
                 for a, n in writes for i in range(a, a + n)]
        cocotb.start_soon(send(dut, "port__w_cmd", commands(writes), stall, layout=ReadCommand(c)))
        cocotb.start_soon(send(dut, "port__w_data", [
            int.from_bytes(v, "little") | s << 8 * BUS for _, v, s in beats], stall))
        at = taken = 0
        for a, n in writes:
            await until_done(dut, 1)
            for i, value, strobe in beats[at:at + n]:
                for b in range(BUS):
                    if strobe >> b & 1:
                        shadow[i * BUS + b] = value[b]
            at, taken = at + n, taken + natives(a, n)
            assert memory.writes >= taken
    tasks = [cocotb.start_soon(task()) for task in (read, write)]
    for task in tasks:
        await task
    np.testing.assert_array_equal(memory.data, shadow)
    cocotb.start_soon(send(dut, "port__r_cmd", commands(after), stall, layout=ReadCommand(c)))
    for a, n in after:
        got = await recv(dut, "port__r_data", n, stall)
        assert b"".join(w.to_bytes(BUS, "little") for w in got) == \
            shadow[a * BUS:(a + n) * BUS].tobytes(), (a, n)
    assert memory.reads == sum(natives(a, n) for a, n in reads + after)     # none for nothing
    assert memory.writes == sum(natives(a, n) for a, n in writes)


@cocotb.test(**LIMIT)
@cocotb.parametrize(first=[0, 1])
async def a_word_a_cycle(dut, first):
    """Long reads from a memory that gives a native word when the bus has moved the last: nothing is
    lost, but what both ends of a burst share with its neighbours is read twice."""
    c = config()
    memory = await begin(dut, pace=native_bytes() // BUS)
    n, each = 16, c.burst_words
    times: list = []
    sent: list = []
    cocotb.start_soon(send(dut, "port__r_cmd", commands([(first + k * each, each)
                                                         for k in range(n)]), 0.0,
                           layout=ReadCommand(c), times=sent))
    await recv(dut, "port__r_data", n * each, 0.0, times=times)
    twice = n - 1 if first else 0
    assert times[-1] - times[0] + 1 <= n * each + twice * memory.pace + 1
    # Command to first word: 3 cycles to the memory, 1 until it is served, its latency, 5 back.
    assert times[0] - sent[0] == 3 + 1 + memory.latency + 5


@cocotb.test(**LIMIT)
async def a_word_written_a_cycle(dut):
    c = config()
    memory = await begin(dut, pace=1)
    n, each = 8, c.burst_words
    words = [random.getrandbits(8 * BUS) | 255 << 8 * BUS for _ in range(n * each)]
    times: list = []
    cocotb.start_soon(send(dut, "port__w_cmd", commands([(k * each, each) for k in range(n)]), 0.0,
                           layout=ReadCommand(c)))
    cocotb.start_soon(send(dut, "port__w_data", words, 0.0, times=times))
    done = await until_done(dut, n)
    assert times[-1] - times[0] == n * each - 1
    assert done[-1] - times[-1] <= 8 + memory.latency // 2
    assert memory.data[:n * each * BUS].tobytes() == b"".join(
        (w & (1 << 8 * BUS) - 1).to_bytes(BUS, "little") for w in words)


@cocotb.test(**LIMIT)
async def a_slow_write_waits_for_all_its_words(dut):
    """Words that come slowly do not turn the memory's direction with each of them."""
    c = config()
    memory = await begin(dut)
    cocotb.start_soon(send(dut, "port__r_cmd", commands([(k * 64, 64) for k in range(16)]), 0.0,
                           layout=ReadCommand(c)))
    cocotb.start_soon(recv(dut, "port__r_data", 16 * 64, 0.0))
    cocotb.start_soon(send(dut, "port__w_cmd", commands([(2048, 24)]), 0.0, layout=ReadCommand(c)))
    cocotb.start_soon(send(dut, "port__w_data", [255 << 8 * BUS] * 24, 0.9))
    await until_done(dut, 1)
    assert memory.turns <= 2
    assert not memory.data[2048 * BUS:2072 * BUS].any()


@cocotb.test(**LIMIT)
async def nothing_before_it_is_ready(dut):
    await start(dut)
    assert not dut.port__ready.value
    dut.enable.value = 1
    await ReadOnly()
    assert dut.port__ready.value


@pytest.mark.parametrize("ratio", [2, 4])
def test_litedram(ratio, seed, sim):
    block = LiteDramPort(config(), native_bytes=BUS * ratio, address_bits=12)
    simulate(block, __name__, seed=seed, sim=sim, ratio=ratio)


def test_widths_that_do_not_fit():
    for native in (8, 12, 128):
        with pytest.raises(ValueError, match="^native_bytes must be bus_bytes times 2, 4 or 8, "
                                             f"not {native} for 8$"):
            LiteDramPort(config(), native_bytes=native, address_bits=20)
    with pytest.raises(ValueError, match="^address_bits must be in 1..32, not 33$"):
        LiteDramPort(config(), native_bytes=16, address_bits=33)
