"""The SwiGLU gate, one value a cycle."""
from amaranth import signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import Pipe, Piped
from .function import Sigmoid
from .products import product, product_ports


class SwiGlu(Piped):
    """``o = silu(gate) * up``, not yet shifted.

    Source: GLU Variants, arXiv:2002.05202.
    Golden: :func:`meadowlark_hdl.compute.swiglu_golden.swiglu`, bit-exact once the product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``latency`` cycles, one value a cycle, never stalls.

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

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"gate": In(signed(18)), "up": In(signed(16)), "o": Out(signed(34)),
                          **product_ports(shared, "interpolate", "gated", "product")})

    def stages(self, pipe: Pipe) -> None:
        gate, up = pipe.inputs(self.gate, self.up)
        pipe.m.submodules.sigmoid = sigmoid = Sigmoid(shared=self.shared)
        if self.shared:
            wiring.connect(pipe.m, wiring.flipped(self.interpolate), sigmoid.interpolate)
        gated = product(pipe, self, "gated", gate, pipe.through(sigmoid, g=gate).o)
        # The sigmoid is 1 at most, so the rounded product is no larger than the gate: 18 bits.
        silu = (gated[15:] + gated[14]).reg("silu", signed(18))
        pipe.give(self, o=product(pipe, self, "product", silu, up))
