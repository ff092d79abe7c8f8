# amaranth: UnusedElaboratable=no
"""The SDRAM controller against a chip that checks every command."""
import os
import random
from collections import Counter, deque
from dataclasses import replace

import cocotb
import pytest
from bench import cycles, simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram import SdramController
from meadowlark_hdl.memory.sdram_commands import Segmenter
from meadowlark_hdl.memory.sdram_part import IS42S16160G_7, PARTS, SdramPart
from sdram_model import SdramDevice, Violation, serve

LIMIT = dict(timeout_time=20, timeout_unit="ms")
PADS = 2


def config(part, burst_words=128):
    return Config(W=8, P=4, bus_bytes=part.data_bits // 8, burst_words=burst_words)


class Master:
    """The core's side of the port: offers commands, keeps what it knows of the memory."""

    def __init__(self, dut, device, *, stall=0.0):
        self.dut, self.device, self.stall = dut, device, stall
        self.reads, self.writes = deque(), deque()  # (address, words), (address, [(data, strb)])
        self.expected = deque()                         # [address, word] of reads offered, in order
        self.known = {}                                 # what was written, by address
        self.pending = deque()                          # addresses of writes to be acknowledged
        self.busy_words = Counter()                     # being written: not to be read now
        self.read_times, self.write_times, self.wrong = [], [], 0

    def idle(self):
        return not (self.reads or self.writes or self.expected or self.pending)

    async def run(self):
        d, rng = self.dut, random
        settled, clock = ReadOnly(), RisingEdge(d.clk)
        beats = deque()                                 # of writes whose command was offered
        offered_read = offered_write = None
        beat = None

        def goes():
            return not self.stall or rng.random() >= self.stall
        while True:
            if offered_read is None and self.reads and goes():
                at, words = self.reads[0]
                if not any(self.busy_words[i] for i in range(at, at + words)):
                    offered_read = self.reads.popleft()
                    self.expected.extend((i, self.device.read(i)) for i in range(at, at + words))
            if offered_write is None and self.writes and goes():
                at, content = self.writes[0]
                # Reads and writes have no order: none may meet.
                if not {i for i, _ in self.expected} & set(range(at, at + len(content))):
                    offered_write = self.writes.popleft()
                    self.busy_words.update(range(at, at + len(content)))
                    self.known_after(at, content)
                    beats.extend(content)
            if beat is None and beats and goes():
                beat = beats.popleft()
            d.port__r_cmd__valid.value = offered_read is not None
            if offered_read:
                d.port__r_cmd__payload.value = offered_read[0] | offered_read[1] - 1 << 32
            d.port__w_cmd__valid.value = offered_write is not None
            if offered_write:
                d.port__w_cmd__payload.value = (
                    offered_write[0] | len(offered_write[1]) - 1 << 32)
            d.port__w_data__valid.value = beat is not None
            if beat:
                d.port__w_data__payload.value = beat[0] | beat[1] << self.device.part.data_bits
            await settled
            now = cycles(d)
            if offered_read and d.port__r_cmd__ready.value:
                offered_read = None
            if offered_write and d.port__w_cmd__ready.value:
                self.pending.append(range(offered_write[0],
                                          offered_write[0] + len(offered_write[1])))
                offered_write = None
            if beat and d.port__w_data__ready.value:
                beat = None
            if d.port__w_done.value:
                self.write_times.append(now)
                self.busy_words.subtract(self.pending.popleft())
            if d.port__r_data__valid.value:
                self.read_times.append(now)
                _, want = self.expected.popleft()
                got = int(d.port__r_data__payload.value)
                assert got == want, f"cycle {now}: {got:#x} instead of {want:#x}"
            await clock

    def known_after(self, at, beats):
        """Keep in mind what memory holds once this write is done."""
        bits = self.device.part.data_bits
        for i, (value, strobe) in enumerate(beats, at):
            mask = sum(255 << 8 * k for k in range(bits // 8) if strobe >> k & 1)
            old = self.known.get(i, self.device.read(i))
            self.known[i] = old & ~mask | value & mask


async def begin(dut, stall=0.0):
    part, mhz = PARTS[os.environ["PART"]], float(os.environ["MHZ"])
    device = SdramDevice(part, mhz, seed=random.getrandbits(20))
    await start(dut)
    task = cocotb.start_soon(serve(dut, "pins", device, pads=PADS))
    master = Master(dut, device, stall=stall)
    master.tasks = [task, cocotb.start_soon(master.run())]
    while not dut.port__ready.value:
        await RisingEdge(dut.clk)
    return master


async def until_idle(master):
    while not master.idle():
        await RisingEdge(master.dut.clk)
        for task in master.tasks:
            if task.done():
                task.result()           # raises what stopped it


@cocotb.test(**LIMIT)
async def stream(dut):
    """A long sequential read: nothing is lost but refreshes.

    A burst that a page's end cuts into pieces may leave one too short to hide the next row's
    opening behind: then each such cut costs a few cycles, and has a bound of its own.
    """
    master = await begin(dut)
    words, at = int(os.environ["WORDS"]), random.randrange(1 << 20)
    long_pieces = at % 128 == 0 or 12 <= at % 128 <= 116
    left = words
    while left:
        n = min(left, 128)
        master.reads.append((at, n))
        at, left = at + n, left - n
    await until_idle(master)
    took = master.read_times[-1] - master.read_times[0] + 1
    share = words / took
    dut._log.info("%s at %s MHz: %d words in %d cycles, %.4f of peak, %d refreshes",
                  master.device.part.name, os.environ["MHZ"], words, took, share,
                  master.device.counts["REFRESH"])
    if long_pieces:
        assert share >= 0.985
        assert master.device.counts["STOP"] <= 2 + master.device.counts["REFRESH"] // 8 + 1
    else:
        cuts = words // (1 << master.device.part.col_bits) + 1
        assert master.device.counts["STOP"] <= 2 + master.device.counts["REFRESH"] // 8 + 1 + cuts
        assert share >= 0.97


@cocotb.test(**LIMIT)
@cocotb.parametrize((("stall", "local"), [(0.0, 0), (0.0, 1), (0.4, 1), (0.97, 1)]))
async def anything(dut, stall, local):
    """Reads and writes of all lengths, near each other or anywhere, with any strobes."""
    master = await begin(dut, stall)
    part = master.device.part
    total = 1 << part.row_bits + part.bank_bits + part.col_bits
    places = [random.randrange(total - 256) for _ in range(8)]
    for _ in range(150 if stall < 0.9 else 50):
        n = random.choice((1, 2, 3, 5, 8, 17, 64, 128, random.randrange(1, 129)))
        at = random.choice(places) + random.randrange(128) if local else random.randrange(total - n)
        at = min(at, total - n)
        if random.random() < 0.4:
            strobes = random.choice(([3], [0, 1, 2, 3], [0]))
            master.writes.append((at, [(random.getrandbits(part.data_bits),
                                        random.choice(strobes)) for _ in range(n)]))
        else:
            master.reads.append((at, n))
        if random.random() < 0.1:
            await until_idle(master)
    await until_idle(master)
    for i, value in master.known.items():
        assert master.device.read(i) == value, hex(i)


@cocotb.test(**LIMIT)
async def rows_in_turn(dut):
    """The worst order: another row of the same bank each time. And alone, after long silence."""
    master = await begin(dut)
    part = master.device.part
    row = 1 << part.col_bits + part.bank_bits
    for i in range(60):
        master.reads.append((i * row, 3))
    await until_idle(master)
    for _ in range(9_000):
        await RisingEdge(dut.clk)
    first = cycles(dut)
    master.reads.append((5 * row, 1))
    await until_idle(master)
    t = SdramController(config(part), part, clock_mhz=float(os.environ["MHZ"])).timing
    took = master.read_times[-1] - first
    dut._log.info("first word after %d cycles", took)
    assert took <= 13 + PADS + t.cas + t.rp + t.rcd + 8 * t.rfc + 8


@pytest.mark.parametrize(("part", "mhz"), [
    ("MT48LC16M16A2", 100), ("IS42S16160G", 133.333), ("AS4C32M16SB", 133.333)])
def test_sdram(seed, part, mhz):
    chip = PARTS[part]
    simulate(SdramController(config(chip), chip, clock_mhz=mhz, pads=PADS), __name__, seed=seed,
             part=part, mhz=mhz, words=25_000)


def test_sdram_single_refreshes(seed):
    chip = IS42S16160G_7
    simulate(SdramController(config(chip), chip, clock_mhz=100, pads=PADS, group=1), __name__,
             seed=seed, part="IS42S16160G", mhz=100, testcase="anything")


@pytest.mark.parametrize("part", PARTS.values(), ids=lambda p: p.name)
def test_timing_follows_from_the_datasheet(part: SdramPart):
    for mhz in (50, 100, 133.333):
        t, period = part.at(mhz), 1000 / mhz
        for name in ("rcd", "rp", "ras", "rrd", "rfc", "wr"):
            cycles_, ns = getattr(t, name), getattr(part, f"{name}_ns")
            assert cycles_ * period >= ns - 1e-4 and (name == "ras" or (cycles_ - 1) * period < ns)
        assert (t.ras + t.rp) * period >= part.rc_ns - 1e-4
        # A row's refreshes, late by a group and a page, are still within the time.
        assert (part.refreshes * t.refresh + 8 * t.refresh / 8 + 600) * period < (
            part.refresh_ms * 1e6 + 8 * 7_900)


def test_the_device_notices():
    """Each rule of the chip can be broken."""
    part = replace(IS42S16160G_7, wr_ns=40)     # 14 ns cannot be missed at 100 MHz

    def chip():
        device = SdramDevice(part, 100)
        device.cycle = 20_000
        for code, a in ((2, 1 << 10), (4, 0), (4, 0), (0, 0x37)):
            step(device, code, a=a)
            for _ in range(10):
                step(device)
        return device

    def step(device, code=7, ba=0, a=0, dqm=0, dq=None):
        return device.edge(cke=1, code=code, ba=ba, a=a, dqm=dqm, dq=dq)

    def play(*steps):
        device = chip()
        for times, kw in steps:
            for _ in range(times):
                step(device, **kw)
        return device
    nop, act = (1, {}), (1, dict(code=6, a=5))
    play(act, (3, {}), (1, dict(code=5)), (4, {}), (1, dict(code=3)), (3, {}), (1, dict(code=2)))
    bad = [
        ("READ after ACTIVATE", (act, (1, dict(code=5)))),
        ("no open row", ((1, dict(code=5)),)),
        ("which has an open row", (act, (9, {}), act)),
        ("ACTIVATE after PRECHARGE", (act, (9, {}), (1, dict(code=2)), act)),
        ("PRECHARGE after ACTIVATE", (act, (1, dict(code=2)))),
        ("ACTIVATE after ACTIVATE", (act, (1, dict(code=6, ba=1)))),
        ("under its burst", (act, (9, {}), (1, dict(code=5)), nop, (1, dict(code=2)))),
        ("with an open row", (act, (9, {}), (1, dict(code=4)))),
        ("after REFRESH", ((1, dict(code=4)), act)),
        ("auto-precharge", (act, (9, {}), (1, dict(code=5, a=1 << 10)))),
        ("STOP without", ((1, dict(code=3)),)),
        ("is not driven", (act, (9, {}), (1, dict(code=1)))),
        ("driven while a burst is read", (act, (9, {}), (1, dict(code=5)), (1, dict(dq=1)))),
        ("while the chip drives", (act, (9, {}), (1, dict(code=5)), (1, dict(code=3)), (2, {}),
                                   (1, dict(code=1, dq=1)))),
        ("no burst is under way", ((1, dict(dq=1)),)),
        ("after the last word", (act, (9, {}), (1, dict(code=1, dq=1)), (1, dict(code=3)),
                                 (1, dict(code=2)))),
        ("is masked", (act, (9, {}), (1, dict(code=5)), (1, dict(dqm=1)), (9, {}))),
        ("overdue", ((8000, {}),)),
        ("open too long", (act, (12_500, {}), (1, dict(code=2)))),
        ("after MODE", ((1, dict(code=0, a=0x37)), act)),
        ("not a full page", ((1, dict(code=0, a=0x33)),))]
    for what, steps in bad:
        with pytest.raises(Violation, match=what):
            device = chip()
            if what == "open too long":
                device.first_refresh = 1e12
            for times, kw in steps:
                for _ in range(times):
                    step(device, **kw)
    with pytest.raises(Violation, match="during power-up"):
        step(SdramDevice(part, 100), 2)
    late = SdramDevice(part, 100)
    late.cycle = 20_000
    with pytest.raises(Violation, match="before the mode register"):
        step(late, 6)


def test_parameters():
    part = IS42S16160G_7
    with pytest.raises(ValueError, match=r"^bus_bytes must be 2 for IS42S16160G-7, not 1$"):
        SdramController(Config(W=8, P=4, bus_bytes=1), part, clock_mhz=100)
    with pytest.raises(ValueError, match=r"^burst_words must be at most 512, a page of IS42"):
        SdramController(Config(W=8, P=4, bus_bytes=2, burst_words=1024, fifo_words=2048), part,
                        clock_mhz=100)
    with pytest.raises(ValueError, match=r"^IS42S16160G-7 reaches 143 MHz, not 150; lower"):
        SdramController(config(part), part, clock_mhz=150)
    with pytest.raises(ValueError, match=r"^group must be in 1\.\.8, not 9$"):
        SdramController(config(part), part, clock_mhz=100, group=9)
    assert Segmenter(config(part), part)
