"""GGUF blocks to beats: a multiplication by each block's scale, in logic."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from ..tech.cells import GatedAdder
from ..lib.pipe import delay, reg
from ..config import Config
from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..isa import Mode
from ..lib.queues import Queue
from .beat_unit import BeatUnit, beat_count
from .block_golden import BLOCK, FRAC, GRID, SUM_BITS


class BlockUnit(wiring.Component):
    """Beats of modes Q8_0, Q4_0 and Q4_1: ``round(scale * code + minimum)`` on the grid.

    A tile is its scales (with minima), then its codes. The scales wait in a queue; each block's
    becomes fixed point beside its beats. Codes are multiplied bit by bit, a gated adder a bit and
    a register between them, so there is no multiplier to find on a chip whose array has them all.

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

    Members
    -------
    unit : In(BeatUnit)
    """

    LATENCY = 16

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"unit": In(BeatUnit(config))})

    def elaborate(self, platform):
        m = Module()
        u, config, W = self.unit, self.config, self.config.W
        parts = config.unpack_cycles
        V = W // parts                      # values a cycle
        most = config.tile_beats

        # The tile at work. What others wait for is a register: is there anything to come, is this
        # the last?
        with_minimum, bytes_each, offset = reg(1, "with_minimum"), reg(1, "bytes_each"), \
            reg(1, "offset")
        most_scales = max(-(-most * 4 // BLOCK), 2)
        scale_chunks = Countdown(m, range(most_scales + 1), name="scale_chunks", last=False)
        code_chunks = Countdown(m, range(most + 1), name="code_chunks", last=False)     # to come
        beats = Countdown(m, beat_count(config), name="beats")                          # to issue

        # Chunks: scales come first, room for all of a tile's. Codes wait as well, so that what is
        # issued does not reach the source in the same cycle. Both by way of a register.
        m.submodules.scales = scales = Queue(
            8 * W, depth=1 << (most_scales - 1).bit_length())
        m.submodules.chunks = chunks = Queue(8 * W, depth=4)
        room_codes, more_codes = Signal(range(5), init=4), Signal(init=1)   # room_codes != 0
        take_scales, take_codes = Signal(), Signal()
        at_hand = reg(8 * W, "at_hand")
        m.d.comb += [
            u.i.ready.eq(scale_chunks.some | (code_chunks.some & more_codes)),
            take_scales.eq(u.i.valid & scale_chunks.some),
            take_codes.eq(u.i.valid & ~scale_chunks.some & code_chunks.some & more_codes),
            scales.i.payload.eq(at_hand), chunks.i.payload.eq(at_hand)]
        for queue, take in ((scales, take_scales), (chunks, take_codes)):
            arrived = Signal()
            m.d.sync += arrived.eq(take)
            m.d.comb += queue.i.valid.eq(arrived)
        m.d.sync += at_hand.eq(u.i.payload)
        with m.If(take_scales):
            m.d.sync += scale_chunks.step()
        with m.If(take_codes):
            m.d.sync += code_chunks.step()

        # Codes: a chunk, given in one beat or two.
        codes, half = chunks.o.payload, Signal()
        issue, chunk_done = Signal(), Signal()
        later, upper = Signal(parts - 1), Signal()      # the parts of a beat behind its first
        if parts > 1:
            m.d.sync += later.eq(Cat(issue, later[:-1]))
            m.d.comb += upper.eq(later.any())
        m.submodules.pairs = pairs = Queue(data.StructLayout({"scale": 16, "minimum": 16}),
                                           depth=16)
        late = self.LATENCY - 1 + parts - 1
        under_way = Signal(range(late + 1))
        m.d.comb += [
            issue.eq(chunks.o.valid & pairs.o.valid & ~upper),
            chunk_done.eq(issue & (bytes_each | half | beats.last)),
            chunks.o.ready.eq(chunk_done),
            u.busy.eq((room_codes != 4) | (under_way != 0))]
        m.d.sync += u.done.eq(issue & beats.last)
        codes_after = Signal.like(room_codes)
        m.d.comb += codes_after.eq(room_codes - take_codes + chunk_done)
        m.d.sync += [room_codes.eq(codes_after), more_codes.eq(codes_after != 0)]
        with m.If(issue):
            m.d.sync += [half.eq(~chunk_done), beats.step(), under_way.eq(late)]
        with m.Elif(under_way != 0):
            m.d.sync += under_way.eq(under_way - 1)

        # Scales: of a word the lowest 2 or 4 bytes are the next block's, and then it moves down,
        # ahead of the codes and at their own pace.
        word, loaded, spent = reg(8 * W, "word"), Signal(), Signal()
        bys = fanout(m, with_minimum, W // 4, name="by")        # near the word
        place, at_end = Signal(range(W // 2)), Signal()         # in the word; its last one
        blocks = Countdown(m, range(most * W // BLOCK + 1), name="blocks")         # of the tile
        each = BLOCK // W                                               # beats a block
        in_block = Signal(range(each)) if each > 1 else Const(0, 1)
        put = Signal()
        m.d.comb += [
            pairs.o.ready.eq(issue & (in_block == each - 1)),
            put.eq(loaded & pairs.i.ready), pairs.i.valid.eq(loaded),
            pairs.i.payload.eq(word[:32]), scales.o.ready.eq(~loaded | spent)]
        with m.If(scales.o.ready):
            m.d.sync += [word.eq(scales.o.payload), loaded.eq(scales.o.valid)]
        with m.Elif(put):
            for k, by in enumerate(bys):
                part = slice(32 * k, 32 * k + 32)
                m.d.sync += word[part].eq(Mux(by, word >> 32, word >> 16)[part])
        if each > 1:
            with m.If(issue):
                m.d.sync += in_block.eq(in_block + 1)
        ends_at = Mux(with_minimum, W // 4, W // 2) - 2
        with m.If(put):
            m.d.sync += [place.eq(place + 1), at_end.eq(place == ends_at),
                         blocks.step()]
            with m.If(at_end | blocks.last):         # behind the tile's last block there is padding
                m.d.sync += [place.eq(0), at_end.eq(ends_at < 0)]
                m.d.comb += spent.eq(1)

        # The decoder's choice of the next tile is late: its consequences follow a cycle later.
        start, mode, size = Signal(), reg(u.mode.shape(), "mode"), reg(u.beats.shape(), "size")
        m.d.sync += [start.eq(u.start), mode.eq(u.mode), size.eq(u.beats)]
        with m.If(start):
            wide = (mode == Mode.Q4_1)
            m.d.sync += [
                with_minimum.eq(wide), offset.eq(mode == Mode.Q4_0),
                bytes_each.eq(mode == Mode.Q8_0), beats.load(size),
                scale_chunks.load(Mux(wide, (size + 7) >> 3, (size + 15) >> 4), some=1),
                code_chunks.load(Mux(mode == Mode.Q8_0, size, (size + 1) >> 1), some=1),
                blocks.load(size >> exact_log2(each)),
                at_end.eq(wide & (W == 4))]

        # Stage 0: what was issued, and how its codes lie in the chunk, in registers next to those
        # that take them. Stage 1: the beat's codes; its scale stands for all parts.
        at = delay(m, codes, 1, name="at")
        how = fanout(m, Cat(bytes_each, half, upper), W // 4, name="how")
        q, rest = reg(data.ArrayLayout(8, V), "q"), reg(data.ArrayLayout(8, W - V), "rest")
        for i in range(W):
            whole, second, now_upper = how[i // 4]
            code8 = at.word_select(i, 8)
            code = Mux(whole, code8, Mux(second, code8[4:], code8[:4]))
            into = q[i] if i < V else rest[i - V]
            m.d.sync += into.eq(Mux(now_upper, rest[i], code) if i < W - V else code)
        pair = delay(m, pairs.o.payload, 1, name="pair")
        at_offset, d, low = reg(1, "at_offset"), reg(16, "d"), reg(16, "low")
        offset_0, minimum_0 = (delay(m, flag, 1, name=name) for flag, name in (
            (offset, "offset_0"), (with_minimum, "minimum_0")))
        with m.If(~how[0][2]):
            m.d.sync += [d.eq(pair[:16]), low.eq(Mux(minimum_0, pair[16:], 0)),
                         at_offset.eq(offset_0)]

        # Stages 2 to 4: half precision to fixed point; 5: its sign.
        scale, minimum = (self._fixed(m, value, name) for value, name in
                          ((d, "scale"), (low, "minimum")))
        # Stage 6: where the sum begins: minimum, or -8 * scale, and half a step for the rounding.
        eighth = delay(m, at_offset, 4, name="offset_late")
        total = reg(signed(SUM_BITS), "begin")
        m.d.sync += total.eq(Mux(eighth, ~(scale << 3), minimum)
                             + Cat(eighth, Const(0, FRAC - 2), Const(1, 1)).as_unsigned())
        # Stages 7 to 14: a bit of the codes each; the top one of Q8_0 counts negative.
        scale = delay(m, scale, 1, name="scale_6").as_signed()
        bits = delay(m, q, 5, name="q")
        negative = reg(signed(SUM_BITS), "negative")
        totals = [total] * V
        for k in range(8):
            if k == 6:          # so that it is there with the top bit
                m.d.sync += negative.eq(-(scale << 7))
            part = negative if k == 7 else (scale << k)[:SUM_BITS].as_signed()
            sums = []
            for i in range(V):
                m.submodules[f"add{k}_{i}"] = add = GatedAdder(SUM_BITS)
                m.d.comb += [add.a.eq(part), add.keep.eq(bits[(8 - k) * i]), add.b.eq(totals[i])]
                s = reg(signed(SUM_BITS), f"sum{k}_{i}")
                m.d.sync += s.eq(add.o)
                sums.append(s)
            totals = sums
            scale = delay(m, scale, 1, name=f"scale_{k + 7}").as_signed()
            bits = delay(m, Cat(bits[(8 - k) * i + 1:(8 - k) * (i + 1)] for i in range(V)), 1,
                         name=f"q_{k + 7}")
        assert GRID + FRAC == 8

        done = [t[FRAC:] for t in totals]
        for part in range(parts - 1):           # the parts meet; the last one comes last
            earlier = [reg(len(t), f"earlier{part}_{i}") for i, t in enumerate(done[-V:])]
            m.d.sync += [held.eq(t) for held, t in zip(earlier, done[:V], strict=True)]
            done = earlier + done
        m.d.comb += [u.o.valid.eq(delay(m, issue, late, name="valid", reset=True)),
                     u.o.payload.last.eq(delay(m, beats.last, late, name="last"))]
        for i in range(W):
            m.d.comb += u.o.payload.beat[i].eq(done[i])
        return m

    @staticmethod
    def _fixed(m: Module, half, name: str):
        """Half precision -> signed fixed point of SUM_BITS, 4 cycles later."""
        exponent = half[10:15]
        # mantissa << (exponent - 1), of which FRAC + GRID + 1 = 9 ... bits below are cut to one
        drop = 25 - GRID - FRAC - 1                     # leaves a bit to round
        shift = reg(5, f"{name}_shift")
        mantissa = reg(11, f"{name}_mantissa")
        m.d.sync += [shift.eq(Mux(exponent == 0, 0, exponent - 1)),
                     mantissa.eq(Cat(half[:10], exponent != 0))]
        width = SUM_BITS + 1
        coarse = reg(width + 7, f"{name}_coarse")     # the lowest 7 may still move up
        m.d.sync += coarse.eq((mantissa << Cat(Const(0, 3), shift[3:])) >> (drop - 1 - 7))
        fine = delay(m, shift[:3], 1, name=f"{name}_fine")
        doubled = reg(width, f"{name}_doubled")
        m.d.sync += doubled.eq((coarse << fine) >> 7)
        size = Signal(SUM_BITS)
        m.d.comb += size.eq((doubled + 1) >> 1)
        value = reg(signed(SUM_BITS), f"{name}_value")
        negative = delay(m, half[15], 3, name=f"{name}_negative")
        m.d.sync += value.eq(Mux(negative, -size, size))
        return value
