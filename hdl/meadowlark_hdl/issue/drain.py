"""The end of SV: what a block's lanes have summed leaves them."""
from __future__ import annotations

from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..compute.lane import DRAIN_LATER
from ..config import Config
from ..lib.countdown import Countdown
from ..lib.pipe import delay, reg


class Drain(wiring.Component):
    """A row of sums of probabilities, then a row for each element of the head.

    Timing: max(sum_gap, P) + elements * P cycles from ``req``, so that the P results of a row have
    left before those of the next one. ``addr`` comes DRAIN_LATER cycles after the ``element`` it
    belongs to; until then nobody else may address the accumulators.

    Parameters
    ----------
    config : Config
    sum_gap : int, 1..
        Cycles from the row of sums to that of the first element.

    Members
    -------
    req : In(1)             One cycle, while idle: begin.
    idle : Out(1)
    slot : In               First of the block's slices; stands while not idle.
    beats : In(11)          Beats of a head, 1..; likewise.
    sum, element : Out(1)   The row that is presented.
    row : Out(10)           Number of the element; 0 while idle.
    addr : Out              Its slice.
    wait : Out(1)           Waits until a row of elements may start.
    """

    def __init__(self, config: Config, *, sum_gap: int):
        if sum_gap < 1:
            raise ValueError(f"sum_gap must be at least 1, not {sum_gap!r}")
        self.config = config
        self.sum_row = max(sum_gap, config.P)       # its results leave one a cycle as well
        slices = range(config.acc_slots)
        super().__init__({
            "req": In(1), "idle": Out(1, init=1), "slot": In(slices), "beats": In(11),
            "sum": Out(1), "element": Out(1), "row": Out(10), "addr": Out(slices),
            "wait": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, log2_w, log2_parts = self.config, ceil_log2(self.config.W), \
            ceil_log2(self.config.sv_cycles)
        wait = Countdown(m, range(self.sum_row), name="wait", last=False)
        left = Countdown(m, 10, name="elements", behind=True, reset=False)
        row, beat = reg(10, "row"), reg(len(self.slot) - log2_parts, "beat")
        # Values follow each other in the slices of a beat before they do in a slice.
        m.d.comb += [
            self.row.eq(row),
            self.addr.eq(delay(m, Cat(row[:log2_parts], beat), DRAIN_LATER, name="addr"))]
        with m.If(self.idle):
            m.d.sync += row.eq(0)
        with m.If(wait.some):
            m.d.sync += wait.step()
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += [left.load((self.beats << log2_w) - 1), beat.eq(self.slot[log2_parts:])]
                with m.If(~wait.some):
                    m.d.comb += self.sum.eq(1)
                    m.d.sync += wait.load(self.sum_row - 1)
                    m.next = "ELEMENTS"
            with m.State("ELEMENTS"):
                m.d.comb += [self.wait.eq(wait.some), self.element.eq(~wait.some)]
                with m.If(~wait.some):
                    m.d.sync += [wait.load(config.P - 1), left.step(), row.eq(row + 1)]
                    with m.If(row[:log2_w].all()):
                        m.d.sync += beat.eq(beat + 1)
                    with m.If(left.last):
                        m.d.sync += self.idle.eq(1)
                        m.next = "IDLE"
        return m
