"""The package from which Vivado makes a board's bitstream: Verilog, Tcl, constraints, driver."""
from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meadowlark_boards import ZynqChip

from ..errors import UserError
from ..files import DATA, temporary_folder

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: What turns a package into a bitstream, in its folder.
COMMAND = "vivado -mode batch -source build.tcl"
#: Module of the Verilog, and cell of the block design.
TOP = "meadowlark"
TEMPLATES = DATA / "vivado"
#: Python packages that a board's processor needs; without their data, which are models.
PACKAGES = ("meadowlark", "meadowlark_hdl", "meadowlark_boards")


@dataclass(frozen=True)
class Package:
    """What :func:`package` wrote. directory: of it. files: in it, the driver's apart."""
    directory: Path
    files: tuple[str, ...]


def _zynq(board: Board) -> ZynqChip:
    assert isinstance(board.chip, ZynqChip)
    return board.chip


def _filled(text: str, board: Board) -> str:
    """A template with the board's values for its ``@NAME@``."""
    chip = _zynq(board)
    values = {"BOARD": board.name, "PART": chip.part, "BOARD_PART": chip.board_part,
              "CLOCK_MHZ": f"{board.clock_mhz:g}", "BUS_BITS": str(8 * board.config.bus_bytes),
              "WINDOW": f"{chip.window:#x}", "WINDOW_AT": f"{chip.window:x}",
              "MEMORY": f"{board.memory.size_bytes:#x}",
              "MEMORY_MIB": str(board.memory.size_bytes >> 20)}
    return re.sub("@([A-Z_]+)@", lambda found: values[found[1]], text)


def package(board: Board, directory: Path, *,
            progress: Callable[[str], None] | None = None) -> Package:
    """Write a board's package: made beside ``directory``, then put in its place.

    Parameters
    ----------
    board : Board
        One with a Zynq.
    directory : Path
        An earlier package there is replaced.
    progress : callable, optional
        Told the steps.

    Raises
    ------
    UserError
        There are other files in ``directory``, such as Vivado's results; or it cannot be written.
    """
    from amaranth.back import verilog
    chip = _zynq(board)
    tell = progress or (lambda line: None)
    templates = {path.name: path.read_text() for path in sorted(TEMPLATES.iterdir())}
    files = (f"{TOP}.v", *templates)
    try:
        if directory.exists():
            others = sorted({path.name for path in directory.iterdir()} - {*files, "python"})
            if others:
                raise UserError(f"{directory} holds other files ({', '.join(others[:3])}); move "
                                "them away, or give another folder with -o")
        directory.parent.mkdir(parents=True, exist_ok=True)
        place = directory.resolve()     # a link stays one
        with temporary_folder(place.parent, f".{place.name}.") as beside:
            new = beside / "new"
            new.mkdir()
            tell("elaborating the chip and writing its Verilog")
            (new / files[0]).write_text(verilog.convert(
                chip.top(board), name=TOP, platform=board.technology, emit_src=False))
            tell("writing Tcl, constraints and the driver")
            for name, text in templates.items():
                (new / name).write_text(_filled(text, board))
            for name in PACKAGES:
                shutil.copytree(_source_of(name), new / "python" / name,
                                ignore=shutil.ignore_patterns("__pycache__", "data"))
            if place.exists():
                place.rename(beside / "old")
            new.rename(place)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror or error}") from error
    return Package(directory, files)


def _source_of(name: str) -> Path:
    import importlib
    return Path(str(importlib.import_module(name).__file__)).parent


def summary(board: Board, written: Package) -> dict[str, Any]:
    """What ``meadowlark build --json`` prints."""
    return {"board": board.name, "part": _zynq(board).part, "wanted_mhz": board.clock_mhz,
            "package": str(written.directory), "files": [*written.files, "python"],
            "bitstream": None, "next": COMMAND}
