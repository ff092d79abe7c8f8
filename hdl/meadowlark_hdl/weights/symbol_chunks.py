"""Symbols of all lanes to chunks."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import delay
from ..lib.queues import Queue
from .modes import Packing
from .steps import chunks_of_step
from .preamble import Segment
from .symbol_lane import SymbolLane


class SymbolChunks(wiring.Component):
    """A step's symbols, C bytes a lane, as C chunks, a chunk per cycle, in a queue.

    Timing: the first of them is written ``SymbolLane.LATENCY`` + 2 cycles after its step.

    Parameters
    ----------
    W : int
        Lanes, and bytes of a chunk.
    packing : Packing

    Members
    -------
    segment : In(Segment)
        Its log2_c; constant while chunks are under way.
    step, zero : In(1), chunks : In(3)
        See :class:`.Steps`. Only with ``room``, and no zero while a step still gives its chunks.
    symbols : In(32 bits * W)
        Of the lanes, from ``SymbolLane.LATENCY`` + 1 cycles after the step on.
    room : Out(1)
        For the chunks of another step, or of zeros.
    o : Out(stream of 8 * W bits)
    busy : Out(1)
        A chunk is on its way to ``o``.
    """

    DEPTH = 16              #: chunks under way

    def __init__(self, *, W: int, packing: Packing):
        self.W, self.packing = W, packing
        super().__init__({
            "segment": In(Segment), "step": In(1), "zero": In(1), "chunks": In(3),
            "symbols": In(data.ArrayLayout(32, W)), "room": Out(1),
            "o": Out(stream.Signature(8 * W)), "busy": Out(1)})

    def elaborate(self, platform):
        m = Module()
        W, log2_c = self.W, self.segment.log2_c
        m.submodules.out = out = Queue(8 * W, depth=self.DEPTH)
        chunk = Signal(8 * W, reset_less=True)
        stepped, void = (delay(m, flag, SymbolLane.LATENCY + 1, name=name, reset=True)
                         for flag, name in ((self.step, "stepped"), (self.zero, "void")))
        more, valid, zero = Signal(), Signal(), Signal()

        def bytes_of(C: int):
            return Cat(symbol[:8 * C] for symbol in self.symbols)
        if Packing.MEADOW in self.packing:
            c = chunks_of_step(self.segment, self.packing)
            part, chosen = Signal(2), Signal(2)
            m.d.comb += [chosen.eq(Mux(stepped, 0, part)), more.eq(stepped | (part != 0))]
            with m.If(more):
                m.d.sync += part.eq((chosen + 1) & (c - 1))
            four = bytes_of(4).word_select(chosen, 8 * W)
            two = bytes_of(2).word_select(chosen[0], 8 * W)
            m.d.sync += chunk.eq(Mux(log2_c == 0, bytes_of(1), Mux(log2_c == 1, two, four)))
        else:
            m.d.comb += more.eq(stepped)
            m.d.sync += chunk.eq(bytes_of(1))
        m.d.sync += [valid.eq(more | void), zero.eq(void)]
        room = Signal(range(self.DEPTH + 1), init=self.DEPTH)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        m.d.comb += [
            out.i.valid.eq(valid), out.i.payload.eq(Mux(zero, 0, chunk)),
            self.busy.eq(room != self.DEPTH),
            # The next step's chunks; with C = 1 those of the one before are not in ``room`` yet.
            self.room.eq(room >= Mux(log2_c[1], 4, 2))]
        after = Signal.like(room)
        m.d.comb += after.eq(room - self.chunks + (self.o.valid & self.o.ready))
        m.d.sync += room.eq(after)
        return m
