"""CRC-32 over wide words, in a pipeline."""
from functools import reduce
from operator import xor

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from ..crc32 import crc32_shares


class Checksum(wiring.Component):
    """CRC-32 (ISO-HDLC) of a word a cycle, lowest byte first.

    A CRC is linear: the next state is the sum of what the state adds and what the word adds.
    amaranth.lib.crc has both in one cycle, which for 8 bytes are ten LUTs in a row; here what the
    word adds is a register.

    Timing: ``crc`` has a word 3 cycles after ``valid``, ``sound`` 4. A word a cycle.

    Parameters
    ----------
    width : int
        Bits of a word, a multiple of 8.

    Members
    -------
    start : In(1)
        The words from the next cycle on count; none comes in this one.
    valid : In(1), data : In(width)
        A word.
    crc : Out(32)
    sound : Out(1)
        The last of the words was their CRC.
    """

    LATENCY = 4             #: from a word to ``sound``

    def __init__(self, width: int):
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8 from 8 on, not {width!r}")
        self.width = width
        super().__init__({"start": In(1), "valid": In(1), "data": In(width),
                          "crc": Out(32), "sound": Out(1)})

    def elaborate(self, platform):
        m = Module()
        by_state, by_word = crc32_shares(self.width)

        def added(bits, responses):
            return Cat(reduce(xor, [bits[k] for k, r in enumerate(responses) if r >> i & 1],
                              Const(0, 1)) for i in range(32))
        word, share = Signal(self.width, reset_less=True), Signal(32, reset_less=True)
        state, there, shared, anew = Signal(32, init=~0), Signal(), Signal(), Signal()
        m.d.sync += [anew.eq(self.start), word.eq(self.data), there.eq(self.valid),
                     share.eq(added(word, by_word)), shared.eq(there),
                     self.sound.eq(state == CRC32_ISO_HDLC(self.width).residue())]
        with m.If(shared):
            m.d.sync += state.eq(added(state, by_state) ^ share)
        with m.If(anew):
            m.d.sync += state.eq(~0)
        m.d.comb += self.crc.eq(~state)
        return m
