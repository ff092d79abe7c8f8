#!/usr/bin/env python3
"""Synthesise the chips of boards and compare their size with the recorded one.

`make resources` fails if a kind of cell has grown by more than 3 % over `boards/resources.json`;
`make resources ARGS=--write` records what is. Sizes are those after synthesis, whole chip, pins
included: minutes per board. With --built they are taken from the report of `meadowlark build`.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from meadowlark.chip.build import synthesise
from meadowlark.chip.ecp5 import SIZES
from meadowlark.errors import UserError
from meadowlark.files import write_atomic
from meadowlark_boards import BOARDS, get_board

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "boards" / "resources.json"

#: Growth that needs no new record, and of a kind of which there is hardly any, cells.
ALLOWED, FEW = 0.03, 8


def built(name: str) -> dict[str, int]:
    """Cells of the chip that `meadowlark build` left in its usual folder."""
    report = ROOT / "build" / name / "report.json"
    try:
        found = json.loads(report.read_text())["cells"]
        return {cell: found.get(cell, 0) for cell in SIZES}
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"there is no report of a build in {report.relative_to(ROOT)}: "
                        f"`meadowlark build --board {name}`") from None


def measure(name: str) -> dict[str, int]:
    """Cells of a board's chip by kind."""
    found = synthesise(get_board(name), ROOT / "build" / "resources" / name)
    return {cell: found.get(cell, 0) for cell in SIZES}


def grown(old: dict[str, int], new: dict[str, int]) -> list[str]:
    """A line for each kind of cell that has grown by more than is allowed."""
    return [f"{cell}: {old.get(cell, 0)} -> {new[cell]}" for cell in SIZES
            if new[cell] > old.get(cell, 0) + max(FEW, ALLOWED * old.get(cell, 0))]


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--board", "names", multiple=True, metavar="BOARD",
              help="Only this one (repeat for more); all that are recorded by default.")
@click.option("--write", is_flag=True, help="Record what is found.")
@click.option("--built", "from_build", is_flag=True,
              help="What `meadowlark build` reported, instead of another synthesis.")
def main(names: tuple[str, ...], write: bool, from_build: bool) -> None:
    record: dict[str, dict[str, int]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known = [board.name for board in BOARDS.values() if board.chip.platform]
    bad = False
    try:
        for name in names or list(record) or known:
            if name not in known:
                raise UserError(f"{name!r} has no bitstream; there are: {', '.join(known)}")
            if not write and name not in record:
                raise UserError(f"the size of {name} is not recorded: "
                                f"`make resources ARGS=\"--write --board {name}\"`")
            found = built(name) if from_build else measure(name)
            print(name, *(f"{cell} {count}" for cell, count in found.items()), flush=True)
            if write:
                record[name] = found
                write_atomic(RECORD, f"{json.dumps(record, indent=1)}\n".encode())
            for line in grown(record[name], found):
                bad = True
                print(f"{name}: grown by more than {ALLOWED:.0%}: {line}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if bad:
        print(f"if that is meant, record it: `make resources ARGS=--write` and commit "
              f"{RECORD.relative_to(ROOT)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
