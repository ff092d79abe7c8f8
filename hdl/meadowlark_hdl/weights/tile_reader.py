"""Tags of tiles, and what follows from them."""
from enum import IntEnum

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..isa import Header
from ..signatures import TileTag
from .decoder_golden import HEADER_BYTES
from .modes import BLOCK_MODES, MODES


class Unit(IntEnum):
    """Which unit makes a tile's beats."""
    RAW = 0
    BLOCKS = 1
    NONE = 2    #: the tag has a mode or packing that this decoder does not have


def Tile(config: Config) -> data.StructLayout:
    """The next tile. unit: of its beats, see :class:`Unit`; legal: it is not ``NONE``. headed: it
    has row headers, in header_cycles cycles (header_single: one), each the chunk of W / 4 rows, or
    half of BIAS. chunks: behind them, before they were packed."""
    return data.StructLayout({
        "tag": TileTag(config), "unit": Unit, "legal": 1, "headed": 1,
        "header_cycles": range(2 * 128 + 1), "header_single": 1,
        "chunks": range(2 * config.tile_beats + 1)})


class TileReader(wiring.Component):
    """Tags to tiles. What is known of the next one waits in registers, so that it can be taken over
    in one cycle; in front of it another tag, as it came.

    Timing: 2 cycles, a tile every two.

    Parameters
    ----------
    config : Config
        W, tile_beats, block_modes, packing.

    Members
    -------
    i : In(stream of TileTag)
    o : Out(stream of Tile)
        The payload stands until the next tile is valid.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"i": In(stream.Signature(TileTag(config))),
                          "o": Out(stream.Signature(Tile(config)))})

    def elaborate(self, platform):
        m = Module()
        config, W = self.config, self.config.W
        modes = [mode for mode in MODES if config.block_modes or mode not in BLOCK_MODES]
        assert modes == [*range(len(modes))]        # so that comparing them is enough
        tag, tag_valid = Signal(TileTag(config), reset_less=True), Signal()
        tile, tile_valid = Signal(Tile(config), reset_less=True), Signal()
        m.d.comb += [self.i.ready.eq(~tag_valid), self.o.valid.eq(tile_valid),
                     self.o.payload.eq(tile)]
        with m.If(~tag_valid):
            m.d.sync += [tag.eq(self.i.payload), tag_valid.eq(self.i.valid)]
        with m.If(tag_valid & ~tile_valid):
            known, chunks = Signal(), Signal.like(tile.chunks)
            with m.Switch(tag.mode):
                for mode in modes:
                    with m.Case(mode):
                        m.d.comb += chunks.eq(MODES[mode].chunks(tag.beats))
            m.d.comb += known.eq((tag.mode <= max(modes)) & (~tag.packed | bool(config.packing)))

            def cycles(header: Header):
                return (tag.rows * HEADER_BYTES[header] + W - 1) >> exact_log2(W)
            # A chunk of SHORT ones takes two cycles, but the last one maybe one.
            size = Mux(tag.header == Header.BIAS, cycles(Header.BIAS), cycles(Header.SCALE))
            m.d.sync += [
                tag_valid.eq(0), tile_valid.eq(1), tile.tag.eq(tag), tile.legal.eq(known),
                tile.unit.eq(Mux(known, Mux(tag.mode >= min(BLOCK_MODES), Unit.BLOCKS, Unit.RAW),
                                 Unit.NONE)),
                tile.headed.eq(known & (tag.header != Header.NONE) & (tag.rows != 0)),
                tile.header_cycles.eq(size), tile.header_single.eq(size == 1),
                tile.chunks.eq(chunks)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += tile_valid.eq(0)
        return m
