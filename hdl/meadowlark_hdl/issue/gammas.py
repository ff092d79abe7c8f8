"""NORM: the vector unit reads the tile itself."""
from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Op
from .walker import Walker


class Gammas(Walker):
    """Lends the tile of gammas to the vector unit until it is done with it.

    Timing: what the vector unit takes and ``NORM`` cycles. ``start`` is a register; ``done`` is
    looked at a cycle late, for it comes from across the chip.

    Members
    -------
    (beside those of :class:`Walker`)
    start : Out(1)      One cycle: the tile is there.
    done : In(1)        One cycle: the last value is written.
    release : Out(1)    See :class:`.TileReader`.
    """

    NORM = 2
    PRESENTS = ("wait_tile", "wait_vector")

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.NORM: 2},
                         start=Out(1), done=In(1), release=Out(1))

    def elaborate(self, platform):
        m = Module()
        control, done = self.control, Signal()
        m.d.sync += [done.eq(self.done), self.start.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += control.wait_tile.eq(~self.front)
                with m.If(self.front):
                    m.d.sync += self.start.eq(1)
                    m.next = "LENT"
            with m.State("LENT"):
                m.d.comb += control.wait_vector.eq(1)
                with m.If(done):
                    m.d.comb += self.release.eq(1)
                    m.d.sync += self.idle.eq(1)
                    m.next = "IDLE"
        return m
