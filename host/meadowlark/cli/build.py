"""``meadowlark build`` and ``flash``."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..files import check_outputs
from .options import board_named, board_option, given, json_option
from .status import DIFFERENT
from .terminal import Progress, listing, say, show, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board

@click.command()
@board_option("ulx3s_85f", "Board to build for.")
@click.option("--seeds", default=3, show_default=True, metavar="N",
              help="Placements to try until one routes and meets timing; the fastest is kept.")
@click.option("--clock", "clock_mhz", type=float, metavar="MHZ",
              help="Another clock than the board's, such as one that timing meets; the memory's "
                   "times in cycles follow.")
@click.option("-o", "--output", metavar="FOLDER",
              help="Folder for the bitstream and all it is made of. By default build/BOARD.")
@json_option
def build(board: str, seeds: int, clock_mhz: float | None, output: str | None,
          json_to: str | None) -> int:
    """Make a board's bitstream with Yosys and nextpnr.

    It ends with a report. For a board with a Zynq it writes the package from which Vivado makes the
    bitstream.
    """
    from ..chip import build as building
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    which = board_named(board)
    check_outputs(json_to)
    if which.zynq is not None:
        if given("seeds"):
            raise UserError(f"--seeds is for nextpnr, and board {board} is Vivado's; leave it out")
        if clock_mhz is not None:
            raise UserError(f"--clock is for nextpnr, and board {board} is Vivado's; leave it out")
        return _package(which, Path(output or f"build/{board}"), json_to)
    if clock_mhz is not None:
        if which.ddr3 is not None:
            raise UserError(f"the clock of board {board} is its memory's; leave --clock out")
        if not 10 <= clock_mhz <= 200:
            raise UserError(f"--clock must be 10..200 MHz, not {clock_mhz:g}")
        which = replace(which, clock_mhz=clock_mhz)
    with Progress() as progress:
        built = building.build(which, Path(output or f"build/{board}"), seeds=seeds,
                               progress=progress)
    result = building.summary(which, built)
    write_json(result, json_to)
    if json_to != "-":
        show(listing(result))
    if not built.meets_timing:
        say(f"timing is missed: {result['fmax_mhz']} of {which.clock_mhz:g} MHz. The bitstream is "
             "there, but may fail on the board; try --seeds, --clock, or a smaller Config")
        return DIFFERENT
    return 0


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
    building.flash(which, Path(bitstream or f"build/{board}/{board}.bit"))
    return 0
