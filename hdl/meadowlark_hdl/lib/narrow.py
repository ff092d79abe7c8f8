"""Right shift, round half up, saturate: the way back from every product."""
from amaranth import C, signed
from amaranth.lib.wiring import In, Out

from .pipe import Pipe, Piped, cat, mix, mux
from .saturate import beyond, limit


class Narrow(Piped):
    """``o = saturate(rshift(i, shift), bits)``.

    Golden: :func:`meadowlark_hdl.fixed.rshift` and :func:`~meadowlark_hdl.fixed.saturate`.
    Timing: ``latency`` cycles, one for every two bits of the shift and three more; one value a
    cycle, never stalls.

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
        Saturate to ``small`` bits; belongs to the value as well.
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
        super().__init__({"i": In(signed(width)), "shift": In(shift_bits), "small": In(1),
                          "o": Out(signed(bits)), "saturated": Out(1)})

    def stages(self, pipe: Pipe) -> None:
        bits, small = self.bits, self.small_bits or self.bits
        i, shift, is_small = pipe.inputs(self.i, self.shift, self.small)
        # One bit below the value: after the shift it is the bit that decides the rounding.
        value, at = cat(0, i).as_signed(), self.shift_bits
        while at:                               # two bits of the shift a stage, coarse first
            low = at - (2 if at > 1 else 1)
            # A shift operator, not cases: simulators copy the sign bit by bit in the latter.
            value = (value >> cat(C(0, low), shift[low:at])).reg(f"shifted_{low}",
                                                                 signed(self.width + 1))
            if low:         # not those of another Narrow, which may hear the same shift
                shift = shift[:low].near(f"shift_{low}")
            at = low
        half, whole = value[0], value[1:]

        # The sum needs one bit more than the result to see the carry, provided the value itself
        # fits in that; if it does not, rounding cannot bring it back, nor change its sign.
        total = (whole[:bits + 1].as_signed() + half).reg("total", signed(bits + 2))
        far = mux(is_small, mix(beyond, whole, small + 1),
                  mix(beyond, whole, bits + 1)).reg("far")
        negative = whole[-1].reg("negative").reg("over_negative")
        over = (far | mux(is_small, mix(beyond, total[:small + 2], small),
                          mix(beyond, total, bits))).reg("over")
        kept = total.reg("kept", signed(bits))

        nearest = mux(is_small, mix(limit, negative, small), mix(limit, negative, bits))
        pipe.give(self, o=mux(over, nearest, kept).reg("o", signed(bits)),
                  saturated=over.reg("saturated"))
