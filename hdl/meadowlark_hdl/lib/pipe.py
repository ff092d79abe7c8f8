"""Registers without a reset, and in a row: how tags stay beside the values they belong to."""
from amaranth import Module, Signal, Value
from amaranth.hdl import ShapeLike


def reg(shape: ShapeLike, name: str):
    """A register that is written before it is read, and so does without a reset, whose net would
    be one of the widest of the chip.
    """
    return Signal(shape, name=name, reset_less=True)


def delay(m: Module, value, cycles: int, *, name: str, reset: bool = False) -> Value:
    """``value`` as it was ``cycles`` cycles ago (0: itself).

    Parameters
    ----------
    m : Module
        Gets the registers, in its domain ``sync``.
    value : value-like
        Structures come back as plain bits.
    cycles : int, 0..
    name : str
        Prefix of the registers' names.
    reset : bool
        True for valid bits: zeros follow a reset. Data does without, as that of :func:`reg`.
    """
    if cycles < 0:
        raise ValueError(f"cycles must be at least 0, not {cycles!r}")
    value = Value.cast(value)
    for k in range(cycles):
        later = Signal(value.shape(), name=f"{name}_{k + 1}", reset_less=not reset)
        m.d.sync += later.eq(value)
        value = later
    return value
