"""CRC-32 of the logits of each turn: what the host compares."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..crc32 import crc32_shares
from ..lib.countdown import Countdown


def _next(state: Signal, word: Signal) -> Cat:
    """The state after a word: each bit is an exclusive or of some that were there."""
    by_state, by_word = crc32_shares(len(word))
    bits = Cat(state, word)
    return Cat(Cat(bits[k] for k, share in enumerate(by_state + by_word) if share >> bit & 1).xor()
               for bit in range(32))


class LogitCrc(wiring.Component):
    """CRC-32 (ISO-HDLC, as zlib) of each turn's logits as little-endian int32. With one turn it is
    a register that takes a byte a cycle; else an entry of a LUT RAM, and two bytes a cycle, because
    a cycle is for its way out and one for its way in.

    Golden: :func:`.sampler_golden.logits_crc`.
    Timing: a logit every 4 cycles; its CRC counts ``LATENCY`` cycles after ``valid``. ``crc``
    follows ``turn`` by a cycle; with one turn it is always there.

    Parameters
    ----------
    turns : int, 1..

    Members
    -------
    valid : In(1)               Pulse: a logit; its turn is constant for 4 cycles.
    value : In(signed(32))      In that cycle.
    turn : In                   Whose logit it is, and whose ``crc`` is asked for.
    first : In(1)               With ``valid``: the first of its turn.
    crc : Out(32)               With one turn that of no logit from the cycle behind ``first`` on.
    """

    LATENCY = 5

    def __init__(self, turns: int = 1):
        self.turns = turns
        super().__init__({"valid": In(1), "value": In(signed(Config.LOGIT_BITS)),
                          "turn": In(range(turns)), "first": In(1), "crc": Out(32)})

    def elaborate(self, platform):
        m = Module()
        width = 8 if self.turns == 1 else 16
        rest, state = Signal(32, reset_less=True), Signal(32, reset_less=True)
        left = Countdown(m, range(32 // width + 1), name="left", last=False)
        m.d.sync += rest.eq(rest >> width)
        with m.If(left.some):
            m.d.sync += [left.step(), state.eq(_next(state, rest[:width]))]
        with m.If(self.valid):
            m.d.sync += [rest.eq(self.value), left.load(32 // width)]
        if self.turns == 1:
            with m.If(self.valid & self.first):
                m.d.sync += state.eq(0xFFFFFFFF)
            m.d.comb += self.crc.eq(~state)
            return m
        m.submodules.ram = ram = memory.Memory(shape=32, depth=self.turns, init=[])
        write, read = ram.write_port(), ram.read_port(domain="comb")
        going = Signal()
        m.d.comb += [read.addr.eq(self.turn), write.addr.eq(self.turn), write.data.eq(state),
                     write.en.eq(going & ~left.some)]
        m.d.sync += [going.eq(left.some), self.crc.eq(~read.data)]
        with m.If(self.valid):
            m.d.sync += state.eq(Mux(self.first, 0xFFFFFFFF, read.data))
        return m
