"""MemoryArbiter: every client gets its own data and completions, none starves, none is slowed."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import recv, send, simulate
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from memory_model import begin

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.arbiter import MemoryArbiter
from meadowlark_hdl.signatures import ReadCommand

SIZE = 1 << 16


def config() -> Config:
    return Config(W=int(os.environ["W"]), P=4, bus_bytes=int(os.environ["BUS"]), fifo_words=64,
                  burst_words=16)


async def setup(dut, **timing):
    c = config()
    return c, await begin(dut, "mem", SIZE, bus_bytes=c.bus_bytes, **timing)


def word(c, memory, at) -> int:
    return int.from_bytes(memory.data[at * c.bus_bytes:(at + 1) * c.bus_bytes].tobytes(), "little")


async def read(dut, c, memory, client, bursts, stall, times=None):
    """Reads bursts (address, words) of the memory's lower half and compares."""
    cocotb.start_soon(send(dut, f"{client}__r_cmd", [{"addr": a, "len": n - 1} for a, n in bursts],
                           stall, layout=ReadCommand(c)))
    want = [word(c, memory, a + i) for a, n in bursts for i in range(n)]
    assert await recv(dut, f"{client}__r_data", len(want), stall, times=times) == want


async def write(dut, c, memory, client, base, words, stall, shadow):
    """Writes bursts from ``base`` on with random data and strobes.

    Each completion must find its burst in memory, in order.
    """
    bursts, beats, at = [], [], base
    while at < base + words:
        n = min(random.choice([1, 2, 7, 16]), base + words - at)
        bursts.append((at, n))
        for i in range(at, at + n):
            value = random.getrandbits(8 * c.bus_bytes)
            strobe = random.getrandbits(c.bus_bytes) | random.choice([0, (1 << c.bus_bytes) - 1])
            beats.append(value | strobe << 8 * c.bus_bytes)
            for b in range(c.bus_bytes):
                if strobe >> b & 1:
                    shadow[i * c.bus_bytes + b] = value >> 8 * b & 255
        at += n
    cocotb.start_soon(send(dut, f"{client}__w_cmd", [{"addr": a, "len": n - 1} for a, n in bursts],
                           stall, layout=ReadCommand(c)))
    cocotb.start_soon(send(dut, f"{client}__w_data", beats, stall))
    done = getattr(dut, f"{client}__w_done")
    for a, n in bursts:
        while True:
            await ReadOnly()
            finished = bool(done.value)
            await RisingEdge(dut.clk)
            if finished:
                break
        span = slice(a * c.bus_bytes, (a + n) * c.bus_bytes)
        np.testing.assert_array_equal(memory.data[span], shadow[span])


def random_bursts(c, count):
    top = SIZE // c.bus_bytes // 2
    sizes = [random.choice([1, 2, 3, 16, random.randint(1, 16)]) for _ in range(count)]
    return [(random.randrange(top - n), n) for n in sizes]


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5], command_first=[False, True])
async def all_clients_at_once(dut, stall, command_first):
    c, memory = await setup(dut, stall=stall, command_first=command_first)
    shadow = memory.data.copy()
    half = SIZE // c.bus_bytes // 2
    tasks = [cocotb.start_soon(read(dut, c, memory, who, random_bursts(c, 60), stall))
             for who in ("reader", "host")]
    tasks += [cocotb.start_soon(write(dut, c, memory, who, base, 300, stall, shadow))
              for who, base in (("store", half), ("host", half + 400))]
    for task in tasks:
        await task
    np.testing.assert_array_equal(memory.data, shadow)
    await ClockCycles(dut.clk, 20)
    assert not dut.store__w_done.value and not dut.host__w_done.value


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def reader_and_drafter_in_turn(dut, stall):
    """Beside a host that always reads."""
    c, memory = await setup(dut, stall=stall, latency=10)
    host = cocotb.start_soon(read(dut, c, memory, "host", random_bursts(c, 150), stall))
    for who in ("reader", "drafter", "reader", "drafter", "drafter", "reader"):
        words = cocotb.start_soon(none_comes(dut, "drafter" if who == "reader" else "reader"))
        await read(dut, c, memory, who, random_bursts(c, 4), stall)
        words.cancel()
    assert not host.done()
    await host


async def none_comes(dut, client):
    while True:
        await ReadOnly()
        assert not int(getattr(dut, f"{client}__r_data__valid").value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_reader_alone_gets_a_word_a_cycle(dut):
    c, memory = await setup(dut, latency=10)
    times = []
    await read(dut, c, memory, "reader", [(i * 4, 4) for i in range(100)], 0.0, times)
    assert times[-1] - times[0] == 399
    assert times == memory.read_times           # data is not delayed


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_host_gets_its_turn(dut):
    c, memory = await setup(dut, latency=10)
    reader = cocotb.start_soon(read(dut, c, memory, "reader", random_bursts(c, 200), 0.0))
    await ClockCycles(dut.clk, 50)
    await read(dut, c, memory, "host", [(7, 3)], 0.0)
    assert not reader.done()
    await reader


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def no_more_is_asked_than_can_be_counted(dut):
    """A memory that answers late: words under way are not mistaken for none."""
    c, memory = await setup(dut, latency=1500, queue=1000)
    reader = cocotb.start_soon(read(dut, c, memory, "reader", [(i * 16, 16) for i in range(40)],
                                    0.0))
    await ClockCycles(dut.clk, 600)
    host = cocotb.start_soon(read(dut, c, memory, "host", [(7, 3)], 0.0))
    await ClockCycles(dut.clk, 600)
    assert 2 * c.fifo_words <= sum(n for _, _, n in memory.reads) < 4 * c.fifo_words
    await host
    await reader


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def writers_take_turns(dut):
    c, memory = await setup(dut)
    shadow = memory.data.copy()
    half = SIZE // c.bus_bytes // 2
    for task in [cocotb.start_soon(write(dut, c, memory, who, base, 300, 0.0, shadow))
                 for who, base in (("store", half), ("host", half + 400))]:
        await task
    by_host = [address >= half + 400 for _, address, _ in memory.writes]
    both = next(i for i in range(len(by_host)) if len(set(by_host[i:])) == 1)   # one is left
    assert both > 30 and all(a != b for a, b in zip(by_host[:both], by_host[1:both]))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def data_of_a_command_is_not_interleaved(dut):
    """The host grants itself a command, sends half its data and waits: the store waits too."""
    c, memory = await setup(dut)
    shadow = memory.data.copy()
    beat = lambda v: v | ((1 << c.bus_bytes) - 1) << 8 * c.bus_bytes
    await send(dut, "host__w_cmd", [{"addr": 100, "len": 3}], layout=ReadCommand(c))
    await send(dut, "host__w_data", [beat(1), beat(2)])
    store = cocotb.start_soon(write(dut, c, memory, "store", 400, 20, 0.0, shadow))
    await ClockCycles(dut.clk, 60)
    assert len(memory.writes) == 1 and not store.done()
    await send(dut, "host__w_data", [beat(3), beat(4)])
    await store
    assert [word(c, memory, 100 + i) for i in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize("w, bus", [(8, 2), (16, 16), (8, 4)])
def test_arbiter(w, bus, seed):
    c = Config(W=w, P=4, bus_bytes=bus, fifo_words=64, burst_words=16)
    simulate(MemoryArbiter(c), __name__, seed=seed, w=w, bus=bus)
