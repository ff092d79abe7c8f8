"""Right shift, round half up, saturate: the way back from every product."""
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .fanout import near
from .saturate import beyond, limit


class Narrow(wiring.Component):
    """``o = saturate(rshift(i, shift), bits)``.

    Golden: :func:`meadowlark_hdl.fixed.rshift` and :func:`~meadowlark_hdl.fixed.saturate`.
    Timing: ``latency`` = ceil(shift_bits/2) + 3 cycles, one value a cycle, never stalls.

    Parameters
    ----------
    width : int, at least bits + 2
        Width of the input, signed.
    shift_bits : int, 1..6
        Width of the shift; every value of it is allowed (beyond ``width`` the result is 0).
    bits : int, 2..
        Width of the result, signed.
    small : int, 2..bits - 1, optional
        Another width to saturate to, chosen by the input ``small``.

    Members
    -------
    i : In(signed(width))
    shift : In(shift_bits)
        Belongs to the value it comes with.
    small : In(1)
        Saturate to ``small`` bits; constant while values are in flight.
    o : Out(signed(bits))
    saturated : Out(1)
        ``o`` is not the exact rounded value.
    """

    def __init__(self, *, width: int, shift_bits: int, bits: int, small: int | None = None):
        if shift_bits not in range(1, 7):
            raise ValueError(f"shift_bits must be in 1..6, not {shift_bits!r}")
        if bits < 2:
            raise ValueError(f"bits must be at least 2, not {bits!r}")
        if small is not None and small not in range(2, bits):
            raise ValueError(f"small must be in 2..bits - 1, not {small!r}")
        if width < bits + 2:
            raise ValueError(f"width must be at least bits + 2 = {bits + 2}, not {width!r}")
        self.width, self.shift_bits, self.bits, self.small_bits = width, shift_bits, bits, small
        self.latency = (shift_bits + 1) // 2 + 3
        super().__init__({"i": In(signed(width)), "shift": In(shift_bits), "small": In(1),
                          "o": Out(signed(bits)), "saturated": Out(1)})

    def elaborate(self, platform):
        m = Module()
        bits, small = self.bits, self.small_bits or self.bits
        # One bit below the value: after the shift it is the bit that decides the rounding.
        value, shift = Cat(0, self.i).as_signed(), self.shift
        at = self.shift_bits
        while at:                               # two bits of the shift a stage, coarse first
            low = at - (2 if at > 1 else 1)
            shifted = Signal(signed(self.width + 1), name=f"shifted_{low}", reset_less=True)
            # A shift operator, not cases: simulators copy the sign bit by bit in the latter.
            m.d.sync += shifted.eq(value >> Cat(C(0, low), shift[low:at]))
            if low:         # not those of another Narrow, which may hear the same shift
                shift = near(m, shift[:low], name=f"shift_{low}")
            value, at = shifted, low
        half, whole = value[0], value[1:]

        # The sum needs one bit more than the result to see the carry, provided the value itself
        # fits in that; if it does not, rounding cannot bring it back, nor change its sign.
        total = Signal(signed(bits + 2), reset_less=True)
        far = Signal(reset_less=True)
        negative = Signal(reset_less=True)
        m.d.sync += [total.eq(whole[:bits + 1].as_signed() + half),
                     far.eq(Mux(self.small, beyond(whole, small + 1), beyond(whole, bits + 1))),
                     negative.eq(whole[-1])]
        over = Signal(reset_less=True)
        over_negative = Signal(reset_less=True)
        kept = Signal(signed(bits), reset_less=True)
        m.d.sync += [over.eq(far | Mux(self.small, beyond(total[:small + 2], small),
                                       beyond(total, bits))),
                     over_negative.eq(negative), kept.eq(total)]

        o = Signal(signed(bits), reset_less=True)
        saturated = Signal(reset_less=True)
        nearest = Mux(self.small, limit(over_negative, small), limit(over_negative, bits))
        m.d.sync += [o.eq(Mux(over, nearest, kept)), saturated.eq(over)]
        m.d.comb += [self.o.eq(o), self.saturated.eq(saturated)]
        return m
