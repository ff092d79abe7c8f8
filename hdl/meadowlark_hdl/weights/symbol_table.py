"""Ranks to symbols: the table at the end of a lane, and how all of them are loaded."""
from amaranth import Module, Mux
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..lib.pipe import delay, reg
from .modes import Packing
from .packing_golden import PREFIX, TABLE_BYTES

#: What a class says: bits of its code words, and the first one's rank (MEADOW: a mode's width).
ClassEntry = data.StructLayout({"length": 4, "base": 8})


class TableWrite(wiring.Signature):
    """Loads the tables of all lanes: an entry of the classes, four bytes of the symbols."""

    def __init__(self) -> None:
        super().__init__({
            "class_en": Out(1), "class_addr": Out(PREFIX), "class_data": Out(ClassEntry),
            "word_en": Out(1), "word_addr": Out(range(TABLE_BYTES // 4)), "word_data": Out(32)})


class SymbolTable(wiring.Component):
    """A block RAM of symbols, and the pick of C bytes out of a word.

    Timing: ``LATENCY`` cycles, one symbol per cycle.

    Parameters
    ----------
    packing : Packing
        With MEADOW's, symbols may have 2 or 4 bytes, and the table is 8 times as deep.

    Members
    -------
    tables : In(TableWrite)
        Its words only.
    rank : In, log2_c : In(2)
        Which symbol, of 1 << log2_c bytes, constant in a segment.
    symbol : Out(32)
        In the low bits.
    """

    LATENCY = 3         #: block RAM, its register, the bytes that are meant

    def __init__(self, *, packing: Packing):
        self.with_meadow = Packing.MEADOW in packing
        super().__init__({"tables": In(TableWrite()), "rank": In(11 if self.with_meadow else 8),
                          "log2_c": In(2), "symbol": Out(32)})

    def elaborate(self, platform):
        m = Module()
        rank, words = self.rank, TABLE_BYTES // 4 if self.with_meadow else 64
        m.submodules.ram = ram = memory.Memory(shape=32, depth=words, init=[], attrs=NO_RW_CHECK)
        w, r = ram.write_port(), ram.read_port()
        word, symbol = reg(32, "word"), reg(32, "symbol")
        low = delay(m, rank[:2], 2, name="low")
        one, two = self.log2_c == 0, self.log2_c == 1
        m.d.comb += [
            self.symbol.eq(symbol), w.en.eq(self.tables.word_en), w.addr.eq(self.tables.word_addr),
            w.data.eq(self.tables.word_data),
            r.addr.eq(Mux(one, rank[2:], Mux(two, rank[1:], rank))
                      if self.with_meadow else rank[2:])]
        m.d.sync += word.eq(r.data)
        byte = word.word_select(low, 8)
        if self.with_meadow:
            half = Mux(low[0], word[16:], word[:16])
            m.d.sync += symbol.eq(Mux(one, byte, Mux(two, half, word)))
        else:
            m.d.sync += symbol.eq(byte)
        return m
