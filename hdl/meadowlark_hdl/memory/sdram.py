"""An SDR SDRAM behind a MemoryPort, made for long sequential streams."""
from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..signatures import MemoryPort, ReadCommand
from ..lib.queues import Queue, RamQueue
from .sdram_part import SdramPart


class SdramPins(wiring.Signature):
    """The pins of a chip but its clock, each behind or before a register of the controller.

    cke, ras_n, cas_n, we_n, ba, a: command; cs_n is not needed and tied low. dq_o is driven while
    dq_oe is high; dqm: one bit a byte, high to mask it.
    """

    def __init__(self, part: SdramPart) -> None:
        bits = part.data_bits
        super().__init__({
            "cke": Out(1), "ras_n": Out(1, init=1), "cas_n": Out(1, init=1), "we_n": Out(1, init=1),
            "ba": Out(part.bank_bits), "a": Out(max(part.row_bits, 11)),
            "dqm": Out(bits // 8), "dq_o": Out(bits), "dq_oe": Out(1), "dq_i": In(bits)})


#: Commands as {ras_n, cas_n, we_n}, ras_n first.
NOP, STOP, READ, WRITE, ACTIVATE, PRECHARGE, REFRESH, MODE = (
    0b111, 0b011, 0b101, 0b001, 0b110, 0b010, 0b100, 0b000)


def Segment(config: Config, part: SdramPart) -> data.StructLayout:
    """Words of one row. words: 1..burst_words. final: the last segment of its command."""
    return data.StructLayout({
        "write": 1, "final": 1, "bank": part.bank_bits, "row": part.row_bits, "col": part.col_bits,
        "words": range(config.burst_words + 1)})


class Segmenter(wiring.Component):
    """Commands of a MemoryPort -> segments that do not leave a row.

    Timing: a segment every 3 cycles at most, the first 4 cycles after its command.

    Parameters
    ----------
    config : Config
    part : SdramPart

    Members
    -------
    reads, writes : In(stream of ReadCommand)   Taken in their own order; writes go first.
    complete : In(1)        The first of ``writes`` has all its words, from the cycle after it is
                            offered on.
    took_write : Out(1)     That write is on its way; ``complete`` speaks of the next one, from two
                            cycles later on.
    o : Out(stream of Segment)
    """

    def __init__(self, config: Config, part: SdramPart):
        self.config, self.part = config, part
        super().__init__({
            "reads": In(stream.Signature(ReadCommand(config))),
            "writes": In(stream.Signature(ReadCommand(config))),
            "complete": In(1), "took_write": Out(1),
            "o": Out(stream.Signature(Segment(config, part)))})

    def elaborate(self, platform):
        m = Module()
        part, o = self.part, self.o.payload
        at = Signal(data.StructLayout({
            "col": part.col_bits, "bank": part.bank_bits, "row": part.row_bits}), reset_less=True)
        left = Signal(range(self.config.burst_words + 1), reset_less=True)
        room = Signal(part.col_bits + 1, reset_less=True)       # words to the end of the row
        chosen = Signal(ReadCommand(self.config))
        with m.FSM():
            with m.State("PICK"):
                write = Signal()
                m.d.comb += [
                    write.eq(self.writes.valid & self.complete),
                    chosen.eq(Mux(write, self.writes.payload, self.reads.payload)),
                    self.writes.ready.eq(write), self.took_write.eq(write),
                    self.reads.ready.eq(~write)]
                m.d.sync += [o.write.eq(write), at.eq(chosen.addr), left.eq(chosen.len + 1)]
                with m.If(write | self.reads.valid):
                    m.next = "ROOM"
            with m.State("ROOM"):
                m.d.sync += room.eq((1 << part.col_bits) - at.col)
                m.next = "CUT"
            with m.State("CUT"):
                m.d.sync += [o.words.eq(Mux(left > room, room, left)), o.final.eq(left <= room),
                             o.bank.eq(at.bank), o.row.eq(at.row), o.col.eq(at.col)]
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                m.d.sync += room.eq((1 << part.col_bits) - at.col)
                with m.If(self.o.ready):
                    m.d.sync += [at.eq(at.as_value() + o.words), left.eq(left - o.words)]
                    m.next = "ROOM"
                    with m.If(o.final):
                        m.next = "PICK"
        return m


class SdramController(wiring.Component):
    """Full-page bursts back to back; the next bank is opened while the last one still delivers.

    A command of the port becomes segments of one row. While the words of one segment move, the
    row of the next is opened, so a sequential stream of any length loses no cycle but those of
    refreshes, and these come in groups. READ and WRITE follow each other at once or a burst is
    stopped; nothing uses auto-precharge. Addresses map to {row, bank, column}.

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

        # --- the port's side: short queues of commands, words to be written -----------------------
        m.submodules.segmenter = segmenter = Segmenter(c, part)
        m.submodules.reads = reads = Queue(ReadCommand(c), depth=self.QUEUE)
        m.submodules.writes = writes = Queue(ReadCommand(c), depth=self.QUEUE)
        wiring.connect(m, reads.o, segmenter.reads)
        wiring.connect(m, writes.o, segmenter.writes)
        ready = Signal()                                    # the chip is initialised
        m.d.comb += port.ready.eq(ready)
        for queue, command in ((reads, port.r_cmd), (writes, port.w_cmd)):
            m.d.comb += [queue.i.payload.eq(command.payload), queue.i.valid.eq(command.valid),
                         command.ready.eq(queue.i.ready)]
        depth = 2 * c.burst_words
        m.submodules.words = words = RamQueue(len(port.w_data.payload.as_value()), depth=depth)
        stored = Signal(range(depth + 1))                   # words whose place is taken
        room = Signal()
        put, put_data = Signal(), Signal(len(words.i_data), reset_less=True)
        m.d.comb += [port.w_data.ready.eq(room), words.i_valid.eq(put), words.i_data.eq(put_data)]
        m.d.sync += [put.eq(port.w_data.valid & room), put_data.eq(port.w_data.payload),
                     stored.eq(stored + put - words.left), room.eq(stored < depth - 3)]
        # Words of commands that were not begun; what is taken away is counted a cycle late.
        free = Signal(range(depth + 1 + RamQueue.CREDITS))
        begun, away = Signal(), Signal(range(c.burst_words + 1), reset_less=True)
        m.d.sync += [
            begun.eq(segmenter.took_write), away.eq(writes.o.payload.len + 1),
            free.eq(free + put - Mux(begun, away, 0)),
            segmenter.complete.eq(writes.o.valid & ~segmenter.took_write & ~begun
                                  & (free > writes.o.payload.len))]

        # --- counters of cycles that a command still has to wait ----------------------------------
        def wait(name, most):
            """What starts it, for so many cycles from the next one on; is it over, and in the next
            cycle, unless it is started?"""
            count, over = Signal(range(most), name=name), Signal(init=1, name=f"{name}_over")
            soon = count <= 1
            m.d.sync += over.eq(soon)
            with m.If(~over):
                m.d.sync += count.eq(count - 1)
            return (lambda cycles: [count.eq(cycles), over.eq(cycles == 0)]), over, soon
        step, step_over, step_soon = wait("step", max(t.rp, t.rcd, t.rfc, t.mrd))  # of the bank
        ras, ras_over, _ = wait("ras", t.ras)           # since the last ACTIVATE
        rrd, rrd_over, _ = wait("rrd", t.rrd)
        wr, wr_over, _ = wait("wr", t.wr)               # since the last word written
        turn, _, turn_soon = wait("turn", t.cas + 2)    # the last word read leaves the bus

        # --- refreshes owed, by the clock ---------------------------------------------------------
        interval, tick = Signal(range(t.refresh), init=t.refresh - 1), Signal()
        owed, paid, due = Signal(range(32)), Signal(), Signal()
        m.d.sync += [tick.eq(interval == 1), due.eq(owed >= self.group),
                     interval.eq(Mux(interval == 0, t.refresh - 1, interval - 1)),
                     owed.eq(owed + tick - paid)]

        # --- data: the segment at work ------------------------------------------------------------
        following = Signal(Segment(c, part), reset_less=True)   # its row is made ready
        waiting = Signal()                                      # its row is open
        writing, final = Signal(), Signal(reset_less=True)
        bank = Signal(part.bank_bits, reset_less=True)
        # ``left`` is 1 in the cycle in which the next READ or WRITE, or a stop, is due.
        left, running, ending = Signal(range(c.burst_words + 1)), Signal(), Signal(init=1)
        one = Signal()                          # the following segment has one word
        halted = Signal(init=1)                 # no commands but those of power-up and refresh
        held = Signal(init=1)                   # nor any that would keep these waiting
        go, stop, word = Signal(), Signal(), Signal()
        m.d.sync += held.eq(halted | due)
        # Found out a cycle ahead: only a ``go`` starts ``turn``, and none starts ``step`` while a
        # segment is waiting. The first word of a write is there: it came before the command was
        # complete.
        armed = Signal()
        m.d.sync += armed.eq(waiting & ~go & step_soon & (~following.write | turn_soon))
        m.d.comb += [
            go.eq(armed & ending & ~held),
            stop.eq(running & ending & ~go),
            word.eq(Mux(go, following.write, running & writing & ~ending))]
        m.d.sync += [port.w_done.eq(running & ending & writing & final),
                     one.eq(following.words == 1)]
        with m.If(go):
            m.d.sync += [ending.eq(one), running.eq(1),
                         writing.eq(following.write), final.eq(following.final),
                         bank.eq(following.bank), waiting.eq(0)]
        with m.Elif(ending):
            m.d.sync += running.eq(0)
        with m.Else():
            m.d.sync += ending.eq(left == 2)
        m.d.sync += left.eq(Mux(go, following.words, left - 1))
        asked = Signal()                        # a word is read in this cycle
        m.d.comb += asked.eq(Mux(go, ~following.write, running & ~writing & ~ending))
        with m.If(word):
            m.d.sync += wr(t.wr - 1)
        with m.If(asked):
            m.d.sync += turn(t.cas + 1)
        # Two cycles to the command's registers, the chip, the registers on the way.
        arriving = Signal(t.cas + self.pads + 2)
        m.d.sync += [arriving.eq(Cat(asked, arriving)), port.r_data.valid.eq(arriving[-1])]

        # --- commands -----------------------------------------------------------------------------
        pins = self.pins

        def clocked(port, value):
            """A register that needs no reset in front of a port."""
            register = Signal(port.shape(), reset_less=True)
            m.d.comb += port.eq(register)
            m.d.sync += register.eq(value)
        command, a, pins_ba = Signal(3), Signal(len(pins.a)), Signal(part.bank_bits)
        m.d.comb += [command.eq(NOP), a.eq(Mux(go, following.col, following.row)),
                     pins_ba.eq(following.bank)]
        # Two registers: what is chosen is not late at the pins, and a word is taken by the first.
        commanded, word_now, chip_word = Signal(3, init=NOP), Signal(), words.o.payload
        a_now, ba_now = (Signal.like(x, reset_less=True) for x in (a, pins_ba))
        undriven = Signal(init=1)       # as the pads hear it, so that no inverter is on the way
        m.d.comb += [pins.dq_oe.eq(~undriven), words.o.ready.eq(word_now)]
        m.d.sync += [
            commanded.eq(command), a_now.eq(a), ba_now.eq(pins_ba), word_now.eq(word),
            Cat(pins.ras_n, pins.cas_n, pins.we_n).eq(commanded), pins.cke.eq(1),
            undriven.eq(~word_now)]
        for there, value in (
                (pins.a, a_now), (pins.ba, ba_now), (pins.dq_o, chip_word[:part.data_bits]),
                (pins.dqm, Mux(word_now, ~chip_word[part.data_bits:], 0)),
                (port.r_data.payload, pins.dq_i)):
            clocked(there, value)
        with m.If(go):
            m.d.comb += command.eq(Mux(following.write, WRITE, READ))
        with m.Elif(stop):
            m.d.comb += command.eq(STOP)

        # --- rows: that of the following segment is opened under the words of the one at work -----
        rows = Array(Signal(part.row_bits, reset_less=True, name=f"row{i}")
                     for i in range(1 << part.bank_bits))
        opened = Signal(1 << part.bank_bits)
        row_there, open_there = Signal(part.row_bits, reset_less=True), Signal(reset_less=True)
        hit = Signal(reset_less=True)
        # While the following segment is not ``waiting`` there is no ``go``.
        may = ~(running & ending) & ~held
        with m.FSM(name="rows_fsm"):
            with m.State("EMPTY"):
                m.d.comb += segmenter.o.ready.eq(~waiting)
                with m.If(~waiting):
                    m.d.sync += following.eq(segmenter.o.payload)
                    with m.If(segmenter.o.valid):
                        m.next = "LOOK"
                with m.Elif(halted):            # a refresh closes the row that was ready
                    m.d.sync += waiting.eq(0)
                    m.next = "HALTED"
            with m.State("HALTED"):
                with m.If(~halted):
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.d.sync += [row_there.eq(rows[following.bank]),
                             open_there.eq(opened.bit_select(following.bank, 1))]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += hit.eq(row_there == following.row)
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += rows[following.bank].eq(following.row)
                m.next = "OPEN"
                with m.If(open_there & ~hit):
                    m.next = "CLOSE"
                with m.Elif(open_there):
                    m.d.sync += waiting.eq(1)
                    m.next = "EMPTY"
            with m.State("CLOSE"):
                with m.If(may & ras_over & wr_over & (~running | (bank != following.bank))):
                    m.d.comb += [command.eq(PRECHARGE), a[10].eq(0)]
                    m.d.sync += [step(t.rp - 1), opened.bit_select(following.bank, 1).eq(0)]
                    m.next = "OPEN"
            with m.State("OPEN"):
                with m.If(may & step_over & rrd_over):
                    m.d.comb += command.eq(ACTIVATE)
                    m.d.sync += [step(t.rcd - 1), ras(t.ras - 1), rrd(t.rrd - 1),
                                 opened.bit_select(following.bank, 1).eq(1), waiting.eq(1)]
                    m.next = "EMPTY"

        # --- power-up and refresh -----------------------------------------------------------------
        power_up = Signal(range(t.init + 1), init=t.init)
        refreshes = Signal(range(8), init=self.POWER_UP_REFRESHES - 1)      # after this one
        with m.FSM(name="upkeep"):
            with m.State("POWER_UP"):
                m.d.sync += power_up.eq(power_up - 1)
                with m.If(power_up == 0):
                    m.next = "CLOSE_ALL"
            with m.State("CLOSE_ALL"):
                m.d.comb += [command.eq(PRECHARGE), a[10].eq(1)]
                m.d.sync += [step(t.rp - 1), opened.eq(0)]
                m.next = "REFRESH"
            with m.State("REFRESH"):
                with m.If(step_over):
                    m.d.comb += [command.eq(REFRESH), paid.eq(owed != 0)]
                    m.d.sync += [step(t.rfc - 1), refreshes.eq(refreshes - 1)]
                    with m.If(refreshes == 0):
                        m.next = "END"
            with m.State("END"):
                with m.If(step_over):
                    m.d.sync += halted.eq(0)
                    m.next = "RUN"
                    with m.If(~ready):
                        # Full page, sequential, CAS latency, bursts of writes too.
                        m.d.comb += [command.eq(MODE), a.eq(0b111 | t.cas << 4),
                                     pins_ba.eq(0)]
                        m.d.sync += [step(t.mrd - 1), ready.eq(1), halted.eq(1)]
                        m.next = "END"
            with m.State("RUN"):
                m.d.sync += refreshes.eq(self.group - 1)
                with m.If(due & held & ~running & ras_over & wr_over & step_over):
                    m.d.sync += halted.eq(1)
                    m.next = "CLOSE_ALL"
        return m
