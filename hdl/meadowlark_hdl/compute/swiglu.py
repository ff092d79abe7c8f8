"""The SwiGLU gate, one value a cycle."""
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .function import Sigmoid
from .multiplier import Multiplier
from .pipeline import delay


class SwiGlu(wiring.Component):
    """``o = silu(gate) * up``, not yet shifted.

    Source: GLU Variants, arXiv:2002.05202.
    Golden: :func:`meadowlark_hdl.compute.swiglu_golden.swiglu`, bit-exact once the product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: ``LATENCY`` cycles, one value a cycle, never stalls.

    Parameters
    ----------
    dsp : str
        As for :class:`Multiplier`; three are used, the one of the sigmoid included.

    Members
    -------
    gate : In(signed(18))
        11 fractional bits (+-64).
    up : In(signed(16))
    o : Out(signed(34))
        18 x 16 bits.
    """

    LATENCY = Sigmoid.LATENCY + 2 * Multiplier.LATENCY + 1

    def __init__(self, *, dsp: str = "generic"):
        self.dsp = dsp
        super().__init__({"gate": In(signed(18)), "up": In(signed(16)), "o": Out(signed(34))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sigmoid = sigmoid = Sigmoid(dsp=self.dsp)
        m.submodules.gated = gated = Multiplier(dsp=self.dsp)
        m.submodules.product = product = Multiplier(dsp=self.dsp)
        m.d.comb += [sigmoid.g.eq(self.gate), gated.b.eq(sigmoid.o),
                     gated.a.eq(delay(m, self.gate, Sigmoid.LATENCY, name="gate"))]
        # The sigmoid is 1 at most, so the rounded product is no larger than the gate: 18 bits.
        silu = Signal(signed(18), reset_less=True)
        m.d.sync += silu.eq(gated.p[15:] + gated.p[14])
        m.d.comb += [product.a.eq(silu), self.o.eq(product.p),
                     product.b.eq(delay(m, self.up, self.LATENCY - Multiplier.LATENCY, name="up"))]
        return m
