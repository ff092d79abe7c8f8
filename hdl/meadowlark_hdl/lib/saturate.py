"""The nearest value that fits: one way to clamp, in one cycle or in parts.

Golden: :func:`meadowlark_hdl.fixed.saturate`. Timing: combinational.
"""
from amaranth import Mux, Value
from amaranth.hdl import ValueLike


def beyond(value: ValueLike, bits: int) -> Value:
    """Whether a signed value, of at least ``bits`` bits, does not fit ``bits`` of them, signed.

    Its upper bits are unequal; of a value in parts, those from ``bits - 1`` on are enough.
    """
    top = Value.cast(value)[bits - 1:]
    return top.any() & ~top.all()


def limit(negative: ValueLike, bits: int) -> Value:
    """The least of ``bits`` signed bits, or the greatest."""
    return Mux(negative, -1 << bits - 1, (1 << bits - 1) - 1)


def saturate(value: ValueLike, bits: int, *, over: ValueLike | None = None,
             negative: ValueLike | None = None) -> Value:
    """``value`` if it fits ``bits`` signed bits, else the nearest that does.

    Parameters
    ----------
    value : value-like, signed
        With ``over`` and ``negative`` its low ``bits`` bits are enough, as signed.
    bits : int, 2..
    over, negative : value-like, 1 bit, optional
        :func:`beyond` and the sign, where a register holds them already.

    Returns
    -------
    value
        To be assigned to ``signed(bits)``.
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, not {bits!r}")
    value = Value.cast(value)
    return Mux(beyond(value, bits) if over is None else over,
               limit(value[-1] if negative is None else negative, bits), value)
