"""Rotary position embedding of one pair a cycle."""
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .multiplier import Multiplier


class Rope(wiring.Component):
    """``o_a = a*cos - b*sin, o_b = a*sin + b*cos``, not yet shifted.

    Source: RoFormer, arXiv:2104.09864, section 3.2; the compiler makes rotated rows adjacent.
    Golden: :func:`meadowlark_hdl.compute.rope_golden.rope`, bit-exact once each sum has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``LATENCY`` cycles, one pair a cycle, never stalls.

    Parameters
    ----------
    dsp : str
        As for :class:`Multiplier`; four are used.

    Members
    -------
    a, b : In(signed(16))
    cos, sin : In(signed(16))
        14 fractional bits.
    o_a, o_b : Out(signed(33))
        Two products of 2**30 at most: 33 bits hold 2**31.
    """

    LATENCY = Multiplier.LATENCY + 1

    def __init__(self, *, dsp: str = "generic"):
        self.dsp = dsp
        super().__init__({"a": In(signed(16)), "b": In(signed(16)),
                          "cos": In(signed(16)), "sin": In(signed(16)),
                          "o_a": Out(signed(33)), "o_b": Out(signed(33))})

    def elaborate(self, platform):
        m = Module()

        def product(name, x, y):
            m.submodules[name] = multiplier = Multiplier(dsp=self.dsp)
            m.d.comb += [multiplier.a.eq(x), multiplier.b.eq(y)]
            return multiplier.p[:32].as_signed()        # 16 x 16 bits
        o_a = Signal(signed(33), reset_less=True)
        o_b = Signal(signed(33), reset_less=True)
        m.d.sync += [
            o_a.eq(product("a_cos", self.a, self.cos) - product("b_sin", self.b, self.sin)),
            o_b.eq(product("a_sin", self.a, self.sin) + product("b_cos", self.b, self.cos))]
        m.d.comb += [self.o_a.eq(o_a), self.o_b.eq(o_b)]
        return m
