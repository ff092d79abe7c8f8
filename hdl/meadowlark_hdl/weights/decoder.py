"""Chunks of memory -> row headers and beats of W weights."""
from amaranth import Cat, Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import near
from ..signatures import DecoderItem, TileFill, TileTag
from ..sleep import napping
from .beat_unit import NoUnit
from .block_unit import BlockUnit
from .headers import Headers
from .raw_unit import RawUnit
from .tile_reader import TileReader, Unit
from .unpack_stage import UnpackStage
from .unpacker import unpacker


class PackedWeightDecoder(wiring.Component):
    """Takes tiles apart: row headers first, W / 4 of them an item, then the beats.

    Behind the row headers a tile may be packed (docs/packing.md): the units then get its chunks
    from an :class:`~.unpacker.Unpacker`.

    The beats are made by units, each for some modes, all behind :class:`BeatUnit`; a unit gets
    chunks only when the others have nothing left to give, so items leave in order.

    Golden: :func:`meadowlark_hdl.weights.decoder_golden.decode_tile`, bit-exact.
    Timing: ``LATENCY`` cycles from a chunk to its beat or headers. One beat a cycle in INT8, one
    every two cycles in INT16, a chunk a cycle in headers, one every two in SHORT ones. No idle
    cycle from tile to tile of at least 2 beats if tags and halves are there and the mode does not
    need another unit. The block modes: see :class:`.BlockUnit`; headers wait until its
    pipeline is empty. A tile begins when a half of the tile buffer is free for it, and then nothing
    stalls it but the chunks: no ready reaches back through the units.

    Parameters
    ----------
    config : Config
        W, tile_beats, packing.
    sleep : bool
        The unit for the block modes and the unpacker stand still when there is nothing for them,
        see :mod:`..sleep`.

    Members
    -------
    tags : In(stream of TileTag)
        One for each tile, in order; beats in 1..tile_beats.
    chunks : In(stream of 8 * W bits)
        The tiles' chunks, back to back.
    items : Out(TileFill)
        Without header no item of the tile has ``is_scale``. With SCALE and SHORT, bias is 0.
    error : Out(1)
        A tag had a mode or packing that does not exist, or what was packed is damaged;
        stays until flush. Beats of such a tile
        mean nothing (no headers) and take no chunk, so what follows in ``chunks`` may be misread,
        but every tag gets its beats.
    flush : In(1)
        While it was high in the cycle before, as in reset: what is inside is dropped.
    """

    LATENCY = 3

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        super().__init__({
            "tags": In(stream.Signature(TileTag(config))),
            "chunks": In(stream.Signature(8 * config.W)),
            "items": Out(TileFill(config)),
            "error": Out(1), "flush": In(1)})

    def elaborate(self, platform):
        top, m = Module(), Module()
        config, items = self.config, self.items

        def flushed(name, block):
            """A register of the flush for each part: one for all would reach too far."""
            flush = near(top, self.flush, name=f"flush_{name}", reset=True)
            return ResetInserter(flush)(block)
        raw, none = RawUnit(config), NoUnit(config)
        blocks = BlockUnit(config) if config.block_modes else None
        units = {Unit.RAW: raw.unit} | ({Unit.BLOCKS: blocks.unit} if blocks else {}) | {
            Unit.NONE: none.unit}
        m.submodules.tiles = tiles = TileReader(config)
        m.submodules.headers = headers = Headers(config)
        wiring.connect(m, wiring.flipped(self.tags), tiles.i)
        tile = tiles.o.payload

        # Halves of the tile buffer that no tile has been begun for.
        halves, some_half, begun = Signal(range(3), init=2 - config.one_half), \
            Signal(init=1), Signal()
        halves_after = Signal.like(halves)
        m.d.comb += halves_after.eq(halves + items.freed[0] + items.freed[1] - begun)
        m.d.sync += [halves.eq(halves_after), some_half.eq(halves_after != 0)]

        # Where the chunks go: in_header, in_beats, or neither while there is no tile.
        in_header, in_beats = Signal(), Signal()
        selected = Signal(Unit, reset_less=True)
        done, take_over = Signal(), Signal()
        m.d.comb += [
            done.eq(Cat(u.done for u in units.values()).any()),
            take_over.eq(tiles.o.valid & some_half & (done | ~(in_header | in_beats))),
            tiles.o.ready.eq(take_over), begun.eq(take_over)]
        with m.If(headers.last):
            m.d.sync += [in_header.eq(0), in_beats.eq(1)]
        with m.If(done):
            m.d.sync += in_beats.eq(0)
        with m.If(take_over):
            m.d.sync += [in_header.eq(tile.headed), in_beats.eq(~tile.headed),
                         selected.eq(tile.unit), self.error.eq(self.error | ~tile.legal)]

        # Who holds beats, a cycle late. A unit is busy before the last of a tile's beats leaves
        # it, and a late look lets one chunk pass to the next: of BlockUnit that is a scale. Headers
        # wait for the beats of all but raw, which are as late as they.
        from_blocks, from_raw = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [from_blocks.eq(blocks.unit.busy if blocks else 0),
                     from_raw.eq(raw.unit.busy)]
        others = {Unit.RAW: from_blocks | none.unit.busy, Unit.BLOCKS: from_raw | none.unit.busy,
                  Unit.NONE: from_blocks | raw.unit.busy}
        m.d.comb += [headers.tile.eq(tile), headers.active.eq(in_header),
                     headers.enable.eq(~(from_blocks | none.unit.busy))]
        plain = stream.Signature(8 * config.W).create()
        m.d.comb += plain.ready.eq(Cat(u.enable & u.i.ready for u in units.values()).any())
        for k, u in units.items():
            m.d.comb += [
                u.start.eq(take_over & (tile.unit == k)),
                u.mode.eq(tile.tag.mode), u.beats.eq(tile.tag.beats),
                u.enable.eq(in_beats & (selected == k) & ~others[k]),
                u.i.valid.eq(plain.valid & u.enable), u.i.payload.eq(plain.payload)]

        # The item that leaves: at most one unit holds beats.
        item = Signal(DecoderItem(config), reset_less=True)
        outs = [u.o for u in units.values()]
        m.d.comb += items.payload.eq(item)
        m.d.sync += [
            items.valid.eq(headers.o.valid | Cat(o.valid for o in outs).any()),
            item.is_scale.eq(headers.o.valid), item.scales.eq(headers.o.payload),
            item.last.eq(Cat(o.valid & o.payload.last for o in outs).any()),
            item.beat.eq(raw.unit.o.payload.beat)]
        if blocks:
            with m.If(from_blocks):
                m.d.sync += item.beat.eq(blocks.unit.o.payload.beat)

        chunks = self.chunks
        if config.packing:
            m.submodules.stage = stage = UnpackStage(config)
            unpack = unpacker(config)
            wiring.connect(m, stage.unpacker, unpack)
            wiring.connect(m, wiring.flipped(chunks), stage.i)
            wiring.connect(m, stage.headers, headers.i)
            m.d.comb += [
                stage.next.eq(tile), stage.known.eq(tiles.o.valid & tile.legal),
                stage.start.eq(take_over), stage.in_beats.eq(in_beats),
                plain.valid.eq(stage.beats.valid), plain.payload.eq(stage.beats.payload),
                stage.beats.ready.eq(plain.ready)]
            with m.If(unpack.error):
                m.d.sync += self.error.eq(1)
            top.submodules.unpacker = napping(top, flushed("unpacker", unpack), "unpacker",
                                              stage.awake, sleep=self.sleep, linger=64)
        else:
            for taker in (headers.i, plain):
                m.d.comb += [taker.valid.eq(chunks.valid), taker.payload.eq(chunks.payload)]
            m.d.comb += chunks.ready.eq(headers.i.ready | plain.ready)
        if blocks:
            top.submodules.blocks = napping(
                top, flushed("blocks", blocks), "blocks", blocks.unit.start | blocks.unit.busy
                | blocks.unit.enable, sleep=self.sleep, linger=32)
        for name, block in (("control", m), ("raw", raw), ("none", none)):
            top.submodules[name] = flushed(name, block)
        return top
