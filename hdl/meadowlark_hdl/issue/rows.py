"""LINEAR: rows of weights times the activations of all blocks."""
from __future__ import annotations

from amaranth import Module, Mux, Signal

from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .walker import Walker, results_settle


class Rows(Walker):
    """Each tile, each block of tokens, each row, each beat; with ``last`` only the last block.

    Timing: ``SKIP`` cycles a block until the first one that counts, once; ``TILE`` a tile, and
    blocks * rows * max(row_beats, P), so that the P results of a row have left before those of the
    next one.

    Members
    -------
    (those of :class:`Walker`)
    """

    SKIP, TILE = 1, 1
    PRESENTS = ("x_addr", "dot_keep", "res_en", "row", "block", "beat", "tile_row", "release",
                "array_active", "wait_tile", "wait_vector")

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.LINEAR: results_settle(config)})

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        instr, block_words = self.job.instr, self.job.model.block_words

        def behind(width, name):
            return Countdown(m, width, name=name, behind=True, reset=False)

        tiles = Countdown(m, 15, name="tiles", reset=False)
        skips = behind(6, "skips")                      # blocks behind the first one that counts
        blocks, rows, beats = behind(6, "blocks"), behind(8, "rows"), behind(11, "beats")
        wait = Countdown(m, range(config.P), name="wait", last=False)   # until a row may start
        first = Signal(init=1)                          # beat of the row
        final_tile = Signal()
        block, first_block = reg(6, "block"), reg(6, "first_block")
        row, row_end, one_row = reg(8, "row"), reg(8, "row_end"), Signal()      # of the tile
        row_no = reg(18, "row_no")                      # of the instruction
        tile_row_no = reg(18, "tile_row_no")            # of the tile's first row
        beat_end, one_beat = reg(11, "beat_end"), Signal()
        tile_beat = reg(range(config.tile_beats), "tile_beat")
        x_first, x_block = reg(13, "x_first"), reg(13, "x_block")   # word x of a block
        x_addr = reg(13, "x_addr")
        m.d.sync += [beat_end.eq(instr.row_beats - 1), one_beat.eq(instr.row_beats == 1)]
        m.d.comb += [
            c.x_addr.eq(x_addr), c.dot_keep.eq(~first), c.row.eq(row_no),
            c.block.eq(block), c.beat.eq(tile_beat),
            c.tile_row.eq(row)]

        with m.If(self.idle):
            m.d.sync += [
                tiles.load(instr.tiles), skips.load_all(self.job.pass_.nb), first_block.eq(0),
                x_first.eq(instr.x), tile_row_no.eq(0), block.eq(0), row.eq(0), row_no.eq(0),
                tile_beat.eq(0), x_addr.eq(0)]
        with m.If(wait.some):
            m.d.sync += wait.step()
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "SKIP"
            with m.State("SKIP"):
                with m.If(instr.last & ~skips.last):
                    m.d.sync += [skips.step(), first_block.eq(first_block + 1),
                                 x_first.eq(x_first + block_words)]
                with m.Else():
                    m.next = "TILE"
            with m.State("TILE"):
                count = Mux(tiles.last, instr.last_rows, instr.rows)
                m.d.comb += c.wait_tile.eq(~self.front)
                m.d.sync += [
                    final_tile.eq(tiles.last), blocks.load(skips.left, last=skips.last),
                    rows.load_all(count), row_end.eq(count - 1), one_row.eq(count == 1),
                    beats.load(beat_end, last=one_beat), block.eq(first_block), row.eq(0),
                    row_no.eq(tile_row_no), tile_beat.eq(0), x_block.eq(x_first),
                    x_addr.eq(x_first)]
                with m.If(self.front):
                    m.d.sync += tiles.step()
                    m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(first & wait.some):
                    m.d.comb += c.wait_vector.eq(1)
                with m.Else():
                    m.d.comb += [c.array_active.eq(1), c.res_en.eq(beats.last)]
                    m.d.sync += [beats.step(), first.eq(beats.last),
                                 tile_beat.eq(tile_beat + 1), x_addr.eq(x_addr + 1)]
                    with m.If(first):
                        m.d.sync += wait.load(config.P - 1)
                    with m.If(beats.last):
                        m.d.sync += [beats.load(beat_end, last=one_beat), rows.step(),
                                     row.eq(row + 1), row_no.eq(row_no + 1), x_addr.eq(x_block)]
                        with m.If(rows.last):
                            m.d.sync += [
                                rows.load(row_end, last=one_row), blocks.step(), row.eq(0),
                                row_no.eq(tile_row_no), tile_beat.eq(0), block.eq(block + 1),
                                x_block.eq(x_block + block_words),
                                x_addr.eq(x_block + block_words)]
                            with m.If(blocks.last):
                                m.d.comb += c.release.eq(1)
                                m.d.sync += tile_row_no.eq(row_no + 1)
                                m.next = "TILE"
                                with m.If(final_tile):
                                    m.d.sync += self.idle.eq(1)
                                    m.next = "IDLE"
        return m
