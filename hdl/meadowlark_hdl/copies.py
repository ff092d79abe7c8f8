"""Registers that stay apart although they hold the same.

A control bit of the array works on hundreds of cells. Registers of its own for each group of them
keep the wires short, but synthesis merges registers that are always equal, be they copies or taps
of two delay lines that happen to agree; on an ECP5 the wire then costs more than a level of logic
(14.8 ns for a bit that reached all lanes). A register that shall stay its own says so::

    Signal(..., attrs=OWN)

and ``meadowlark.chip.ecp5.synthesise`` tells Yosys, which heeds such a wish of cells, not of wires.
"""
from __future__ import annotations

from typing import Any

#: ``attrs=`` of an ``amaranth.Signal`` whose register is never merged with an equal one. Bits of it
#: that nothing reads stay as well.
OWN: dict[str, Any] = {"own": 1}

#: Yosys command to run on the RTLIL as Amaranth writes it.
KEEP_APART = "setattr -set keep 1 a:own %ci1:+$dff,$dffe,$sdff,$sdffe,$sdffce"
