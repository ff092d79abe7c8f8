"""LINEAR: rows of weights times the activations of all blocks."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.utils import exact_log2

from ..config import Config
from ..isa import Op, Pair, Sink
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .walker import Walker, results_settle


class Rows(Walker):
    """Each tile, each block of tokens, each row, each beat; with ``last`` only the last block. Rows
    of a diagonal are a beat, and W of them share a word of activations.

    Timing: ``TILE`` cycles a tile, and blocks * rows * max(row_beats, ``row_cycles``), so that the
    P results of a row have left before those of the next one. In a pass of which ``each`` token has
    logits, rows of logits are at least 4 cycles for each token apart, because the sampler takes one
    in 4.

    Members
    -------
    (those of :class:`Walker`)
    """

    TILE = 1
    PRESENTS = ("x_addr", "dot_keep", "res_en", "sink", "pair", "fn", "wide", "stats", "by",
                "heads", "to_lane", "block", "element", "angle", "beat", "tile_row", "release",
                "array_active", "wait_tile", "wait_vector")

    def __init__(self, config: Config):
        if config.lane_pairs:
            self.PRESENTS = (*self.PRESENTS, "paired")
        if config.softcap:
            self.PRESENTS = (*self.PRESENTS, "cap")
        super().__init__(config, settle={Op.LINEAR: results_settle(config)})

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        log2_w = exact_log2(config.W)
        instr, block_words = self.job.instr, self.job.model.block_words

        def behind(width, name):
            return Countdown(m, width, name=name, behind=True, reset=False)

        tiles = Countdown(m, instr.tiles.shape(), name="tiles", reset=False)
        blocks, rows, beats = behind(6, "blocks"), behind(8, "rows"), behind(11, "beats")
        # Until a row may start.
        apart = self._apart(m)
        wait = Countdown(m, apart.shape(), name="wait", last=False)
        begins = Signal(init=1)                         # a row
        final_tile = Signal()
        block, count, first = reg(6, "block"), reg(6, "count"), self.job.first
        row, row_end, one_row = reg(8, "row"), reg(8, "row_end"), Signal()      # of the tile
        # Of a row its element, doubled in a GLU, and its number in its head; of the tile's first
        # row as well. With heads each one goes to a lane of its own, from element y on.
        element, tile_element = (reg(Config.ROW_BITS, name) for name in ("element", "tile_element"))
        in_head, tile_in_head = (reg(Config.MAX_HEAD_LOG2, name)
                                 for name in ("in_head", "tile_in_head"))
        head_mask, head_ends = reg(Config.MAX_HEAD_LOG2, "head_mask"), Signal()
        to_lane, by = reg(c.to_lane.shape(), "to_lane"), reg(6, "by")
        beat_end, one_beat = reg(11, "beat_end"), Signal()
        tile_beat = reg(range(config.tile_beats), "tile_beat")
        x_first, x_block = reg(13, "x_first"), reg(13, "x_block")   # word x of a block
        x_addr = reg(13, "x_addr")
        word_ends = Signal()                            # of a diagonal, with this row
        m.d.sync += [beat_end.eq(instr.row_beats - 1), one_beat.eq(instr.row_beats == 1)]
        m.d.comb += [
            c.x_addr.eq(x_addr), c.dot_keep.eq(~begins), c.beat.eq(tile_beat), c.tile_row.eq(row)]
        # Rows are 4 cycles apart or more, so what follows from the last one's end may come later.
        m.d.sync += [head_mask.eq((1 << self.job.model.head_log2) - 1),
                     head_ends.eq(instr.heads & (in_head == head_mask)),
                     by.eq(Mux((instr.pair != Pair.NONE) | instr.fn.any(), instr.shift, 0))]
        m.d.sync += word_ends.eq(row[:log2_w].all())
        next_element = Mux(head_ends, instr.y, element + 1)
        next_in_head = (in_head + 1) & head_mask
        with m.If(~self.idle):
            m.d.comb += [
                *(c[name].eq(instr[name])
                  for name in ("sink", "pair", "fn", "wide", "stats", "heads")),
                c.by.eq(by), c.to_lane.eq(to_lane), c.block.eq(block), c.element.eq(element),
                c.angle.eq(in_head[1:])]
            self._extras(m)

        with m.If(self.idle):
            m.d.sync += [
                tiles.load(instr.tiles), count.eq(Mux(instr.last, 1, self.job.pass_.nb)),
                x_first.eq(instr.x + first.words), tile_in_head.eq(0), in_head.eq(0), row.eq(0),
                tile_element.eq(Mux(instr.pair == Pair.GLU, instr.y << 1, instr.y)),
                to_lane.eq(0), tile_beat.eq(0), x_addr.eq(0)]
        with m.If(wait.some):
            m.d.sync += wait.step()
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "TILE"
            with m.State("TILE"):
                in_tile = Mux(tiles.last, instr.last_rows, instr.rows)
                m.d.comb += c.wait_tile.eq(~self.front)
                m.d.sync += [
                    final_tile.eq(tiles.last), blocks.load_all(count),
                    rows.load_all(in_tile), row_end.eq(in_tile - 1), one_row.eq(in_tile == 1),
                    beats.load(beat_end, last=one_beat), block.eq(first.block), row.eq(0),
                    element.eq(tile_element), in_head.eq(tile_in_head), tile_beat.eq(0),
                    x_block.eq(x_first), x_addr.eq(x_first)]
                with m.If(self.front):
                    m.d.sync += tiles.step()
                    m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(begins & wait.some):
                    m.d.comb += c.wait_vector.eq(1)
                with m.Else():
                    m.d.comb += [c.array_active.eq(1), c.res_en.eq(beats.last)]
                    m.d.sync += [beats.step(), begins.eq(beats.last),
                                 tile_beat.eq(tile_beat + 1), x_addr.eq(x_addr + 1)]
                    with m.If(begins):
                        m.d.sync += wait.load(apart)
                    with m.If(beats.last):
                        m.d.sync += [beats.load(beat_end, last=one_beat), rows.step(),
                                     row.eq(row + 1), in_head.eq(next_in_head),
                                     element.eq(next_element),
                                     to_lane.eq(to_lane + head_ends),
                                     x_addr.eq(Mux(instr.diagonal, x_addr + word_ends, x_block))]
                        with m.If(rows.last):
                            m.d.sync += [
                                rows.load(row_end, last=one_row), blocks.step(), row.eq(0),
                                element.eq(tile_element), in_head.eq(tile_in_head),
                                tile_beat.eq(0), block.eq(block + 1),
                                x_block.eq(x_block + block_words),
                                x_addr.eq(x_block + block_words)]
                            with m.If(blocks.last):
                                m.d.comb += c.release.eq(1)
                                m.d.sync += [tile_in_head.eq(next_in_head),
                                             tile_element.eq(next_element)]
                                with m.If(instr.diagonal):
                                    m.d.sync += x_first.eq(x_first + (instr.rows >> log2_w))
                                m.next = "TILE"
                                with m.If(final_tile):
                                    m.d.sync += self.idle.eq(1)
                                    m.next = "IDLE"
        return m

    def _extras(self, m: Module) -> None:
        """What only some cores present."""
        instr, c = self.job.instr, self.control
        if self.config.lane_pairs:
            m.d.comb += c.paired.eq(instr.heads & instr.add)
        if self.config.softcap:         # the function of a row of logits is a soft cap
            with m.If(instr.sink == Sink.LOGIT):
                m.d.comb += [c.fn.eq(0), c.cap.eq(Mux(instr.fn.any(), instr.mant, 0))]

    def _apart(self, m: Module):
        """Cycles between the beginnings of two rows, at least, less 1."""
        config, pass_ = self.config, self.job.pass_
        apart = reg(range(Config.LOGIT_CYCLES * config.P), "apart")
        m.d.sync += apart.eq(config.row_cycles - 1)
        if config.batches:
            with m.If((self.job.instr.sink == Sink.LOGIT) & pass_.each
                      & (pass_.n >= -(-config.row_cycles // Config.LOGIT_CYCLES))):
                m.d.sync += apart.eq(pass_.n * Config.LOGIT_CYCLES - 1)
        return apart
