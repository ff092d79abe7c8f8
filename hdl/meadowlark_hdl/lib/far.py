"""Wires that cross the chip: registers on their way, in one place, for blocks that have none."""
from amaranth import Module, Signal, Value
from amaranth.hdl import ValueLike

from .pipe import delay


def far(m: Module, sink: ValueLike, source: ValueLike, *, cycles: int = 2) -> None:
    """Drive ``sink`` from the other end of the chip: with ``source`` of ``cycles`` cycles ago.

    For who wires blocks, so that a block registers nothing because it may come from far. Nothing is
    reset: what is on its way arrives.

    Parameters
    ----------
    m : Module
        Gets the registers, in its domain ``sync``.
    sink : Signal or view
        Its name is the prefix of theirs.
    source : value-like
    cycles : int, 1..
        One register beside the sink; with more, one beside the source as well.
    """
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, not {cycles!r}")
    sink = Value.cast(sink)
    assert isinstance(sink, Signal)
    m.d.comb += sink.eq(delay(m, source, cycles, name=sink.name))
