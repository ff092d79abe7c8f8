"""What a mechanism is worth: a row each, kept as JSON, shown as Markdown."""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import UserError, brief

#: Paper, as ``--paper`` takes it -> its title and number at arXiv.
PAPERS = {
    "meadow": ("MEADOW", "2503.11663"),
    "flash-decoding": ("FlashDecoding++", "2311.01282"),
    "etap": ("FlashMLA-ETAP", "2506.01969"),
    "flash-former": ("FlashFormer", "2505.22758"),
    "ffn-fusion": ("FFN Fusion", "2503.18908"),
}


@dataclass(frozen=True, kw_only=True)
class Value:
    """predicted: by the cycle model or by arithmetic, None where only a measurement can tell.
    measured: by the counters of the simulated chip, or on a text; None: it was not."""
    predicted: float | None = None
    measured: float | None = None

    @property
    def best(self) -> float | None:
        return self.predicted if self.measured is None else self.measured


@dataclass(frozen=True, kw_only=True)
class Row:
    """A mechanism.

    paper: of :data:`PAPERS`. mechanism, on: for people. unit: of the values; less is better. These
    four name the row. without, with_: the baseline, and the same with the mechanism. published: the
    paper's own ratio, for people. command: what gives the row. needs: what it takes to measure what
    is not measured; "" if all is. remark: for people.
    """
    paper: str
    mechanism: str
    on: str = ""
    unit: str = ""
    without: Value = Value()
    with_: Value = Value()
    published: str = ""
    command: str = ""
    needs: str = ""
    remark: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.paper, self.mechanism, self.on, self.unit

    @property
    def worth(self) -> float | None:
        """Baseline over mechanism: above 1 it pays. Of measured values where both are."""
        pairs = ((self.without.measured, self.with_.measured),
                 (self.without.predicted, self.with_.predicted))
        return next((a / b for a, b in pairs if a is not None and b), None)


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Rows by paper; new ones in place of old ones of the same key. What was measured stays as long
    as its prediction does, where it is not measured anew."""
    found = {row.key: row for row in old}
    for row in new:
        before = found.get(row.key)
        if before is not None:
            row = replace(row, without=_kept(before.without, row.without),
                          with_=_kept(before.with_, row.with_))
        found[row.key] = row
    order = list(PAPERS)
    return sorted(found.values(), key=lambda row: order.index(row.paper))


def _kept(old: Value, new: Value) -> Value:
    if new.measured is None and new.predicted is not None and new.predicted == old.predicted:
        return old
    return new


def dump(rows: Iterable[Row]) -> bytes:
    """As JSON."""
    return json.dumps({"rows": [asdict(row) for row in rows]}, indent=1).encode() + b"\n"


def load(path: str | Path) -> list[Row]:
    """Rows of a file; none if there is no file.

    Raises
    ------
    UserError
        It is not what :func:`dump` makes.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        return [Row(**{**row, "without": Value(**row["without"]), "with_": Value(**row["with_"])})
                for row in json.loads(path.read_bytes())["rows"] if row["paper"] in PAPERS]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no file of `meadowlark ablate` ({brief(error)}); give another "
                        "name to --json") from error


# ---- For people

def number(value: float | None, digits: int = 4) -> str:
    """Whole numbers with commas, others with some digits; "" of None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.{digits}g}"


def _cells(row: Row) -> list[str]:
    values = [row.without.predicted, row.with_.predicted, row.without.measured, row.with_.measured]
    if row.worth is None:
        worth = ""
    else:
        worth = f"{row.worth:.3f} x" if abs(row.worth - 1) >= 0.0005 else f"{row.worth:.5f} x"
    return [row.mechanism, row.on, row.unit, *map(number, values), worth, row.published,
            ", ".join(f"`{part}`" for part in row.command.split(" && "))]


_HEAD = ("mechanism", "on", "unit", "without, predicted", "with, predicted", "without, measured",
         "with, measured", "worth", "paper", "command")
_ABOUT = """\
<!-- Written by scripts/gen_docs.py and `meadowlark ablate`; run `make docs`. -->

# The papers, measured

Each mechanism of the five papers beside its own baseline, on this machine.

- *Predicted* is by the cycle model (`host/meadowlark/compile/cycles.py`), or by arithmetic that a
  remark names. *Measured* is by the counters of the simulated chip's RTL, or on a text.
- Less is better in every unit. *Worth* is baseline over mechanism: above 1 it pays. It is of what
  is measured where both sides are, else of what is predicted. *Paper* is the paper's own ratio.
- **An empty cell was not measured.** What that would take stands below the table.

`meadowlark ablate` makes the numbers, `docs/papers.json`, of which this page is made.
"""


def markdown(rows: Iterable[Row], pictures: str = "") -> str:
    """A page. pictures: the folder of those that ``--plots`` draws, from the page; "": without."""
    rows, out = list(rows), [_ABOUT]
    for paper, (title, arxiv) in PAPERS.items():
        mine = [row for row in rows if row.paper == paper]
        if not mine:
            continue
        out.append(f"## {title}\n[{arxiv}](https://arxiv.org/abs/{arxiv}).\n")
        if pictures and any(row.worth is not None for row in mine):
            out.append(f"![{title}: what its mechanisms are worth]"
                       f"({pictures}/papers-{paper}.svg)\n")
        shown = [row for row in mine if row.unit]
        if shown:
            lines = [_HEAD, ["---"] * len(_HEAD), *map(_cells, shown)]
            out.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
        notes: dict[str, str] = {}      # each sentence once
        for row in mine:
            if row.remark:
                notes.setdefault(f"{row.mechanism}: {row.remark}", "")
            if row.needs:
                notes.setdefault(f"{row.mechanism}: not measured: needs {row.needs}", "")
        if notes:
            out.append("\n".join(f"- {note}." for note in notes) + "\n")
    return "\n".join(out)
