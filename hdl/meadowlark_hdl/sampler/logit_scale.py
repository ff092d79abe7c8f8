"""A logit by the inverse of the temperature: one product of 32 by 16 bits, shifted and rounded."""
from amaranth import Cat, Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.narrow import Narrow
from ..lib.pipe import reg
from ..tech.cells import Multiplier


class LogitScale(wiring.Component):
    """``product = value * factor``, and ``scaled = saturate(rshift(product, shift), 30)``.

    Golden: :func:`.sampler_golden.scaled`, bit-exact.
    Timing: ``product`` after ``PRODUCT`` cycles, ``scaled`` after ``LATENCY``; a value a cycle,
    never stalls.

    Members
    -------
    value : In(signed(32))
    factor : In(16)
    shift : In(5)               Constant while values are in flight.
    product : Out(signed(48))
    scaled : Out(signed(30))
    """

    BITS = 30
    PRODUCT = Multiplier.LATENCY + 1
    LATENCY = PRODUCT + 6

    def __init__(self):
        super().__init__({"value": In(signed(Config.LOGIT_BITS)), "factor": In(16), "shift": In(5),
                          "product": Out(signed(48)), "scaled": Out(signed(self.BITS))})

    def elaborate(self, platform):
        m = Module()
        parts = []
        for name, part in (("low", self.value[:16]), ("high", self.value[16:].as_signed())):
            m.submodules[f"multiply_{name}"] = multiplier = Multiplier()
            m.d.comb += [multiplier.a.eq(part), multiplier.b.eq(self.factor)]
            parts.append(multiplier.p)
        low, high = parts
        # |value * factor| < 2**31 * 2**16; the lower product is not negative
        product = reg(signed(48), "product")
        m.d.sync += product.eq(Cat(low[:16], (high + low[16:32])[:32]))
        m.submodules.narrow = narrow = Narrow(width=48, shift_bits=5, bits=self.BITS)
        assert self.LATENCY == self.PRODUCT + narrow.latency
        m.d.comb += [narrow.i.eq(product), narrow.shift.eq(self.shift),
                     self.product.eq(product), self.scaled.eq(narrow.o)]
        return m
