"""AxiMaster against an independent AXI memory: every byte, the rules of bursts, faults."""
import logging
import os
import random

import cocotb
import numpy as np
import pytest
from bench import recv, send, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiRam, AxiSlave, MemoryRegion

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.axi import AxiMaster
from meadowlark_hdl.signatures import ReadCommand

SIZE = 1 << 17
BASE = 0x4_7000
#: Random commands each way and test; there are 12. More: AXI_BURSTS=17000 make test
#: ARGS="sim_tests/test_axi.py".
BURSTS = int(os.environ.get("AXI_BURSTS", "1000"))


def wide(bus: int) -> Config:
    return Config(W=max(16, bus), P=8, bus_bytes=bus, fifo_words=512, burst_words=256)


def config() -> Config:
    return wide(int(os.environ["BUS"]))


def quiet(ram):
    """A line of log for each burst is most of the time of a run."""
    for half in (ram.write_if, ram.read_if):
        half.log.setLevel(logging.WARNING)


def pause(ram, share):
    """Each of the five channels refuses by itself, in so many cycles."""
    def pauses():
        while True:
            yield random.random() < share
    if share:
        for channel in (ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel,
                        ram.read_if.ar_channel, ram.read_if.r_channel):
            channel.set_pause_generator(pauses())


async def rules(dut, c, seen):
    """Checks every burst as the specification has it, section A3.4."""
    while True:
        await ReadOnly()
        for channel in ("ar", "aw"):
            def value(name, channel=channel):
                return int(getattr(dut, f"axi__{channel}{name}").value)
            if value("valid") and value("ready"):
                first, words = value("addr"), value("len") + 1
                last = first + words * c.bus_bytes - 1
                assert value("burst") == 1 and 1 << value("size") == c.bus_bytes
                assert first % c.bus_bytes == 0 and first >> 12 == last >> 12, hex(first)
                assert value("id") == 0 and BASE <= first <= last < BASE + SIZE
                seen[channel] += 1
        await RisingEdge(dut.clk)


async def begin(dut, stall):
    await start(dut)
    c = config()
    dut.base.value, dut.enable.value = BASE, 1
    ram = AxiRam(AxiBus.from_prefix(dut, "axi_"), dut.clk, dut.rst, size=BASE + SIZE)
    quiet(ram)
    ram.write(BASE, random.randbytes(SIZE))
    pause(ram, stall)
    seen = {"ar": 0, "aw": 0}
    cocotb.start_soon(rules(dut, c, seen))
    return c, ram, seen


def random_bursts(c, count, first, words):
    """(address, words) within ``words`` from ``first`` on; many cross a page or end at one."""
    page, out = 4096 // c.bus_bytes, []
    for _ in range(count):
        n = min(random.choice([1, 2, 3, 7, random.randint(1, 40)]), words)
        if random.random() < 0.03:
            n = min(random.choice([128, 255, 256]), words)
        at = random.randrange(words - n + 1)
        if random.random() < 0.4:
            at = min(max(at // page * page + random.choice([0, 1, -1, -n, 1 - n]), 0), words - n)
        out.append((first + at, n))
    return out


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def reads_and_writes(dut, stall):
    """At once, in separate halves of the memory; each write is there when it is said to be done,
    and a read that follows it finds it."""
    c, ram, seen = await begin(dut, stall)
    half = SIZE // 2 // c.bus_bytes
    reads = random_bursts(c, BURSTS, 0, half)
    writes = random_bursts(c, BURSTS, half, half)
    shadow = np.frombuffer(ram.read(BASE, SIZE), np.uint8).copy()

    async def read():
        cocotb.start_soon(send(dut, "port__r_cmd", [{"addr": a, "len": n - 1} for a, n in reads],
                               stall, layout=ReadCommand(c)))
        for a, n in reads:
            got = await recv(dut, "port__r_data", n, stall)
            assert b"".join(w.to_bytes(c.bus_bytes, "little") for w in got) == \
                shadow[a * c.bus_bytes:(a + n) * c.bus_bytes].tobytes()

    async def write():
        beats = []
        for a, n in writes:
            for i in range(a, a + n):
                value, strobe = random.randbytes(c.bus_bytes), random.choice(
                    [random.getrandbits(c.bus_bytes), (1 << c.bus_bytes) - 1])
                beats.append((i, value, strobe))
        cocotb.start_soon(send(dut, "port__w_cmd", [{"addr": a, "len": n - 1} for a, n in writes],
                               stall, layout=ReadCommand(c)))
        cocotb.start_soon(send(dut, "port__w_data", [
            int.from_bytes(v, "little") | s << 8 * c.bus_bytes for _, v, s in beats], stall))
        done, at = 0, 0
        while done < len(writes):
            await ReadOnly()
            finished = bool(dut.port__w_done.value)
            await RisingEdge(dut.clk)
            if finished:
                a, n = writes[done]
                for i, value, strobe in beats[at:at + n]:
                    for b in range(c.bus_bytes):
                        if strobe >> b & 1:
                            shadow[i * c.bus_bytes + b] = value[b]
                done, at = done + 1, at + n
        assert np.frombuffer(ram.read(BASE, SIZE), np.uint8).tobytes() == shadow.tobytes()
    tasks = [cocotb.start_soon(task()) for task in (read, write)]
    for task in tasks:
        await task
    assert min(seen.values()) >= BURSTS
    assert not dut.fault.value
    print(f"{seen['ar']} bursts read, {seen['aw']} written")


@cocotb.test()
async def a_word_a_cycle(dut):
    """Long reads from a memory that never pauses: the bus is never idle between bursts."""
    c, ram, _ = await begin(dut, 0.0)
    n, each = 16, min(256, SIZE // c.bus_bytes // 16)
    cocotb.start_soon(send(dut, "port__r_cmd", [{"addr": k * each, "len": each - 1}
                                                for k in range(n)], 0.0, layout=ReadCommand(c)))
    times: list = []
    await recv(dut, "port__r_data", n * each, 0.0, times=times)
    assert times[-1] - times[0] <= n * each * 1.02 + 8, times[-1] - times[0]


@cocotb.test()
async def writes_do_not_wait_for_answers(dut):
    """A memory that answers late gets the bursts behind all the same, and each is answered."""
    c, ram, seen = await begin(dut, 0.0)
    assert ram.write_if
    ram.write_if.b_channel.pause = True
    full = (1 << c.bus_bytes) - 1 << 8 * c.bus_bytes
    cocotb.start_soon(send(dut, "port__w_cmd", [{"addr": 2 * k, "len": 1} for k in range(16)],
                           layout=ReadCommand(c)))
    cocotb.start_soon(send(dut, "port__w_data", [full] * 32))
    await ClockCycles(dut.clk, 300)
    assert seen["aw"] >= 4              # the model takes no more
    ram.write_if.b_channel.pause = False
    done = 0
    while done < 16:
        await ReadOnly()
        done += int(dut.port__w_done.value)
        await RisingEdge(dut.clk)


@cocotb.test()
@cocotb.parametrize(write=[False, True])
async def faults_are_seen(dut, write):
    """An access where there is no memory; none before it."""
    await start(dut)
    c = config()
    dut.base.value, dut.enable.value = BASE, 1
    AxiSlave(AxiBus.from_prefix(dut, "axi_"), dut.clk, dut.rst, target=MemoryRegion(BASE + 4096))
    for addr in (0, 4096 // c.bus_bytes):
        assert not dut.fault.value
        kind = "w" if write else "r"
        cocotb.start_soon(send(dut, f"port__{kind}_cmd", [{"addr": addr, "len": 0}], 0.0,
                               layout=ReadCommand(c)))
        if write:
            await send(dut, "port__w_data", [1 << 8 * c.bus_bytes], 0.0)
            while not dut.port__w_done.value:
                await RisingEdge(dut.clk)
        else:
            await recv(dut, "port__r_data", 1, 0.0)
        await RisingEdge(dut.clk)
    assert dut.fault.value


@cocotb.test()
@cocotb.parametrize(write=[False, True])
async def addresses_wrap(dut, write):
    """Beyond the end of the memory comes its beginning: in the middle of a burst and far beyond."""
    c, ram, seen = await begin(dut, 0.0)
    words, value = SIZE // c.bus_bytes, random.randbytes(8 * c.bus_bytes)
    for first in (words - 4, 5 * words - 4, (1 << 32) - 4):
        command = [{"addr": first, "len": 7}]
        if write:
            ram.write(BASE, bytes(SIZE))
            cocotb.start_soon(send(dut, "port__w_cmd", command, 0.0, layout=ReadCommand(c)))
            full = (1 << c.bus_bytes) - 1 << 8 * c.bus_bytes
            await send(dut, "port__w_data", [
                full | int.from_bytes(value[k * c.bus_bytes:(k + 1) * c.bus_bytes], "little")
                for k in range(8)])
            while not dut.port__w_done.value:
                await RisingEdge(dut.clk)
        else:
            ram.write(BASE, value[len(value) // 2:])
            ram.write(BASE + SIZE - len(value) // 2, value[:len(value) // 2])
            cocotb.start_soon(send(dut, "port__r_cmd", command, 0.0, layout=ReadCommand(c)))
            got = await recv(dut, "port__r_data", 8, 0.0)
            assert b"".join(w.to_bytes(c.bus_bytes, "little") for w in got) == value
        assert ram.read(BASE + SIZE - 4 * c.bus_bytes, 4 * c.bus_bytes) + \
            ram.read(BASE, 4 * c.bus_bytes) == value
    assert seen["aw" if write else "ar"] == 6


# A page is 1,024, 256 and 128 words; AXI's limit is 256.
@pytest.mark.parametrize("bus", [4, 16, 32])
def test_axi(bus, seed):
    simulate(AxiMaster(wide(bus), memory_bytes=SIZE), __name__, seed=seed, bus=bus)


def test_sizes_without_a_port():
    with pytest.raises(ValueError, match="bus_bytes must be in 4..128"):
        AxiMaster(Config(W=16, P=4, bus_bytes=2), memory_bytes=SIZE)
    for size in (2048, 5000, 1 << 41):
        with pytest.raises(ValueError, match=f"^memory_bytes must be .*, not {size}$"):
            AxiMaster(wide(16), memory_bytes=size)
