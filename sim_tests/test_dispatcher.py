"""The way of a command through the link: payload to units, dispatcher, answer."""
import random

import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from meadowlark_hdl.config import Config
from meadowlark_hdl.link.answerer import Answerer
from meadowlark_hdl.link.dispatcher import Dispatcher, Form
from meadowlark_hdl.link.handlers.handler import Handler, HandlerPort, Sizes
from meadowlark_hdl.link.protocol import ANSWER, MAX_PAYLOAD, Result
from meadowlark_hdl.link.units import Units
from quick import run

CONFIG = Config(W=8, P=4, bus_bytes=4)


@pytest.mark.parametrize("pause", [0, 0.5])
def test_units(seed, pause):
    """Units of any size, cut off and begun anew at any byte; each comes in its time."""
    rng = random.Random(seed)
    units = Units(21)

    async def bench(ctx):
        for size in (1, 21, 4, *(rng.randrange(1, 22) for _ in range(30))):
            ctx.set(units.size, size)
            ctx.set(units.restart, 1)
            await ctx.tick()
            ctx.set(units.restart, 0)
            ctx.set(units.size, rng.randrange(22))          # it was taken
            sent, due = bytearray(), []         # due: cycles until a unit has to come, the unit
            for _ in range(rng.randrange(1, 80)):
                takes = rng.random() >= pause
                byte = rng.randrange(256)
                ctx.set(units.i.valid, takes)
                ctx.set(units.i.payload, byte)
                if takes:
                    assert ctx.get(units.last) == (len(sent) % size == size - 1)
                    sent.append(byte)
                    if len(sent) % size == 0:
                        due.append((Units.LATENCY, bytes(sent[-size:])))
                await ctx.tick()
                assert ctx.get(units.torn) == (len(sent) % size != 0)
                due = [(left - 1, unit) for left, unit in due]
                assert ctx.get(units.o.valid) == any(left == 0 for left, _ in due)
                if due and due[0][0] == 0:
                    found = ctx.get(units.o.payload).to_bytes(units.most, "little")
                    assert found[:size] == due.pop(0)[1]
            ctx.set(units.i.valid, 0)
            await ctx.tick().repeat(2)
    run(units, bench)


async def frame(ctx, port, rng, pause):
    """Take a frame: (type, seq, payload)."""
    header = port.header
    while True:
        ctx.set(header.ready, rng.random() >= pause)
        if ctx.get(header.valid & header.ready):
            break
        await ctx.tick()
    fields = [ctx.get(getattr(header.payload, name)) for name in ("type", "seq", "length")]
    await ctx.tick()
    ctx.set(header.ready, 0)
    payload = bytearray()
    while len(payload) < fields[2]:
        ctx.set(port.payload.ready, rng.random() >= pause)
        if ctx.get(port.payload.valid & port.payload.ready):
            payload.append(ctx.get(port.payload.payload))
        await ctx.tick()
    ctx.set(port.payload.ready, 0)
    return fields[0], fields[1], bytes(payload)


@pytest.mark.parametrize("pause", [0, 0.5])
def test_answers(seed, pause):
    """Results with no bytes to as many as fit, in words of all sizes, one of them not whole."""
    rng, word_bytes = random.Random(seed), 8
    answerer = Answerer(word_bytes)
    cases = [(0, 4), (1, 8), (8, 8), (MAX_PAYLOAD - 1, 1), (MAX_PAYLOAD - 1, 8),
             *((rng.randrange(60), rng.randrange(1, 9)) for _ in range(10))]
    data = [rng.randbytes(count) for count, _ in cases]

    async def give(ctx):
        for k, ((count, word), raw) in enumerate(zip(cases, data)):
            head = answerer.i.payload
            for name, value in (("type", 0x81), ("seq", k), ("result", k % 6), ("bytes", count),
                                ("word", word)):
                ctx.set(getattr(head, name), value)
            ctx.set(answerer.i.valid, 1)
            at = cycles = 0
            while not ctx.get(answerer.i.ready):
                ctx.set(answerer.words.valid, at < count and rng.random() >= pause)
                ctx.set(answerer.words.payload,
                        int.from_bytes(raw[at:at + word].ljust(8, b"\xEE"), "little"))
                at += word * ctx.get(answerer.words.valid & answerer.words.ready)
                await ctx.tick()
                cycles += 1
            # Header, result, bytes, and a cycle between words.
            assert pause or cycles == 2 + count + -(-count // word)
            assert at >= count > at - word or at == count == 0
            await ctx.tick()
            ctx.set(answerer.i.valid, 0)

    async def take(ctx):
        for k, raw in enumerate(data):
            assert await frame(ctx, answerer.o, rng, pause) == (0x81, k, bytes([k % 6]) + raw)
    run(answerer, give, take)


class Sum(Handler):
    """A command of the test's own: adds to its arguments the units behind them; refuses 13."""

    def __init__(self, size):
        super().__init__(CONFIG, {}, Sizes(unit=size, word=2))

    def elaborate(self, platform):
        m = Module()
        port, total, wait = self.port, Signal(16), Signal(3)
        self.refuse(m, (port.args[0] == 13, Result.BUSY), (port.core.run == 7, Result.NOT_READY))
        m.d.comb += [self.answer(valid=wait == 1, result=port.torn, bytes=4),
                     port.words.valid.eq(1), port.words.payload.eq(total)]
        with m.If(port.unit.valid):
            m.d.sync += total.eq(total + port.unit.payload[:8 * self.sizes.unit] + port.place)
        with m.If(port.execute):
            m.d.sync += [total.eq(total + port.rest), wait.eq(5)]
        with m.Elif(wait > 1):
            m.d.sync += wait.eq(wait - 1)
        with m.If(port.answer.ready):
            m.d.sync += wait.eq(0)
        with m.If(port.words.ready):
            m.d.sync += total.eq(0)
        return m


class Board(wiring.Component):
    """A dispatcher with handlers: one argument, two of them, and one without an answer."""

    def __init__(self):
        self.handlers = {0x11: Sum(1), 0x22: Sum(3), 0x33: Sum(4)}
        self.dispatcher = Dispatcher(CONFIG, {
            number: Form(1 + (number == 0x22), number != 0x33, handler.sizes)
            for number, handler in self.handlers.items()})
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.dispatcher = self.dispatcher
        for port, (number, handler) in zip(self.dispatcher.handlers, self.handlers.items()):
            m.submodules[f"h{number}"] = handler
            wiring.connect(m, port, handler.port)
        return m

    def expected(self, kind, payload, run):
        """Payload of the answer, None if there is none."""
        arguments, size = (8, 3) if kind == 0x22 else (4, self.handlers[kind].sizes.unit
                                                       if kind in self.handlers else 1)
        if kind == 0x33:
            return None
        if len(payload) < arguments:
            return bytes([Result.BAD_LENGTH])
        if kind not in self.handlers:
            return bytes([Result.BAD_COMMAND])
        first, rest = int.from_bytes(payload[:4], "little"), payload[arguments:]
        if first == 13 or run == 7:
            return bytes([Result.BUSY if first == 13 else Result.NOT_READY])
        total = len(rest)
        for k in range(len(rest) // size):
            unit = int.from_bytes(rest[k * size:(k + 1) * size], "little")
            total += unit + (first + k) % (1 << len(self.handlers[kind].port.place))
        return bytes([len(rest) % size != 0]) + (total % (1 << 16)).to_bytes(2, "little") + bytes(2)


@pytest.mark.parametrize("pause", [0, 0.4])
def test_commands(seed, pause):
    """Known and unknown ones, short, refused, silent: in order, each takes all of its frame."""
    rng, board = random.Random(seed), Board()
    dispatcher = board.dispatcher
    frames = [(0x11, bytes(4), 1), (0x22, bytes(8), 1), (0x44, b"", 1), (0x33, b"", 1),
              (0x22, bytes(7), 1), (0x11, (13).to_bytes(4, "little") + bytes(252), 7),
              (0x33, bytes(256), 1), (0x11, bytes(4), 7), (0x55, bytes(256), 1)]
    frames += [(rng.choice((0x11, 0x22, 0x33, 0x44)), rng.randbytes(rng.randrange(40)),
                rng.choice((1, 7))) for _ in range(40)]
    frames += [(0x11, bytes(rng.randrange(4, 200)), 1) for _ in range(3)]

    async def give(ctx):
        port = dispatcher.frames
        for k, (kind, payload, run_) in enumerate(frames):
            while not ctx.get(dispatcher.idle):
                await ctx.tick()
            ctx.set(dispatcher.core.run, run_)
            for name, value in (("type", kind), ("seq", k), ("length", len(payload))):
                ctx.set(getattr(port.header, name), value)
            ctx.set(port.valid, 1)
            at = 0
            while not ctx.get(port.pop):
                ctx.set(port.payload.valid, at < len(payload) and rng.random() >= pause)
                ctx.set(port.payload.payload, payload[at] if at < len(payload) else 0xEE)
                at += ctx.get(port.payload.valid & port.payload.ready)
                await ctx.tick()
            assert at == len(payload)
            await ctx.tick()
            ctx.set(port.valid, 0)
            await ctx.tick()
        while not ctx.get(dispatcher.idle):
            await ctx.tick()

    async def take(ctx):
        for k, (kind, payload, run_) in enumerate(frames):
            wanted = board.expected(kind, payload, run_)
            if wanted is not None:
                assert await frame(ctx, dispatcher.o, rng, pause) == (kind | ANSWER, k, wanted)
    run(board, give, take)


def test_conditions_in_order(seed):
    """The first rule that holds says why, JUDGED cycles later, whatever came before."""
    rng = random.Random(seed)

    class Ruled(Handler):
        def elaborate(self, platform):
            m = Module()
            self.refuse(m, *((self.port.args[0][k], Result(k + 1)) for k in range(5)))
            return m
    handler = Ruled(CONFIG, {})

    async def bench(ctx):
        for value in (*range(32), *(rng.randrange(32) for _ in range(32))):
            ctx.set(handler.port.args[0], value)
            await ctx.tick().repeat(HandlerPort.JUDGED)
            first = next((k + 1 for k in range(5) if value >> k & 1), 0)
            assert ctx.get(handler.port.refusal) == first
    run(handler, bench)
