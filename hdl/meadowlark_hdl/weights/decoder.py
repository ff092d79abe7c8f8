"""Chunks of memory -> row headers and beats of W weights."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import delay
from ..config import Config
from ..lib.countdown import Countdown
from ..lib.fanout import fanout, near
from ..isa import Header, Mode
from ..lib.queues import Skid
from ..signatures import DecoderItem, RowScale, TileFill, TileTag
from ..sleep import napping
from .beat_unit import BeatUnit, beat_count
from .block_unit import BlockUnit
from .decoder_golden import SHORT_BITS
from .modes import BLOCK_MODES, MODES
from .refill import Refill
from .unpacker import unpacker as make_unpacker


class RawUnit(wiring.Component):
    """Beats of modes INT8 (a chunk each) and INT16 (two, low half first).

    Golden: :func:`meadowlark_hdl.weights.decoder_golden.decode_tile`. Timing: 2 cycles, a chunk a
    cycle, no bubble between tiles.

    Members
    -------
    unit : In(BeatUnit)
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"unit": In(BeatUnit(config))})

    def elaborate(self, platform):
        m = Module()
        u, W = self.unit, self.config.W
        left = Countdown(m, beat_count(self.config), name="beats")
        wide, half = Signal(), Signal()
        whole, take = Signal(), Signal()
        m.d.comb += [
            whole.eq(~wide | half),         # this chunk completes a beat
            u.i.ready.eq(left.some), take.eq(u.i.valid & left.some),
            u.done.eq(take & whole & left.last)]
        with m.If(take):
            m.d.sync += half.eq(~whole)
        with m.If(take & whole):
            m.d.sync += left.step()

        # Data move in every cycle, so that what enables them is not late. Chunks come from afar,
        # by the choice of their source: a register before the choice of what they are.
        chunk, low = (Signal(8 * W, name=name, reset_less=True) for name in ("chunk", "low"))
        formed, upper = Signal(), Signal()      # chunk completes a beat; it is its high half
        item = Signal(u.o.payload.shape(), reset_less=True)
        m.d.comb += [u.o.payload.eq(item), u.busy.eq(u.o.valid | formed | half)]
        m.d.sync += [chunk.eq(u.i.payload), formed.eq(take & whole), upper.eq(half),
                     u.o.valid.eq(formed)]
        with m.If(~upper):
            m.d.sync += low.eq(chunk)
        ending = Signal(reset_less=True)
        m.d.sync += [ending.eq(left.last), item.last.eq(ending)]
        wides = fanout(m, wide, W // 4, name="wide", reset=True)        # near the data
        both = Cat(low, chunk)
        for i in range(W):
            m.d.sync += item.beat[i].eq(
                Mux(wides[i // 4], both.word_select(i, 16).as_signed(),
                    chunk.word_select(i, 8).as_signed()))
        with m.If(u.start):
            m.d.sync += [left.load(u.beats, some=1), wide.eq(u.mode == Mode.INT16)]
        return m


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


class PackedWeightDecoder(wiring.Component):
    """Takes tiles apart: row headers first, W / 4 of them an item, then the beats.

    Behind the row headers a tile may be packed (docs/packing.md): the units then get its chunks
    from an :class:`~.unpacker.Unpacker`.

    The beats are made by units, each for some modes, all behind :class:`BeatUnit`; a unit gets
    chunks only when the others have nothing left to give, so items leave in order.

    Golden: :func:`meadowlark_hdl.weights.decoder_golden.decode_tile`, bit-exact.
    Timing: 4 cycles from a chunk to its beat or headers. One beat a cycle in INT8, one every two
    cycles in INT16, a chunk a cycle in headers, one every two in SHORT ones. No idle cycle from
    tile to tile of at least 2 beats if tags and halves are there and the mode does not need another
    unit. The
    block modes: see :class:`.BlockUnit`; headers wait until its
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

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        super().__init__({
            "tags": In(stream.Signature(TileTag(config))),
            "chunks": In(stream.Signature(8 * config.W)),
            "items": Out(TileFill(config)),
            "error": Out(1), "flush": In(1)})

    def elaborate(self, platform):
        top, m = Module(), Module()

        def flushed(name, block):
            """A register of the flush for each part: one for all would reach too far."""
            flush = near(top, self.flush, name=f"flush_{name}", reset=True)
            return ResetInserter(flush)(block)
        W, items = self.config.W, self.items
        raw, none, chunk_in = RawUnit(self.config), NoUnit(self.config), Skid(8 * W)
        able = bool(self.config.block_modes)
        modes = [mode for mode in MODES if able or mode not in BLOCK_MODES]
        blocks = (BlockUnit if able else NoUnit)(self.config)
        units = [raw.unit, blocks.unit, none.unit]
        wiring.connect(m, wiring.flipped(self.chunks), chunk_in.i)
        chunks = chunk_in.o

        # Halves of the tile buffer that no tile has been begun for.
        halves, some_half, begun = Signal(range(3), init=2), Signal(init=1), Signal()
        halves_after = Signal.like(halves)
        m.d.comb += halves_after.eq(halves + items.freed[0] + items.freed[1] - begun)
        m.d.sync += [halves.eq(halves_after), some_half.eq(halves_after != 0)]

        # The next tag, and what follows from it, waits in registers, so that it can be taken over
        # in one cycle; in front of it another one, as it came.
        new, new_valid = Signal(TileTag(self.config), reset_less=True), Signal()
        tag, tag_valid = Signal(TileTag(self.config), reset_less=True), Signal()
        legal, headed = Signal(reset_less=True), Signal(reset_less=True)
        header_size = Signal(range(2 * 128 + 1), reset_less=True)
        header_single = Signal(reset_less=True)
        kind = Signal(range(len(units)), reset_less=True)
        coded_size = Signal(range(2 * self.config.tile_beats + 1), reset_less=True)
        m.d.comb += self.tags.ready.eq(~new_valid)
        with m.If(~new_valid):
            m.d.sync += [new.eq(self.tags.payload), new_valid.eq(self.tags.valid)]
        with m.If(new_valid & ~tag_valid):
            known, plain_size = Signal(), Signal.like(coded_size)
            with m.Switch(new.mode):        # chunks behind the headers
                for mode in modes:
                    with m.Case(mode):
                        m.d.comb += plain_size.eq(MODES[mode].chunks(new.beats))
            size = Mux(new.header == Header.BIAS, (new.rows * 8 + W - 1) >> W.bit_length() - 1,
                       (new.rows * 4 + W - 1) >> W.bit_length() - 1)
            m.d.comb += known.eq((new.mode <= max(modes))
                                 & (~new.packed | bool(self.config.packing)))
            m.d.sync += [new_valid.eq(0), tag.eq(new), tag_valid.eq(1), legal.eq(known),
                         coded_size.eq(plain_size),
                         kind.eq(Mux(known, new.mode >= min(BLOCK_MODES), len(units) - 1)),
                         headed.eq(known & (new.header != Header.NONE) & (new.rows != 0)),
                         header_size.eq(size), header_single.eq(size == 1)]

        # Where the chunks go: in_header, in_beats, or neither while there is no tag.
        in_header, in_beats = Signal(), Signal()
        bias, short = Signal(reset_less=True), Signal(reset_less=True)  # BIAS, SHORT headers
        # Cycles they take: a chunk each, but two a chunk of SHORT ones, of the last maybe one.
        headers = Countdown(m, header_size.shape(), name="header", reset=False, reset_flags=False)
        selected = Signal(range(len(units)), reset_less=True)
        done, take_over, last_header = Signal(), Signal(), Signal()
        m.d.comb += [done.eq(Cat(u.done for u in units).any()),
                     take_over.eq(tag_valid & some_half & (done | ~(in_header | in_beats))),
                     begun.eq(take_over)]
        with m.If(last_header):
            m.d.sync += [in_header.eq(0), in_beats.eq(1)]
        with m.If(done):
            m.d.sync += in_beats.eq(0)
        with m.If(take_over):
            m.d.sync += [tag_valid.eq(0), in_header.eq(headed), in_beats.eq(~headed),
                         selected.eq(kind), self.error.eq(self.error | ~legal)]
        with m.If(~in_header):
            m.d.sync += [bias.eq(tag.header == Header.BIAS), short.eq(tag.header == Header.SHORT),
                         headers.load(header_size, last=header_single)]

        # What the units get, and whether the next of the chunks is one of these, or a header.
        plain, own = stream.Signature(8 * W).create(), Signal()

        # The item that leaves: at most one unit holds beats. Headers wait for those of all but raw,
        # which are as late as they.
        head = Signal()
        item = Signal(DecoderItem(self.config), reset_less=True)
        scales = Signal(data.ArrayLayout(RowScale(), W // 4), reset_less=True)
        # Who holds beats, a cycle late. A unit is busy before the last of a tile's beats leaves
        # it, and a late look lets one chunk pass to the next: of BlockUnit that is a scale.
        from_blocks, from_raw = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [from_blocks.eq(blocks.unit.busy), from_raw.eq(raw.unit.busy)]
        m.d.comb += items.payload.eq(item)
        m.d.sync += [
            items.valid.eq(head | Cat(u.o.valid for u in units).any()),
            item.is_scale.eq(head), item.scales.eq(scales),
            item.last.eq(Cat(u.o.valid & u.o.payload.last for u in units).any()),
            item.beat.eq(Mux(from_blocks, blocks.unit.o.payload.beat, raw.unit.o.payload.beat))]
        others = [from_blocks | none.unit.busy, from_raw | none.unit.busy,
                  from_blocks | raw.unit.busy]
        busy = from_blocks | none.unit.busy     # in front of headers
        for k, u in enumerate(units):
            m.d.comb += [
                u.start.eq(take_over & (kind == k)),
                u.mode.eq(tag.mode), u.beats.eq(tag.beats),
                u.enable.eq(in_beats & (selected == k) & ~others[k]),
                u.i.valid.eq(plain.valid & u.enable), u.i.payload.eq(plain.payload)]

        # Headers: W / 4 rows at once, half a chunk of SHORT, a chunk of SCALE or two of BIAS. In
        # the last item the second chunk may be missing.
        second = Signal()           # of a chunk's two items (SHORT), of an item's two chunks (BIAS)
        load, take, complete = Signal(), Signal(), Signal()
        again = Signal()            # the chunk stays: short, neither second nor last
        m.d.comb += [
            load.eq(in_header & ~busy & own), take.eq(load & chunks.valid),
            last_header.eq(take & headers.last),
            complete.eq(take & (~bias | second | headers.last))]
        with m.If(take):
            m.d.sync += [headers.step(), second.eq(Mux(short, again, ~complete)),
                         again.eq(short & ~again & (headers.left != 2))]
        with m.If(~in_header):
            m.d.sync += again.eq((tag.header == Header.SHORT) & ~header_single)
        m.d.comb += head.eq(delay(m, complete, 2, name="head", reset=True))
        # Their bits, a register later, and once more when they have their form.
        chunk, hold = (Signal(8 * W, name=name, reset_less=True) for name in ("header", "hold"))
        seconds = fanout(m, second, W // 4, name="second", reset=True)  # near the data
        m.d.sync += chunk.eq(chunks.payload)
        pair = Cat(*(Mux(late, hold.word_select(i, 32), chunk.word_select(i, 32))
                     for i, late in enumerate(seconds)), chunk)
        part = Cat(Mux(seconds[i // 2], chunk[4 * W:].word_select(i, 16),
                       chunk.word_select(i, 16)) for i in range(W // 4))
        for i in range(W // 4):
            both, single, small = (pair.word_select(i, 64), chunk.word_select(i, 32),
                                   part.word_select(i, 16))
            below = SHORT_BITS - 1
            full = Cat(Const(0, 16 - SHORT_BITS), small[:below], Const(1, 1), small[below:])
            form = Mux(short, full, Mux(bias, both, single)[:22])
            m.d.sync += [
                scales[i].mant.eq(form[:16]), scales[i].shift.eq(form[16:]),
                scales[i].bias.eq(Mux(bias, both[32:], 0).as_signed())]
        for i, late in enumerate(seconds):
            with m.If(~late):
                m.d.sync += hold.word_select(i, 32).eq(chunk.word_select(i, 32))
        m.d.comb += plain.ready.eq(Cat(u.enable & u.i.ready for u in units).any())
        gone = load & ~again                    # the chunk at hand is done with
        if self.config.packing:
            known = tag_valid & legal
            unpacker, awake = self._unpack(m, chunks, tag, known, coded_size, take_over, in_beats,
                                           plain, own, gone)
            top.submodules.unpacker = napping(top, flushed("unpacker", unpacker), "unpacker",
                                              awake, sleep=self.sleep, linger=64)
        else:
            m.d.comb += [own.eq(1), plain.valid.eq(chunks.valid),
                         plain.payload.eq(chunks.payload), chunks.ready.eq(gone | plain.ready)]
        top.submodules.blocks = napping(
            top, flushed("blocks", blocks), "blocks", blocks.unit.start | blocks.unit.busy
            | blocks.unit.enable, sleep=self.sleep, linger=32)
        for name, block in (("control", m), ("raw", raw), ("none", none), ("chunk", chunk_in)):
            top.submodules[name] = flushed(name, block)
        return top

    def _unpack(self, m, chunks, tag, known, size, take_over, in_beats, plain, own, gone):
        """The unpacker, between the chunks and the units, and whether there is anything for it; it
        may run ahead by the next tag.

        Chunks are its own from the end of a tile's row headers to the last one that the tile's
        steps asked for.
        """
        unpacker = make_unpacker(self.config)
        packed, told, counted = Signal(), Signal(), Signal()
        # Tiles whose chunks may be taken, but those of an earlier one are still under way: lanes
        # have bits in store, so that small tiles can be complete before their words are. The chunk
        # at hand is not coded (``own``) when there are none; that is a register, maybe late to
        # rise, but never to fall.
        owed = Signal(range(2 * Refill.DEPTH))
        owed_after = Signal.like(owed)
        behind = in_beats & packed & ~counted
        with m.If(unpacker.tiles.valid & unpacker.tiles.ready):
            m.d.sync += told.eq(1)
        with m.If(behind):
            m.d.sync += counted.eq(1)
        with m.If(take_over):
            m.d.sync += [told.eq(0), counted.eq(0), packed.eq(known & tag.packed)]
            packeds = fanout(m, known & tag.packed, 8 * self.config.W // 32, name="packed",
                             reset=True)
        m.d.comb += owed_after.eq(owed + behind - unpacker.resume)
        m.d.sync += [owed.eq(owed_after),
                     own.eq(unpacker.ended & ~unpacker.resume & (owed_after == 0))]
        m.d.comb += [
            unpacker.tiles.payload.eq(size),
            unpacker.tiles.valid.eq(known & tag.packed & ~told),
            unpacker.resume.eq(unpacker.ended & (owed != 0)),
            unpacker.i.valid.eq(chunks.valid & ~unpacker.ended),
            unpacker.i.payload.eq(chunks.payload),
            chunks.ready.eq(Mux(unpacker.ended, gone | (plain.ready & ~packed & own),
                                     unpacker.i.ready)),
            plain.valid.eq(Mux(packed, unpacker.o.valid, chunks.valid & own)),
            plain.payload.eq(Cat(
                Mux(s, unpacker.o.payload.word_select(k, 32), chunks.payload.word_select(k, 32))
                for k, s in enumerate(packeds))),
            unpacker.o.ready.eq(plain.ready & packed)]
        with m.If(unpacker.error):
            m.d.sync += self.error.eq(1)
        return unpacker, (known & tag.packed) | packed | unpacker.busy | ~own
