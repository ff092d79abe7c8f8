"""An adder whose first operand can be left out: the heart of every accumulator."""
from amaranth import Cat, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class GatedAdder(wiring.Component):
    """``o = (a if keep else 0) + b``, modulo 2**width.

    Timing: combinational, one carry chain.

    Parameters
    ----------
    width : int
        Of a, b and o, two's complement.
    dsp : str
        "generic", or "ecp5": CCU2C instances whose LUTs do the gating as well; Yosys would spend
        a LUT a bit on it (over 5,000 on a chip with 128 multipliers).

    Members
    -------
    a, b : In(signed(width))
    keep : In(1)
    o : Out(signed(width))
    """

    #: A LUT of a CCU2C: (A & C) ^ B, and its lower quarter, what is generated: B.
    LUT = 0x6C6C

    def __init__(self, width: int, *, dsp: str = "generic"):
        if dsp not in ("generic", "ecp5"):
            raise ValueError(f"dsp must be generic or ecp5, not {dsp!r}")
        self.width, self.dsp = width, dsp
        super().__init__({"a": In(signed(width)), "b": In(signed(width)), "keep": In(1),
                          "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        if self.dsp == "generic":
            m.d.comb += self.o.eq(Mux(self.keep, self.a, 0) + self.b)
            return m
        even = self.width + self.width % 2
        a, b = self.a.as_unsigned(), self.b.as_unsigned()
        a, b = Cat(a, Const(0, even - self.width)), Cat(b, Const(0, even - self.width))
        total = Signal(even)
        carry = Const(0, 1)
        for i in range(0, even, 2):
            out = Signal(name=f"carry_{i + 2}")
            pins = {}
            for k in range(2):
                pins |= {f"p_INIT{k}": Const(self.LUT, 16), f"p_INJECT1_{k}": "NO",
                         f"i_A{k}": a[i + k], f"i_B{k}": b[i + k], f"i_C{k}": self.keep,
                         f"i_D{k}": Const(0, 1), f"o_S{k}": total[i + k]}
            m.submodules[f"bits_{i}"] = Instance("CCU2C", i_CIN=carry, o_COUT=out, **pins)
            carry = out
        m.d.comb += self.o.eq(total[:self.width].as_signed())
        return m
