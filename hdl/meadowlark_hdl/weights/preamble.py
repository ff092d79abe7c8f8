"""The head of a segment: what holds for it, and the tables of the lanes."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown
from ..lib.pipe import delay, reg
from .checksum import Checksum
from .modes import Packing
from .packing_golden import CLASSES, CLASS_WORDS, PREFIX, head_words
from .symbol_table import TableWrite

#: Bits of a segment's counts: of words and of steps.
COUNT_BITS = 24
#: The fields of a preamble. C = 1 << log2_c bytes of a symbol, 1 << log2_n ids of a packet.
Segment = data.StructLayout({"meadow": 1, "log2_c": 2, "log2_n": 3, "steps": COUNT_BITS,
                             "words": COUNT_BITS})


class PreambleReader(wiring.Component):
    """The head of a segment: fields to registers, tables to the lanes.

    Timing: 4 bytes a cycle, and 2 cycles a chunk; besides 2 for the checksum, and with a table 64
    for its classes.

    Parameters
    ----------
    W : int
        Bytes of a chunk.
    packing : Packing
        What the lanes can read: a preamble of another is wrong.

    Members
    -------
    start : In(1)
        High for one cycle while ``done``; a preamble comes.
    done : Out(1)
        Nothing to do: no chunk is taken. Fields hold until the next start.
    wrong : Out(1)
        What was read last is no preamble.
    i : In(stream of 8 * W bits)
    sound : In(1)
        The chunks taken since ``start`` end with their CRC; as late as :class:`.Checksum` says.
    segment : Out(Segment)
        The fields.
    tables : Out(TableWrite)
    """

    def __init__(self, *, W: int, packing: Packing):
        self.W, self.packing = W, packing
        super().__init__({
            "start": In(1), "done": Out(1, init=1), "wrong": Out(1),
            "i": In(stream.Signature(8 * W)), "sound": In(1),
            "segment": Out(Segment), "tables": Out(TableWrite())})

    def elaborate(self, platform):
        m = Module()
        W, segment = self.W, self.segment
        hold = Signal(8 * W, reset_less=True)
        in_hold = Countdown(m, range(W // 4 + 1), name="hold", last=False)
        word, there, eat = hold[:32], in_hold.some, Signal()
        reading, new = Signal(), Signal()
        symbols = Countdown(m, range(1 << 16), name="symbols", last=False, reset=False)
        # A chunk is asked for when there is nothing of the one before, and by a register.
        take = self.i.valid & self.i.ready
        m.d.sync += self.i.ready.eq(reading & ~there & ~take)
        # What is offered is copied as long as there is nothing else: only ``there`` waits for it.
        with m.If(~there):
            m.d.sync += [hold.eq(self.i.payload), in_hold.load(W // 4, some=take)]
        with m.Elif(eat):
            m.d.sync += [hold.eq(hold >> 32), in_hold.step()]

        number, settle = Signal(range(head_words(W))), Signal(range(Checksum.LATENCY))
        unit, at_class = Signal(PREFIX), Signal()
        with m.FSM():
            with m.State("REST"):
                with m.If(self.start):
                    m.d.sync += [self.done.eq(0), self.wrong.eq(0), number.eq(0), there.eq(0)]
                    m.next = "FIELDS"
            with m.State("FIELDS"):
                m.d.comb += [reading.eq(1), eat.eq(there)]
                m.d.sync += settle.eq(Checksum.LATENCY - 2)
                with m.If(eat):
                    m.d.sync += number.eq(number + 1)
                    with m.Switch(number):
                        with m.Case(0):
                            m.d.sync += [segment.meadow.eq(word[0]), new.eq(word[1]),
                                         segment.log2_c.eq(word[2:4]), segment.log2_n.eq(word[4:7]),
                                         symbols.load(word[16:])]
                        with m.Case(1):
                            m.d.sync += segment.steps.eq(word)
                        with m.Case(2):
                            m.d.sync += segment.words.eq(word)
                        with m.Case(head_words(W) - 1):
                            m.next = "SETTLE"
            with m.State("SETTLE"):                     # a word is eaten a cycle after its chunk
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 1):
                    m.next = "CHECK"
            with m.State("CHECK"):
                known = Mux(segment.meadow, *(int(kind in self.packing) for kind in (
                    Packing.MEADOW, Packing.ENTROPY))).bool()
                good = self.sound & known & (segment.log2_c <= Mux(segment.meadow, 2, 0)) \
                    & (segment.steps != 0)
                m.d.sync += [self.wrong.eq(~good), unit.eq(0)]
                m.next = "END"
                with m.If(good & new):
                    m.next = "CLASSES"
            with m.State("CLASSES"):
                m.d.comb += [reading.eq(1), eat.eq(there & unit[:3].all()), at_class.eq(there)]
                with m.If(there):
                    m.d.sync += [unit.eq(unit + 1), self.tables.word_addr.eq(0)]
                    with m.If(unit.all()):
                        m.next = "SYMBOLS"
            with m.State("SYMBOLS"):
                m.d.comb += [reading.eq(symbols.some), eat.eq(there & symbols.some),
                             self.tables.word_en.eq(eat)]
                with m.If(eat):
                    m.d.sync += [symbols.step(),
                                 self.tables.word_addr.eq(self.tables.word_addr + 1)]
                with m.If(~symbols.some):
                    m.next = "END"
            with m.State("END"):
                m.d.sync += self.done.eq(1)
                m.next = "REST"

        # Classes: a length, how many ranks it has, then its entry with the sum of those before.
        length, late = reg(4, "length"), reg(4, "late")
        ends = reg(PREFIX, "ends")              # this many low bits of the unit are ones
        grows, base = reg(range(1 << 8), "grows"), reg(8, "base")
        valid = delay(m, at_class, 2, name="valid", reset=True)
        m.d.sync += [
            length.eq(word.word_select(unit[:3], 4)), late.eq(length),
            ends.eq(Cat(unit[:k + 1].all() for k in range(PREFIX)))]
        with m.Switch(length):
            for n in range(16):
                with m.Case(n):
                    m.d.sync += grows.eq(ends[PREFIX - 1 - n] if n < PREFIX
                                         else 1 << min(n - PREFIX, 7))
        address = delay(m, unit, 2, name="address")
        with m.If(valid):
            m.d.sync += base.eq(base + grows)
        with m.If(self.start):
            m.d.sync += base.eq(0)
        m.d.comb += [
            self.tables.class_en.eq(valid), self.tables.class_addr.eq(Cat(reversed(address))),
            self.tables.class_data.length.eq(late),
            self.tables.class_data.base.eq(Mux(segment.meadow, late - 3, base)),
            self.tables.word_data.eq(word)]
        assert CLASSES == 8 * CLASS_WORDS
        return m
