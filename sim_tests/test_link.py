# amaranth: UnusedElaboratable=no
"""The gateware of the link against the host's own driver.

The driver runs in a thread; its transport steps the simulation. Around the link stand models of
memory, sequencer and counters.
"""
import random
import struct
from collections import deque
from zlib import crc32

import cocotb
import pytest
from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, flipped
from amaranth.lib.wiring import connect as connect_ports
from bench import cycles, pack, simulate, start, unpack
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time
from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.frames import Frame, FrameParser
from meadowlark_hdl.config import Config
from meadowlark_hdl.link.counters_table import COUNTERS
from meadowlark_hdl.control.errors import Error
from meadowlark_hdl.sampler.sampler_golden import Sampling
from meadowlark_hdl.isa import INSTRUCTION_BYTES, MODEL_REGS, Instruction, Op, encode
from meadowlark_hdl.link.link import Link
from meadowlark_hdl.link.protocol import (ANSWER, BY_NAME, CONTROL_BASE, CREDITS, MAX_PAYLOAD,
                                          RESET_MAGIC, TOKEN, Command, Reason, Result)
from meadowlark_hdl.link.registers import constants
from meadowlark_hdl.signatures import ModelLayout, ReadCommand, RunLayout, TokenEvent

MEMORY = 1 << 14
RING = 8
RESEND = 1200
LIMIT = dict(timeout_time=6, timeout_unit="ms")


def config(bus_bytes):
    return Config(W=max(4, bus_bytes), P=8, bus_bytes=bus_bytes, prog_depth=64, context=256,
                  fifo_words=256, burst_words=128 if bus_bytes == 2 else 32)


def invent(history):
    crc = crc32(struct.pack(f"<{len(history)}I", *history))
    return crc % (1 << 19), crc ^ 0x1234


def expected(prompt, count):
    history = list(prompt)
    for _ in range(count):
        history.append(invent(history)[0])
    return history[len(prompt):]


class Probed(wiring.Component):
    """A Link, and a signal that tells in which cycles there is anything to look at."""

    def __init__(self, link):
        self.link = link
        super().__init__({**link.signature.members, "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = self.link
        for name in ("rx", "tx", "seq", "mem"):
            connect_ports(m, flipped(getattr(self, name)), getattr(link, name))
        seq, mem = link.seq, link.mem
        m.d.comb += [
            link.counter_data.eq(self.counter_data), self.counter_index.eq(link.counter_index),
            self.counter_hold.eq(link.counter_hold), self.reset.eq(link.reset),
            self.idle.eq(link.idle), self.active.eq(Cat(
                link.rx.valid, link.tx.valid, mem.r_cmd.valid, mem.r_data.valid, mem.w_cmd.valid,
                mem.w_data.valid, seq.prog_en, seq.token_en, seq.start, seq.abort, link.reset,
                seq.events.valid).any())]
        return m


def link(bus_bytes):
    return Probed(Link(config(bus_bytes), board="bench", clock_hz=100_000_000,
                       memory_bytes=MEMORY, ring=RING, resend_cycles=RESEND))


class Bench:
    """Everything around the link, a clock cycle at a time."""

    def __init__(self, dut, *, stall=0.0):
        self.dut, self.stall = dut, stall
        self.config = config(len(dut.mem__r_data__payload) // 8)
        self.memory = bytearray(random.randbytes(MEMORY))
        self.program, self.tokens = {}, {}
        self.runs, self.models = [], []
        self.to_link, self.from_link = deque(), deque()
        self.parser = FrameParser()     # of exchange()
        self.hold_back = False          # the line to the host is stuck
        self.events = deque()           # of the sequencer, to be offered
        self.busy, self.aborts, self.resets = False, 0, 0
        self.fail_with = self.error = 0
        self.counters = [random.randrange(1 << 40) for _ in COUNTERS]
        self.history, self.left = [], 0

    async def begin(self):
        await start(self.dut, mem__ready=1, tx__ready=0)
        cocotb.start_soon(self._clock())

    async def _clock(self):
        d, bus = self.dut, self.config.bus_bytes
        edge, settled = RisingEdge(d.clk), ReadOnly()
        chance, stall = random.random, self.stall
        reads, writes = deque(), deque()        # words to return; [address, words] to fill
        done, index = 0, 0
        command = ReadCommand(self.config)
        driven = {}

        def drive(handle, value):
            if driven.get(handle) != value:
                driven[handle] = handle.value = value
        while True:
            await settled
            # --- what the link says in this cycle
            taken = False
            if d.active.value:
                taken = d.seq__events__valid.value and d.seq__events__ready.value
                if d.rx__valid.value:
                    assert d.rx__ready.value, "the receiver stalls"
                if d.tx__valid.value and d.tx__ready.value:
                    self.from_link.append(int(d.tx__payload.value))
                if d.mem__r_cmd__valid.value and d.mem__r_cmd__ready.value:
                    c = unpack(command, int(d.mem__r_cmd__payload.value))
                    for i in range(c["len"] + 1):
                        at = (c["addr"] + i) * bus
                        assert at + bus <= MEMORY, hex(at)
                        reads.append(int.from_bytes(self.memory[at:at + bus], "little"))
                if d.mem__r_data__valid.value:
                    assert d.mem__r_data__ready.value, "the memory bus waits for the link"
                    reads.popleft()
                if d.mem__w_cmd__valid.value and d.mem__w_cmd__ready.value:
                    c = unpack(command, int(d.mem__w_cmd__payload.value))
                    writes.append([c["addr"], c["len"] + 1])
                if d.mem__w_data__valid.value and d.mem__w_data__ready.value:
                    raw = int(d.mem__w_data__payload.value)
                    assert raw >> 8 * bus == (1 << bus) - 1
                    at = writes[0][0] * bus
                    self.memory[at:at + bus] = (raw & (1 << 8 * bus) - 1).to_bytes(bus, "little")
                    writes[0][0] += 1
                    writes[0][1] -= 1
                    if not writes[0][1]:
                        writes.popleft()
                        done = random.randrange(2, 20)
                if d.seq__prog_en.value:
                    assert not self.busy
                    self.program[int(d.seq__prog_addr.value)] = int(
                        d.seq__prog_data.value).to_bytes(INSTRUCTION_BYTES, "little")
                if d.seq__token_en.value:
                    assert not self.busy
                    self.tokens[int(d.seq__token_addr.value)] = int(d.seq__token_data.value)
                if d.seq__start.value:
                    self._start(unpack(RunLayout(), int(d.seq__run.value)),
                                unpack(ModelLayout, int(d.seq__model.value)))
                if d.seq__abort.value and self.busy:
                    self.aborts += 1
                    if not self.events or self.events[-1]["reason"] == 0:
                        self.events.append({"reason": Reason.ABORTED})
                if d.reset.value:
                    self.resets += 1
                    self.busy = False
                    self.events.clear()
            counter = int(d.counter_index.value)
            await edge
            # --- what it sees in the next one
            byte = self.to_link.popleft() if self.to_link else None
            drive(d.rx__valid, byte is not None)
            drive(d.rx__payload, byte or 0)
            go = [stall == 0 or chance() >= stall for _ in range(5)] if stall else (True,) * 5
            drive(d.tx__ready, not self.hold_back and go[0])
            drive(d.mem__r_cmd__ready, go[1] and len(reads) < 64)
            drive(d.mem__w_cmd__ready, go[2] and not writes)
            drive(d.mem__w_data__ready, bool(writes) and go[3])
            drive(d.mem__r_data__valid, bool(reads) and go[4])
            drive(d.mem__r_data__payload, reads[0] if reads else 0)
            done = max(done - 1, 0)
            drive(d.mem__w_done, done == 1)
            # Two cycles late, as the counters are.
            drive(d.counter_data, self.counters[index] if index < len(COUNTERS) else 0)
            index = counter
            if taken:
                # A test may have cleared them in the meantime.
                if self.events and self.events.popleft()["reason"]:
                    self.busy = False
            elif self.busy and not self.events and chance() < 0.05:
                self._step()
            drive(d.seq__busy, self.busy)
            drive(d.seq__error, self.error)
            drive(d.seq__error_pc, 33)
            drive(d.seq__events__valid, bool(self.events))
            if self.events:
                drive(d.seq__events__payload, pack(TokenEvent(), **self.events[0]))

    def _start(self, run, model):
        assert not self.busy
        self.busy, self.error = True, 0
        self.runs.append(run)
        self.models.append(model)
        self.history = [self.tokens.get(i, 0) for i in range(run["start_pos"] + run["prompt"])]
        self.left = run["max_new"]

    def _step(self):
        run = self.runs[-1]
        if self.fail_with:
            self.error, self.fail_with = self.fail_with, 0
            self.events.append({"reason": Reason.ABORTED})
        elif not run["max_new"]:
            self.events.append({"reason": Reason.FILLED})
        else:
            token, crc = invent(self.history)
            self.history.append(token)
            self.left -= 1
            stop = token in run["stop_ids"][:run["stop_count"]]
            self.events.append({"token": token, "crc": crc,
                                "reason": Reason.STOP if stop else
                                Reason.MAX_NEW if not self.left else 0})


class SimTransport:
    """The driver's side, with faults; its time is that of the simulation."""

    def __init__(self, bench, *, loss=0.0):
        self.bench, self.loss = bench, loss
        self.timeout = 4_000e-8            # cycles of 10 ns
        self.sent = FrameParser()
        self.log = []                       # frames that the host sent
        self._line = FrameParser()
        self._out = bytearray()

    @resume
    async def write(self, data):
        self.log += self.sent.feed(data)
        for raw in self.faults(bytes(data)):
            self.bench.to_link.extend(raw)

    @resume
    async def read(self, max, timeout):
        left = round(timeout * 1e8)
        clock = RisingEdge(self.bench.dut.clk)
        while True:
            if self.bench.from_link:
                raw = bytes(self.bench.from_link)
                self.bench.from_link.clear()
                if self.loss:
                    for frame in self._line.feed(raw):      # faults hit whole frames, too
                        for part in self.faults(frame.encode()):
                            self._out += part
                else:
                    self._out += raw
            if self._out:
                data = bytes(self._out[:max])
                del self._out[:max]
                return data
            if left <= 0:
                return b""
            await clock
            left -= 1

    @resume
    async def now(self):
        return get_sim_time("ns") / 1e9

    def close(self):
        pass

    def faults(self, raw):
        chance, out = random.random, [raw]
        if chance() < self.loss:
            return []
        at = random.randrange(len(raw))
        if chance() < self.loss:
            out = [raw[:at] + bytes((raw[at] ^ 1 << random.randrange(8),)) + raw[at + 1:]]
        if chance() < self.loss:
            out = [raw[:at] + raw[at + 1:]]
        if chance() < self.loss:
            out *= 2
        return out


def connect(bench, loss=0.0):
    return Driver(SimTransport(bench, loss=loss), retries=50)


@cocotb.test(**LIMIT)
@cocotb.parametrize((("loss", "stall"), [(0.0, 0.0), (0.0, 0.3), (0.05, 0.2)]))
async def driver_loads_and_runs(dut, loss, stall):
    bench = Bench(dut, stall=stall)
    await bench.begin()
    program = [Instruction(Op.LINEAR, addr=random.randrange(1 << 27)) for _ in range(40)]
    data, model = random.randbytes(1999), {f.name: random.randrange(1 << f.bits)
                                           for f in MODEL_REGS}
    model["vocab"] = (1 << 19) - 1          # it bounds the tokens of a prompt
    prompt = [random.randrange(model["vocab"]) for _ in range(150)]
    sampling = Sampling(inv_t_mant=65_535, inv_t_shift=31, top_k=32, top_p=65_535, seed=1 << 31)
    never = set(range(1 << 19)) - set(expected(prompt, 60))
    stops = random.sample(sorted(never), 7)

    @bridge
    def host():
        driver = connect(bench, loss)
        assert driver.info.config == bench.config
        assert (driver.info.name, driver.info.clock_hz, driver.info.memory_bytes) == (
            "bench", 100_000_000, MEMORY)
        driver.load([(64, data)], program=program, model=model)
        assert driver.read_memory(64, 1999) == data
        events = list(driver.run(prompt, sampling, max_new=60, stop_ids=stops))
        assert [e.token for e in events] == expected(prompt, 60)
        assert [e.index for e in events] == list(range(60))
        assert [e.crc for e in events] == [
            invent((prompt + expected(prompt, 60))[:150 + i])[1] for i in range(60)]
        assert driver.reason == Reason.MAX_NEW
        if not loss:
            assert driver.host_messages == 0
            kinds = [f.type for f in driver.transport.log]
            assert set(kinds[kinds.index(Command.START) + 1:]) == {Command.CREDIT}
        assert driver.counters() == {c.name: v for c, v in zip(COUNTERS, bench.counters)}
        assert {n: driver.read_register(n) for n in model} == model
        if not loss:
            assert driver.read_register("frames_bad") == 0
            assert driver.read_register("frames_dropped") == 0
        else:
            assert driver.read_register("frames_bad") > 0

    await host()
    assert bench.memory[64:64 + 1999] == data
    assert [bench.program[i] for i in range(40)] == [encode(x) for x in program]
    assert [bench.tokens[i] for i in range(150)] == prompt
    assert bench.models == [model] and len(bench.runs) == 1
    assert bench.runs[0] == {
        "start_pos": 0, "prompt": 150, "max_new": 60, "inv_t_mant": 65_535, "inv_t_shift": 31,
        "top_k": 32, "top_p": 65_535, "seed": 1 << 31, "batch": 0, "draft_most": 0,
        "draft_price": 0, "stop_count": 7, "stop_ids": [*stops, 0]}


@cocotb.test(**LIMIT)
@cocotb.parametrize(loss=[0.0, 0.05])
async def cancel_fail_and_go_on(dut, loss):
    bench = Bench(dut, stall=0.1)
    await bench.begin()

    @bridge
    def host():
        driver = connect(bench, loss)
        run = driver.run([1, 2, 3], max_new=4000)
        for _ in range(12):
            next(run)
        run.close()
        assert not bench.busy and driver.reason == Reason.ABORTED
        third = expected([5], 3)[2]
        assert [e.token for e in driver.run([5], max_new=9, stop_ids=[third])] == expected([5], 3)
        assert driver.reason == Reason.STOP
        bench.fail_with = Error.BAD_TOKEN
        with pytest.raises(BoardError, match=r"vocabulary.*\(instruction 33\)$"):
            list(driver.run([5], max_new=9))
        assert list(driver.run([5], max_new=0)) == [] and driver.reason == Reason.FILLED
        # A host that dies and one that takes over
        run = driver.run([7], max_new=4000)
        for _ in range(3):
            next(run)
        other = connect(bench, loss)
        assert not bench.busy
        assert [e.token for e in other.run([8], max_new=4)] == expected([8], 4)
        assert len(bench.runs) == 6
        other.reset()
        assert bench.resets == 1 if not loss else bench.resets >= 1
        assert [e.token for e in other.run([8], max_new=2)] == expected([8], 2)

    await host()
    # An ABORT whose answer was lost is sent again, and ends the run that is ending.
    assert bench.aborts == 2 if not loss else bench.aborts >= 2


async def exchange(bench, *sent, cycles_to_wait=3000):
    """Raw frames in, frames out."""
    for frame in sent:
        bench.to_link.extend(frame.encode())
    await ClockCycles(bench.dut.clk, cycles_to_wait)
    out = bench.parser.feed(bytes(bench.from_link))
    bench.from_link.clear()
    assert not bench.parser.bad
    return out


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


@cocotb.test(**LIMIT)
async def refusals(dut):
    """Each kind of wrong command has its answer and leaves no trace."""
    bench = Bench(dut)
    await bench.begin()
    bus, burst = bench.config.bus_bytes, bench.config.burst_words
    before = bytes(bench.memory)
    too_long = burst * bus + bus if burst * bus < 248 else 256
    cases = [
        (0x33, b"", Result.BAD_LENGTH), (0x33, u32(0), Result.BAD_COMMAND),
        (0x33, u32(*range(64)), Result.BAD_COMMAND),
        (Command.READ, b"abc", Result.BAD_LENGTH), (Command.READ, u32(0), Result.BAD_LENGTH),
        (Command.READ, u32(0, 0), Result.BAD_LENGTH),
        (Command.READ, u32(0, 64), Result.BAD_LENGTH),
        (Command.READ, u32(0, 1, 2), Result.BAD_LENGTH),
        (Command.READ, u32(512, 1), Result.BAD_ADDRESS),
        (Command.WRITE, u32(0x50), Result.BAD_LENGTH),
        (Command.WRITE, u32(0, 1), Result.BAD_ADDRESS),
        (Command.WRITE, u32(128, 1), Result.BAD_ADDRESS),
        (Command.WRITE, u32(127, 1, 2), Result.BAD_ADDRESS),
        (Command.WRITE, u32(0x7E, 1) + b"a", Result.BAD_LENGTH),
        (Command.READ_MEMORY, u32(0, 0), Result.BAD_LENGTH),
        (Command.READ_MEMORY, u32(0, too_long), Result.BAD_LENGTH),
        (Command.WRITE_MEMORY, u32(0), Result.BAD_LENGTH),
        (Command.CRC_MEMORY, u32(0, 0), Result.BAD_LENGTH),
        (Command.WRITE_PROGRAM, u32(0), Result.BAD_LENGTH),
        (Command.WRITE_PROGRAM, u32(0) + bytes(20), Result.BAD_LENGTH),
        (Command.WRITE_PROGRAM, u32(64) + bytes(INSTRUCTION_BYTES), Result.BAD_ADDRESS),
        (Command.WRITE_PROGRAM, u32(1 << 20) + bytes(INSTRUCTION_BYTES), Result.BAD_ADDRESS),
        (Command.WRITE_TOKENS, u32(256, 1), Result.BAD_ADDRESS),
        (Command.WRITE_TOKENS, u32(1 << 31, 1), Result.BAD_ADDRESS),
        (Command.START, u32(1, 1), Result.BAD_LENGTH),
        (Command.ABORT, u32(1, 1), Result.BAD_LENGTH)]
    if bus > 1:
        cases += [(Command.READ_MEMORY, u32(1, bus), Result.BAD_LENGTH),
                  (Command.READ_MEMORY, u32(0, bus + 1), Result.BAD_LENGTH),
                  (Command.WRITE_MEMORY, u32(1) + bytes(bus), Result.BAD_LENGTH),
                  (Command.WRITE_MEMORY, u32(0) + bytes(bus + 1), Result.BAD_LENGTH),
                  (Command.CRC_MEMORY, u32(0, bus + 1), Result.BAD_LENGTH)]
    if burst * bus < 248:
        cases += [(Command.WRITE_MEMORY, u32(0) + bytes(too_long), Result.BAD_LENGTH)]
    for i, (command, payload, result) in enumerate(cases):
        got = await exchange(bench, Frame(command, i, payload), cycles_to_wait=700)
        assert got == [Frame(command | ANSWER, i, bytes((result,)))], (command, payload, got)
    dut.mem__ready.value = 0
    for command, payload in ((Command.READ_MEMORY, u32(0, bus)), (Command.CRC_MEMORY, u32(0, bus)),
                             (Command.WRITE_MEMORY, u32(0) + bytes(bus)), (Command.START, u32(9))):
        got = await exchange(bench, Frame(command, 1, payload), cycles_to_wait=400)
        assert got == [Frame(command | ANSWER, 1, bytes((Result.NOT_READY,)))]
    dut.mem__ready.value = 1
    assert bytes(bench.memory) == before and not bench.runs
    # During a run: registers of the run, program and tokens are locked, others are not.
    bench.left = 0
    await exchange(bench, Frame(Command.START, 1, u32(5)), cycles_to_wait=100)
    bench.busy = True
    bench.events.clear()
    bench.runs[-1]["max_new"], bench.left = 1, 10 ** 9
    for command, payload, result in (
            (Command.WRITE, u32(0x30, 1), Result.BUSY), (Command.WRITE, u32(0x60, 1), Result.BUSY),
            (Command.WRITE_PROGRAM, u32(0) + bytes(INSTRUCTION_BYTES), Result.BUSY),
            (Command.WRITE_TOKENS, u32(0, 1), Result.BUSY), (Command.START, u32(6), Result.BUSY),
            (Command.START, u32(5), Result.OK),         # a repetition: not started again
            (Command.ABORT, u32(4), Result.OK),         # of another run: not aborted
            (Command.WRITE, u32(0x28, RESEND), Result.OK)):
        got = await exchange(bench, Frame(command, 1, payload), cycles_to_wait=400)
        assert Frame(command | ANSWER, 1, bytes((result,))) in got
    assert len(bench.runs) == 1 and bench.aborts == 0
    got = await exchange(bench, Frame(Command.WRITE, 1, u32(0x29, RESET_MAGIC ^ 1)),
                         Frame(Command.WRITE, 2, u32(0x29, RESET_MAGIC)))
    assert bench.resets == 1


@cocotb.test(**LIMIT)
async def register_file(dut):
    """Constants as built; every written register reads back."""
    bench = Bench(dut)
    await bench.begin()
    facts = constants(bench.config, board="bench", clock_hz=100_000_000, memory_bytes=MEMORY)
    count = max(BY_NAME[name].address for name in facts) + 1
    got, = await exchange(bench, Frame(Command.READ, 9, u32(0, count)))
    words = struct.unpack(f"<{count}I", got.payload[1:])
    assert got.payload[0] == Result.OK
    assert {n: words[BY_NAME[n].address] for n in facts} == facts
    values = [random.randrange(1 << 32) for _ in range(0x62 - 0x30)]
    await exchange(bench, Frame(Command.WRITE, 1, u32(CONTROL_BASE, RESEND + 5)))
    got, = await exchange(bench, Frame(Command.READ, 2, u32(CONTROL_BASE, 1)))
    assert got.payload[1:] == u32(RESEND + 5)
    await exchange(bench, Frame(Command.WRITE, 1, u32(0x30, *values)))
    got, = await exchange(bench, Frame(Command.READ, 2, u32(0x30, len(values))))
    assert list(struct.unpack(f"<{len(values)}I", got.payload[1:])) == values
    model = unpack(ModelLayout, int(dut.seq__model.value))
    for f in MODEL_REGS:
        at = BY_NAME[f.name].address - 0x30
        assert model[f.name] == (values[at] | values[at + 1] << 32) & (1 << f.bits) - 1


@cocotb.test(**LIMIT)
async def ring_holds_and_sends_again(dut):
    """Without acknowledgement: RING events at most, sent again and again from the first; none
    lost. Then acknowledged in lumps, wrong acknowledgements ignored."""
    bench = Bench(dut)
    await bench.begin()
    await ClockCycles(dut.clk, 50)
    assert dut.idle.value
    setup = [Frame(Command.WRITE_TOKENS, 1, u32(0, 77)),
             Frame(Command.WRITE, 2, u32(BY_NAME["start_pos"].address, 0, 1, 30)),
             Frame(Command.START, 3, u32(0x1234))]
    first = await exchange(bench, *setup, cycles_to_wait=1100)
    assert sum(f.type & ANSWER > 0 for f in first) == 3
    events = [f for f in first if f.type == TOKEN]
    assert [struct.unpack("<HH", f.payload[:4]) for f in events] in (
        [(0x1234, i) for i in range(n)] for n in (RING - 1, RING))
    held = len(events)
    assert not dut.idle.value
    assert bench.busy and bench.events          # the sequencer waits
    again = await exchange(bench, cycles_to_wait=2 * RESEND)
    assert again[:held] == events and held < len(again) <= 3 * held
    # Of another run, beyond what was sent, and backwards: nothing moves.
    for run, index in ((0x1233, 3), (0x1234, held + 1), (0x1234, 0), (0x1234, 0xFFFF)):
        got = await exchange(bench, Frame(Command.CREDIT, 0, struct.pack("<HH", run, index)),
                             cycles_to_wait=2 * RESEND)
        assert {f.payload[2] for f in got} == set(range(held))
    seen = {}

    async def collect(*sent, wait):
        for f in await exchange(bench, *sent, cycles_to_wait=wait):
            run, index, token, crc, reason = struct.unpack("<HHIIB", f.payload)
            assert f.type == TOKEN and run == 0x1234 and f.seq == index
            assert seen.setdefault(index, (token, crc, reason)) == (token, crc, reason)
    while len(seen) < 30:
        await collect(wait=random.randrange(RESEND))
        arrived = next(i for i in range(31) if i not in seen)
        credit = arrived if random.random() < 0.7 else random.randrange(arrived + 1)
        await collect(Frame(Command.CREDIT, 0, struct.pack("<HH", 0x1234, credit)), wait=200)
    assert [seen[i][0] for i in range(30)] == expected([77], 30)
    assert not bench.busy
    await exchange(bench, Frame(Command.CREDIT, 0, struct.pack("<HH", 0x1234, 30)))
    assert await exchange(bench, cycles_to_wait=2 * RESEND) == []       # silence at last
    assert dut.idle.value


@cocotb.test(**LIMIT)
async def a_start_between_events_sends_none_of_the_old_run(dut):
    """A new run while events of the last one wait or are on their way."""
    bench = Bench(dut)
    await bench.begin()
    await exchange(bench, Frame(Command.WRITE, 1, u32(BY_NAME["resend_cycles"].address, 1)),
                   Frame(Command.WRITE, 2, u32(BY_NAME["start_pos"].address, 0, 1, 5)))
    for run in range(1, 40):
        # Events are sent again without a pause: STARTs come at every phase of that.
        for frame in await exchange(bench, Frame(Command.START, run % 256, u32(run)),
                                    cycles_to_wait=random.randrange(250, 450)):
            if frame.type == TOKEN:
                number, index, token, _, _ = struct.unpack("<HHIIB", frame.payload)
                assert number in (run, run - 1)
                assert token == expected([0], 5)[index]
        while bench.busy:
            await RisingEdge(dut.clk)
    assert len(bench.runs) == 39


@cocotb.test(**LIMIT)
async def a_window_at_a_byte_a_cycle(dut):
    """CREDITS frames of full length at once, back to back: all answered, none dropped, in bounded
    time. The CRC of memory takes a word a cycle."""
    bench = Bench(dut)
    await bench.begin()
    bus = bench.config.bus_bytes
    size = min(MAX_PAYLOAD - 4, bench.config.burst_words * bus) // bus * bus
    data = [random.randbytes(size) for _ in range(CREDITS)]
    begin = cycles(dut)
    for i, part in enumerate(data):
        bench.to_link.extend(Frame(Command.WRITE_MEMORY, i, u32(i * size) + part).encode())
    answers, parser = [], FrameParser()
    while len(answers) < CREDITS:
        await RisingEdge(dut.clk)
        answers += parser.feed(bytes(bench.from_link))
        bench.from_link.clear()
    took = cycles(dut) - begin
    assert answers == [Frame(Command.WRITE_MEMORY | ANSWER, i, b"\0") for i in range(CREDITS)]
    assert bench.memory[:CREDITS * size] == b"".join(data)
    dut._log.info("%d frames of %d bytes in %d cycles", CREDITS, size + 13, took)
    # One frame to come in, then the execution of each, which hides the next one's arrival: its
    # bytes, a burst to memory, and what command and answer cost.
    words = size // bus
    assert took < (size + 13) * (CREDITS + 1) + CREDITS * (words + 60)
    begin = cycles(dut)
    got = await exchange(bench, Frame(Command.CRC_MEMORY, 77, u32(0, MEMORY)), cycles_to_wait=0)
    while not bench.from_link:
        await RisingEdge(dut.clk)
    took = cycles(dut) - begin
    got += await exchange(bench, cycles_to_wait=20)
    assert got == [Frame(Command.CRC_MEMORY | ANSWER, 77, b"\0" + u32(crc32(bench.memory)))]
    dut._log.info("CRC of %d words in %d cycles", MEMORY // bus, took)
    assert took < 1.3 * MEMORY // bus + 100
    got = await exchange(bench, Frame(Command.CRC_MEMORY, 78, u32(64, 128)), cycles_to_wait=400)
    assert got == [Frame(Command.CRC_MEMORY | ANSWER, 78, b"\0" + u32(crc32(bench.memory[64:192])))]


@cocotb.test(**LIMIT)
async def overrun(dut):
    """More frames than buffers while the line to the host is stuck: dropped and counted, and
    everything that was kept is answered."""
    bench = Bench(dut)
    await bench.begin()
    bench.hold_back = True
    await exchange(bench, *(Frame(Command.READ, i, u32(0, 60)) for i in range(20)))
    bench.hold_back = False
    got = await exchange(bench, cycles_to_wait=15_000)
    assert [f.seq for f in got] == list(range(len(got))) and 7 <= len(got) < 20
    await exchange(bench, Frame(Command.READ, 99, u32(BY_NAME["frames_dropped"].address, 1)))
    assert len(got) + 12 >= 20


@pytest.mark.parametrize("bus_bytes", [2, 8])
def test_link(seed, bus_bytes):
    simulate(link(bus_bytes), __name__, seed=seed)


@pytest.mark.parametrize("bus_bytes", [1, 32])
def test_link_widths(seed, bus_bytes):
    simulate(link(bus_bytes), __name__, seed=seed,
             testcase="(a_window_at_a_byte_a_cycle|refusals|driver_loads_and_runs/loss=0.0)")


def test_parameters():
    small = config(2)
    with pytest.raises(ValueError, match=r"^ring must be a power of two in 4\.\.64, not 5$"):
        Link(small, ring=5)
    with pytest.raises(ValueError, match=r"^resend_cycles must be in 1\.\.2\*\*32-1, not 0$"):
        Link(small, resend_cycles=0)
    with pytest.raises(ValueError, match=r"^board must have at most 16 characters, not '"):
        Link(small, board="x" * 17)
    with pytest.raises(ValueError, match=r"^register memory_kib holds 32 bits, not "):
        Link(small, memory_bytes=1 << 43)
