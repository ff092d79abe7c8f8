# pyright: reportOptionalMemberAccess=false
"""The register window against independent AXI4-Lite drivers: bytes both ways, every word of it."""
import random

import cocotb
import pytest
from bench import cycles, recv, send, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster
from cocotbext.axi.axil_channels import (AxiLiteARSource, AxiLiteAWSource, AxiLiteBSink,
                                         AxiLiteRSink, AxiLiteWSource)

from meadowlark_hdl.link.axi_lite import AxiLiteLink
from meadowlark_hdl.link.axi_lite_table import (CONTROL_INTERRUPT, CONTROL_MEMORY, LOAD_BYTES,
                                                STATUS_FAULT, STATUS_LISTENS, WINDOW,
                                                WINDOW_ADDRESS, WINDOW_BITS, WINDOW_MAGIC,
                                                WINDOW_VERSION)
from test_axi import quiet

HOLD, MEMORY = 40, 1 << 20
DATA, DROP = WINDOW_ADDRESS["data"], WINDOW_ADDRESS["drop"]
LIMIT = dict(timeout_time=5, timeout_unit="ms")


def pauses(share):
    while True:
        yield random.random() < share


class Window:
    """Loads and stores by cocotbext-axi's five channels, each with pauses of its own."""

    def __init__(self, dut, stall):
        bus = AxiLiteBus.from_prefix(dut, "bus_")
        self.aw = AxiLiteAWSource(bus.write.aw, dut.clk, dut.rst)
        self.w = AxiLiteWSource(bus.write.w, dut.clk, dut.rst)
        self.b = AxiLiteBSink(bus.write.b, dut.clk, dut.rst)
        self.ar = AxiLiteARSource(bus.read.ar, dut.clk, dut.rst)
        self.r = AxiLiteRSink(bus.read.r, dut.clk, dut.rst)
        for channel in (self.aw, self.w, self.b, self.ar, self.r):
            if stall:
                channel.set_pause_generator(pauses(stall))

    def offer(self, address, value, strobes=15):
        """A store, its answer still to come."""
        self.aw.send_nowait(self.aw._transaction_obj(awaddr=address, awprot=0))
        self.w.send_nowait(self.w._transaction_obj(wdata=value, wstrb=strobes))

    async def answered(self, count=1):
        for _ in range(count):
            assert int((await self.b.recv()).bresp) == 0

    async def store(self, address, value, strobes=15):
        self.offer(address, value, strobes)
        await self.answered()

    async def load(self, address):
        self.ar.send_nowait(self.ar._transaction_obj(araddr=address, arprot=0))
        answer = await self.r.recv()
        assert int(answer.rresp) == 0
        return int(answer.rdata)

    async def bytes(self):
        """What a load from ``data`` gives."""
        word = await self.load(DATA)
        count = word >> 24
        assert count <= LOAD_BYTES and word & 0xFFFFFF < 1 << 8 * count
        return word.to_bytes(4, "little")[:count]


async def begin(dut, stall=0.0, **inputs):
    await start(dut, **inputs)
    return Window(dut, stall)


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5])
async def every_word(dut, stall):
    """The whole window, in any order: what is no register reads 0 and takes no store."""
    host = await begin(dut, stall, rx__ready=1)
    await ClockCycles(dut.clk, HOLD + 2)
    words = {r.address: 0 for r in WINDOW} | {
        WINDOW_ADDRESS["id"]: WINDOW_MAGIC, WINDOW_ADDRESS["version"]: WINDOW_VERSION,
        WINDOW_ADDRESS["memory_kib"]: MEMORY >> 10, WINDOW_ADDRESS["status"]: STATUS_LISTENS}
    writable = {"control": 3, "base_low": 0xFFFFF000, "base_high": 0xFF}
    every = list(range(0, 1 << WINDOW_BITS, 4))
    plain = [a for a in every if a not in (DATA, DROP)]
    for address in random.sample(every, len(every)):
        assert await host.load(address) == words.get(address, 0), hex(address)
    busy = [WINDOW_ADDRESS[name] for name in writable]
    for address in random.sample(plain, len(plain)) + random.choices(busy, k=200):
        value, strobes = random.getrandbits(32), random.getrandbits(4)
        await host.store(address + random.randrange(4), value, strobes)
        name = next((n for n in writable if WINDOW_ADDRESS[n] == address), None)
        held = words[WINDOW_ADDRESS["control"]] & CONTROL_MEMORY and name != "control"
        if name and not held:
            mask = sum(255 << 8 * i for i in range(4) if strobes >> i & 1) & writable[name]
            words[address] = words[address] & ~mask | value & mask
        assert await host.load(address) == words.get(address, 0), hex(address)
        assert dut.base.value == words[busy[1]] | words[busy[2]] << 32
        assert dut.enable.value == words[busy[0]] & CONTROL_MEMORY
    for address in every:
        assert await host.load(address) == words.get(address, 0), hex(address)
    assert not dut.rx__valid.value
    dut.fault.value = 1
    await RisingEdge(dut.clk)
    assert await host.load(WINDOW_ADDRESS["status"]) == STATUS_LISTENS | STATUS_FAULT


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5], slow=[0.0, 0.7])
async def to_the_core(dut, stall, slow):
    """Bytes with a strobe in order, once; many more than the queue holds, answers in any pace."""
    host = await begin(dut, stall)
    want = bytearray()
    stores = 600
    for _ in range(stores):
        value, strobes = random.getrandbits(32), random.choice([15, 15, random.getrandbits(4)])
        want += bytes(b for i, b in enumerate(value.to_bytes(4, "little")) if strobes >> i & 1)
        host.offer(DATA, value, strobes)
        if random.random() < 0.1:
            host.offer(random.choice([0, 0x28, 0xFFC]), random.getrandbits(32))
            stores += 1
    answers = cocotb.start_soon(host.answered(stores))
    times: list = []
    got = await recv(dut, "rx", len(want), slow, times=times)
    await answers
    assert bytes(got) == want
    if not stall and not slow:
        assert times[-1] - times[0] < 4 * stores + 8      # a byte a cycle, those left out too
    for _ in range(20):
        await ReadOnly()
        assert not dut.rx__valid.value
        await RisingEdge(dut.clk)


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5], slow=[0.0, 0.9])
async def from_the_core(dut, stall, slow):
    """Every byte once, however the loads fall; a load with nothing there gives 0."""
    host = await begin(dut, stall)
    want, got, empty = random.randbytes(1500), bytearray(), 0
    sender = cocotb.start_soon(send(dut, "tx", want, slow))
    while len(got) < len(want):
        if random.random() < 0.2:
            assert await host.load(WINDOW_ADDRESS["waiting"]) <= AxiLiteLink.BYTES + LOAD_BYTES
        more = await host.bytes()
        empty += not more
        got += more
    await sender
    assert got == want and await host.bytes() == b""
    assert empty or not slow


@cocotb.test(**LIMIT)
async def full_and_counted(dut):
    """The core waits when nobody loads; ``waiting`` is exact, and irq follows it."""
    host = await begin(dut)
    want = random.randbytes(AxiLiteLink.BYTES + 50)
    room = AxiLiteLink.BYTES + LOAD_BYTES
    sent: list = []
    cocotb.start_soon(send(dut, "tx", want, times=sent))
    await ClockCycles(dut.clk, 2 * len(want))
    assert len(sent) == room and not dut.irq.value
    await host.store(WINDOW_ADDRESS["control"], CONTROL_INTERRUPT)
    got = bytearray()
    while len(got) < len(want):
        await ClockCycles(dut.clk, 10)
        left = len(want) - len(got)
        assert await host.load(WINDOW_ADDRESS["waiting"]) == min(left, room) and dut.irq.value
        got += await host.bytes()
    await ClockCycles(dut.clk, 2)
    assert got == want and await host.load(WINDOW_ADDRESS["waiting"]) == 0 and not dut.irq.value


@cocotb.test(**LIMIT)
async def held_back(dut):
    """Nothing reaches a core that does not listen yet; nothing is lost, and stores end."""
    await start(dut)
    host, begun = Window(dut, 0.0), cycles(dut)
    want = random.randbytes(4 * (AxiLiteLink.WORDS + 8))
    for at in range(0, len(want), 4):
        host.offer(DATA, int.from_bytes(want[at:at + 4], "little"))
    answers = cocotb.start_soon(host.answered(len(want) // 4))
    times: list = []
    assert bytes(await recv(dut, "rx", len(want), times=times)) == want
    await answers
    # begin is one cycle after the reset
    assert HOLD - 2 <= times[0] - begun <= HOLD + 2
    assert times[-1] - times[0] == len(want) - 1


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5])
async def dropped(dut, stall):
    """Both directions are empty after it, and work as before."""
    host = await begin(dut, stall)
    for _ in range(20):
        stored = random.randrange(12)
        for _ in range(stored):                 # the core takes none
            await host.store(DATA, random.getrandbits(32))
        await send(dut, "tx", random.randbytes(random.randrange(20)))
        await host.store(DROP, random.getrandbits(32), random.getrandbits(4))
        assert await host.load(WINDOW_ADDRESS["waiting"]) == 0 and await host.bytes() == b""
        word, back = random.getrandbits(32), random.randbytes(9)
        await host.store(DATA, word)
        assert bytes(await recv(dut, "rx", 4)) == word.to_bytes(4, "little")
        await send(dut, "tx", back)
        got = b""
        while len(got) < 9:
            got += await host.bytes()
        assert got == back


@cocotb.test(**LIMIT)
async def cycles_of_an_access(dut):
    host = await begin(dut, rx__ready=1)
    await ClockCycles(dut.clk, HOLD + 2)
    bus, seen = AxiLiteBus.from_prefix(dut, "bus_"), {"b": [], "r": []}

    async def watch():
        while True:
            await ReadOnly()
            for channel, signals in (("b", bus.write.b), ("r", bus.read.r)):
                if getattr(signals, f"{channel}valid").value:
                    seen[channel].append(cycles(dut))
            await RisingEdge(dut.clk)
    cocotb.start_soon(watch())
    for k in range(12):
        host.offer(DATA, k)
        host.ar.send_nowait(host.ar._transaction_obj(araddr=4 * k, arprot=0))
    await host.answered(12)
    await ClockCycles(dut.clk, 40)
    for channel, each in (("b", 2), ("r", 3)):
        times = seen[channel]
        assert len(times) == 12 and {b - a for a, b in zip(times, times[1:])} == {each}


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.5])
async def a_whole_master(dut, stall):
    """cocotbext-axi's own manager: bytes, halves and words at any place of ``data``, and loads."""
    await start(dut, rx__ready=0)
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
    quiet(master)
    if stall:
        for channel in (master.write_if.aw_channel, master.write_if.w_channel,
                        master.write_if.b_channel, master.read_if.ar_channel,
                        master.read_if.r_channel):
            channel.set_pause_generator(pauses(stall))
    want = bytearray()

    async def host():
        for _ in range(150):
            offset = random.randrange(4)
            piece = random.randbytes(random.randint(1, 4 - offset))
            want.extend(piece)
            assert (await master.write(DATA + offset, piece)).resp == 0
            assert (await master.read_dword(WINDOW_ADDRESS["id"])) == WINDOW_MAGIC
    task = cocotb.start_soon(host())
    got: list = []
    while not task.done() or len(got) < len(want):
        dut.rx__ready.value = random.random() < 0.5
        await ReadOnly()
        if dut.rx__valid.value and dut.rx__ready.value:
            got.append(int(dut.rx__payload.value))
        await RisingEdge(dut.clk)
    await task
    assert bytes(got) == want


def test_axi_lite(seed, sim):
    simulate(AxiLiteLink(memory_bytes=MEMORY, hold=HOLD), __name__, seed=seed, sim=sim)


def test_parameters():
    with pytest.raises(ValueError, match="^memory_bytes must be a multiple of 1024, not 1000$"):
        AxiLiteLink(memory_bytes=1000, hold=1)
    with pytest.raises(ValueError, match="^hold must be at least 1, not 0$"):
        AxiLiteLink(memory_bytes=1024, hold=0)
