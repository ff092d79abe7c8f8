"""FILL: what SPILL wrote to memory, back in the place of the scores."""
from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from ..compute.lane import score_cycle
from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .walker import Walker


class Fill(Walker):
    """A tile after the other, each beat for each of the keys that it has.

    A beat is ``spilled_keys`` times P values of 16 bits, a lane's own for each. The lane multiplies
    it by 4 and stores it as a score; which lot it is of does not matter.

    Timing: ``TILE`` cycles a tile, and a cycle for each score.

    Members
    -------
    (beside those of :class:`Walker`)
    rows : In(13)       Scores to store, see :class:`.Keys`; 1..
    """

    TILE = 1
    PRESENTS = ("array_active", "beat", "part", "sc_en", "sc_addr", "sc_until", "sc_keep", "fill",
                "release", "wait_tile")

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.FILL: score_cycle(config) + 1}, rows=In(13))

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        score, part = reg(c.sc_addr.shape(), "score"), reg(exact_log2(config.spilled_keys), "part")
        beat = reg(c.beat.shape(), "beat")
        beats = Countdown(m, c.beat.shape(), name="beats", behind=True, reset=False)    # of a tile
        rows = Countdown(m, 13, name="rows", behind=True, reset=False)
        ends, tile_beats = Signal(), reg(11, "tile_beats")
        m.d.sync += tile_beats.eq(self.job.instr.chunks >> 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [rows.load_all(self.rows), score.eq(0)]
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += c.wait_tile.eq(~self.front)
                m.d.sync += [beats.load_all(tile_beats), beat.eq(0), part.eq(0)]
                with m.If(self.front):
                    m.next = "SCORES"
            with m.State("SCORES"):
                m.d.comb += [
                    c.array_active.eq(1), c.beat.eq(beat), c.part.eq(part), c.sc_en.eq(1),
                    c.sc_addr.eq(score), c.sc_until.eq(~0), c.sc_keep.eq(1), c.fill.eq(1),
                    ends.eq(part.all())]
                m.d.sync += [score.eq(score + 1), part.eq(part + 1), rows.step()]
                with m.If(ends):
                    m.d.sync += [beat.eq(beat + 1), beats.step()]
                with m.If(rows.last | (ends & beats.last)):
                    m.d.comb += c.release.eq(1)
                    m.next = "TILE"
                with m.If(rows.last):
                    m.d.sync += self.idle.eq(1)
                    m.next = "IDLE"
        return m
