"""Weights of scaled logits, their sum, and which of them the nucleus holds (top-p)."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import reg
from .logit_scale import LogitScale
from .tables import Lookup, Table, Tables


class Nucleus(wiring.Component):
    """A weight is 2**-(distance to the largest); the nucleus holds those that begin below a limit.

    Scaled logits come twice, rising: first for the ``total`` of their weights, then to be judged.
    The weights *before* one, in falling order, are the total less those seen so far.

    Source: Holtzman et al., arXiv:1904.09751.
    Golden: :func:`.sampler_golden.weights` and :func:`.sampler_golden.nucleus`, bit-exact.
    Timing: ``LATENCY`` cycles from ``valid`` to ``kept``, a logit every 5 cycles. The tables are
    asked ``ASKS`` cycles after ``valid``.

    Members
    -------
    valid : In(1)               Pulse: a scaled logit, constant for 5 cycles from then on.
    scaled : In(signed(30))     None is larger than the one that was there at ``lead``.
    tables : Out(Lookup())
    kept : Out(1)               The nucleus holds it.
    lead : In(1)                Pulse: ``scaled`` is the largest; seen is nothing yet.
    sum : In(1)                 Pulse: all have been seen, take their total; seen is nothing yet.
    total : Out(21)             At most 32 * 2**15.
    limit_en, limit : In(1), In(37)
                                Pulse: the nucleus ends at ``total * top_p``, 16 of it fractional.
    """

    ASKS = 1
    WEIGHT = ASKS + Tables.LATENCY + 2
    LATENCY = WEIGHT + 3

    def __init__(self):
        super().__init__({
            "valid": In(1), "scaled": In(signed(LogitScale.BITS)), "tables": Out(Lookup()),
            "kept": Out(1), "lead": In(1), "sum": In(1), "total": Out(21),
            "limit_en": In(1), "limit": In(37)})

    def elaborate(self, platform):
        m = Module()
        later = Signal(self.WEIGHT)
        m.d.sync += later.eq(Cat(self.valid, later))
        largest = reg(signed(30), "largest")
        distance = reg(31, "distance")              # largest - scaled: never negative
        far, part, weight = reg(1, "far"), reg(16, "part"), reg(16, "weight")
        m.d.comb += [self.tables.en.eq(1), self.tables.table.eq(Table.EXP2),
                     self.tables.index.eq(distance[4:12])]
        m.d.sync += [distance.eq(largest - self.scaled), far.eq(distance[16:].any()),
                     part.eq(self.tables.value >> distance[12:14]),
                     weight.eq(Mux(far, 0, part >> Cat(Const(0, 2), distance[14:16])))]

        seen, total, before = Signal(21), reg(21, "total"), reg(21, "before")
        limit = reg(22, "limit")                    # one bit for its lower half
        with m.If(later[-1]):
            m.d.sync += seen.eq(seen + weight)
        with m.If(self.lead):
            m.d.sync += [largest.eq(self.scaled), seen.eq(0)]
        with m.If(self.sum):
            m.d.sync += [total.eq(seen), seen.eq(0)]
        with m.If(self.limit_en):
            m.d.sync += limit.eq(Cat(self.limit[:16].any(), self.limit[16:]))
        m.d.sync += [before.eq(total - seen), self.kept.eq(Cat(Const(0, 1), before) < limit)]
        m.d.comb += self.total.eq(total)
        return m
