"""Rotary position embedding of one pair a cycle."""
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..tech.cells import Multiplier
from .products import product, product_latency, product_ports


class Rope(wiring.Component):
    """``o_a = a*cos - b*sin, o_b = a*sin + b*cos``, not yet shifted.

    Source: RoFormer, arXiv:2104.09864, section 3.2; the compiler makes rotated rows adjacent.
    Golden: :func:`meadowlark_hdl.compute.rope_golden.rope`, bit-exact once each sum has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``latency(shared)`` cycles, ``LATENCY`` with multipliers of its own; one pair a cycle,
    never stalls.

    Parameters
    ----------
    shared : bool
        They are outside, behind a_cos, b_sin, a_sin and b_cos (:class:`.products.ProductPort`).

    Members
    -------
    a, b : In(signed(16))
    cos, sin : In(signed(16))
        14 fractional bits.
    o_a, o_b : Out(signed(33))
        Two products of 2**30 at most: 33 bits hold 2**31.
    """

    LATENCY = Multiplier.LATENCY + 1

    @classmethod
    def latency(cls, shared: bool) -> int:
        """Cycles with multipliers of its own, or shared ones."""
        return cls.LATENCY + product_latency(shared) - Multiplier.LATENCY

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"a": In(signed(16)), "b": In(signed(16)),
                          "cos": In(signed(16)), "sin": In(signed(16)),
                          "o_a": Out(signed(33)), "o_b": Out(signed(33)),
                          **product_ports(shared, "a_cos", "b_sin", "a_sin", "b_cos")})

    def elaborate(self, platform):
        m = Module()

        def times(name, x, y):
            return product(m, self, name, x, y)[:32].as_signed()        # 16 x 16 bits
        o_a = Signal(signed(33), reset_less=True)
        o_b = Signal(signed(33), reset_less=True)
        m.d.sync += [
            o_a.eq(times("a_cos", self.a, self.cos) - times("b_sin", self.b, self.sin)),
            o_b.eq(times("a_sin", self.a, self.sin) + times("b_cos", self.b, self.cos))]
        m.d.comb += [self.o_a.eq(o_a), self.o_b.eq(o_b)]
        return m
