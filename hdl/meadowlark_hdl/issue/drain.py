"""The end of SV: what the lanes have summed leaves them, beside the keys of the next lots."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..compute.lane import DRAIN_LATER
from ..config import Config
from ..isa import Kind, Sink
from ..lib.countdown import Countdown
from ..lib.pipe import delay, kept, reg
from ..signatures import InstructionLayout
from .walker import presentable, results_settle


def SummedLot(config: Config) -> data.StructLayout:
    """A lot that has seen its last key. slot: the first of its slices. head: beats of the heads
    before its own. block: of tokens."""
    return data.StructLayout({"slot": range(config.acc_slots), "head": 12, "block": 6})


def sum_row(config: Config, sum_gap: int) -> int:
    """Cycles from a row of sums to the first element's: its results leave one a cycle as well."""
    return max(sum_gap, config.row_cycles)


class Drain(wiring.Component):
    """Of each lot a row of sums of probabilities, then a row for each element of the head; where
    heads have ``sv_cycles`` lanes, for as many elements.

    It waits for nobody. The lanes have one way to read their accumulators, and one to their sums:
    when it needs them it takes the cycle, and :class:`.KeyBeats` pauses. That is once a row.

    Timing: the sums ``FIRST`` cycles after the beat that was the lot's last one, or ``row_cycles``
    after the row before; max(sum_gap, ``row_cycles``) later the first element, then one every
    ``row_cycles``, so that the P results of a row have left before those of the next one. A row of
    sums takes its own cycle, a row of elements that ``DRAIN_LATER`` cycles later.

    Parameters
    ----------
    config : Config
    sum_gap : int, 1..
        Cycles from the row of sums to that of the first element.

    Members
    -------
    lots : In(stream of SummedLot)  Taken with their last row.
    instr : In(InstructionLayout)   The SV that gives lots, from the cycle before its first one to
                            that after its last. What becomes of results is copied from it: a QK
                            runs beside the last ones.
    takes : Out(1)          The cycle is its own; a register.
    settled : Out(1)        There are no lots, and the last results have been written, or keep the
                            vector unit busy.
    control : Out           A structure of what it presents; 0 when it presents nothing, acc_addr
                            and sum_block unless the cycle is its own.
    """

    FIRST = 2
    PRESENTS = ("sum_read", "sum_block", "acc_addr", "dr_en", "dr_sel", "res_en", "res_kind",
                "sink", "wide", "by", "heads", "to_lane", "block", "element")

    def __init__(self, config: Config, *, sum_gap: int):
        if sum_gap < 1:
            raise ValueError(f"sum_gap must be at least 1, not {sum_gap!r}")
        self.config = config
        self.sum_row = sum_row(config, sum_gap)
        shapes = presentable(config)
        if config.lane_pairs:
            self.PRESENTS = (*self.PRESENTS, "paired")
        super().__init__({
            "lots": In(stream.Signature(SummedLot(config))), "instr": In(InstructionLayout),
            "takes": Out(1),
            "settled": Out(1, init=1),
            "control": Out(data.StructLayout({name: shapes[name] for name in self.PRESENTS}))})

    def elaborate(self, platform):
        m = Module()
        config, c, lot = self.config, self.control, self.lots.payload
        log2_w, log2_parts = ceil_log2(config.W), ceil_log2(config.sv_cycles)
        apart = config.row_cycles
        settle = results_settle(config) - apart     # after the time of the last row
        wait = Countdown(m, range(max(self.sum_row, settle + 1)), name="wait", last=False)
        left = Countdown(m, 10, name="elements", behind=True, reset=False)
        begin, sums, element, final = Signal(), Signal(), Signal(), reg(1, "final")
        part, column = reg(log2_parts, "part"), reg(log2_w - log2_parts, "column")  # of the beat
        beat, at = reg(len(lot.slot) - log2_parts, "beat"), reg(15, "at")   # at: element
        copy = {name: reg(self.instr[name].shape(), f"of_{name}")
                for name in ("wide", "heads", "lanes", "y", "mant", "shift", "row_beats",
                             *(["add"] if config.lane_pairs else []))}
        with m.If(self.settled):
            m.d.sync += [copied.eq(self.instr[name]) for name, copied in copy.items()]
        last_lane = kept(m, "last_lane", copy["lanes"] - 1)
        # Values follow each other in the slices of a beat before they do in a slice.
        coming = delay(m, element, DRAIN_LATER - 1, name="coming", reset=True)
        elements, rows, slice_ = 1, copy["row_beats"] << log2_w, Cat(part, beat)
        if config.lane_pairs:           # of a row; there is one lot then, and a slice has a beat
            pairs = copy["add"]
            elements, slice_ = Mux(pairs, config.sv_cycles, elements), Mux(pairs, beat, slice_)
            rows = Mux(pairs, copy["row_beats"] << log2_w - log2_parts, rows)
            m.d.comb += c.paired.eq(element & pairs)
        addr = delay(m, slice_, DRAIN_LATER - 1, name="addr")
        own_addr = reg(c.acc_addr.shape(), "own_addr")
        m.d.sync += [sums.eq(begin), element.eq(0), self.takes.eq(begin | coming),
                     own_addr.eq(Mux(coming, addr, 0))]
        m.d.comb += [
            self.lots.ready.eq(element & final), c.acc_addr.eq(own_addr), c.sum_read.eq(sums),
            c.sum_block.eq(Mux(sums, lot.slot[1:], 0)), c.dr_en.eq(element),
            c.dr_sel.eq(column), c.res_en.eq(sums | element),
            c.res_kind.eq(Mux(sums, Kind.SUM, Mux(element, Kind.DRAIN, 0))),
            c.sink.eq(Mux(element, Sink.ACT, 0)), c.wide.eq(element & copy["wide"]),
            c.by.eq(Mux(sums, copy["shift"], 0)), c.heads.eq(element & copy["heads"]),
            c.to_lane.eq(Mux(element, last_lane, 0)), c.block.eq(Mux(sums | element, lot.block, 0)),
            c.element.eq(Mux(sums, copy["mant"], Mux(element, at, 0)))]

        with m.If(wait.some):
            m.d.sync += wait.step()
        with m.If(element):
            m.d.sync += [Cat(part, column, beat).eq(Cat(part, column, beat) + elements),
                         at.eq(at + elements)]
        with m.FSM():
            with m.State("SETTLE"):
                with m.If(self.lots.valid):
                    m.d.comb += begin.eq(1)
                    m.next = "ELEMENTS"
                with m.Elif(~wait.some):
                    m.d.sync += self.settled.eq(1)
            with m.State("NEXT"):
                with m.If(~wait.some):
                    m.d.sync += wait.load(settle)
                    m.next = "SETTLE"
                    with m.If(self.lots.valid):
                        m.d.comb += begin.eq(1)
                        m.next = "ELEMENTS"
            with m.State("ELEMENTS"):
                with m.If(~wait.some):
                    m.d.sync += [element.eq(1), final.eq(left.last), wait.load(apart - 1),
                                 left.step()]
                    with m.If(left.last):
                        m.next = "NEXT"
        with m.If(begin):
            m.d.sync += [wait.load(self.sum_row - 1), part.eq(0), column.eq(0),
                         left.load(rows - 1),
                         beat.eq(lot.slot[log2_parts:]),
                         at.eq(copy["y"] + Cat(Const(0, log2_w), lot.head)), self.settled.eq(0)]
        return m
