"""``meadowlark build`` and ``flash``."""
from __future__ import annotations

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import board_option, given, html_option, json_option
from .status import DIFFERENT
from .terminal import Progress, listing, say, show, write_json

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
    from ..api import bitstream
    from ..api.model import board_named
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    which = board_named(board)
    check_outputs(json_to, html_to)
    folder = output
    with Progress() as progress:
        if model is not None:
            from ..api import load
            which, folder = bitstream.special(load(model, progress=progress, warn=say), board,
                                             output)
        if bitstream.is_vendors(which):
            for option, there in (("seeds", given("seeds")), ("html", html_to is not None),
                                  ("clock", clock is not None)):
                if there:
                    raise UserError(f"--{option} is for nextpnr, and board {board} is Vivado's; "
                                    "leave it out")
        built = bitstream.build(which, folder, clock=clock, seeds=seeds, progress=progress)
    result = dict(built.facts)
    write_json(result, json_to)
    if html_to is not None:
        from ..report.chip import report
        write_atomic(html_to, report(result, built.sites).encode())
    if json_to != "-":
        show(listing({name: fact for name, fact in result.items() if fact is not None}))
    if built.made_by:
        say(f"this is no bitstream yet: `{built.made_by}` in {built.folder} makes it. No vendor "
            f"tool has run on this package, so neither its Tcl nor {which.clock_mhz:g} MHz is "
            "confirmed")
    elif not built.meets_timing:
        say(f"timing is missed: the core's clock reaches {result['fmax_mhz']} of "
             f"{result['clock_mhz']:g} MHz, and `clocks` has all. The bitstream is there, but may "
             "fail on the board; try --seeds, --clock, or a smaller Config")
        return DIFFERENT
    return 0


@click.command()
@click.argument("bitstream", required=False)
@board_option("ulx3s_85f", "Board to load.")
def flash(bitstream: str | None, board: str) -> int:
    """Load a bitstream into a board.

    By default BITSTREAM is the one that `build` made, build/BOARD/BOARD.bit.
    """
    from ..api.bitstream import flash as load
    load(board, bitstream)
    return 0
