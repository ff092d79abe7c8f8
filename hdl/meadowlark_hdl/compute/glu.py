"""A function of a row, times another row: one value a cycle."""
from amaranth import Cat, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import Pipe, Piped, mix, mux
from .function import Share, of_functions
from .products import product, product_ports


class Glu(Piped):
    """``o = fn(gate) * up``, not yet shifted; with up = 1 the function alone.

    Source: GLU Variants, arXiv:2002.05202.
    Golden: :func:`meadowlark_hdl.compute.glu_golden.glu`, bit-exact once the product has gone
    through a :class:`Narrow` (which the vector unit shares between all that it writes).
    Timing: ``latency`` cycles, one value a cycle, never stalls.

    Parameters
    ----------
    shared : bool
        They are outside, behind interpolate, gated and product (:class:`.products.ProductPort`).

    Members
    -------
    fn : In(3)
        The :class:`.Fn`, not NONE.
    gate : In(signed(18))
        11 fractional bits (+-64).
    up : In(signed(16))
    o : Out(signed(34))
        18 x 16 bits.
    """

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"fn": In(3), "gate": In(signed(18)), "up": In(signed(16)),
                          "o": Out(signed(34)),
                          **product_ports(shared, "interpolate", "gated", "product")})

    def stages(self, pipe: Pipe) -> None:
        fn, gate, up = pipe.inputs(self.fn, self.gate, self.up)
        pipe.m.submodules.share = share = Share(shared=self.shared)
        if self.shared:
            wiring.connect(pipe.m, wiring.flipped(self.interpolate), share.interpolate)
        s = pipe.through(share, fn=fn, g=gate).o
        # Centred is s - 1/2, times two; it differs from s in the upper bits.
        centred = of_functions(fn, lambda function: function.centred).reg("centred")
        less = mix(lambda s: Cat(s[:14], ~s[14], (~(s[14] | s[15])).replicate(3)), s)
        gated = product(pipe, self, "gated", mux(centred, 1 << 16, gate),
                        mux(centred, less, s).as_signed())
        # A share is 1 at most, so the rounded product is no larger than the gate: 18 bits.
        value = (gated[15:] + gated[14]).reg("value", signed(18))
        pipe.give(self, o=product(pipe, self, "product", value, up))
