"""Whether the next pass has drafts: an account of what they bring."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import reg
from .choice_golden import GIVEN, MOST, MOST_PRICE, PASS, START


class Choice(wiring.Component):
    """Golden: :class:`.choice_golden.Choice`, equal.

    Timing: ``drafts`` is right ``LATENCY`` cycles after a pulse, and after a change of the price; a
    cycle between pulses.

    Members
    -------
    price : In(10)      1/256 of a pass.
    begin : In(1)       Pulse: a run begins.
    asked : In(1)       Pulse: ``drafts`` is taken for a pass.
    accepted : In(1)    Pulse: a draft was right.
    drafts : Out(1)
    """

    LATENCY = 3         # what is added, the account, the comparison

    def __init__(self):
        super().__init__({"price": In(range(MOST_PRICE + 1)), "begin": In(1), "asked": In(1),
                          "accepted": In(1), "drafts": Out(1)})

    def elaborate(self, platform):
        m = Module()
        account, added = reg(range(MOST + 1), "account"), reg(12, "added")
        adds, total = Signal(), Signal(13)
        m.d.comb += total.eq(account + added.as_signed())
        m.d.sync += [
            adds.eq(self.asked | self.accepted), self.drafts.eq(account >= self.price),
            added.eq(Mux(self.accepted, PASS, GIVEN - Mux(self.drafts, self.price, 0)))]
        with m.If(adds):
            m.d.sync += account.eq(Mux(total > MOST, MOST, total))
        with m.If(self.begin):
            m.d.sync += account.eq(START)
        return m
