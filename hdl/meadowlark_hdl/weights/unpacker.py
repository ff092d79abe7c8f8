"""Coded chunks to plain ones: the layer below the modes of the decoder."""
from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.fanout import near
from ..lib.pipe import delay
from .checksum import Checksum
from .modes import Packing
from .packing_golden import TABLE_BYTES, phases
from .preamble import PreambleReader
from .refill import Refill
from .segment_end import SegmentEnd
from .steps import Steps
from .symbol_chunks import SymbolChunks
from .symbol_lane import SymbolLane, pieces


class Unpacking(wiring.Signature):
    """What goes into an unpacker and comes out; most: plain chunks of a tile, of W bytes.

    tiles: plain chunks of each tile, 1..most; may run ahead by two. ended: all coded chunks of the
    tiles so far have been taken, up to the last one that their steps asked for, and no other one
    will be before ``resume``; high after reset. resume: high while ``ended``: the next chunk is
    the next tile's. i: coded chunks. o: plain chunks. busy: a chunk is on its way to ``o``. error:
    a segment was not sound; stays until flush. From the next tile on chunks are zeros, and none is
    taken. flush: while high, as in reset.
    """

    def __init__(self, *, W: int, most: int) -> None:
        super().__init__({
            "tiles": In(stream.Signature(range(most + 1))),
            "ended": Out(1, init=1), "resume": In(1),
            "i": In(stream.Signature(8 * W)), "o": Out(stream.Signature(8 * W)),
            "busy": Out(1), "error": Out(1), "flush": In(1)})


class Unpacker(wiring.Component):
    """Takes segments apart, a tile at a time; see docs/packing.md.

    :class:`.PreambleReader` reads a segment's head and loads the tables. :class:`.Steps` says when
    the lanes step. Each :class:`.SymbolLane` gives a symbol a step, of the words that
    :class:`.Refill` hands out as they ask. :class:`.SymbolChunks` makes chunks of the symbols,
    and :class:`.SegmentEnd` knows when a tile or segment has all its words.

    Golden: :class:`meadowlark_hdl.weights.packing_golden.Unpacker`, bit-exact.
    Timing: C chunks every C cycles (at least ``step_cycles``) while words come, a word a cycle,
    also across tiles if the next one is known in time; 9 cycles from a step to its chunk. A segment
    takes besides a cycle for each of the lanes' first words, ``SEGMENT``, and those of
    :class:`.PreambleReader`.

    Parameters
    ----------
    W : int
        Bytes of a chunk, each made by a lane of its own.
    most : int
        Plain chunks of a tile.
    buses : int, power of two, at most W / 2
        Pieces that can be on their way to the lanes in a cycle.
    step_cycles : int, 1 or 2
        Cycles from a step to the next one, at least: 2 has the quicker clock.
    packing : Packing
        What it can read, at least one.

    Members
    -------
    See :class:`Unpacking`.
    """

    #: Cycles of a segment besides those of its steps, preamble and first words, as counted.
    SEGMENT = 25

    def __init__(self, *, W: int, most: int, buses: int, step_cycles: int, packing: Packing):
        if not packing:
            raise ValueError("an unpacker reads at least one kind of code")
        self.W, self.most, self.buses, self.packing = W, most, buses, packing
        self.step_cycles = step_cycles
        super().__init__(Unpacking(W=W, most=most))

    def elaborate(self, platform):
        m = Module()
        W, packing = self.W, self.packing
        m.submodules.preamble = head = PreambleReader(W=W, packing=packing)
        m.submodules.check = check = Checksum(8 * W)
        m.submodules.steps = steps = Steps(most=self.most, step_cycles=self.step_cycles,
                                           packing=packing)
        m.submodules.refill = refill = Refill(W=W, buses=self.buses)
        m.submodules.end = end = SegmentEnd(W=W)
        m.submodules.out = out = SymbolChunks(W=W, packing=packing)
        lanes = [SymbolLane(W=W, buses=self.buses, step_cycles=self.step_cycles, phase=int(phase),
                            packing=packing) for phase in phases(W)]
        self._chunks(m, head, refill, end, check, steps.broken)
        wiring.connect(m, wiring.flipped(self.tiles), steps.tiles)
        wiring.connect(m, out.o, wiring.flipped(self.o))

        m.d.comb += [
            head.start.eq(steps.read), steps.done.eq(head.done), steps.wrong.eq(head.wrong),
            steps.segment.eq(head.segment), out.segment.eq(head.segment),
            steps.ready.eq(Cat(lane.ready for lane in lanes).all() & refill.room),
            steps.room.eq(out.room), steps.ended.eq(end.ended),
            steps.finished.eq(end.finished), steps.damaged.eq(end.damaged),
            refill.start.eq(steps.begin), refill.words.eq(head.segment.words),
            refill.ends.eq(delay(m, steps.ends, 3, name="ends", reset=True)),
            refill.final.eq(delay(m, steps.final, 3, name="final", reset=True)),
            out.step.eq(steps.step), out.zero.eq(steps.zero), out.chunks.eq(steps.chunks),
            self.ended.eq(end.ended), self.busy.eq(out.busy), self.error.eq(steps.broken)]
        late: dict[str, Signal] = {}
        for k, lane in enumerate(lanes):
            go = Signal(name=f"go_{k}", attrs={"keep": 1})
            # The reset of a lane, which needs no other: a flush lets it finish what is on its way,
            # long before the next segment begins.
            start = near(m, steps.begin, name=f"start_{k}", reset=True)
            m.d.sync += go.eq(steps.step)
            m.d.comb += [
                lane.go.eq(go), lane.start.eq(start), lane.first.eq(steps.first),
                lane.meadow.eq(head.segment.meadow), lane.log2_c.eq(head.segment.log2_c),
                lane.drained.eq(refill.drained), lane.load.eq(refill.load[k]),
                lane.buses.eq(refill.buses), refill.asks[k].eq(lane.asks),
                out.symbols[k].eq(lane.symbol)]
            # Tables come by a register for each four lanes: they are written long before a step.
            if k % 4 == 0:
                late = {name: near(m, getattr(head.tables, name), name=f"{name}_{k}",
                                   reset=name.endswith("en"))
                        for name in head.tables.signature.members}
            m.d.comb += [getattr(lane.tables, name).eq(s) for name, s in late.items()]
        assert exact_log2(TABLE_BYTES // 4) == 9
        top = Module()
        top.submodules.control = ResetInserter(self.flush)(m)
        for k, lane in enumerate(lanes):
            top.submodules[f"lane{k}"] = lane
        return top

    def _chunks(self, m: Module, head, refill, end, check, broken) -> None:
        """Chunks go to the preamble, to the lanes, or are the checksum."""
        for taker in (head, end):
            m.d.comb += [taker.i.valid.eq(self.i.valid), taker.i.payload.eq(self.i.payload)]
        m.d.comb += [
            # It takes none of the preamble or the checksum: before and behind its words it is over.
            refill.i.valid.eq(self.i.valid & ~broken), refill.i.payload.eq(self.i.payload),
            self.i.ready.eq(head.i.ready | (refill.i.ready & ~broken) | end.i.ready),
            # A preamble's first chunk is taken no sooner than two cycles after its start.
            check.start.eq(head.start), check.data.eq(self.i.payload),
            check.valid.eq(self.i.valid & self.i.ready & ~end.i.ready),
            head.sound.eq(check.sound), end.crc.eq(check.crc),
            end.at_end.eq(refill.at_end), end.at_final.eq(refill.at_final),
            end.over.eq(refill.over), end.broken.eq(broken), end.resume.eq(self.resume),
            refill.drop.eq(end.drop), refill.resume.eq(end.resumed)]


class HalvedUnpacker(wiring.Component):
    """An unpacker for chunks of half the size, between a stage that cuts and one that joins them.

    Timing: as that of ``inner``; a chunk takes 3 cycles at least.

    Parameters
    ----------
    inner : Unpacker

    Members
    -------
    See :class:`Unpacking`.
    """

    def __init__(self, inner: Unpacker):
        self.inner = inner
        super().__init__(Unpacking(W=2 * inner.W, most=inner.most // 2))

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = self.inner
        bits = 8 * inner.W
        # A chunk is asked for when ``inner`` has asked and nothing is left of the one before, by a
        # register: inner may pause, but asks again until it gets what it needs.
        chunk, left = Signal(2 * bits, reset_less=True), Signal(2)      # and halves that are left
        asks = Signal()
        m.d.comb += [
            inner.tiles.valid.eq(self.tiles.valid), inner.tiles.payload.eq(self.tiles.payload << 1),
            self.tiles.ready.eq(inner.tiles.ready),
            self.ended.eq(inner.ended), inner.resume.eq(self.resume),
            inner.i.valid.eq(Mux(asks, self.i.valid, left.any())),
            inner.i.payload.eq(Mux(asks, self.i.payload[:bits],
                                   Mux(left[0], chunk[:bits], chunk[bits:]))),
            self.i.ready.eq(asks)]
        m.d.sync += asks.eq(Mux(asks, ~self.i.valid, inner.i.ready & ~left.any()))
        with m.If(asks):
            m.d.sync += [chunk.eq(self.i.payload),
                         left.eq(Cat(~inner.i.ready, 1) & self.i.valid.replicate(2))]
        with m.Elif(inner.i.ready):
            m.d.sync += left.eq(Cat(Const(0, 1), left.all()))
        second, lower = Signal(), Signal(bits, reset_less=True)
        m.d.comb += [
            inner.o.ready.eq(self.o.ready | ~second),
            self.o.valid.eq(inner.o.valid & second), self.o.payload.eq(Cat(lower, inner.o.payload)),
            self.busy.eq(inner.busy | second), self.error.eq(inner.error),
            inner.flush.eq(self.flush)]
        with m.If(inner.o.valid & inner.o.ready):
            m.d.sync += second.eq(~second)
        with m.If(~second):
            m.d.sync += lower.eq(inner.o.payload)
        return ResetInserter(self.flush)(m)


def buses(config: Config) -> int:
    """Pieces that can be on their way to the lanes in a cycle: twice what memory brings in one, or
    those of which the lanes make weights of 8 bits, if they are fewer; two at least."""
    made = max(2, config.W // config.unpack_cycles // 2)
    return min(pieces(config.unpack_lanes), config.bus_bytes, made)


def unpacker(config: Config) -> Unpacker | HalvedUnpacker:
    """That of a core: of W, tile_beats, bus_bytes, packing and unpack_cycles."""
    W = config.unpack_lanes
    inner = Unpacker(W=W, most=2 * config.tile_beats * config.W // W, buses=buses(config),
                     step_cycles=min(config.unpack_cycles, 2), packing=Packing(config.packing))
    return inner if W == config.W else HalvedUnpacker(inner)
