"""Chunks of modes without blocks to beats."""
from amaranth import Cat, Module, Mux, Signal

from ..isa import Mode
from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from .beat_unit import BeatMaker, beat_count


class RawUnit(BeatMaker):
    """Beats of modes INT8 (a chunk each) and INT16 (two, low half first).

    Golden: :func:`meadowlark_hdl.weights.decoder_golden.decode_tile`. Timing: 2 cycles, a chunk a
    cycle, no bubble between tiles.
    """

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
