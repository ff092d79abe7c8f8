"""The report of ``build``: a bitstream's clocks, what it takes of the chip, and where it stands."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .html import bars, document, heading, legend, paragraph, squares, table

#: Units of hard blocks: a part of the cell's name, what it is, and its colour.
_UNITS = ((r"\bengine\.lane", "lanes of the array", "#4f7a28"),
          (r"\bvector\.", "vector unit", "#a3442e"), (r"\btiles\.", "tile buffer", "#2f6da3"),
          (r"\b(decoder|reader)\.", "Reader and decoder of weights", "#72b0e6"),
          (r"\bfetch\.", "program", "#8a6d00"),
          (r"\b(sdram|crossing)\.", "memory controller", "#6b4f9e"), ("", "other", "#8b8f86"))
_SITE = re.compile(r"X(\d+)/Y(\d+)/([A-Z0-9]+?)_?\d+")
_USED, _FREE = "#4f7a28", "#e3e1d6"


def report(summary: Mapping[str, Any], placed: Mapping[str, str]) -> str:
    """A page. summary: as :func:`meadowlark.chip.build.summary` makes it. placed: see
    :func:`meadowlark.chip.floorplan.placed`."""
    met = "Timing is met." if summary["meets_timing"] else "Timing is missed."
    parts = [
        paragraph(f"{met} The core is driven with {summary['clock_mhz']:g} MHz and reaches "
                  f"{summary['fmax_mhz']:g}. Placement with seed {summary['seed']}. Bitstream: "
                  f"{summary['bitstream']}."),
        heading("Clocks"), _clocks(summary),
        heading("What it takes of the chip"), _resources(summary)]
    if placed:
        parts += [heading("Where the hard blocks stand"), *_plan(placed)]
    path = summary.get("critical_path", ())
    if path:
        parts += [heading("Critical path"), table([("step",), *((str(line),) for line in path)])]
    return document(f"The chip of {summary['board']}", *parts)


def _clocks(summary: Mapping[str, Any]) -> str:
    rows = [(name, [(mhz, _USED)], f"{mhz:g} MHz") for name, mhz in summary["clocks"].items()]
    found = bars("What each clock reaches", rows)
    tried = summary.get("clocks_tried", {})
    if tried:
        found += table([("core clock tried, MHz", "reached"), *(
            (clock, f"{reached:g}") for clock, reached in tried.items())])
    return found


def _resources(summary: Mapping[str, Any]) -> str:
    rows, numbers = [], [("kind", "used", "available", "share")]
    for name, available in summary["available"].items():
        used = summary.get(name, 0)
        share = used / available if available else 0.0
        rows.append((name, [(share, _USED), (max(1 - share, 0), _FREE)], f"{share:.1%}"))
        numbers.append((name, f"{used:,}", f"{available:,}", f"{share:.1%}"))
    return bars("Share of the chip that is used", rows) + table(numbers)


def _plan(placed: Mapping[str, str]) -> list[str]:
    sites = [(name, found) for name, bel in placed.items() if (found := _SITE.fullmatch(bel))]
    if not sites:
        return []
    found = []
    for name, site in sites:
        colour = next(colour for pattern, _, colour in _UNITS if re.search(pattern, name))
        found.append((4.0 * int(site[1]), 4.0 * int(site[2]), 3.0, 8.0, colour,
                      f"{name} ({site[3]})"))
    width = max(x for x, *_ in found) + 20
    height = max(y for _, y, *_ in found) + 20
    return [legend([(what, colour) for _, what, colour in _UNITS]),
            squares("Floorplan: multipliers, their adders and block RAMs by unit", width, height,
                    found),
            paragraph(f"{len(found):,} multipliers, adders and block RAMs have sites of their own; "
                      "nextpnr places the rest. Names stand under the pointer.")]
