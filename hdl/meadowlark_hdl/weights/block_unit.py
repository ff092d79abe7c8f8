"""Blocks of GGUF files to beats: chunks are scales or codes, and a beat's codes meet its scale."""
from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data

from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..lib.pipe import delay, reg
from ..lib.queues import Queue
from .beat_unit import BeatMaker, beat_count
from .block_grid import OFFSET, BlockGrid
from .block_scales import BlockScales
from .modes import BLOCK, BLOCK_MODES


class BlockUnit(BeatMaker):
    """Beats of the block modes, see :data:`.modes.MODES`.

    A tile is its scales (with minima), then its codes. :class:`.BlockScales` holds a block's beside
    its beats; :class:`.BlockGrid` makes weights of both.

    Golden: :mod:`.block_golden`, bit-exact.
    Timing: a chunk of scales a cycle, then a beat a cycle: Q8_0 takes a chunk each, the others one
    every two. A beat leaves ``LATENCY`` cycles after its codes left their queue. With
    ``unpack_cycles`` of 2 or 4 a beat takes as many cycles, its first values first, and there are
    as many fewer adders; it leaves 1 or 3 cycles later. From the last beat
    of a tile to the first of the next it is 5 cycles and the scales' chunks, or 6. Beats of a tile
    are whole blocks: a multiple of 32 / W. Nothing behind the codes' queue stalls.

    Parameters
    ----------
    config : Config
        W, tile_beats, unpack_cycles.
    """

    LATENCY = 3 + BlockGrid.LATENCY     #: queue, chunk, codes, grid

    def elaborate(self, platform):
        m = Module()
        u, config, W = self.unit, self.config, self.config.W
        parts, most = config.unpack_cycles, config.tile_beats
        m.submodules.scales = scales = BlockScales(W=W, most=most)
        m.submodules.grid = grid = BlockGrid(values=W // parts)

        # The tile at work. What others wait for is a register: is there anything to come, is this
        # the last?
        bytes_each, offset = reg(1, "bytes_each"), reg(1, "offset")
        scale_chunks = Countdown(m, range(scales.most_chunks + 1), name="scale_chunks", last=False)
        code_chunks = Countdown(m, range(most + 1), name="code_chunks", last=False)     # to come
        beats = Countdown(m, beat_count(config), name="beats")                          # to issue

        # Chunks: scales come first, room for all of a tile's. Codes wait as well, so that what is
        # issued does not reach the source in the same cycle. Both by way of a register.
        m.submodules.chunks = chunks = Queue(8 * W, depth=4)
        room_codes, more_codes = Signal(range(5), init=4), Signal(init=1)   # room_codes != 0
        take_scales, take_codes = Signal(), Signal()
        at_hand = reg(8 * W, "at_hand")
        m.d.comb += [
            u.i.ready.eq(scale_chunks.some | (code_chunks.some & more_codes)),
            take_scales.eq(u.i.valid & scale_chunks.some),
            take_codes.eq(u.i.valid & ~scale_chunks.some & code_chunks.some & more_codes),
            scales.i.payload.eq(at_hand), chunks.i.payload.eq(at_hand)]
        for into, take in ((scales, take_scales), (chunks, take_codes)):
            arrived = Signal()
            m.d.sync += arrived.eq(take)
            m.d.comb += into.i.valid.eq(arrived)
        m.d.sync += at_hand.eq(u.i.payload)
        with m.If(take_scales):
            m.d.sync += scale_chunks.step()
        with m.If(take_codes):
            m.d.sync += code_chunks.step()

        # Codes: a chunk, given in one beat or two, each with the scale of its block.
        half, issue, chunk_done = Signal(), Signal(), Signal()
        later, upper = Signal(parts - 1), Signal()      # the parts of a beat behind its first
        if parts > 1:
            m.d.sync += later.eq(Cat(issue, later[:-1]))
            m.d.comb += upper.eq(later.any())
        late = self.LATENCY - 1 + parts - 1
        under_way = Signal(range(late + 1))
        each = BLOCK // W                                               # beats a block
        in_block = Signal(range(each)) if each > 1 else Const(0, 1)
        m.d.comb += [
            issue.eq(chunks.o.valid & scales.o.valid & ~upper),
            chunk_done.eq(issue & (bytes_each | half | beats.last)),
            chunks.o.ready.eq(chunk_done), scales.o.ready.eq(issue & (in_block == each - 1)),
            u.busy.eq((room_codes != 4) | (under_way != 0))]
        m.d.sync += u.done.eq(issue & beats.last)
        codes_after = Signal.like(room_codes)
        m.d.comb += codes_after.eq(room_codes - take_codes + chunk_done)
        m.d.sync += [room_codes.eq(codes_after), more_codes.eq(codes_after != 0)]
        with m.If(issue):
            m.d.sync += [half.eq(~chunk_done), beats.step(), under_way.eq(late)]
            if each > 1:
                m.d.sync += in_block.eq(in_block + 1)
        with m.Elif(under_way != 0):
            m.d.sync += under_way.eq(under_way - 1)

        # The decoder's choice of the next tile is late: its consequences follow a cycle later.
        start, mode, size = Signal(), reg(u.mode.shape(), "mode"), reg(u.beats.shape(), "size")
        m.d.sync += [start.eq(u.start), mode.eq(u.mode), size.eq(u.beats)]

        def where(**facts):
            """Whether the mode is one of those for which the table says so."""
            return reduce(or_, (mode == k for k, info in BLOCK_MODES.items()
                                if all(getattr(info, name) == v for name, v in facts.items())))
        scales_of = {info.has_minimum: info.scale_chunks(size) for info in BLOCK_MODES.values()}
        codes_of = {info.bits: info.code_chunks(size) for info in BLOCK_MODES.values()}
        assert codes_of.keys() == {8, 4}
        minimum, whole = where(has_minimum=True), where(bits=8)
        m.d.comb += [scales.start.eq(start), scales.beats.eq(size), scales.minimum.eq(minimum)]
        with m.If(start):
            m.d.sync += [
                offset.eq(where(offset=OFFSET)), bytes_each.eq(whole), beats.load(size),
                scale_chunks.load(Mux(minimum, scales_of[True], scales_of[False]), some=1),
                code_chunks.load(Mux(whole, codes_of[8], codes_of[4]), some=1)]

        self._codes(m, grid, chunks.o.payload, Cat(bytes_each, half, upper),
                    delay(m, Cat(scales.o.payload, offset), 1, name="pair"))
        m.d.comb += [u.o.valid.eq(delay(m, issue, late, name="valid", reset=True)),
                     u.o.payload.last.eq(delay(m, beats.last, late, name="last"))]
        done = list(grid.weights)
        for part in range(parts - 1):           # the parts meet; the last one comes last
            earlier = [reg(len(t), f"earlier{part}_{i}") for i, t in enumerate(grid.weights)]
            m.d.sync += [held.eq(t) for held, t in zip(earlier, done, strict=False)]
            done = earlier + done
        m.d.comb += [u.o.payload.beat[i].eq(value) for i, value in enumerate(done)]
        return m

    def _codes(self, m: Module, grid: BlockGrid, codes, how, block) -> None:
        """A beat's codes out of their chunk, V at a time; what holds for it stands beside all.

        2 cycles. how: the chunk's bytes are codes; else its high halves; it is a beat's later part.
        block: its scale and offset, a cycle later.
        """
        W, V = self.config.W, len(grid.codes)
        # What was issued, and how its codes lie in the chunk, in registers next to those that take
        # them.
        at, how = delay(m, codes, 1, name="at"), fanout(m, how, W // 4, name="how")
        q, rest = reg(data.ArrayLayout(8, V), "q"), reg(data.ArrayLayout(8, W - V), "rest")
        for i in range(W):
            whole, second, now_upper = how[i // 4]
            code8 = at.word_select(i, 8)
            code = Mux(whole, code8, Mux(second, code8[4:], code8[:4]))
            into = q[i] if i < V else rest[i - V]
            m.d.sync += into.eq(Mux(now_upper, rest[i], code) if i < W - V else code)
        held = reg(len(block), "held")
        with m.If(~how[0][2]):
            m.d.sync += held.eq(block)
        m.d.comb += [grid.codes.eq(q), Cat(grid.block, grid.offset).eq(held)]
