"""QK and SV: the keys or values of a head, against the query heads and blocks that see them."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.utils import ceil_log2

from ..compute.lane import score_cycle
from ..config import Config
from ..isa import Op
from ..lib.pipe import reg
from .drain import Drain
from .key_beats import KeyBeats
from .seen_keys import SeenKeys
from .span import Span
from .walker import Walker, results_settle


class Keys(Walker):
    """Each tile, each query head, each block: :class:`.KeyBeats` has the keys that
    :class:`.SeenKeys` says, and when they were a lot's last ones of SV, :class:`.Drain` its sums.

    An instruction is for some lots of the KV head's (:class:`.sequencer_golden.Lots`). QK goes on
    where the QK before it ended, unless its lots are the first; SV is for the same ones as the QK
    before it.

    Timing: ``SPAN`` cycles, ``TILE`` a tile, ``BLOCK`` a lot of a tile, and what KeyBeats and Drain
    take.

    Parameters
    ----------
    config : Config
    sum_gap : int, 1..
        See :class:`.Drain`.

    Members
    -------
    (those of :class:`Walker`)
    """

    SPAN, TILE, BLOCK = 1, 1, SeenKeys.LATENCY + 2
    PRESENTS = (*KeyBeats.PRESENTS, "shift", "sel_p", "sc_block", "sc_last", "m_block",
                "sum_read", "sum_block", "dr_en", "dr_sel", "res_en", "res_kind", "row", "block",
                "release", "wait_tile", "wait_vector")

    def __init__(self, config: Config, *, sum_gap: int):
        self.drain = Drain(config, sum_gap=sum_gap)
        # SV reads no score in its first cycles.
        super().__init__(config, settle={Op.QK: score_cycle(config) + 1,
                                         Op.SV: results_settle(config)})

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        instr, lots, pass_ = self.job.instr, self.job.lots, self.job.pass_
        log2_w, log2_parts = ceil_log2(config.W), ceil_log2(config.sv_cycles)
        m.submodules.drain = drain = self.drain
        m.submodules.seen = seen = SeenKeys(config)
        m.submodules.beats = beats = KeyBeats(config)
        m.submodules.span = span = Span(config)

        is_sv = Signal()
        base, tile_keys = reg(13, "base"), reg(13, "tile_keys")     # the tile's first key, and all
        keys_left = reg(14, "keys_left")                        # from the tile's first one on
        last_keys, single = Signal(), reg(1, "single")          # all are in this tile; in one
        lot = reg(range(Config.SUM_BLOCKS), "lot")
        score = reg(range(2 * config.score_depth), "score")     # where the lot's begin
        slot = reg(range(config.acc_slots), "slot")             # its first slice
        m.d.sync += [is_sv.eq(instr.op == Op.SV), last_keys.eq(keys_left == tile_keys)]

        m.d.comb += [
            span.job.eq(self.job), span.goes_on.eq(self.req & (instr.op == Op.QK)),
            seen.heads.eq(instr.heads), seen.lanes.eq(instr.lanes), seen.ctx.eq(pass_.ctx),
            seen.position.eq(span.position), seen.base.eq(base), seen.keys.eq(tile_keys),
            beats.job.eq(self.job), beats.base.eq(base), beats.position.eq(span.position),
            beats.behind.eq(seen.behind), beats.one.eq(seen.one), beats.score.eq(score),
            beats.x.eq(Mux(self.idle, 0, span.x)), beats.slot.eq(slot),
            drain.slot.eq(slot), drain.beats.eq(instr.row_beats),
            drain.req.eq(beats.done & is_sv & seen.all),
            *(c[name].eq(beats.control[name]) for name in beats.PRESENTS if name != "acc_addr"),
            c.acc_addr.eq(Mux(beats.idle, drain.addr, beats.control.acc_addr)),
            c.shift.eq(instr.shift), c.sel_p.eq(is_sv), c.sc_block.eq(lot),
            c.sc_last.eq(seen.last_query), c.m_block.eq(lot), c.sum_block.eq(lot),
            c.sum_read.eq(drain.sum), c.dr_en.eq(drain.element),
            c.dr_sel.eq(drain.row[log2_parts:]), c.res_en.eq(drain.sum | drain.element),
            c.res_kind.eq(Cat(drain.sum, drain.element)),
            c.row.eq(Mux(drain.element, (span.head << log2_w) + drain.row, 0)),
            c.block.eq(Mux(self.idle, 0, span.block)), c.wait_vector.eq(drain.wait)]

        with m.If(self.idle):
            m.d.sync += [keys_left.eq(lots.keys), single.eq(lots.keys <= instr.rows), base.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "SPAN"
            with m.State("SPAN"):
                m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += [c.wait_tile.eq(~self.front), span.first.eq(1)]
                m.d.sync += [tile_keys.eq(Mux(keys_left < instr.rows, keys_left, instr.rows)),
                             lot.eq(0), score.eq(0), slot.eq(0)]
                with m.If(self.front):
                    m.next = "SEE"
            with m.State("SEE"):
                m.next = "SEEN"
            with m.State("SEEN"):                       # SeenKeys.LATENCY cycles
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += beats.req.eq(~seen.none)
                m.next = "LOT"
            with m.State("LOT"):
                with m.If(beats.idle & drain.idle):
                    m.d.comb += span.next.eq(1)
                    m.d.sync += [
                        lot.eq(lot + 1), score.eq(score + pass_.ctx),
                        slot.eq(Mux(single, 0, slot + (instr.row_beats << log2_parts)))]
                    m.next = "SEE"
                    with m.If(span.last):
                        m.d.comb += c.release.eq(1)
                        m.d.sync += [base.eq(base + instr.rows),
                                     keys_left.eq(keys_left - tile_keys)]
                        m.next = "TILE"
                        with m.If(last_keys):
                            m.d.sync += self.idle.eq(1)
                            m.next = "IDLE"
        return m
