"""An SDR SDRAM behind a MemoryPort, made for long sequential streams."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..lib.queues import Queue, RamQueue
from ..signatures import MemoryPort, ReadCommand
from .sdram_commands import (NOP, READ, STOP, WRITE, RowOpener, Segment, Segmenter, Upkeep,
                             address_bits, over_soon, pause)
from .sdram_part import SdramPart, SdramTiming


class SdramPins(wiring.Signature):
    """The pins of a chip but its clock, each behind or before a register of the controller.

    cke, ras_n, cas_n, we_n, ba, a: command; cs_n is not needed and tied low. dq_o is driven while
    dq_oe is high; dqm: one bit a byte, high to mask it.
    """

    def __init__(self, part: SdramPart) -> None:
        bits = part.data_bits
        super().__init__({
            "cke": Out(1), "ras_n": Out(1, init=1), "cas_n": Out(1, init=1), "we_n": Out(1, init=1),
            "ba": Out(part.bank_bits), "a": Out(address_bits(part)),
            "dqm": Out(bits // 8), "dq_o": Out(bits), "dq_oe": Out(1), "dq_i": In(bits)})


class WriteBuffer(wiring.Component):
    """Commands of writes, held back until all their words are there.

    Timing: a word is there 5 cycles after it was taken, a command 3 after its last word or more.

    Parameters
    ----------
    config : Config
    commands : int      Commands taken ahead.

    Members
    -------
    i : In(stream of ReadCommand)
    words : In(stream of words)     Those of the commands, in order.
    o : Out(stream of ReadCommand)
    o_words : Out(stream of words)  Those of each command of ``o``, and no gap within them.
    """

    def __init__(self, config: Config, *, commands: int):
        self.config, self.commands = config, commands
        command = stream.Signature(ReadCommand(config))
        word = MemoryPort(config).members["w_data"].signature
        super().__init__({"i": In(command), "words": In(word), "o": Out(command),
                          "o_words": Out(word)})

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.commands = commands = Queue(ReadCommand(c), depth=self.commands)
        depth, width = 2 * c.burst_words, len(self.words.payload.as_value())
        m.submodules.words = words = RamQueue(width, depth=depth)
        wiring.connect(m, wiring.flipped(self.i), commands.i)
        stored = Signal(range(depth + 1))                   # words whose place is taken
        room, put, put_data = Signal(), Signal(), reg(width, "put_data")
        m.d.comb += [self.words.ready.eq(room), words.i_valid.eq(put), words.i_data.eq(put_data),
                     self.o_words.valid.eq(words.o.valid), self.o_words.payload.eq(words.o.payload),
                     words.o.ready.eq(self.o_words.ready)]
        m.d.sync += [put.eq(self.words.valid & room), put_data.eq(self.words.payload),
                     stored.eq(stored + put - words.left), room.eq(stored < depth - 3)]
        # Words of commands that have not left; what is taken away is counted a cycle late.
        free = Signal(range(depth + 1 + RamQueue.CREDITS))
        complete, leaves, left = Signal(), Signal(), Signal()
        away = reg(range(c.burst_words + 1), "away")
        # Of the command in front, a cycle late: its memory has no register.
        there, length = Signal(), Signal.like(commands.o.payload.len, reset_less=True)
        m.d.comb += [self.o.valid.eq(commands.o.valid & complete),
                     self.o.payload.eq(commands.o.payload), leaves.eq(self.o.valid & self.o.ready),
                     commands.o.ready.eq(leaves)]
        m.d.sync += [
            there.eq(commands.o.valid), length.eq(commands.o.payload.len),
            left.eq(leaves), away.eq(length + 1), free.eq(free + put - Mux(left, away, 0)),
            complete.eq(there & commands.o.valid & ~leaves & ~left & (free > length))]
        return m


class WordMover(wiring.Component):
    """The words of one segment right behind those of another, and a STOP behind the last.

    Parameters
    ----------
    config : Config
    part : SdramPart
    timing : SdramTiming

    Members
    -------
    segment : In(Segment), open : In(1)     The following one, and that it may begin in the next
                                            cycle.
    held : In(1)                Begin none.
    go : Out(1)                 It begins in this cycle.
    free : Out(1)               Somebody else may give a command in this cycle.
    closable : Out(1)           Its bank had no burst and no write recovery in the cycle before.
    idle : Out(1)               No bank has.
    command : Out(3)            READ, WRITE, STOP or NOP.
    reads, writes : Out(1)      A word is asked for, or needed, in this cycle.
    done : Out(1)               The last word of a write has been needed in the cycle before.
    """

    def __init__(self, config: Config, part: SdramPart, timing: SdramTiming):
        self.config, self.part, self.timing = config, part, timing
        super().__init__({
            "segment": In(Segment(config, part)), "open": In(1), "held": In(1), "command": Out(3),
        } | dict.fromkeys(("go", "free", "closable", "idle", "reads", "writes", "done"), Out(1)))

    def elaborate(self, platform):
        m = Module()
        t, following = self.timing, self.segment
        wr = pause(m, t.wr, "wr")                   # since the last word written
        turn = pause(m, t.cas + 2, "turn")          # the last word read leaves the bus
        writing, final, bank = Signal(), reg(1, "final"), reg(self.part.bank_bits, "bank")
        # ``left`` is 1 in the cycle in which the next READ or WRITE, or a stop, is due; ``ending``
        # is high in that cycle and from then on.
        left, running, ending = (
            Signal(range(self.config.burst_words + 1)), Signal(), Signal(init=1))
        one = Signal()                              # the following segment has one word
        # Found out a cycle ahead: only a ``go`` starts ``turn``. The first word of a write is
        # there: it came before the command was complete.
        armed, stop = Signal(), Signal()
        m.d.sync += [armed.eq(self.open & (~following.write | over_soon(turn))),
                     self.closable.eq(over_soon(wr) & (~running | (bank != following.bank))),
                     one.eq(following.words == 1),
                     left.eq(Mux(self.go, following.words, left - 1)),
                     self.done.eq(running & ending & writing & final)]
        m.d.comb += [
            self.go.eq(armed & ending & ~self.held), stop.eq(running & ending & ~self.go),
            self.free.eq(~(running & ending) & ~self.held),
            self.idle.eq(~wr.some & ~running),
            self.writes.eq(Mux(self.go, following.write, running & writing & ~ending)),
            self.reads.eq(Mux(self.go, ~following.write, running & ~writing & ~ending)),
            self.command.eq(Mux(self.go, Mux(following.write, WRITE, READ), Mux(stop, STOP, NOP)))]
        with m.If(self.go):
            m.d.sync += [ending.eq(one), running.eq(1), writing.eq(following.write),
                         final.eq(following.final), bank.eq(following.bank)]
        with m.Elif(ending):
            m.d.sync += running.eq(0)
        with m.Else():
            m.d.sync += ending.eq(left == 2)
        with m.If(self.writes):
            m.d.sync += wr.load(t.wr - 1)
        with m.If(self.reads):
            m.d.sync += turn.load(t.cas + 1)
        return m


class SdramController(wiring.Component):
    """Full-page bursts back to back; the next bank is opened while the last one still delivers.

    A command of the port becomes segments of one row. While the words of one segment move, the
    row of the next is opened, so a sequential stream of any length loses no cycle but those of
    refreshes, which come in groups, and tRP + tRCD less the length of a segment that is shorter
    (a burst that ends, or begins, close to the end of a row). READ and WRITE follow each other at
    once or a burst is stopped; nothing uses auto-precharge. Addresses map to {row, bank, column}.

    Writes go first, once all their words are there. ``w_done`` comes when the last word has gone
    to the chip: commands reach it in order, so a later read sees it. The core reserves room for
    what it reads, and so ``r_data.ready`` is not looked at.

    Timing: from a read command to its first word 11 cycles and ``pads`` + CAS latency in an open
    row, tRP + tRCD more where another row is open. A change from reading to writing costs CAS
    latency + 2 cycles, back none. A group of refreshes costs about
    ``group * tRFC + tRP + tRCD + 8`` cycles every ``group`` intervals.

    Parameters
    ----------
    config : Config
        bus_bytes is the width of the chip; burst_words at most a page.
    part : SdramPart
    clock_mhz : float
        Of the domain ``sync``, in which the chip runs too.
    pads : int, 0..
        Registers outside between a pin of this block and the chip and back, in all.
    group : int, 1..8
        Refreshes done together.

    Members
    -------
    port : In(MemoryPort)
    pins : Out(SdramPins)

    Raises
    ------
    ValueError
        The chip does not fit the bus, the bursts or the clock.
    """

    QUEUE = 4                   #: commands taken ahead, each way
    POWER_UP_REFRESHES = 8

    def __init__(self, config: Config, part: SdramPart, *, clock_mhz: float, pads: int = 2,
                 group: int = 8):
        self.config, self.part, self.pads, self.group = config, part, pads, group
        self.timing = part.at(clock_mhz)
        if part.data_bits != 8 * config.bus_bytes:
            raise ValueError(f"bus_bytes must be {part.data_bits // 8} for {part.name}, "
                             f"not {config.bus_bytes!r}")
        if config.burst_words > 1 << part.col_bits:
            raise ValueError(f"burst_words must be at most {1 << part.col_bits}, a page of "
                             f"{part.name}, not {config.burst_words!r}")
        if group not in range(1, 9):
            raise ValueError(f"group must be in 1..8, not {group!r}")
        super().__init__({"port": In(MemoryPort(config)), "pins": Out(SdramPins(part))})

    def elaborate(self, platform):
        m = Module()
        c, part, t, port = self.config, self.part, self.timing, self.port
        m.submodules.reads = reads = Queue(ReadCommand(c), depth=self.QUEUE)
        m.submodules.writes = writes = WriteBuffer(c, commands=self.QUEUE)
        m.submodules.segmenter = segmenter = Segmenter(c, part)
        m.submodules.opener = opener = RowOpener(c, part, t)
        m.submodules.mover = mover = WordMover(c, part, t)
        m.submodules.upkeep = upkeep = Upkeep(part, t, group=self.group,
                                              power_up=self.POWER_UP_REFRESHES)
        for source, target in ((wiring.flipped(port.r_cmd), reads.i), (reads.o, segmenter.reads),
                               (wiring.flipped(port.w_cmd), writes.i), (writes.o, segmenter.writes),
                               (wiring.flipped(port.w_data), writes.words),
                               (segmenter.o, opener.i)):
            wiring.connect(m, source, target)
        following = opener.segment
        m.d.comb += [
            port.ready.eq(upkeep.ready), port.w_done.eq(mover.done),
            mover.segment.eq(following), mover.open.eq(opener.open), mover.held.eq(upkeep.held),
            opener.take.eq(mover.go), opener.free.eq(mover.free),
            opener.closable.eq(mover.closable), opener.halted.eq(upkeep.halted),
            upkeep.idle.eq(mover.idle & opener.settled)]

        # --- pins: two registers, so that what is chosen is not late at them ----------------------
        pins = self.pins

        def clocked(port, value):
            """A register that needs no reset in front of a port."""
            register = Signal(port.shape(), reset_less=True)
            m.d.comb += port.eq(register)
            m.d.sync += register.eq(value)
        # At most one of them gives a command.
        commanded, word_now, chip_word = Signal(3, init=NOP), Signal(), writes.o_words.payload
        a_now, ba_now = reg(len(pins.a), "a_now"), reg(part.bank_bits, "ba_now")
        m.d.sync += [
            commanded.eq(mover.command & opener.command & upkeep.command),
            ba_now.eq(Mux(upkeep.halted, 0, following.bank)),
            a_now.eq(Mux(upkeep.halted, upkeep.a, Mux(mover.go, following.col, opener.a))),
            word_now.eq(mover.writes)]
        undriven = Signal(init=1)       # as the pads hear it, so that no inverter is on the way
        m.d.comb += [pins.dq_oe.eq(~undriven), writes.o_words.ready.eq(word_now)]
        m.d.sync += [Cat(pins.ras_n, pins.cas_n, pins.we_n).eq(commanded), pins.cke.eq(1),
                     undriven.eq(~word_now)]
        for there, value in (
                (pins.a, a_now), (pins.ba, ba_now), (pins.dq_o, chip_word.data),
                (pins.dqm, Mux(word_now, ~chip_word.strb, 0)), (port.r_data.payload, pins.dq_i)):
            clocked(there, value)
        # Two cycles to the command's registers, the chip, the registers on the way.
        arriving = Signal(t.cas + self.pads + 2)
        m.d.sync += [arriving.eq(Cat(mover.reads, arriving)), port.r_data.valid.eq(arriving[-1])]
        return m
