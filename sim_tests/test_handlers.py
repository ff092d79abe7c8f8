"""Each handler of the link alone: what it refuses, what it does, what it answers."""
import random

import pytest
import quick
from meadowlark_hdl.config import Config
from meadowlark_hdl.link.handlers.fill import Fill
from meadowlark_hdl.link.handlers.handler import HandlerPort
from meadowlark_hdl.link.handlers.memory import CrcMemory, ReadMemory, WriteMemory
from meadowlark_hdl.link.handlers.read import ReadRegisters
from meadowlark_hdl.link.handlers.run import Abort, Credit, Start
from meadowlark_hdl.link.protocol import COUNTER_BASE, MAX_PAYLOAD, Result

CONFIG = Config(W=8, P=4, bus_bytes=4, burst_words=16)
BUS, BURST = CONFIG.bus_bytes, CONFIG.burst_words * CONFIG.bus_bytes
STATE = dict(busy=0, ready=1, run=77)


def run(handler, bench):
    """Simulate a handler with a test bench; ``bench`` gets what drives its port."""
    async def with_port(ctx):
        await bench(Port(ctx, handler.port))
    quick.run(handler, with_port)


class Port:
    """The dispatcher's side of a port. ``watch`` is called in each cycle, before its edge."""

    def __init__(self, ctx, port):
        self.ctx, self.port = ctx, port
        self.watch = lambda: None

    async def tick(self, count=1):
        for _ in range(count):
            self.watch()
            await self.ctx.tick()

    async def command(self, *args, rest=0, units=(), torn=False, state=STATE, pause=0):
        """Play a command; (refusal or result, bytes of the answer, its words)."""
        ctx, port = self.ctx, self.port
        for k, value in enumerate(args):
            ctx.set(port.args[k], value)
        ctx.set(port.rest, rest)
        for name, value in state.items():
            ctx.set(getattr(port.core, name), value)
        await self.tick(HandlerPort.JUDGED)
        refusal = Result(ctx.get(port.refusal))
        if refusal:
            return refusal, 0, []
        for k, unit in enumerate(units):
            ctx.set(port.place, (args[0] + k) % (1 << len(port.place)))
            ctx.set(port.unit.payload, unit)
            ctx.set(port.unit.valid, 1)
            await self.tick()
            ctx.set(port.unit.valid, 0)
            await self.tick(random.randrange(3))
        ctx.set(port.torn, torn)
        ctx.set(port.execute, 1)
        await self.tick()
        ctx.set(port.execute, 0)
        while not ctx.get(port.answer.valid):
            await self.tick()
        result, count = (ctx.get(getattr(port.answer.payload, n)) for n in ("result", "bytes"))
        ctx.set(port.answer.ready, 1)
        await self.tick()
        ctx.set(port.answer.ready, 0)
        words = []
        while count > 4 * len(words):           # of registers and of CONFIG's bus
            ctx.set(port.words.ready, random.random() >= pause)
            self.watch()
            if ctx.get(port.words.valid & port.words.ready):
                words.append(ctx.get(port.words.payload))
            await ctx.tick()
        ctx.set(port.words.ready, 0)
        await self.tick(12)
        return Result(result), count, words


@pytest.mark.parametrize("pause", [0, 0.7])
def test_read(seed, pause):
    """Any stretch of registers, in order; counters are held from before the first is read."""
    random.seed(seed)
    handler = ReadRegisters(CONFIG)
    latency = 7

    async def bench(port):
        ctx, regs = port.ctx, handler.regs
        pending, held, reads = [], [], []

        def watch():
            ctx.set(regs.valid, bool(pending) and pending[0] == 0)
            if pending and pending[0] == 0:
                ctx.set(regs.data, 3 * ctx.get(regs.addr))
            pending[:] = [left - 1 for left in pending if left]
            if ctx.get(regs.go):
                assert not pending
                reads.append(ctx.get(regs.addr))
                held.append(ctx.get(handler.hold))
                pending.append(latency - 1)
        port.watch = watch
        for address, count in [(0, 1), (0x1FF, 1), (0, 63), (COUNTER_BASE, 26), (0xFE, 4),
                               *((random.randrange(448), random.randrange(1, 64))
                                 for _ in range(4))]:
            reads.clear()
            held.clear()
            got = await port.command(address, count, pause=pause)
            addresses = [(address + i) % 512 for i in range(count)]
            assert got == (Result.OK, 4 * count, [3 * a for a in addresses])
            assert reads == addresses and held == [a >= COUNTER_BASE for a in addresses]
            assert not ctx.get(handler.hold)
        for args, rest, wrong in [((0, 0), 0, Result.BAD_LENGTH), ((0, 64), 0, Result.BAD_LENGTH),
                                  ((0, 1 << 31), 0, Result.BAD_LENGTH),
                                  ((512, 1), 0, Result.BAD_ADDRESS),
                                  ((1 << 31, 1), 0, Result.BAD_ADDRESS),
                                  ((0, 1), 1, Result.BAD_LENGTH)]:
            assert (await port.command(*args, rest=rest))[0] == wrong
        assert len(reads) == count              # the refused ones read nothing
    run(handler, bench)


def test_fill(seed):
    """Places from first on, up to the end of the memory; locked ones not during a run."""
    random.seed(seed)
    handler = Fill(CONFIG, unit=4, shape=20, depth=64, first=8, locked=16)

    async def bench(port):
        ctx, written = port.ctx, {}

        def watch():
            if ctx.get(handler.w.en):
                written[ctx.get(handler.w.addr)] = ctx.get(handler.w.data)
        port.watch = watch
        busy = STATE | {"busy": 1}
        for at, count, torn, state in [(8, 1, 0, STATE), (63, 1, 0, STATE), (60, 6, 0, STATE),
                                       (20, 3, 1, STATE), (60, 6, 1, STATE), (63, 1, 0, STATE),
                                       (8, 8, 0, busy), (15, 3, 0, busy),
                                       *((random.randrange(8, 64), random.randrange(1, 63), 0,
                                          STATE) for _ in range(20))]:
            written.clear()
            units = [random.getrandbits(32) for _ in range(count)]
            got, size, _ = await port.command(at, rest=4 * count, units=units, torn=torn,
                                              state=state)
            assert size == 0 and got == (Result.BAD_LENGTH if torn else Result.BAD_ADDRESS
                                         if at + count > 64 else Result.OK)
            assert written == {at + k: unit & (1 << 20) - 1 for k, unit in enumerate(units)
                               if at + k < 64}
        written.clear()
        for at, rest, state, wrong in [
                (8, 0, STATE, Result.BAD_LENGTH), (7, 4, STATE, Result.BAD_ADDRESS),
                (64, 4, STATE, Result.BAD_ADDRESS), (1 << 31, 4, STATE, Result.BAD_ADDRESS),
                (16, 4, busy, Result.BUSY), (64, 4, busy, Result.BAD_ADDRESS)]:
            assert (await port.command(at, rest=rest, state=state))[0] == wrong
        assert not written
    run(handler, bench)


WORDS = [3 * k + 1 for k in range(BURST // BUS)]
HALF = BUS // 2


@pytest.mark.parametrize("kind", [ReadMemory, WriteMemory, CrcMemory])
def test_memory(seed, kind):
    """Whole bus words, up to a burst or, for a CRC, any stretch; answered when they are there."""
    random.seed(seed)
    handler = kind(CONFIG)

    async def bench(port):
        ctx, window = port.ctx, handler.window
        asked, stored, taken = [], [], 0
        left = 0                                # cycles until the window is done

        def watch():
            nonlocal left, taken
            ctx.set(window.done, left == 1)
            if left == 1 and kind is CrcMemory:
                ctx.set(handler.crc, 0xDEADBEEF)
            left = max(left - 1, 0)
            if ctx.get(window.go):
                assert not left
                asked.append((ctx.get(window.addr), ctx.get(window.words)))
                left = random.randrange(2, 30) if kind is not ReadMemory else 0
            if kind is WriteMemory and ctx.get(handler.w.valid):
                assert not asked, "the burst is asked for before it is complete"
                stored.append(ctx.get(handler.w.payload))
            if kind is ReadMemory:
                ctx.set(handler.r.valid, bool(asked) and random.random() < 0.5)
                ctx.set(handler.r.payload, WORDS[taken % len(WORDS)])
                taken += ctx.get(handler.r.valid & handler.r.ready)

        def command(at, length, **more):
            if kind is WriteMemory:
                return port.command(at, rest=length, units=WORDS[:length // BUS], **more)
            return port.command(at, length, **more)
        port.watch = watch
        for at, words in [(0, 1), (1 << 29, BURST // BUS), (4, 3)]:
            asked.clear()
            stored.clear()
            taken = 0
            words *= 1000 if kind is CrcMemory else 1
            got = await command(BUS * at, BUS * words)
            assert asked == [(at, words)] and not left
            if kind is WriteMemory:
                assert got == (Result.OK, 0, []) and stored == WORDS[:words]
            elif kind is CrcMemory:
                assert got == (Result.OK, 4, [0xDEADBEEF])
            else:
                assert got == (Result.OK, BUS * words, WORDS[:words])
        asked.clear()
        stored.clear()
        wrong = [(HALF, BUS), (0, BUS + HALF), (0, 0)]
        wrong += [(0, BURST + BUS)] if kind is not CrcMemory else []
        for at, length in wrong:
            assert (await command(at, length))[0] == Result.BAD_LENGTH
        assert (await command(0, BUS, state=STATE | {"ready": 0}))[0] == Result.NOT_READY
        if kind is not WriteMemory:
            assert (await command(0, BUS, rest=1))[0] == Result.BAD_LENGTH
        assert not asked and not stored
    run(handler, bench)


def test_a_frame_is_the_longest_burst():
    """Where memory takes more than a frame holds."""
    wide = Config(W=8, P=4, bus_bytes=4, burst_words=128)
    assert ReadMemory(wide).most == MAX_PAYLOAD - 4
    assert ReadMemory(CONFIG).most == BURST


def test_runs(seed):
    """A run is started once, and ended and acknowledged by its own number only."""
    random.seed(seed)
    start, abort, credit = Start(CONFIG), Abort(CONFIG), Credit(CONFIG)

    def pulses(port, signal):
        seen = []

        def watch():
            if port.ctx.get(signal):
                seen.append(port.ctx.get(port.port.args[0]))
                assert signal is not start.start or port.ctx.get(start.run) == seen[-1]
        port.watch = watch
        return seen

    async def starts(port):
        seen = pulses(port, start.start)
        for number in (5, 5, 6, 65_535):
            state = STATE | {"run": port.ctx.get(start.run)}
            assert (await port.command(number, state=state))[0] == Result.OK
            assert port.ctx.get(start.run) == number
        assert seen == [5, 6, 65_535]
        for number, state, result in [
                (9, {"busy": 1}, Result.BUSY), (9, {"ready": 0}, Result.NOT_READY),
                (9, {"busy": 1, "ready": 0}, Result.BUSY),
                (65_535, {"busy": 1, "ready": 0}, Result.OK)]:
            assert (await port.command(number, state=STATE | {"run": 65_535} | state))[0] == result
        assert (await port.command(9, rest=1))[0] == Result.BAD_LENGTH
        assert len(seen) == 3 and port.ctx.get(start.run) == 65_535
    run(start, starts)

    async def aborts(port):
        seen = pulses(port, abort.abort)
        for number, busy in ((77, 0), (76, 1), (77, 1)):
            assert (await port.command(number, state=STATE | {"busy": busy}))[0] == Result.OK
        assert seen == [77]
        assert (await port.command(77, rest=4))[0] == Result.BAD_LENGTH
    run(abort, aborts)

    async def credits(port):
        seen = pulses(port, credit.credit)
        for number, index in ((77, 3), (76, 4), (77, 4097)):
            assert (await port.command(number | index << 16))[0] == Result.OK
            assert port.ctx.get(credit.next_index) == index
        assert seen == [77 | 3 << 16, 77 | 4097 << 16]
        assert (await port.command(77, rest=4))[0] == Result.BAD_LENGTH
    run(credit, credits)
