"""Rotary position embedding of one pair a cycle."""
from amaranth import signed
from amaranth.lib.wiring import In, Out

from ..lib.pipe import Pipe, Piped
from .products import product, product_ports


class Rope(Piped):
    """``o_a = a*cos - b*sin, o_b = a*sin + b*cos``, not yet shifted.

    Source: RoFormer, arXiv:2104.09864, section 3.2; the compiler makes rotated rows adjacent.
    Golden: :func:`meadowlark_hdl.compute.rope_golden.rope`, bit-exact once each sum has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``latency`` cycles, one pair a cycle, never stalls.

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

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"a": In(signed(16)), "b": In(signed(16)),
                          "cos": In(signed(16)), "sin": In(signed(16)),
                          "o_a": Out(signed(33)), "o_b": Out(signed(33)),
                          **product_ports(shared, "a_cos", "b_sin", "a_sin", "b_cos")})

    def stages(self, pipe: Pipe) -> None:
        a, b, cos, sin = pipe.inputs(self.a, self.b, self.cos, self.sin)

        def times(name, x, y):
            return product(pipe, self, name, x, y)[:32].as_signed()     # 16 x 16 bits
        pipe.give(self, o_a=(times("a_cos", a, cos) - times("b_sin", b, sin)).reg("o_a"),
                  o_b=(times("a_sin", a, sin) + times("b_cos", b, cos)).reg("o_b"))
