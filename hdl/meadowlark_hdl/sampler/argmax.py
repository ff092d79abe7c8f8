"""The token with the largest value so far, of each turn."""
from amaranth import Cat, Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config


class ArgMax(wiring.Component):
    """A running maximum for each turn. With one turn it is a register, else an entry of a LUT RAM.

    Timing: ``LATENCY`` cycles until the maximum counts, a value every 3 cycles, never stalls.
    ``best`` follows ``turn`` by a cycle; with one turn it is always there.

    Parameters
    ----------
    turns : int, 1..

    Members
    -------
    valid : In(1)               Pulse: a value, constant for 3 cycles with its token and its turn.
    value, token : In(signed(32)), In(19)
    turn : In                   Whose value it is, and whose ``best`` is asked for.
    first : In(1)               With ``valid``: it counts in any case, as the first of its turn.
    rising : In(1)              Of equal values the last one counts, else the first; constant.
    best : Out(19)              Token of the largest value.
    """

    LATENCY = 3

    def __init__(self, turns: int = 1):
        self.turns = turns
        super().__init__({
            "valid": In(1), "value": In(signed(32)), "token": In(Config.TOKEN_BITS),
            "turn": In(range(turns)), "first": In(1), "rising": In(1),
            "best": Out(Config.TOKEN_BITS)})

    def elaborate(self, platform):
        m = Module()
        largest = Signal(signed(32), reset_less=True)
        came, first, there, over = Signal(), Signal(), Signal(), Signal()
        # A bit below the numbers says that an equal one counts. (`>` would compare twice.)
        m.d.sync += [came.eq(self.valid), first.eq(self.first), there.eq(came),
                     over.eq(first | (Cat(~self.rising, largest).as_signed()
                                      < Cat(self.rising, self.value).as_signed()))]
        replace = there & over
        if self.turns == 1:
            with m.If(replace):
                m.d.sync += [largest.eq(self.value), self.best.eq(self.token)]
            return m
        for name, given, found in (("values", self.value, largest),
                                   ("tokens", self.token, self.best)):
            m.submodules[name] = ram = memory.Memory(
                shape=given.shape(), depth=self.turns, init=[])
            write, read = ram.write_port(), ram.read_port(domain="comb")
            m.d.comb += [write.addr.eq(self.turn), write.data.eq(given), write.en.eq(replace),
                         read.addr.eq(self.turn)]
            m.d.sync += found.eq(read.data)
        return m
