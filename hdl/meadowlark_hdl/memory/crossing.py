"""A memory in a clock domain of its own: a wide slow port before a narrow quick one."""
from amaranth import Cat, DomainRenamer, Module, Mux, Signal
from amaranth.lib import cdc, data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..signatures import MemoryPort
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..lib.queues import Queue, Skid, power_of_two


def narrowed(config: Config, bus_bytes: int) -> Config:
    """A core's Config as a memory with another bus sees it: bursts of as many bytes.

    Raises
    ------
    ValueError
        The memory's bus is wider than the core's, or no whole part of it.
    """
    ratio, rest = divmod(config.bus_bytes, bus_bytes)
    if rest or ratio < 1:
        raise ValueError(f"bus_bytes must be a multiple of the memory's {bus_bytes}, "
                         f"not {config.bus_bytes!r}")
    return config.replace(bus_bytes=bus_bytes, burst_words=ratio * config.burst_words,
                          fifo_words=ratio * config.fifo_words)


def resets(m: Module, asynchronous, core: str = "sync", memory: str = "sdram") -> None:
    """Synchronous resets of both domains from one signal that keeps to no clock.

    Both begin at once. Each lasts until all counts of the other are 0 and have crossed over: the
    quicker memory's for 8 of its cycles, which are 3 of a core's at 50 MHz, the core's for 4.
    """
    m.submodules[f"reset_{core}"] = cdc.ResetSynchronizer(asynchronous, domain=core, stages=4)
    m.submodules[f"reset_{memory}"] = cdc.ResetSynchronizer(asynchronous, domain=memory, stages=8)


class GrayCounter(wiring.Component):
    """A count that another clock may look at: of its Gray code one bit changes at a time.

    Timing: counts in the cycle after ``step``; all outputs are registers.

    Parameters
    ----------
    width : int
        Bits; it wraps.

    Members
    -------
    step : In(1)
    count, gray : Out(width)    The count in binary and in Gray code.
    next_gray : Out(width)      The Gray code of the next count.
    """

    def __init__(self, width: int):
        super().__init__({"step": In(1), "count": Out(width), "gray": Out(width),
                          "next_gray": Out(width, init=1)})

    def elaborate(self, platform):
        m = Module()
        following = Signal.like(self.count, init=1)
        after = Signal.like(following)
        m.d.comb += after.eq(following + 1)
        with m.If(self.step):
            m.d.sync += [self.count.eq(following), following.eq(after),
                         self.gray.eq(self.next_gray), self.next_gray.eq(after ^ after >> 1)]
        return m


class AsyncQueue(wiring.Component):
    """First in, first out, from one clock to another, in block RAM with registers all around.

    ``amaranth.lib.fifo.AsyncFIFO`` compares both pointers in the cycle that writes, and its RAM has
    no register at the output. Here the producer knows by other means that there is room, or looks
    at ``room``, which is a register. Both domains are reset together, see :func:`resets`.

    Timing: from ``i_valid`` to ``o_valid`` a cycle of ``write`` and 4 to 5 of ``read``; an element
    a cycle of either.

    Parameters
    ----------
    width : int
        Bits of an element.
    depth : int, power of two, at least 16
    ahead : int, 1..
        Elements that may come from the cycle in which ``room`` is high on; fewer than ``depth``.

    Members
    -------
    i_valid, i_data : In(1), In(width)      Domain ``write``. An element, always taken: one beyond
                                            ``depth`` overwrites the oldest.
    room : Out(1)                           Domain ``write``: there is room for an element in this
                                            cycle and in each of the ``ahead - 1`` next ones.
    go : In(1)                              Domain ``read``: an element may leave in this cycle.
    leaves : Out(1)                         Domain ``read``: one does.
    o_valid, o_data : Out(1), Out(width)    Domain ``read``: 2 cycles after ``leaves``, for one.
    """

    def __init__(self, width: int, *, depth: int, ahead: int = 1):
        self.width, self.depth = width, power_of_two("depth", depth, 16)
        self.ahead = ahead
        super().__init__({"i_valid": In(1), "i_data": In(width), "room": Out(1), "go": In(1),
                          "leaves": Out(1), "o_valid": Out(1), "o_data": Out(width)})

    def elaborate(self, platform):
        m = Module()
        bits = exact_log2(self.depth) + 1
        m.submodules.ram = ram = memory.Memory(shape=self.width, depth=self.depth, init=[],
                                               attrs={"ram_style": "block"})
        w, r = ram.write_port(domain="write"), ram.read_port(domain="read")
        written, taken = GrayCounter(bits), GrayCounter(bits)
        m.submodules.written = DomainRenamer("write")(written)
        m.submodules.taken = DomainRenamer("read")(taken)
        written_there, taken_there = Signal(bits), Signal(bits)
        m.submodules.forth = cdc.FFSynchronizer(written.gray, written_there, o_domain="read")
        m.submodules.back = cdc.FFSynchronizer(taken.gray, taken_there, o_domain="write")

        m.d.comb += [w.addr.eq(written.count[:-1]), w.data.eq(self.i_data), w.en.eq(self.i_valid),
                     written.step.eq(self.i_valid)]
        left, level = Signal(bits), Signal(bits)
        # The level knows nothing of the elements of this cycle and the two before it.
        m.d.write += [left.eq(_binary(taken_there)), level.eq(written.count - left),
                      self.room.eq(level <= self.depth - 2 - self.ahead)]

        some, in_ram = Signal(), Signal()
        register = reg(self.width, "register")      # without a reset it is the RAM's own
        m.d.comb += [self.leaves.eq(some & self.go), taken.step.eq(self.leaves),
                     r.addr.eq(taken.count[:-1]), self.o_data.eq(register)]
        m.d.read += [
            some.eq(written_there != Mux(self.leaves, taken.next_gray, taken.gray)),
            in_ram.eq(self.leaves), self.o_valid.eq(in_ram), register.eq(r.data)]
        return m


class Events(wiring.Component):
    """Events of one clock in another: none is lost, however many come before the first is seen.

    Timing: 3 or 4 cycles of ``read``; one event a cycle.

    Parameters
    ----------
    most : int
        Events under way at a time.

    Members
    -------
    i : In(1)       Domain ``write``: an event in each cycle.
    o : Out(1)      Domain ``read``: the same.
    """

    def __init__(self, most: int):
        self.width = most.bit_length() + 1
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        happened, told = GrayCounter(self.width), GrayCounter(self.width)
        m.submodules.happened = DomainRenamer("write")(happened)
        m.submodules.told = DomainRenamer("read")(told)
        there = Signal(self.width)
        m.submodules.forth = cdc.FFSynchronizer(happened.gray, there, o_domain="read")
        m.d.comb += [happened.step.eq(self.i), told.step.eq(there != told.gray)]
        m.d.read += self.o.eq(told.step)
        return m


class MemoryCrossing(wiring.Component):
    """A MemoryPort in the core's clock before a narrower one in the memory's.

    Two queues, one each way. Down go commands, and behind each write's its words; they come out in
    order, so what they are follows from the commands before. Up come words that were read. The
    core's side keeps count of them and asks for no more than the queue up has room for, so that the
    memory never waits. The core takes a word in the cycle in which it comes: neither
    ``core.r_data.ready`` nor ``memory.r_data.ready`` is looked at.

    The block RAMs stand beside the memory's pads, which may be far from the core: on the core's
    side there is a register each way between them and all else.

    Timing: a word of the core each cycle of its clock, or each ``core.bus_bytes /
    memory.bus_bytes`` cycles of the memory's. From the edge that takes a command to the one at
    which the memory may take it 2 cycles of ``sync`` and 7 to 8 of ``sdram``; from the edge that
    takes the last part of a word to the core's one of ``sdram`` and 6 to 7 of ``sync``.

    Parameters
    ----------
    config : Config
        The core's.
    bus_bytes : int
        Of the memory.
    size_bytes : int, power of two
        Of the memory; addresses wrap.
    words : int, power of two, at least 4 * burst_words
        Words that may be on their way to the core; by default what a block RAM holds. A stream has
        no gap if what they are beyond three bursts takes longer than the way there and back.

    Members
    -------
    core : In(MemoryPort(config))       Domain ``sync``.
    memory : Out(MemoryPort(memory))    Domain ``sdram``; whole words of the core only.

    Raises
    ------
    ValueError
        The memory's bus is no part of the core's, addresses do not fit a word, or ``words`` are too
        few.
    """

    WRITES = 16         #: writes whose end is to come
    DOWN = 64           #: elements of the queue down: commands and words of a burst
    AHEAD = 8           #: elements on their way out of the queue down, or behind it

    def __init__(self, config: Config, *, bus_bytes: int, size_bytes: int, words: int = 512):
        self.config, self.far = config, narrowed(config, bus_bytes)
        self.ratio = config.bus_bytes // bus_bytes
        self.words = words
        if words < 4 * config.burst_words:
            raise ValueError(f"words must be at least four bursts of {config.burst_words}, "
                             f"not {words!r}")
        self.command = data.StructLayout({
            "write": 1, "len": range(config.burst_words),
            "addr": exact_log2(size_bytes // config.bus_bytes)})
        self.width = 9 * config.bus_bytes
        if self.command.size > self.width:
            raise ValueError(f"size_bytes must fit commands of {self.width} bits, "
                             f"not {size_bytes!r}")
        super().__init__({"core": In(MemoryPort(config)), "memory": Out(MemoryPort(self.far))})

    def elaborate(self, platform):
        m = Module()
        self._down(m)
        self._up(m)
        return m

    def _down(self, m):
        core, far = self.core, self.memory
        # The way to the queue and back: two registers of elements, one of ``room``.
        down = AsyncQueue(self.width, depth=self.DOWN, ahead=4)
        m.submodules.down = DomainRenamer({"write": "sync", "read": "sdram"})(down)
        # --- the core's side: a command, or the words of a write, one after the other -------------
        command = Signal(self.command)
        sending, write, wrote, room = Signal(), Signal(), Signal(), Signal()
        left = Countdown(m, range(self.config.burst_words), name="behind", behind=True, reset=False,
                         reset_flags=False)
        put, item = Signal(), reg(self.width, "item")
        there, item_there = Signal(), reg(self.width, "item_there")
        # Words asked for that have not come; three commands may pass before ``more`` knows of them.
        coming, more = Signal(range(self.words + 1)), Signal()
        asked_for = Signal(range(self.config.burst_words + 1))
        reads = core.r_cmd.valid & more
        chosen = Mux(write, core.w_cmd.payload.as_value(), core.r_cmd.payload.as_value())
        asked = Signal(core.r_cmd.payload.shape())
        m.d.comb += [
            # In turn, so that neither keeps the other waiting for ever.
            write.eq(core.w_cmd.valid & ~(reads & wrote)),
            asked.eq(chosen), command.write.eq(write), command.addr.eq(asked.addr),
            command.len.eq(asked.len),
            core.w_cmd.ready.eq(room & ~sending & write),
            core.r_cmd.ready.eq(room & ~sending & ~write & more),
            core.w_data.ready.eq(room & sending),
            down.i_valid.eq(there), down.i_data.eq(item_there)]
        m.d.sync += [
            room.eq(down.room), there.eq(put), item_there.eq(item),
            put.eq(room & Mux(sending, core.w_data.valid, core.w_cmd.valid | reads)),
            asked_for.eq(Mux(core.r_cmd.valid & core.r_cmd.ready, core.r_cmd.payload.len + 1, 0)),
            coming.eq(coming + asked_for - core.r_data.valid),
            more.eq(coming <= self.words - 3 * self.config.burst_words)]
        with m.If(sending):
            m.d.sync += item.eq(core.w_data.payload)
            with m.If(core.w_data.valid & room):
                m.d.sync += [left.step(), sending.eq(~left.last)]
        with m.Else():
            m.d.sync += [item.eq(command), left.load(asked.len)]
            with m.If(room & (core.w_cmd.valid | reads)):
                m.d.sync += [sending.eq(write), wrote.eq(write)]

        # --- the memory's side --------------------------------------------------------------------
        # The memory's controller is far away: registers on both sides of the way.
        queue, out = Queue(self.width, depth=self.AHEAD), Skid(self.width)
        m.submodules.queue = DomainRenamer("sdram")(queue)
        m.submodules.out = DomainRenamer("sdram")(out)
        here = Signal(range(self.AHEAD + 1))        # elements that have left and are not used up
        used, gone = Signal(), Signal()
        m.d.comb += [queue.i.valid.eq(down.o_valid), queue.i.payload.eq(down.o_data),
                     out.o.ready.eq(used)]
        wiring.connect(m, queue.o, out.i)
        # A cycle late, and an element may leave meanwhile.
        m.d.sdram += [gone.eq(used & out.o.valid), here.eq(here + down.leaves - gone),
                      down.go.eq(here < self.AHEAD - 1)]
        ahead, words = Signal(self.command), Signal(far.w_data.payload.shape())
        due = Signal()                              # a word of a write, not a command
        owed = Countdown(m, range(self.config.burst_words), name="owed", behind=True, reset=False,
                         reset_flags=False)
        part = Signal(range(self.ratio))
        final = part == self.ratio - 1
        strobe, bits = out.o.payload[8 * self.config.bus_bytes:], 8 * self.far.bus_bytes
        m.d.comb += [
            ahead.eq(out.o.payload), words.data.eq(out.o.payload.word_select(part, bits)),
            words.strb.eq(strobe.word_select(part, self.far.bus_bytes)),
            far.w_data.payload.eq(words), far.w_data.valid.eq(out.o.valid & due),
            far.w_cmd.valid.eq(out.o.valid & ~due & ahead.write),
            far.r_cmd.valid.eq(out.o.valid & ~due & ~ahead.write),
            used.eq(Mux(due, far.w_data.ready & final,
                        Mux(ahead.write, far.w_cmd.ready, far.r_cmd.ready)))]
        for asks in (far.w_cmd.payload, far.r_cmd.payload):
            m.d.comb += [asks.addr.eq(ahead.addr * self.ratio),
                         asks.len.eq(ahead.len * self.ratio + self.ratio - 1)]
        with m.If(out.o.valid & due & far.w_data.ready):
            m.d.sdram += part.eq(Mux(final, 0, part + 1))
            with m.If(final):
                m.d.sdram += [owed.step(), due.eq(~owed.last)]
        with m.Elif(out.o.valid & ~due & ahead.write & far.w_cmd.ready):
            m.d.sdram += [owed.load(ahead.len), due.eq(1)]

    def _up(self, m):
        core, far = self.core, self.memory
        width = 8 * self.config.bus_bytes
        up, done = AsyncQueue(width, depth=self.words), Events(self.WRITES)
        across = DomainRenamer({"write": "sdram", "read": "sync"})
        m.submodules.up, m.submodules.done = across(up), across(done)
        m.submodules.ready = cdc.FFSynchronizer(far.ready, core.ready)
        word, whole = reg(width, "word"), Signal()
        word_here, arrived, ended = reg(width, "word_here"), Signal(), Signal()
        part = Signal(range(self.ratio))
        final = part == self.ratio - 1
        m.d.sdram += whole.eq(far.r_data.valid & final)
        with m.If(far.r_data.valid):
            m.d.sdram += [word.eq(Cat(word, far.r_data.payload)[-width:]),
                          part.eq(Mux(final, 0, part + 1))]
        m.d.comb += [
            far.r_data.ready.eq(1), up.i_valid.eq(whole), up.i_data.eq(word), up.go.eq(1),
            core.r_data.valid.eq(arrived), core.r_data.payload.eq(word_here),
            done.i.eq(far.w_done), core.w_done.eq(ended)]
        m.d.sync += [arrived.eq(up.o_valid), word_here.eq(up.o_data), ended.eq(done.o)]


def _binary(gray):
    """Of a Gray code."""
    value, shift = gray, 1
    while shift < len(gray):
        value, shift = value ^ value >> shift, 2 * shift
    return value
