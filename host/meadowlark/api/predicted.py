"""Tests of ``bench`` by the cycle model, without a run: what each takes, and which part of it."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import UserError, brief
from ..run.bench import Speed, markdown, sizes

if TYPE_CHECKING:
    from ..compile.parts import Part
    from .forecast import Forecast

__all__ = ["Predicted", "as_json", "as_table", "counted_in", "parts_table", "predicted", "sizes"]
#: Longest file of results, in bytes.
MAX_COUNTED = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Predicted(Speed):
    """A test by the cycle model. bound: what bounds it, of :data:`meadowlark.compile.parts.BOUNDS`.
    operators, layers: its parts. counted_cycles: by a bench, or None.
    """
    bound: str
    operators: list[Part]
    layers: list[Part]
    counted_cycles: int | None = None


def predicted(found: Forecast, counted: int | None = None) -> Predicted:
    """What a forecast says of a test."""
    by, tokens = found.prediction, found.prompt + max(found.generate - 1, 0)
    return Predicted(
        position=found.position, cycles=by.cycles, tokens=tokens, bytes=by.useful_bytes,
        memory_utilisation=by.memory_utilisation, mac_utilisation=by.mac_utilisation,
        tokens_per_s=tokens * found.clock_mhz * 1e6 / by.cycles, bound=found.whole.bound,
        operators=found.operators, layers=found.layers, counted_cycles=counted)


def counted_in(file: str) -> tuple[str, str, dict[str, int]]:
    """Model, board, and cycles of each test, in a file that ``bench --json`` wrote.

    Raises
    ------
    UserError
        It is none.
    """
    try:
        with open(file, "rb") as opened:
            found = json.loads(opened.read(MAX_COUNTED))
        tests = {str(name): int(test["cycles"]) for name, test in found["tests"].items()}
        return str(found["model"]), str(found["board"]), tests
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} has no results of a bench ({brief(error)}); make it with "
                        "`meadowlark bench --json FILE`") from error


def as_json(results: dict[str, Predicted], model: str, board: str, clock_mhz: float) -> dict:
    """What ``--json`` gives."""
    return {"model": model, "board": board, "clock_mhz": clock_mhz,
            "tests": {name: asdict(one) for name, one in results.items()}}


def as_table(results: dict[str, Predicted], model: str, board: str, clock_mhz: float, *,
             layers: bool = False) -> str:
    """Results in Markdown: a row a test, then the parts of each: operators, or layers."""
    rows = [("model", "board", "clock", "test", "t/s", "cycles", "counted", "memory", "MACs",
             "bound by")]
    for name, one in results.items():
        rows.append((model, board, f"{clock_mhz:g} MHz", name, f"{one.tokens_per_s:.2f}",
                     f"{one.cycles:,}",
                     "-" if one.counted_cycles is None else
                     f"{one.counted_cycles:,} ({one.cycles / one.counted_cycles - 1:+.2%})",
                     f"{one.memory_utilisation:.1%}", f"{one.mac_utilisation:.1%}", one.bound))
    tables = [markdown(rows, left={0, 1, 3, 9})]
    for name, one in results.items():
        tables.append(f"{name}:\n\n" + parts_table(one.layers if layers else one.operators))
    return "\n\n".join(tables)


def parts_table(parts: Sequence[Part]) -> str:
    """Parts in Markdown."""
    total = sum(part.cycles for part in parts)
    return markdown([("part", "count", "cycles", "share", "multipliers", "drain",
                      "waits for memory", "rest", "bytes", "bound by"), *(
        (part.name, f"{part.count:,}", f"{part.cycles:,}", f"{part.cycles / total:.1%}",
         f"{part.work:,}", f"{part.drain:,}", f"{part.memory:,}", f"{part.overhead:,}",
         f"{part.bytes:,}", part.bound) for part in parts)], left={0, 9})
