"""QK and SV: the keys or values of a head, against the query heads and blocks that see them."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from ..compute.lane import score_cycle
from ..config import Config
from ..isa import Op
from ..lib.pipe import reg
from ..lib.queues import Queue
from .drain import SummedLot
from .fill import Fill
from .judgement import Judgement
from .key_beats import KeyBeats
from .seen_keys import SeenKeys
from .span import Span
from .walker import Walker, results_settle


class Keys(Walker):
    """Each tile, each query head, each block: :class:`.KeyBeats` has the keys that
    :class:`.SeenKeys` says. Lots of SV that have seen their last key wait for :class:`.Drain`.

    An instruction is for some lots of the KV head's (:class:`.sequencer_golden.Lots`). QK goes on
    where the QK before it ended, unless its lots are the first; SV is for the same ones as the QK
    before it. Of a core with ``gemm`` so is SPILL, which has no tiles: it presents each score that
    SV would use, of the keys of one tile. There each lot's scores lie behind those of the lot
    before, else they begin ``ctx`` apart.

    The accumulators are a ring: lots lie in it one behind the other, and one whose place is not
    drained yet waits. Those of several tiles all have places of their own. SV begins when all lots
    before it are drained.

    With ``config.unified`` :class:`.Judgement` knows when SV may begin, and the first lot of an SV
    that was wrong about its maximum begins once more. By then nothing is drained, and its tile is
    still there.

    Timing: ``SPAN`` cycles, ``TILE`` a tile, ``BLOCK`` a lot of a tile, and what KeyBeats takes. A
    lot that waits for its place may begin ``ROOM`` cycles after the place's last row was presented.
    With ``config.unified`` QK has settled when it is idle. A lot that begins again does so
    ``AGAIN`` cycles after :func:`.judged_cycle`.

    Parameters
    ----------
    config : Config

    Members
    -------
    (those of :class:`Walker`, and)
    summed : Out(stream of SummedLot)   Lots to drain; the oldest stays until it is drained.
    taken : In(1)                       See :class:`.KeyBeats`.
    missed : In(1)                      Only with ``config.unified``. See :class:`.TilingEngine`.
    room, rows : In(1), Out(13)         Only with ``config.gemm``. See :class:`.KeyBeats`; scores of
                                        all lots of the latest QK, one behind the other.
    """

    SPAN, TILE, BLOCK, ROOM, AGAIN = 1, 1, SeenKeys.LATENCY + 2, 3, 2
    PRESENTS = (*KeyBeats.PRESENTS, "shift", "sel_p", "sc_block", "sc_last", "m_block", "release",
                "wait_tile", "wait_vector")

    def __init__(self, config: Config):
        # SV reads no score in its first cycles. What becomes of it is up to Drain.
        settle, ports = {Op.QK: score_cycle(config) + 1, Op.SV: 0}, {}
        if config.softcap:
            self.PRESENTS = (*self.PRESENTS, "score_cap")
        if config.gemm:
            self.PRESENTS = (*self.PRESENTS, "res_en", "raw", "one")
            settle[Op.SPILL], ports = results_settle(config), {"room": In(1), "rows": Out(13)}
        if config.unified:
            self.PRESENTS = (*self.PRESENTS, "phi", "window", "assumed", "sc_end")
            settle[Op.QK], ports = 0, ports | {"missed": In(1)}
        if config.lane_pairs:
            self.PRESENTS = (*self.PRESENTS, "own_part", "sc_paired")
        super().__init__(config, settle=settle, summed=Out(stream.Signature(SummedLot(config))),
                         taken=In(1), **ports)

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        instr, lots, pass_ = self.job.instr, self.job.lots, self.job.pass_
        log2_parts = ceil_log2(config.sv_cycles)
        # Not more than there are places for: a lot has two slices at least.
        m.submodules.summed = summed = Queue(SummedLot(config), depth=config.acc_slots // 2)
        m.submodules.seen = seen = SeenKeys(config)
        m.submodules.beats = beats = KeyBeats(config)
        m.submodules.span = span = Span(config)

        is_sv = Signal()
        base, tile_keys = reg(13, "base"), reg(13, "tile_keys")     # the tile's first key, and all
        first_tile, end = Signal(), reg(14, "end")              # end: of the keys of all tiles
        keys_left = reg(14, "keys_left")                        # from the tile's first one on
        last_keys, full = Signal(), Signal()        # all are in this tile; the slot is not drained
        lot = reg(range(Config.SUM_BLOCKS), "lot")
        score = reg(range(2 * config.score_depth), "score")     # where the lot's begin
        slot = reg(range(config.acc_slots), "slot")             # its first slice
        oldest, over, done = summed.o.payload.slot, beats.idle, beats.done
        if config.unified:
            over, done = Signal(), Signal()     # for good
        m.d.sync += [is_sv.eq(instr.op == Op.SV), last_keys.eq(keys_left == tile_keys),
                     end.eq(lots.first + lots.keys),
                     full.eq(is_sv & summed.o.valid & (oldest == slot))]

        connect(m, summed.o, flipped(self.summed))
        m.d.comb += [
            summed.i.valid.eq(done & is_sv & seen.all), summed.i.payload.slot.eq(slot),
            summed.i.payload.head.eq(span.head), summed.i.payload.block.eq(span.block),
            span.job.eq(self.job), span.goes_on.eq(self.req & (instr.op == Op.QK)),
            seen.instr.eq(instr), seen.end.eq(end), seen.position.eq(span.position),
            seen.base.eq(base), seen.keys.eq(tile_keys), seen.first_tile.eq(first_tile),
            seen.wanted.eq(~self.idle),
            beats.job.eq(self.job), beats.position.eq(span.position), beats.first.eq(seen.first),
            beats.skip.eq(seen.skip), beats.anew.eq(seen.anew),
            beats.until.eq(seen.until),
            beats.behind.eq(seen.behind), beats.one.eq(seen.one), beats.score.eq(score),
            beats.x.eq(Mux(self.idle, 0, span.x)), beats.slot.eq(slot),
            beats.taken.eq(self.taken),
            *(c[name].eq(beats.control[name]) for name in beats.PRESENTS),
            c.shift.eq(instr.shift), c.sel_p.eq(is_sv), c.sc_block.eq(lot),
            c.sc_last.eq(seen.last_query), c.m_block.eq(lot)]
        if config.lane_pairs:
            m.d.comb += c.sc_paired.eq(instr.heads & instr.add)
        if config.softcap:
            m.d.comb += c.score_cap.eq(Mux(instr.fn.any(), instr.mant, 0))
        next_score, front, is_spill = score + pass_.ctx, self.front, Signal()
        if config.gemm:
            next_score, front = score + seen.limit, self.front | is_spill
            self._spill(m, beats, is_sv, is_spill)

        with m.If(self.idle):
            m.d.sync += [keys_left.eq(lots.keys), base.eq(lots.first), first_tile.eq(1)]
        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "SPAN"
            with m.State("SPAN"):
                m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += [c.wait_tile.eq(~front), span.first.eq(1)]
                m.d.sync += [tile_keys.eq(Mux(keys_left < instr.rows, keys_left, instr.rows)),
                             lot.eq(0), score.eq(0), slot.eq(0)]
                with m.If(front):
                    m.next = "SEE"
            with m.State("SEE"):
                m.next = "SEEN"
            with m.State("SEEN"):                       # SeenKeys.LATENCY cycles
                m.next = "BEGIN"
            with m.State("BEGIN"):
                with m.If(full & ~seen.none):
                    m.d.comb += c.wait_vector.eq(1)
                with m.Else():
                    m.d.comb += beats.req.eq(~seen.none)
                    m.next = "LOT"
            with m.State("LOT"):
                if config.unified:
                    with m.If(beats.again):
                        m.next = "BEGIN"
                with m.If(over):
                    m.d.comb += span.next.eq(1)
                    m.d.sync += [
                        lot.eq(lot + 1), score.eq(next_score),
                        slot.eq(slot + (instr.row_beats << log2_parts))]
                    m.next = "SEE"
                    with m.If(span.last):
                        m.d.comb += c.release.eq(1)
                        if config.gemm:
                            m.d.comb += c.release.eq(~is_spill)
                            m.d.sync += self.rows.eq(next_score)
                        m.d.sync += [base.eq(base + instr.rows),
                                     keys_left.eq(keys_left - tile_keys), first_tile.eq(0)]
                        m.next = "TILE"
                        with m.If(last_keys):
                            m.d.sync += self.idle.eq(1)
                            m.next = "IDLE"
        if config.unified:
            self._judge(m, beats, over=over, done=done, begins=fsm.ongoing("TILE") & front,
                        at_lot=fsm.ongoing("LOT"), last=span.last & last_keys)
            m.d.comb += c.sc_end.eq(beats.done & seen.all)
        return m

    def _spill(self, m, beats, is_sv, is_spill) -> None:
        """What SPILL and FILL change of what is presented."""
        c, instr = self.control, self.job.instr
        m.d.sync += is_spill.eq(instr.op == Op.SPILL)
        m.d.comb += [beats.room.eq(self.room), c.raw.eq(is_spill ^ instr.beside),
                     c.one.eq(is_spill), c.sel_p.eq(is_sv | is_spill)]
        is_fill = Signal()              # who presents these as well
        m.d.sync += is_fill.eq(instr.op == Op.FILL)
        with m.If(is_fill):
            m.d.comb += [c[name].eq(0) for name in Fill.PRESENTS if name in c.shape().members]

    def _judge(self, m, beats, *, over, done, begins, at_lot, last) -> None:
        """A lot is over, done, or begins again, as Judgement has it."""
        c, late = self.control, Signal()        # late: the lot's last beat is presented, but waits
        m.submodules.judge = judge = Judgement(self.config)
        m.d.comb += [
            judge.req.eq(self.req), judge.instr.eq(self.job.instr), judge.tile.eq(begins),
            judge.done.eq(beats.done), judge.last.eq(last), judge.missed.eq(self.missed),
            beats.again.eq(at_lot & judge.again), over.eq(at_lot & beats.idle & ~judge.waits),
            done.eq(beats.done & ~judge.waits | over & late), c.phi.eq(judge.phi),
            c.window.eq(judge.window), c.assumed.eq(judge.assumed)]
        with m.If(judge.window != 0):           # scores of QK are on their way in SV
            m.d.comb += c.shift.eq(judge.shift)
            if self.config.softcap:
                m.d.comb += c.score_cap.eq(0)
        with m.If(beats.again | over):
            m.d.sync += late.eq(0)
        with m.Elif(beats.done):
            m.d.sync += late.eq(judge.waits)
        with m.If(at_lot & beats.idle & judge.waits):
            m.d.comb += c.wait_vector.eq(1)
