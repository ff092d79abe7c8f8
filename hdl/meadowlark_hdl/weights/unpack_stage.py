"""Between the chunks and those who take them: which are headers, plain, or an unpacker's."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import fanout
from .refill import Refill
from .tile_reader import Tile
from .unpacker import Unpacking


class UnpackStage(wiring.Component):
    """Row headers go one way, what is behind them another, by way of the unpacker where a tile is
    packed. The unpacker may run ahead by the next tile.

    Chunks are its own from the end of a tile's row headers to the last one that the tile's steps
    asked for.

    Timing: no cycle; a chunk per cycle.

    Parameters
    ----------
    config : Config
        W, tile_beats.

    Members
    -------
    next : In(Tile), known : In(1)
        The next tile; it is there, and legal.
    start : In(1)
        One cycle: it is begun.
    in_beats : In(1)
        Its headers are behind it.
    i : In(stream of 8 * W bits)
    headers, beats : Out(stream of 8 * W bits)
        Chunks of headers; the plain ones behind them.
    unpacker : In(Unpacking)
    awake : Out(1)
        There is something for the unpacker.
    """

    def __init__(self, config: Config):
        self.config = config
        chunks, most = stream.Signature(8 * config.W), 2 * config.tile_beats
        super().__init__({
            "next": In(Tile(config)), "known": In(1), "start": In(1), "in_beats": In(1),
            "i": In(chunks), "headers": Out(chunks), "beats": Out(chunks),
            "unpacker": In(Unpacking(W=config.W, most=most)), "awake": Out(1)})

    def elaborate(self, platform):
        m = Module()
        chunks, plain, unpacker = self.i, self.beats, self.unpacker
        packed, told, counted, own = Signal(), Signal(), Signal(), Signal()
        next_packed = self.known & self.next.tag.packed
        # Tiles whose chunks may be taken, but those of an earlier one are still under way: lanes
        # have bits in store, so that small tiles can be complete before their words are. The chunk
        # at hand is not coded (``own``) when there are none; that is a register, maybe late to
        # rise, but never to fall.
        owed = Signal(range(2 * Refill.DEPTH))
        owed_after = Signal.like(owed)
        behind = self.in_beats & packed & ~counted
        with m.If(unpacker.tiles.valid & unpacker.tiles.ready):
            m.d.sync += told.eq(1)
        with m.If(behind):
            m.d.sync += counted.eq(1)
        with m.If(self.start):
            m.d.sync += [told.eq(0), counted.eq(0), packed.eq(next_packed)]
            packeds = fanout(m, next_packed, 8 * self.config.W // 32, name="packed", reset=True)
        m.d.comb += owed_after.eq(owed + behind - unpacker.resume)
        m.d.sync += [owed.eq(owed_after),
                     own.eq(unpacker.ended & ~unpacker.resume & (owed_after == 0))]
        m.d.comb += [
            unpacker.tiles.payload.eq(self.next.chunks),
            unpacker.tiles.valid.eq(next_packed & ~told),
            unpacker.resume.eq(unpacker.ended & (owed != 0)),
            unpacker.i.valid.eq(chunks.valid & ~unpacker.ended),
            unpacker.i.payload.eq(chunks.payload),
            self.headers.valid.eq(chunks.valid & own), self.headers.payload.eq(chunks.payload),
            chunks.ready.eq(Mux(
                unpacker.ended, (self.headers.ready & own) | (plain.ready & ~packed & own),
                unpacker.i.ready)),
            plain.valid.eq(Mux(packed, unpacker.o.valid, chunks.valid & own)),
            plain.payload.eq(Cat(
                Mux(s, unpacker.o.payload.word_select(k, 32), chunks.payload.word_select(k, 32))
                for k, s in enumerate(packeds))),
            unpacker.o.ready.eq(plain.ready & packed),
            self.awake.eq(next_packed | packed | unpacker.busy | ~own)]
        return m
