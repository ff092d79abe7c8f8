"""Registers that stay apart although they hold the same.

A control bit of the array works on hundreds of cells. Registers of its own for each group of them
keep the wires short, but synthesis merges registers that are always equal, be they copies or taps
of two delay lines that happen to agree; on an ECP5 the wire then costs more than a level of logic
(14.8 ns for a bit that reached all lanes). Those of :func:`fanout` are never merged, nor is any
``Signal(..., attrs=APART)``: ``meadowlark.chip.ecp5.synthesise`` tells Yosys, which heeds such a
wish of cells, not of wires.
"""
from typing import Any

from amaranth import Module, Signal

#: ``attrs=`` of an ``amaranth.Signal`` whose register is never merged with an equal one. Bits of it
#: that nothing reads stay as well.
APART: dict[str, Any] = {"own": 1}

#: Yosys command to run on the RTLIL as Amaranth writes it.
KEEP_APART = "setattr -set keep 1 a:own %ci1:+$dff,$dffe,$sdff,$sdffe,$sdffce"

#: Cycles from a value to its copies.
LATENCY = 1


def fanout(m: Module, value, n: int, *, name: str, reset: bool = False,
           domain: str = "sync") -> list:
    """``n`` registers of a value, for as many groups of those that hear it.

    Parameters
    ----------
    m : Module
        Gets the registers. Within an ``If`` of it they are written only then.
    value : value or view
        The copies have its shape, ``LATENCY`` cycles later.
    n : int, 1..
    name : str
        Of the registers, with an index.
    reset : bool
        True: they are 0 after a reset. Data and what is constant while it matters do without.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n!r}")
    copies = [Signal(value.shape(), name=f"{name}_{k}", reset_less=not reset, attrs=APART)
              for k in range(n)]
    m.d[domain] += [copy.eq(value) for copy in copies]
    return copies


def near(m: Module, value, *, name: str, reset: bool = False, domain: str = "sync"):
    """One such register, beside those that hear it; see :func:`fanout`."""
    [copy] = fanout(m, value, 1, name=name, reset=reset, domain=domain)
    return copy
