"""The crossing between two clocks: ratios, phases, stalls, resets; no word lost or doubled."""
import os
import random
from collections import deque

import cocotb
import pytest
from amaranth import ClockDomain, ClockSignal, DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge, Timer
from cocotb.utils import get_sim_time
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.crossing import AsyncQueue, MemoryCrossing, narrowed, resets
from meadowlark_hdl.signatures import MemoryPort

LIMIT = dict(timeout_time=2, timeout_unit="ms")     # ten times what the longest takes
SIZE = 1 << 14
MEMORY_MHZ = 400 / 3
#: Of the core: those of the boards, and what lies beyond.
CORE_MHZ = (60, 66.7, 80, 88.9, 100, 120, 133.3, 200)


def config(bus):
    return Config(W=8, P=4, bus_bytes=bus, burst_words=16, fifo_words=64)


class Clocked(wiring.Component):
    """The crossing with both clocks, and a reset that keeps to none, as ports.

    Words: five bursts more than three, for one is shorter than the way there and back.
    """

    def __init__(self, bus, far):
        self.inner = MemoryCrossing(config(bus), bus_bytes=far, size_bytes=SIZE, words=128)
        super().__init__({"clk_core": In(1), "clk_memory": In(1), "reset": In(1),
                          "core": In(MemoryPort(self.inner.config)),
                          "memory": Out(MemoryPort(self.inner.far))})

    def elaborate(self, platform):
        m = Module()
        # No domain is called sync: the bench would drive its clock.
        m.domains += ClockDomain("core"), ClockDomain("sdram")
        m.d.comb += [ClockSignal("core").eq(self.clk_core),
                     ClockSignal("sdram").eq(self.clk_memory)]
        resets(m, self.reset, core="core")
        m.submodules.inner = DomainRenamer("core")(self.inner)
        wiring.connect(m, wiring.flipped(self.core), self.inner.core)
        wiring.connect(m, self.inner.memory, wiring.flipped(self.memory))
        return m


class Bench:
    """A memory in its clock, and a master in the core's that knows what it must read."""

    def __init__(self, dut, *, stall=0.0, jitter=False):
        self.dut, self.stall, self.jitter = dut, stall, jitter
        self.bus, self.far = int(os.environ["BUS"]), int(os.environ["FAR"])
        self.data = bytearray(random.randbytes(SIZE))
        self.tasks = []
        self.forget()

    def forget(self):
        """As after a reset: nothing is under way."""
        self.jobs = deque()                 # of the master: (write, address, words)
        self.expected, self.done = deque(), 0
        self.pending = deque()              # spans of writes that are not acknowledged
        self.times = []                     # ps at which a word came to the core

    def goes(self):
        return not self.stall or random.random() >= self.stall

    async def begin(self, mhz):
        d = self.dut
        await start(d, reset=1)
        for clock, f in ((d.clk_core, mhz), (d.clk_memory, MEMORY_MHZ)):
            cocotb.start_soon(self.clock(clock, 1e6 / f))
        await self.reset_over()

    async def clock(self, clock, period):
        half = round(period / 2)
        await Timer(random.randrange(1, 2 * half), "ps")
        if not self.jitter:
            await Clock(clock, 2 * half, "ps").start()
        while True:                         # a tenth: every phase, whatever the ratio
            for level in (1, 0):
                clock.value = level
                await Timer(round(half * random.uniform(0.9, 1.1)), "ps")

    async def reset_over(self):
        d = self.dut
        await Timer(random.randrange(1, 40_000), "ps")
        d.reset.value = 0
        # Nothing was asked for, so nothing may come once both sides have left their reset.
        for _ in range(6):
            await RisingEdge(d.clk_core)
        for _ in range(12):
            await ReadOnly()
            assert not d.core__r_data__valid.value and not d.core__w_done.value
            assert not d.memory__r_cmd__valid.value and not d.memory__w_cmd__valid.value
            assert not d.memory__w_data__valid.value
            await RisingEdge(d.clk_core)
        d.memory__ready.value = 1
        self.tasks = [cocotb.start_soon(x) for x in (
            self.reads(), self.writes(), self.master_reads(), self.master_writes())]

    async def reset(self):
        """In the middle of whatever there is."""
        d = self.dut
        d.reset.value = 1
        for task in self.tasks:
            task.cancel()
        self.forget()
        for name in ("core__r_cmd__valid", "core__w_cmd__valid", "core__w_data__valid",
                     "memory__r_data__valid", "memory__r_cmd__ready", "memory__w_cmd__ready",
                     "memory__w_data__ready", "memory__w_done", "memory__ready"):
            getattr(d, name).value = 0
        await self.reset_over()

    # --- the memory, in its clock -----------------------------------------------------------------

    async def reads(self):
        d, settled, clock = self.dut, ReadOnly(), RisingEdge(self.dut.clk_memory)
        commands = deque()
        while True:
            accept, word = len(commands) < 4 and self.goes(), None
            if commands and self.goes():
                at = commands[0][0] * self.far
                word = int.from_bytes(self.data[at:at + self.far], "little")
                commands[0][0] += 1
                commands[0][1] -= 1
                if not commands[0][1]:
                    commands.popleft()
            d.memory__r_cmd__ready.value = accept
            d.memory__r_data__valid.value = word is not None
            d.memory__r_data__payload.value = random.getrandbits(8 * self.far) if word is None \
                else word
            await settled
            if accept and d.memory__r_cmd__valid.value:
                bits = int(d.memory__r_cmd__payload.value)
                commands.append([bits & 0xFFFF_FFFF, (bits >> 32) + 1])
            await clock

    async def writes(self):
        d, settled, clock = self.dut, ReadOnly(), RisingEdge(self.dut.clk_memory)
        commands, beats, done, told = deque(), deque(), 0, False
        full = (1 << 8 * self.far) - 1
        while True:
            accept, room = len(commands) < 4 and self.goes(), len(beats) < 70 and self.goes()
            d.memory__w_cmd__ready.value, d.memory__w_data__ready.value = accept, room
            # Now and then several ends follow each other at once.
            told = done > 0 and (told or not self.stall or random.random() < 0.05)
            d.memory__w_done.value = told
            done -= told
            await settled
            if accept and d.memory__w_cmd__valid.value:
                bits = int(d.memory__w_cmd__payload.value)
                commands.append((bits & 0xFFFF_FFFF, (bits >> 32) + 1))
            if room and d.memory__w_data__valid.value:
                beats.append(int(d.memory__w_data__payload.value))
            while commands and len(beats) >= commands[0][1]:
                at, words = commands.popleft()
                for k in range(words):
                    beat = beats.popleft()
                    for b in range(self.far):
                        if beat >> 8 * self.far + b & 1:
                            self.data[(at + k) * self.far + b] = (beat & full) >> 8 * b & 255
                done += 1
            await clock

    # --- the core's side --------------------------------------------------------------------------

    async def master_reads(self):
        """Offers the reads that do not meet a write under way; checks what comes."""
        d, settled, clock = self.dut, ReadOnly(), RisingEdge(self.dut.clk_core)
        offered = None
        while True:
            if offered is None and self.jobs and not self.jobs[0][0] and self.goes():
                _, at, words = self.jobs[0]
                if not any(at < end and first < at + words for first, end in self.pending):
                    self.jobs.popleft()
                    offered = at | words - 1 << 32
                    self.expected.extend(range(at, at + words))
            d.core__r_cmd__valid.value = offered is not None
            if offered is not None:
                d.core__r_cmd__payload.value = offered
            await settled
            if offered is not None and d.core__r_cmd__ready.value:
                offered = None
            if d.core__r_data__valid.value:
                assert self.expected, "a word that nobody asked for"
                at = self.expected.popleft() * self.bus
                want = int.from_bytes(self.data[at:at + self.bus], "little")
                got = int(d.core__r_data__payload.value)
                assert got == want, f"{got:#x} at {at:#x} instead of {want:#x}"
                self.times.append(get_sim_time("ps"))
            await clock

    async def master_writes(self):
        d, settled, clock = self.dut, ReadOnly(), RisingEdge(self.dut.clk_core)
        command, beats, shadow = None, deque(), deque()
        full = (1 << self.bus) - 1
        while True:
            if command is None and not beats and self.jobs and self.jobs[0][0] and self.goes() \
                    and not self.expected and len(self.pending) < MemoryCrossing.WRITES:
                _, at, words = self.jobs.popleft()
                command = at | words - 1 << 32
                want = bytearray(self.data[at * self.bus:(at + words) * self.bus])
                for k in range(words):
                    strobe = random.choice([full, random.getrandbits(self.bus)])
                    value = random.randbytes(self.bus)
                    beats.append(int.from_bytes(value, "little") | strobe << 8 * self.bus)
                    for b in range(self.bus):
                        if strobe >> b & 1:
                            want[k * self.bus + b] = value[b]
                self.pending.append((at, at + words))
                shadow.append((at, want))
            beat = beats[0] if beats and self.goes() else None
            d.core__w_cmd__valid.value, d.core__w_data__valid.value = (
                command is not None, beat is not None)
            if command is not None:
                d.core__w_cmd__payload.value = command
            if beat is not None:
                d.core__w_data__payload.value = beat
            await settled
            if command is not None and d.core__w_cmd__ready.value:
                command = None
            if beat is not None and d.core__w_data__ready.value:
                beats.popleft()
            if d.core__w_done.value:
                assert self.pending, "a write that nobody asked for has ended"
                self.pending.popleft()
                self.done += 1
                at, want = shadow.popleft()
                assert self.data[at * self.bus:at * self.bus + len(want)] == want
            await clock

    async def all_done(self):
        """Until nothing is under way, and some time more in which nothing may come."""
        quiet = 0
        while quiet < 40:
            await RisingEdge(self.dut.clk_core)
            quiet = 0 if self.jobs or self.expected or self.pending else quiet + 1
            for task in self.tasks:
                if task.done():
                    task.result()

    def random_jobs(self, count):
        top, regions = SIZE // self.bus, {}
        for _ in range(count):
            write = random.random() < 0.4
            words = random.choice([1, 2, 3, 16, random.randint(1, 16)])
            # Writes that are under way together are apart: each has its own place.
            at = random.randrange(top // 16) * 16
            while write and at in list(regions)[-MemoryCrossing.WRITES - 1:]:
                at = random.randrange(top // 16) * 16
            regions.pop(at, None)
            if write:
                regions[at] = None
            self.jobs.append((write, at + random.randrange(17 - words), words))


@cocotb.test(**LIMIT)
@cocotb.parametrize(stall=[0.0, 0.3, 0.8])
async def no_word_is_lost_doubled_or_reordered(dut, stall):
    bench = Bench(dut, stall=stall, jitter=random.random() < 0.5)
    await bench.begin(float(os.environ["MHZ"]))
    bench.random_jobs(60 if stall > 0.5 else 120)
    await bench.all_done()


@cocotb.test(**LIMIT)
async def resets_in_the_middle(dut):
    bench = Bench(dut, stall=0.2, jitter=True)
    await bench.begin(float(os.environ["MHZ"]))
    for _ in range(12):
        bench.random_jobs(40)
        await Timer(random.randrange(1, 1_500_000), "ps")
        await bench.reset()
    bench.random_jobs(20)
    await bench.all_done()


@cocotb.test(**LIMIT)
async def a_stream_takes_what_memory_or_the_port_gives(dut):
    """Words a core cycle, and how long the first one takes."""
    mhz = float(os.environ["MHZ"])
    bench = Bench(dut)
    await bench.begin(mhz)
    bench.jobs.extend((False, 16 * (k % 64), 16) for k in range(60))
    while bench.jobs[0] == (False, 0, 16):
        await RisingEdge(dut.clk_core)
    asked = get_sim_time("ps")
    await bench.all_done()
    words, ps = len(bench.times), bench.times[-1] - bench.times[0]
    assert words == 960
    least = max(1e6 / mhz, 1e6 / MEMORY_MHZ * bench.bus / bench.far)
    assert (words - 1) * least * 0.99 <= ps <= (words - 1) * least * 1.01 + 8e6 / mhz
    # There: two cycles of the core, seven of the memory. It takes the command and gives the parts
    # of a word. Back: another of the memory, five of the core. Part of a cycle at both borders, and
    # the bench may notice a cycle late that it has asked.
    core, memory = 1e6 / mhz, 1e6 / MEMORY_MHZ
    first, least = bench.times[0] - asked, 7 * core + (8 + bench.bus // bench.far) * memory
    assert least * 0.999 <= first <= least + 2 * core + memory, (first, least)


@cocotb.test(**LIMIT)
async def writes_take_what_the_memory_takes(dut):
    mhz = float(os.environ["MHZ"])
    bench = Bench(dut)
    await bench.begin(mhz)
    bench.jobs.extend((True, 16 * k, 16) for k in range(40))
    begun = get_sim_time("ps")
    await bench.all_done()
    ps = get_sim_time("ps") - begun - 40e6 / mhz
    # A command is an element more; the bench needs two cycles of the core between writes.
    least = 40 * max(19e6 / mhz, (16 * bench.bus / bench.far + 1) * 1e6 / MEMORY_MHZ)
    assert bench.done == 40 and ps <= least * 1.02 + 40e6 / mhz, (ps, least)


@cocotb.test(**LIMIT)
async def the_memory_gets_ready_later(dut):
    bench = Bench(dut)
    await bench.begin(float(os.environ["MHZ"]))
    for _ in range(4):
        await RisingEdge(dut.clk_core)
    assert dut.core__ready.value
    dut.memory__ready.value = 0
    for _ in range(2):
        await RisingEdge(dut.clk_core)
    for _ in range(3):
        await RisingEdge(dut.clk_core)
    await ReadOnly()
    assert not dut.core__ready.value


@pytest.mark.parametrize("mhz", CORE_MHZ)
def test_crossing(seed, mhz):
    simulate(Clocked(4, 2), __name__, seed=seed, bus=4, far=2, mhz=mhz)


@pytest.mark.parametrize("bus,far", [(2, 2), (4, 1), (8, 2)])
def test_widths(seed, bus, far):
    mhz = random.Random(seed).choice(CORE_MHZ)
    simulate(Clocked(bus, far), __name__, seed=seed, bus=bus, far=far, mhz=mhz)


def test_crossing_in_icarus(seed, sim):
    if sim == "icarus":
        mhz = random.Random(seed).uniform(60, 120)
        simulate(Clocked(4, 2), __name__, seed=seed, sim=sim, bus=4, far=2, mhz=mhz)


def test_bad_parameters():
    with pytest.raises(ValueError, match="^bus_bytes must be a multiple of the memory's 8, not 4$"):
        narrowed(config(4), 8)
    with pytest.raises(ValueError, match="^depth must be a power of two of at least 16, not 12$"):
        AsyncQueue(8, depth=12)
    with pytest.raises(ValueError, match="^words must be at least four bursts of 16, not 32$"):
        MemoryCrossing(config(4), bus_bytes=2, size_bytes=SIZE, words=32)
    with pytest.raises(ValueError, match="^size_bytes must fit commands of 9 bits, not 16384$"):
        MemoryCrossing(config(1), bus_bytes=1, size_bytes=SIZE)
    assert narrowed(config(4), 2) == config(2).replace(burst_words=32, fifo_words=128)
