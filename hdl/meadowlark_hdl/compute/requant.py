"""Requantise accumulators: 45 x 16 bit product from three limbs, rounding shift, bias, clamp."""
from amaranth import signed
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.narrow import Narrow
from ..lib.pipe import Pipe, Piped, cat, mix
from ..lib.saturate import saturate
from .products import product

LIMB = 17       # unsigned limbs that fit a signed 18-bit operand


class Requant(Piped):
    """``o = sat32(round(acc * mant / 2**shift) + bias)``.

    Source: Jacob et al., arXiv:1712.05877, section 2.2, with ties rounded up.
    Golden: :func:`meadowlark_hdl.compute.requant_golden.requant`, bit-exact.
    Error: at most 1/2 of an output unit where not clamped.
    Timing: ``latency`` cycles, one result a cycle, never stalls.

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
    shared = False          # its multipliers are its own

    def __init__(self) -> None:
        super().__init__({"acc": In(signed(Config.ACC_BITS)), "mant": In(16), "shift": In(6),
                          "bias": In(signed(32)), "o": Out(signed(32))})

    def stages(self, pipe: Pipe) -> None:
        acc, mant, shift, bias = pipe.inputs(self.acc, self.mant, self.shift, self.bias)
        limbs = [acc[:LIMB], acc[LIMB:2 * LIMB], acc[2 * LIMB:].as_signed()]
        p0, p1, p2 = (product(pipe, self, f"limb{k}", limb, mant) for k, limb in enumerate(limbs))

        # p0 + p1 * 2**17 + p2 * 2**34, from below; p0, p1 < 2**33.
        low = p0.reg("low", LIMB)
        middle = (p1[:33] + p0[LIMB:33]).reg("middle", 34)
        high = p2.reg("high", signed(27))               # limb of 11 bits x 16 bits
        total = cat(low, middle[:LIMB], high + middle[LIMB:]).reg(
            "product", signed(self.PRODUCT_BITS))

        pipe.m.submodules.narrow = narrow = Narrow(width=self.PRODUCT_BITS, shift_bits=6,
                                                   bits=self.ROUNDED_BITS)
        biased = (pipe.through(narrow, i=total, shift=shift).o + bias).reg(
            "total", signed(self.ROUNDED_BITS + 1))
        pipe.give(self, o=mix(saturate, biased, 32).reg("o", signed(32)))
