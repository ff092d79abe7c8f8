"""Row headers of a tile to row scales, W / 4 rows at once."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Header
from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..lib.pipe import delay
from ..signatures import RowScale
from .decoder_golden import SHORT_BITS
from .tile_reader import Tile


class Headers(wiring.Component):
    """Chunks of row headers to items of scales: half a chunk of SHORT, a chunk of SCALE or two of
    BIAS make one. In a tile's last item the second chunk may be missing.

    Timing: 2 cycles; a chunk a cycle, one every two in SHORT ones. Nothing stalls what leaves.

    Parameters
    ----------
    config : Config
        W.

    Members
    -------
    tile : In(Tile)
        While not ``active`` the next one to be headed.
    active : In(1)
        Until ``last`` the chunks are its headers.
    enable : In(1)
        They may be taken.
    i : In(stream of 8 * W bits)
    last : Out(1)
        One cycle: the last of them is taken.
    o : Out(stream of RowScale * W / 4)
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "tile": In(Tile(config)), "active": In(1), "enable": In(1),
            "i": In(stream.Signature(8 * config.W)), "last": Out(1),
            "o": Out(stream.Signature(data.ArrayLayout(RowScale(), config.W // 4),
                                      always_ready=True))})

    def elaborate(self, platform):
        m = Module()
        W, tile = self.config.W, self.tile
        bias, short = Signal(reset_less=True), Signal(reset_less=True)  # BIAS, SHORT headers
        left = Countdown(m, tile.header_cycles.shape(), name="header", reset=False,
                         reset_flags=False)
        second = Signal()           # of a chunk's two items (SHORT), of an item's two chunks (BIAS)
        load, take, complete = Signal(), Signal(), Signal()
        again = Signal()            # the chunk stays: short, neither second nor last
        m.d.comb += [
            load.eq(self.active & self.enable), take.eq(load & self.i.valid),
            self.i.ready.eq(load & ~again), self.last.eq(take & left.last),
            complete.eq(take & (~bias | second | left.last))]
        with m.If(~self.active):
            header = tile.tag.header
            m.d.sync += [bias.eq(header == Header.BIAS), short.eq(header == Header.SHORT),
                         left.load(tile.header_cycles, last=tile.header_single)]
        with m.If(take):
            m.d.sync += [left.step(), second.eq(Mux(short, again, ~complete)),
                         again.eq(short & ~again & (left.left != 2))]
        with m.If(~self.active):
            m.d.sync += again.eq((tile.tag.header == Header.SHORT) & ~tile.header_single)
        m.d.comb += self.o.valid.eq(delay(m, complete, 2, name="head", reset=True))

        # Their bits, a register later, and once more when they have their form.
        chunk, hold = (Signal(8 * W, name=name, reset_less=True) for name in ("chunk", "hold"))
        scales = Signal(self.o.payload.shape(), reset_less=True)
        seconds = fanout(m, second, W // 4, name="second", reset=True)  # near the data
        m.d.sync += chunk.eq(self.i.payload)
        m.d.comb += self.o.payload.eq(scales)
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
        return m
