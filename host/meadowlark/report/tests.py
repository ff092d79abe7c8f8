"""The report of ``bench`` and ``predict``: what tests take, predicted and counted, and why."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .html import KINDS, bars, document, heading, legend, paragraph, table

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.parts import Part
    from ..api.predicted import Predicted

_COUNTED, _PREDICTED = "#22261f", "#b3c99c"


def report(results: Mapping[str, Predicted], model: str, board: Board, *,
           stalls: Mapping[str, Mapping[str, int]] | None = None) -> str:
    """A page.

    results: of tests by name; those that were counted say so. stalls: cycles of each test in which
    the array got no beat, by cause, where they were counted.
    """
    counted = any(one.counted_cycles is not None for one in results.values())
    config, memory = board.config, board.memory
    parts = [
        paragraph(f"{board.title}. Core at {board.clock_mhz:g} MHz, {config.W} x {config.P} "
                  f"multipliers of weights, memory with {memory.bytes_per_s / 1e6:,.0f} MB/s at "
                  "best. Cycles are predicted by the cycle model"
                  + (" and counted by the core's own counters." if counted else
                     "; nothing was run.")),
        heading("Tests"), _tests(results)]
    if counted:
        parts += [heading("Predicted beside counted", 3),
                  legend([("predicted", _PREDICTED), ("counted", _COUNTED)]), _beside(results)]
    for name, one in results.items():
        parts += _test(name, one, (stalls or {}).get(name, {}))
    return document(f"{model} on {board.name}", *parts)


def _tests(results: Mapping[str, Predicted]) -> str:
    rows = [("test", "tokens/s", "predicted cycles", "counted", "difference", "memory",
             "multipliers", "bound by")]
    for name, one in results.items():
        counted = one.counted_cycles
        rows.append((
            name, f"{one.tokens_per_s:,.2f}", f"{one.cycles:,}",
            "-" if counted is None else f"{counted:,}",
            "-" if not counted else f"{one.cycles / counted - 1:+.2%}",
            f"{one.memory_utilisation:.1%}", f"{one.mac_utilisation:.1%}", one.bound))
    return table(rows, left=(0, 7))


def _beside(results: Mapping[str, Predicted]) -> str:
    rows = []
    for name, one in results.items():
        rows.append((name, [(one.cycles, _PREDICTED)], f"{one.cycles:,}"))
        if one.counted_cycles is not None:
            rows.append(("", [(one.counted_cycles, _COUNTED)], f"{one.counted_cycles:,}"))
    return bars("Predicted and counted cycles of each test", rows)


def _test(name: str, one: Predicted, stalls: Mapping[str, int]) -> list[str]:
    out = [heading(name),
           paragraph(f"{one.tokens:,} tokens from position {one.position:,} on: {one.bytes:,} "
                     f"bytes that had to be moved, {one.cycles / one.tokens:,.0f} cycles a token. "
                     f"What bounds it: {one.bound}."),
           legend(list(KINDS.values())),
           heading("By layer", 3), _parts(f"Cycles of {name} by layer", one.layers),
           heading("By operator", 3), _parts(f"Cycles of {name} by operator", one.operators),
           _numbers(one.operators)]
    if stalls:
        out += [heading("Counted cycles in which the array got no beat", 3),
                bars(f"Stalls of {name}", [
                    (cause.replace("_", " "), [(cycles, KINDS["memory"][1])], f"{cycles:,}")
                    for cause, cycles in stalls.items()])]
    return out


def _parts(title: str, parts: Sequence[Part]) -> str:
    return bars(title, [
        (part.name, [(getattr(part, kind), colour) for kind, (_, colour) in KINDS.items()],
         f"{part.cycles:,} ({part.bound})") for part in parts if part.cycles > 0])


def _numbers(parts: Sequence[Part]) -> str:
    total = sum(part.cycles for part in parts) or 1
    return table([("operator", "count", "cycles", "share", "bytes", "bound by"), *(
        (part.name, f"{part.count:,}", f"{part.cycles:,}", f"{part.cycles / total:.1%}",
         f"{part.bytes:,}", part.bound) for part in parts)], left=(0, 5))
