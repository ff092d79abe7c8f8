"""The token with the largest value so far."""
from amaranth import Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config


class ArgMax(wiring.Component):
    """A running maximum; use ``ResetInserter`` to forget.

    Timing: 2 cycles, a value every 2 cycles, never stalls.

    Members
    -------
    valid : In(1)               Pulse: a value, constant until the next cycle, with its token.
    value, token : In(signed(32)), In(19)
    rising : In(1)              Of equal values the last one counts, else the first; constant.
    best : Out(19)              Token of the largest value.
    """

    def __init__(self):
        super().__init__({"valid": In(1), "value": In(signed(32)), "token": In(Config.TOKEN_BITS),
                          "rising": In(1), "best": Out(Config.TOKEN_BITS)})

    def elaborate(self, platform):
        m = Module()
        largest = Signal(signed(32), reset_less=True)
        some, over, replace = Signal(), Signal(), Signal()
        # A bit below the numbers says that an equal one counts. (`>` would compare twice.)
        m.d.sync += [replace.eq(self.valid), over.eq(
            ~some | (Cat(~self.rising, largest).as_signed()
                     < Cat(self.rising, self.value).as_signed()))]
        with m.If(replace & over):
            m.d.sync += [largest.eq(self.value), some.eq(1), self.best.eq(self.token)]
        return m
