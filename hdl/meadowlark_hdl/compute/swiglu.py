"""The SwiGLU gate, one value a cycle."""
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .function import Sigmoid
from ..tech.cells import Multiplier
from .products import product, product_latency, product_ports
from ..lib.pipe import delay


class SwiGlu(wiring.Component):
    """``o = silu(gate) * up``, not yet shifted.

    Source: GLU Variants, arXiv:2002.05202.
    Golden: :func:`meadowlark_hdl.compute.swiglu_golden.swiglu`, bit-exact once the product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``latency(shared)`` cycles, ``LATENCY`` with multipliers of its own; one value a cycle,
    never stalls.

    Parameters
    ----------
    shared : bool
        They are outside, behind interpolate, gated and product (:class:`.products.ProductPort`).

    Members
    -------
    gate : In(signed(18))
        11 fractional bits (+-64).
    up : In(signed(16))
    o : Out(signed(34))
        18 x 16 bits.
    """

    LATENCY = Sigmoid.LATENCY + 2 * Multiplier.LATENCY + 1

    @classmethod
    def latency(cls, shared: bool) -> int:
        """Cycles with multipliers of its own, or shared ones."""
        return cls.LATENCY + 3 * (product_latency(shared) - Multiplier.LATENCY)

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"gate": In(signed(18)), "up": In(signed(16)), "o": Out(signed(34)),
                          **product_ports(shared, "interpolate", "gated", "product")})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sigmoid = sigmoid = Sigmoid(shared=self.shared)
        if self.shared:
            wiring.connect(m, wiring.flipped(self.interpolate), sigmoid.interpolate)
        m.d.comb += sigmoid.g.eq(self.gate)
        gate = delay(m, self.gate, Sigmoid.latency(self.shared), name="gate")
        gated = product(m, self, "gated", gate, sigmoid.o)
        # The sigmoid is 1 at most, so the rounded product is no larger than the gate: 18 bits.
        silu = Signal(signed(18), reset_less=True)
        m.d.sync += silu.eq(gated[15:] + gated[14])
        before = self.latency(self.shared) - product_latency(self.shared)
        m.d.comb += self.o.eq(product(m, self, "product", silu,
                                      delay(m, self.up, before, name="up")))
        return m
