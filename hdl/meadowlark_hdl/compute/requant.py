"""Requantise accumulators: 45 x 16 bit product from three limbs, rounding shift, bias, clamp."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..tech.cells import Multiplier
from ..lib.narrow import Narrow
from ..lib.pipe import delay

LIMB = 17       # unsigned limbs that fit a signed 18-bit operand


class Requant(wiring.Component):
    """``o = sat32(round(acc * mant / 2**shift) + bias)``.

    Source: Jacob et al., arXiv:1712.05877, section 2.2, with ties rounded up.
    Golden: :func:`meadowlark_hdl.compute.requant_golden.requant`, bit-exact.
    Error: at most 1/2 of an output unit where not clamped.
    Timing: ``LATENCY`` cycles, one result a cycle, never stalls.

    Members
    -------
    acc : In(signed(45))
    mant : In(16)
    shift : In(6)
    bias : In(signed(32))
    o : Out(signed(32))
    """

    # The rounded product is clamped to 34 bits: that is far enough out for the sum with a
    # 32-bit bias to clamp to the same end.
    ROUNDED_BITS = 34
    PRODUCT_BITS = 61       # |acc * mant| < 2**44 * 2**16
    LATENCY = Multiplier.LATENCY + 2 + 6 + 2

    def __init__(self) -> None:
        super().__init__({"acc": In(signed(Config.ACC_BITS)), "mant": In(16), "shift": In(6),
                          "bias": In(signed(32)), "o": Out(signed(32))})

    def elaborate(self, platform):
        m = Module()
        limbs = [self.acc[:LIMB], self.acc[LIMB:2 * LIMB], self.acc[2 * LIMB:].as_signed()]
        products = []
        for k, limb in enumerate(limbs):
            m.submodules[f"limb{k}"] = multiplier = Multiplier()
            m.d.comb += [multiplier.a.eq(limb), multiplier.b.eq(self.mant)]
            products.append(multiplier.p)

        # p0 + p1 * 2**17 + p2 * 2**34, from below; p0, p1 < 2**33.
        low = Signal(LIMB, reset_less=True)
        middle = Signal(34, reset_less=True)
        high = Signal(signed(27), reset_less=True)      # limb of 11 bits x 16 bits
        m.d.sync += [low.eq(products[0]), high.eq(products[2]),
                     middle.eq(products[1][:33] + products[0][LIMB:33])]
        product = Signal(signed(self.PRODUCT_BITS), reset_less=True)
        m.d.sync += product.eq(Cat(low, middle[:LIMB], high + middle[LIMB:]))

        m.submodules.narrow = narrow = Narrow(width=self.PRODUCT_BITS, shift_bits=6,
                                              bits=self.ROUNDED_BITS)
        before = Multiplier.LATENCY + 2
        assert self.LATENCY == before + narrow.latency + 2
        bias = delay(m, self.bias, before + narrow.latency, name="bias")
        m.d.comb += [narrow.i.eq(product),
                     narrow.shift.eq(delay(m, self.shift, before, name="shift"))]
        total = Signal(signed(self.ROUNDED_BITS + 1), reset_less=True)
        m.d.sync += total.eq(narrow.o + bias)
        o = Signal(signed(32), reset_less=True)
        over = total[31:].any() & ~total[31:].all()
        m.d.sync += o.eq(Mux(over, Mux(total[-1], -1 << 31, (1 << 31) - 1), total))
        m.d.comb += self.o.eq(o)
        return m
