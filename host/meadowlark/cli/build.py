"""``meadowlark build`` and ``flash``."""
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import board_named, board_option, given, html_option, json_option
from .status import DIFFERENT
from .terminal import Progress, listing, say, show, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board

@click.command()
@board_option("ulx3s_85f", "Board to build for.")
@click.option("--seeds", default=3, show_default=True, metavar="N",
              help="Placements to try until one routes and meets timing; the fastest is kept.")
@click.option("--clock", metavar="MHZ",
              help="The core's clock: a number, or `recorded` for the one that the board's figures "
                   "are for. By default it becomes the fastest that the PLL makes and timing "
                   "allows, which may take several placements.")
@click.option("--for", "model", metavar="MODEL",
              help="Build a core that runs this model alone, and knows what never changes of it: "
                   "it is smaller and no slower. An image file, or whatever `compile` takes. The "
                   "folder then has a board file, which `--board` takes.")
@html_option
@click.option("-o", "--output", metavar="FOLDER",
              help="Folder for the bitstream and all it is made of. By default build/BOARD, with "
                   "--for build/BOARD-MODEL.")
@json_option
def build(board: str, seeds: int, clock: str | None, model: str | None, output: str | None,
          html_to: str | None, json_to: str | None) -> int:
    """Make a board's bitstream with Yosys and nextpnr.

    It ends with a report. For a board with a Zynq it writes the package from which Vivado makes the
    bitstream.
    """
    from meadowlark_hdl.tech.ultrascale import ULTRASCALE

    from ..chip import build as building
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    which = board_named(board)
    check_outputs(json_to, html_to)
    if model is not None:
        which, name = _special(which, board, model, output)
        output = output or name
    if which.technology is ULTRASCALE:
        if given("seeds"):
            raise UserError(f"--seeds is for nextpnr, and board {board} is Vivado's; leave it out")
        if html_to is not None:
            raise UserError(f"--html is for nextpnr, and board {board} is Vivado's; leave it out")
        if clock is not None:
            raise UserError(f"--clock is for nextpnr, and board {board} is Vivado's; leave it out")
        return _package(which, Path(output or f"build/{which.name}"), json_to)
    building.platform_of(which)
    folder = Path(output or f"build/{which.name}")
    if clock is not None and clock != "recorded":
        try:
            mhz = float(clock)
        except ValueError:
            raise UserError(f"--clock must be a number of MHz or `recorded`, not {clock!r}"
                            ) from None
        which = building.at_clock(which, mhz)
    with Progress() as progress:
        if clock is None:
            built, tried = building.build_fastest(which, folder, seeds=seeds, progress=progress)
        else:
            built, tried = building.build(which, folder, seeds=seeds, progress=progress), None
    result = building.summary(built, tried)
    write_json(result, json_to)
    if html_to is not None:
        from ..chip.floorplan import PLANNED, placed
        from ..report.chip import report
        write_atomic(html_to, report(result, placed(built.placement / PLANNED)).encode())
    if json_to != "-":
        show(listing(result))
    if not built.meets_timing:
        say(f"timing is missed: the core's clock reaches {result['fmax_mhz']} of "
             f"{result['clock_mhz']:g} MHz, and `clocks` has all. The bitstream is there, but may "
             "fail on the board; try --seeds, --clock, or a smaller Config")
        return DIFFERENT
    return 0


def _special(which: Board, board: str, model: str, output: str | None) -> tuple[Board, str]:
    """The board with a core for a model, and its folder, into which its file is written."""
    from ..compile.special import board_file, special
    from ..run.prepare import Source
    with Progress() as progress:
        image = Source(model, which, progress=progress, warn=say).image
        found = special(which, image)
    folder = output or f"build/{which.name}-" + re.sub(r"[^\w.-]+", "-", image.name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    if board.endswith(".py"):
        board = str(Path(board).resolve())
    write_atomic(Path(folder) / f"{which.name}.py", board_file(found, board).encode())
    return found, folder


def _package(board: Board, directory: Path, json_to: str | None) -> int:
    """`build` where the bitstream is left to the vendor's tool."""
    from ..chip import vivado
    with Progress() as progress:
        written = vivado.package(board, directory, progress=progress)
    result = vivado.summary(board, written)
    write_json(result, json_to)
    if json_to != "-":
        show(listing({name: fact for name, fact in result.items() if fact is not None}))
    say(f"this is no bitstream yet: `{vivado.COMMAND}` in {directory} makes it. No vendor tool "
         f"has run on this package, so neither its Tcl nor {board.clock_mhz:g} MHz is confirmed")
    return 0


@click.command()
@click.argument("bitstream", required=False)
@board_option("ulx3s_85f", "Board to load.")
def flash(bitstream: str | None, board: str) -> int:
    """Load a bitstream into a board.

    By default BITSTREAM is the one that `build` made, build/BOARD/BOARD.bit.
    """
    from ..chip import build as building
    which = board_named(board)
    building.platform_of(which)
    building.flash(which, Path(bitstream or f"build/{which.name}/{which.name}.bit"))
    return 0
