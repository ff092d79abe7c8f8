"""Beats of tiles in a mode that does not exist, so that every tag gets its own."""
from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from ..config import Config
from .beat_unit import BeatUnit, beat_count


class NoUnit(wiring.Component):
    """Stands in for a mode that does not exist: the right number of beats, without a chunk.

    Members
    -------
    unit : In(BeatUnit)
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"unit": In(BeatUnit(config))})

    def elaborate(self, platform):
        m = Module()
        u = self.unit
        left, form = Signal(beat_count(self.config)), Signal()
        m.d.comb += [
            form.eq(u.enable & (left != 0)), u.done.eq(form & (left == 1)), u.busy.eq(u.o.valid)]
        m.d.sync += [u.o.valid.eq(form), u.o.payload.last.eq(left == 1)]
        with m.If(form):
            m.d.sync += left.eq(left - 1)
        # A cycle late, for nobody minds; the tag still stands.
        starting = Signal()
        m.d.sync += starting.eq(u.start)
        with m.If(starting):
            m.d.sync += left.eq(u.beats)
        return m
