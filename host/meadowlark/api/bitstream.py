"""Bitstreams of boards, and boards whose core runs one model alone."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import write_atomic
from .model import LoadedModel, board_named

if TYPE_CHECKING:
    from meadowlark_boards import Board


@dataclass(frozen=True, kw_only=True)
class Bitstream:
    """What was built for a board.

    folder: with all that it is made of. facts: as ``meadowlark build --json`` has them. made_by: ""
    or, where only the vendor's tool can, the command that makes the bitstream in the folder.
    meets_timing: every clock reaches what it is driven with, or None: nobody knows yet. placement:
    the folder of the placement it comes from, or None.
    """
    board: Board
    folder: Path
    facts: Mapping[str, Any]
    made_by: str = ""
    meets_timing: bool | None = None
    placement: Path | None = None

    @property
    def sites(self) -> Mapping[str, str]:
        """Where each cell stands on the chip; {} where that is not known."""
        from ..chip.floorplan import PLANNED, placed
        return {} if self.placement is None else placed(self.placement / PLANNED)


def is_vendors(board: Board) -> bool:
    """Only the vendor's tool makes a bitstream of the board."""
    from meadowlark_hdl.tech.ultrascale import ULTRASCALE
    return board.technology is ULTRASCALE


def build(board: str | Board = "ulx3s_85f", folder: str | Path | None = None, *,
          clock: float | str | None = None, seeds: int = 3,
          progress: Callable[[str], None] | None = None) -> Bitstream:
    """A board's bitstream, by Yosys and nextpnr: minutes. For a board with a Zynq, the package from
    which Vivado makes it.

    Parameters
    ----------
    board : str or Board
    folder : str or Path, optional
        Where it and all it is made of goes; by default build/BOARD.
    clock : float or "recorded", optional
        Of the core, in MHz, or the one that the board's figures are for. By default it becomes the
        fastest that the PLL makes and timing allows, which may take several placements.
    seeds : int, 1..
        Placements to try until one routes and meets timing.
    progress : callable, optional
        Gets what is being done.

    Raises
    ------
    UserError
        There is no such board, it is a simulation alone, its PLL makes no such clock, or a tool is
        missing or fails.
    """
    from ..chip import build as building
    from ..chip import vivado
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}")
    which = board_named(board)
    place = Path(folder or f"build/{which.name}")
    if is_vendors(which):
        written = vivado.package(which, place, progress=progress)
        return Bitstream(board=which, folder=place, facts=vivado.summary(which, written),
                         made_by=vivado.COMMAND)
    building.platform_of(which)
    tried = None
    if clock is None:
        built, tried = building.build_fastest(which, place, seeds=seeds, progress=progress)
    else:
        if clock != "recorded":
            try:
                mhz = float(clock)
            except ValueError:
                raise UserError(f"--clock must be a number of MHz or `recorded`, not {clock!r}"
                                ) from None
            which = building.at_clock(which, mhz)
        built = building.build(which, place, seeds=seeds, progress=progress)
    return Bitstream(board=built.board, folder=place, facts=building.summary(built, tried),
                     meets_timing=built.meets_timing, placement=built.placement)


def special(model: LoadedModel, board: str | Board, folder: str | Path | None = None,
            ) -> tuple[Board, Path]:
    """A board whose core runs a model alone: it is smaller, and no slower. Its file, which boards
    are named by, goes into a folder, by default build/BOARD-MODEL.

    Raises
    ------
    UserError
        The model does not fit the board.
    """
    import re

    from ..compile.special import board_file
    from ..compile.special import special as made
    which, image = model.image_for(board)
    found = made(which, image)
    place = Path(folder or f"build/{which.name}-" + re.sub(r"[^\w.-]+", "-", image.name))
    generic = board if isinstance(board, str) else board.name
    if generic.endswith(".py"):
        generic = str(Path(generic).resolve())
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / f"{which.name}.py", board_file(found, generic).encode())
    return found, place


def flash(board: str | Board, bitstream: str | Path | None = None) -> None:
    """Load a bitstream into a board, by default the one that :func:`build` made.

    Raises
    ------
    UserError
        openFPGALoader or the bitstream is missing, or it failed.
    """
    from ..chip import build as building
    which = board_named(board)
    building.platform_of(which)
    building.flash(which, Path(bitstream or f"build/{which.name}/{which.name}.bit"))
