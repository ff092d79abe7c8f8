"""What an SDR SDRAM is told between its bursts: rows opened under them, refreshes, power-up."""
from amaranth import Array, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.bursts import BurstCutter
from ..lib.countdown import Countdown
from ..signatures import ReadCommand
from .sdram_part import SdramPart, SdramTiming

#: Commands as {ras_n, cas_n, we_n}, ras_n first; a NOP and another one make the other one.
NOP, STOP, READ, WRITE, ACTIVATE, PRECHARGE, REFRESH, MODE = (
    0b111, 0b011, 0b101, 0b001, 0b110, 0b010, 0b100, 0b000)


def address_bits(part: SdramPart) -> int:
    """Address pins: bit 10 is more than a row's, too."""
    return max(part.row_bits, 11)


def pause(m: Module, most: int, name: str) -> Countdown:
    """Cycles that a command still has to wait, ``most`` at most; it counts by itself. What loads
    it is written behind this."""
    count = Countdown(m, range(most), name=name)
    with m.If(count.some):
        m.d.sync += count.step()
    return count


def over_soon(count: Countdown):
    """In the next cycle there is nothing to wait for, unless the count is loaded in this one."""
    return ~count.some | count.last


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
    o : Out(stream of Segment)
    """

    def __init__(self, config: Config, part: SdramPart):
        self.config, self.part = config, part
        super().__init__({
            "reads": In(stream.Signature(ReadCommand(config))),
            "writes": In(stream.Signature(ReadCommand(config))),
            "o": Out(stream.Signature(Segment(config, part)))})

    def elaborate(self, platform):
        m = Module()
        part, o = self.part, self.o.payload
        place = data.StructLayout({
            "col": part.col_bits, "bank": part.bank_bits, "row": part.row_bits})
        rows = BurstCutter(m, most=1 << part.col_bits, address_bits=place.size,
                           left_bits=self.config.burst_words.bit_length(), name="row", aligned=True)
        at, chosen = data.View(place, rows.address), Signal(ReadCommand(self.config))
        write = Signal(reset_less=True)
        m.d.comb += [
            chosen.eq(Mux(self.writes.valid, self.writes.payload, self.reads.payload)),
            o.write.eq(write), o.final.eq(rows.final), o.words.eq(rows.length),
            o.bank.eq(at.bank), o.row.eq(at.row), o.col.eq(at.col)]
        with m.FSM():
            with m.State("PICK"):
                m.d.comb += [self.writes.ready.eq(1), self.reads.ready.eq(~self.writes.valid)]
                m.d.sync += [write.eq(self.writes.valid),
                             rows.load(chosen.addr, chosen.len + 1)]
                with m.If(self.writes.valid | self.reads.valid):
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.sync += rows.measure()
                m.next = "CUT"
            with m.State("CUT"):
                m.d.sync += rows.cut()
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.sync += rows.advance()
                    m.next = "MEASURE"
                    with m.If(rows.final):
                        m.next = "PICK"
        return m


class RowOpener(wiring.Component):
    """Opens the row of the following segment under the words of the one at work.

    Timing: ``open`` comes 4 cycles after a segment whose row is open, tRCD + 1 later if its bank is
    closed, tRP + tRCD + 1 if it has another row; a segment every 4 cycles at most.

    Parameters
    ----------
    config : Config
    part : SdramPart
    timing : SdramTiming

    Members
    -------
    i : In(stream of Segment)
    segment : Out(Segment)      The one whose row is made ready.
    open : Out(1)               Its READ or WRITE may come from the next cycle on.
    take : In(1)                It comes in this one.
    free : In(1)                A command may be given in this cycle.
    closable : In(1)            No burst and no write recovery kept that bank open in the cycle
                                before. None can begin: only this segment would.
    halted : In(1)              All rows are being closed.
    settled : Out(1)            No row was opened too late for all to be closed.
    command : Out(3)            PRECHARGE of that bank, ACTIVATE of that row, or NOP.
    a : Out                     Its address.
    """

    def __init__(self, config: Config, part: SdramPart, timing: SdramTiming):
        self.part, self.timing = part, timing
        super().__init__({
            "i": In(stream.Signature(Segment(config, part))), "segment": Out(Segment(config, part)),
            "open": Out(1), "take": In(1), "free": In(1), "closable": In(1), "halted": In(1),
            "settled": Out(1), "command": Out(3), "a": Out(address_bits(part))})

    def elaborate(self, platform):
        m = Module()
        part, t = self.part, self.timing
        step = pause(m, max(t.rp, t.rcd), "step")       # of the bank
        ras, rrd = pause(m, t.ras, "ras"), pause(m, t.rrd, "rrd")       # since the last ACTIVATE
        following = Signal(self.segment.shape(), reset_less=True)
        waiting = Signal()                              # its row is open
        rows = Array(Signal(part.row_bits, reset_less=True, name=f"row{i}")
                     for i in range(1 << part.bank_bits))
        opened = Signal(1 << part.bank_bits)
        row_there, open_there = Signal(part.row_bits, reset_less=True), Signal(reset_less=True)
        hit = Signal(reset_less=True)
        m.d.comb += [
            self.segment.eq(following), self.settled.eq(~ras.some), self.command.eq(NOP),
            self.a.eq(following.row),
            # Only a ``take`` starts what follows, and nothing starts ``step`` while one waits.
            self.open.eq(waiting & ~self.take & over_soon(step))]
        with m.If(self.take):
            m.d.sync += waiting.eq(0)
        with m.FSM(name="rows_fsm"):
            with m.State("EMPTY"):
                m.d.comb += self.i.ready.eq(~waiting)
                with m.If(~waiting):
                    m.d.sync += following.eq(self.i.payload)
                    with m.If(self.i.valid):
                        m.next = "LOOK"
                with m.Elif(self.halted):       # a refresh closes the row that was ready
                    m.d.sync += waiting.eq(0)
                    m.next = "HALTED"
            with m.State("HALTED"):
                with m.If(~self.halted):
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
                m.d.comb += self.a[10].eq(0)            # of one bank
                with m.If(self.free & ~ras.some & self.closable):
                    m.d.comb += self.command.eq(PRECHARGE)
                    m.d.sync += [step.load(t.rp - 1), opened.bit_select(following.bank, 1).eq(0)]
                    m.next = "OPEN"
            with m.State("OPEN"):
                with m.If(self.free & ~step.some & ~rrd.some):
                    m.d.comb += self.command.eq(ACTIVATE)
                    m.d.sync += [step.load(t.rcd - 1), ras.load(t.ras - 1), rrd.load(t.rrd - 1),
                                 opened.bit_select(following.bank, 1).eq(1), waiting.eq(1)]
                    m.next = "EMPTY"
        with m.If(self.halted):
            m.d.sync += opened.eq(0)
        return m


class Upkeep(wiring.Component):
    """Power-up, and refreshes by the clock, in groups.

    Parameters
    ----------
    part : SdramPart
    timing : SdramTiming
    group : int             Refreshes done together.
    power_up : int          Refreshes before the first mode register set.

    Members
    -------
    idle : In(1)        No word moves, and all rows may be closed.
    held : Out(1)       Begin nothing that would keep a refresh waiting.
    halted : Out(1)     No commands but those of this block. ``held`` is high a cycle before.
    ready : Out(1)      The chip is initialised.
    command : Out(3)    PRECHARGE of all banks, REFRESH, MODE or NOP.
    a : Out             Its address, while ``halted``; the bank's has to be 0.
    """

    def __init__(self, part: SdramPart, timing: SdramTiming, *, group: int, power_up: int):
        self.timing, self.group, self.power_up = timing, group, power_up
        super().__init__({"idle": In(1), "held": Out(1, init=1), "halted": Out(1, init=1),
                          "ready": Out(1), "command": Out(3), "a": Out(address_bits(part))})

    def elaborate(self, platform):
        m = Module()
        t = self.timing
        # --- refreshes owed, by the clock ---------------------------------------------------------
        interval, tick = Signal(range(t.refresh), init=t.refresh - 1), Signal()
        owed, paid, due = Signal(range(32)), Signal(), Signal()
        m.d.sync += [tick.eq(interval == 1), due.eq(owed >= self.group),
                     interval.eq(Mux(interval == 0, t.refresh - 1, interval - 1)),
                     owed.eq(owed + tick - paid), self.held.eq(self.halted | due)]

        wait = pause(m, max(t.rp, t.rfc, t.mrd), "wait")
        nops = Signal(range(t.init + 1), init=t.init)
        refreshes = Signal(range(8), init=self.power_up - 1)    # after this one
        m.d.comb += [self.command.eq(NOP), self.a.eq(1 << 10)]     # of all banks
        with m.FSM(name="upkeep"):
            with m.State("POWER_UP"):
                m.d.sync += nops.eq(nops - 1)
                with m.If(nops == 0):
                    m.next = "CLOSE_ALL"
            with m.State("CLOSE_ALL"):
                m.d.comb += self.command.eq(PRECHARGE)
                m.d.sync += wait.load(t.rp - 1)
                m.next = "REFRESH"
            with m.State("REFRESH"):
                with m.If(~wait.some):
                    m.d.comb += [self.command.eq(REFRESH), paid.eq(owed != 0)]
                    m.d.sync += [wait.load(t.rfc - 1), refreshes.eq(refreshes - 1)]
                    with m.If(refreshes == 0):
                        m.next = "END"
            with m.State("END"):
                # Full page, sequential, CAS latency, bursts of writes too.
                m.d.comb += self.a.eq(0b111 | t.cas << 4)
                with m.If(~wait.some & self.ready):
                    m.d.sync += self.halted.eq(0)
                    m.next = "RUN"
                with m.Elif(~wait.some):
                    m.d.comb += self.command.eq(MODE)
                    m.d.sync += [wait.load(t.mrd - 1), self.ready.eq(1)]
            with m.State("RUN"):
                m.d.sync += refreshes.eq(self.group - 1)
                with m.If(due & self.held & self.idle):
                    m.d.sync += self.halted.eq(1)
                    m.next = "CLOSE_ALL"
        return m
