"""One lane of the unpacker: 16-bit pieces of its bit stream -> a symbol a step."""
from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..lib.fanout import APART
from ..lib.pipe import reg
from .modes import Packing
from .packing_golden import MAX_LENGTH, MODE_BITS, PIECE, PREFIX, ahead
from .symbol_table import SymbolTable, TableWrite

#: Pieces that are queued when a lane is ready: for its own step, three under way, one just done.
SPARE = 5


def _behind(value, position, width: int):
    """``width`` bits of value from a position on; widest shift first, so that few bits remain."""
    for k in reversed(range(len(position))):
        left = width + (1 << k) - 1
        value = Mux(position[k], value[1 << k:(1 << k) + left], value[:left])
    return value


def pieces(lanes: int) -> int:
    """Pieces of a word, which has a byte for each lane."""
    return lanes * 8 // PIECE


class SymbolLane(wiring.Component):
    """Bits of one lane to symbols.

    A window of four pieces, of which ``position`` bits are used; each step takes a code word, whose
    length a table knows from the next 6 bits. Those 6 bits are a register, and the loop from one to
    the next is two picks long: the 34 bits behind ``position`` are taken out of the window a cycle
    early, before the last length is known; of them that length picks 20, beside the look-up of the
    new length, which then picks the next 6 of those. A piece that is used up leaves the window in
    the cycle after: until then ``position`` is 16 or more. The rest is a pipeline. With two cycles
    a step look-up and pick have one each, and the last length is always known.

    Golden: :class:`meadowlark_hdl.weights.packing_golden.Unpacker`, bit-exact.
    Timing: a step in ``step_cycles``; a symbol leaves ``LATENCY`` cycles after its ``go`` and
    stays until the next step's.

    Parameters
    ----------
    W : int
        Lanes of the unpacker, and bytes of a word.
    buses : int, power of two, at most the pieces of a word
        B.
    step_cycles : int, 1 or 2
        Cycles from a step to the next one, at least.
    phase : int
        Pieces by which the lane asks early.
    packing : Packing
        Which codes it can read.

    Members
    -------
    start : In(1)
        High for one cycle at the beginning of a segment, when no piece is on its way: as after
        reset, nothing is queued, no bit used. The tables stay.
    meadow : In(1), first : In(1)
        Constant in a segment; with ``go``: the step begins a packet.
    log2_c : In(2)
        Bytes of a symbol; constant in a segment.
    load : In(1)
        Piece 0 of a word for this lane is on ``buses[0]``, piece k on ``buses[k % B]`` k cycles
        later; not again before the last piece has come.
    buses : In(16 bits * B)
    go : In(1)
        A step; only if ``ready`` was high three cycles before; with two cycles a step, not in the
        cycle after another.
    drained : In(1)
        No word comes but one of which a piece is queued and the others follow, a cycle apart: steps
        wait for none.
    ready : Out(1)
        Enough pieces for this step, and for those under way.
    asks : Out(1)
        The step two cycles before used up a word.
    tables : In(TableWrite)
    symbol : Out(32)
        C bytes in the low bits.
    """

    LATENCY = 3 + SymbolTable.LATENCY

    def __init__(self, *, W: int, buses: int, step_cycles: int, phase: int, packing: Packing):
        self.W, self.step_cycles, self.phase = W, step_cycles, phase
        self.packing = Packing(packing)
        super().__init__({
            "start": In(1), "meadow": In(1), "first": In(1), "log2_c": In(2), "load": In(1),
            "buses": In(data.ArrayLayout(PIECE, buses)),
            "go": In(1), "drained": In(1), "ready": Out(1), "asks": Out(1),
            "tables": In(TableWrite()), "symbol": Out(32)})

    def elaborate(self, platform):
        m = Module()
        K = pieces(self.W)
        depth = max(16, 4 * K)
        spaced = self.step_cycles > 1
        with_entropy = Packing.ENTROPY in self.packing
        with_meadow = Packing.MEADOW in self.packing
        # Words asked for, and pieces of the phase; four are in the window.
        assert 4 + SPARE <= ahead(self.W) * K <= depth + 4 - (K - 1)

        # Pieces arrive.
        m.submodules.queue = queue = memory.Memory(shape=PIECE, depth=depth, init=[])
        w, r = queue.write_port(), queue.read_port(domain="comb")
        at, level = Signal(range(K)), Signal(range(depth + 1))
        fill, shift, advanced = Signal(), Signal(), Signal()
        bus = at[:exact_log2(len(self.buses))]
        m.d.comb += [w.en.eq(self.load | (at != 0)), w.data.eq(self.buses[bus])]
        m.d.sync += [at.eq(at + w.en), w.addr.eq(w.addr + w.en),
                     level.eq(level + w.en - (shift & (level != 0)))]

        # The window: four pieces. It is full before the first step.
        window = Signal(4 * PIECE, reset_less=True)
        have = Signal(4)                        # one bit a piece, the last one's first
        # The first one, and one for each half of the bits that are looked for.
        positions = [Signal(range(2 * PIECE), name=f"position{k}", attrs=APART) for k in range(3)]
        m.d.comb += advanced.eq(positions[0][-1])       # by the last step
        taken = Signal(4)                       # bits of this cycle's step
        reach = Signal(MAX_LENGTH + PREFIX)
        early = reg(len(reach) + (0 if spaced else MAX_LENGTH), "early")    # 29 + 34 < 64
        half = len(early) // 2
        m.d.sync += [early.eq(Cat(_behind(window, positions[1], half),
                                  _behind(window[half:], positions[2], len(early) - half))),
                     *(position.eq(position[:-1] + taken) for position in positions)]
        if spaced:
            m.d.comb += reach.eq(early)
        else:
            last = reg(4, "last")
            m.d.sync += last.eq(taken)
            m.d.comb += reach.eq(_behind(early, last, len(reach)))
        m.d.comb += [fill.eq(~have.all() & ((level != 0) | self.drained)),
                     shift.eq(fill | advanced)]
        with m.If(shift):
            m.d.sync += [window.eq(Cat(window[PIECE:], r.data)), r.addr.eq(r.addr + 1),
                         have.eq(Cat(1, have[:-1]))]

        # The loop: how long is the code word?
        prefix = PREFIX if with_entropy else MODE_BITS
        lengths = memory.Memory(shape=4, depth=1 << prefix, init=[])
        bases = memory.Memory(shape=8, depth=1 << prefix, init=[])
        m.submodules.lengths, m.submodules.bases = lengths, bases
        n_r, b_r = lengths.read_port(domain="comb"), bases.read_port(domain="comb")
        for table, data_ in ((lengths, self.tables.class_data.length),
                             (bases, self.tables.class_data.base)):
            c_w = table.write_port()
            m.d.comb += [c_w.en.eq(self.tables.class_en), c_w.addr.eq(self.tables.class_addr),
                         c_w.data.eq(data_)]
        next_bits = reg(prefix, "next_bits")    # the first ones of ``reach``
        width = reg(4, "width")
        length, read = Signal(4), n_r.data
        if spaced:
            read = reg(4, "read")
            m.d.sync += read.eq(n_r.data)
        m.d.comb += [n_r.addr.eq(next_bits), taken.eq(Mux(self.go, length, 0))]
        if with_meadow:
            begins = self.first | ~self.meadow if with_entropy else self.first
            m.d.comb += length.eq(Mux(begins, read, width))
            with m.If(self.go & self.first):
                m.d.sync += width.eq(read - MODE_BITS)
        else:
            m.d.comb += length.eq(read)
        picked = Mux(self.go, _behind(reach, length, prefix), reach[:prefix])
        if spaced:                              # early does not know yet of a step just done
            gone = Signal()
            m.d.sync += gone.eq(self.go)
            with m.If(~gone):
                m.d.sync += next_bits.eq(picked)
        else:
            m.d.sync += next_bits.eq(picked)
        count = Signal(range(K), init=self.phase)
        m.d.sync += [count.eq(count + advanced),
                     self.asks.eq(advanced & (count == K - 1)),
                     self.ready.eq(have.all() & ((level >= SPARE) | self.drained))]

        # 1: the code word, more bits behind it. 2: without those, what its class adds. 3: its rank.
        bits, long = reg(MAX_LENGTH, "bits"), reg(4, "long")
        own, base = reg(MAX_LENGTH, "own"), reg(8, "base")
        # kind: 0 prefix code, 1 first of a packet, 2 others.
        first, kind = reg(2, "first"), reg(2, "kind")
        rank = reg(11 if with_meadow else 8, "rank")
        m.d.comb += b_r.addr.eq(bits)
        m.d.sync += [own[j].eq(bits[j] & (long > j)) for j in range(MAX_LENGTH)]
        m.d.sync += [base.eq(b_r.data), kind.eq(first)]
        with m.If(self.go):
            m.d.sync += [bits.eq(reach), long.eq(length),
                         first.eq(Cat(self.meadow & self.first, self.meadow & ~self.first))]
        m.d.sync += rank.eq(Mux(
            kind[1], own[:11], Mux(kind[0], own[MODE_BITS:], own[PREFIX:]
                                   + (base if with_entropy else 0))))

        m.submodules.symbols = symbols = SymbolTable(packing=self.packing)
        wiring.connect(m, wiring.flipped(self.tables), symbols.tables)
        m.d.comb += [symbols.rank.eq(rank), symbols.log2_c.eq(self.log2_c),
                     self.symbol.eq(symbols.symbol)]
        return ResetInserter(self.start)(m)
