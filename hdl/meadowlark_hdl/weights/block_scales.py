"""Scales of a tile's blocks, one behind the other, ahead of the codes."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..lib.pipe import reg
from ..lib.queues import Queue
from .modes import BLOCK, BLOCK_MODES

#: What a block has, in half precision; minimum: 0 in modes without.
BlockScale = data.StructLayout({"scale": 16, "minimum": 16})
assert all(info.halves == ("scale", "minimum")[:len(info.halves)] for info in BLOCK_MODES.values())


class BlockScales(wiring.Component):
    """Chunks of scales and minima -> those of each block, at their own pace.

    Timing: a block per cycle, one cycle more between chunks; 3 cycles from a chunk to its first
    block.

    Parameters
    ----------
    W : int
        Bytes of a chunk.
    most : int
        Beats of a tile.

    Members
    -------
    start : In(1)
        One cycle, with what holds for the next tile: all blocks of the one before were put.
    beats, minimum : In
        Beats of the tile; whether its blocks have a minimum.
    i : In(stream of 8 * W bits)
        There is room for all of a tile's.
    o : Out(stream of BlockScale)
        A block's stands as long as its beats need it.
    """

    AHEAD = 16      #: blocks whose scales wait for their codes

    def __init__(self, *, W: int, most: int):
        self.W, self.most = W, most
        super().__init__({
            "start": In(1), "beats": In(range(most + 1)), "minimum": In(1),
            "i": In(stream.Signature(8 * W)), "o": Out(stream.Signature(BlockScale))})

    @property
    def most_chunks(self) -> int:
        """Of the scales of a tile."""
        return max(2, *(info.scale_chunks(self.most) for info in BLOCK_MODES.values()))

    def elaborate(self, platform):
        m = Module()
        W = self.W
        m.submodules.chunks = chunks = Queue(8 * W, depth=1 << (self.most_chunks - 1).bit_length())
        m.submodules.pairs = pairs = Queue(BlockScale, depth=self.AHEAD)
        wiring.connect(m, wiring.flipped(self.i), chunks.i)
        wiring.connect(m, pairs.o, wiring.flipped(self.o))

        # Of a word the lowest 2 or 4 bytes are the next block's, and then it moves down.
        with_minimum = reg(1, "with_minimum")
        word, loaded, spent, put = reg(8 * W, "word"), Signal(), Signal(), Signal()
        bys = fanout(m, with_minimum, W // 4, name="by")        # near the word
        place, at_end = Signal(range(W // 2)), Signal()         # in the word; its last one
        blocks = Countdown(m, range(self.most * W // BLOCK + 1), name="blocks")    # of the tile
        m.d.comb += [
            put.eq(loaded & pairs.i.ready), pairs.i.valid.eq(loaded),
            pairs.i.payload.eq(Cat(word[:16], Mux(with_minimum, word[16:32], 0))),
            chunks.o.ready.eq(~loaded | spent)]
        with m.If(chunks.o.ready):
            m.d.sync += [word.eq(chunks.o.payload), loaded.eq(chunks.o.valid)]
        with m.Elif(put):
            for k, by in enumerate(bys):
                part = slice(32 * k, 32 * k + 32)
                m.d.sync += word[part].eq(Mux(by, word >> 32, word >> 16)[part])
        ends_at = Mux(with_minimum, W // 4, W // 2) - 2
        with m.If(put):
            m.d.sync += [place.eq(place + 1), at_end.eq(place == ends_at), blocks.step()]
            with m.If(at_end | blocks.last):         # behind the tile's last block there is padding
                m.d.sync += [place.eq(0), at_end.eq(ends_at < 0)]
                m.d.comb += spent.eq(1)
        with m.If(self.start):
            m.d.sync += [with_minimum.eq(self.minimum),
                         blocks.load(self.beats >> exact_log2(BLOCK // W)),
                         at_end.eq(self.minimum & Const(W == 4, 1))]
        return m
