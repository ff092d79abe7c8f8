"""One file per board: its core's Config, memory, clock, link and chip. Data; a board is found by
being here, under the name of its file."""
from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

from .board import Board, LinkInfo, MemoryTiming
from .chips import Chip, Ddr3Chip, SdramChip, ZynqChip

__all__ = ["BOARDS", "Board", "Chip", "Ddr3Chip", "LinkInfo", "MemoryTiming", "SdramChip",
           "ZynqChip", "get_board"]

#: The board where nobody asks for another.
DEFAULT = "virtual"


def _found() -> dict[str, Board]:
    """The boards in this folder: modules that define ``BOARD``."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}")
               for name in sorted(names, key=lambda name: (name != DEFAULT, name))}
    found = {name: module.BOARD for name, module in modules.items() if hasattr(module, "BOARD")}
    for name, board in found.items():
        assert board.name == name, f"{name}.py calls its board {board.name}"
    return found


#: Name -> board, in the order they are listed to people; the first is the default.
BOARDS = _found()


def get_board(name: str) -> Board:
    """Board by name, or from a file elsewhere: one that ends in ``.py`` and defines ``BOARD``. From
    then on that is one of :data:`BOARDS`, in place of another of its name.

    Raises
    ------
    ValueError
        No such board; the message lists those there are. Or the file describes none.
    """
    if name in BOARDS:
        return BOARDS[name]
    if name.endswith(".py"):
        board = BOARDS[Path(name).stem] = read_board(name)
        return board
    raise ValueError(f"no board named {name!r}; there are: {', '.join(BOARDS)}")


def read_board(name: str) -> Board:
    """The board that a file describes: one here by its name, or any that ends in ``.py``.

    Raises
    ------
    ValueError
        The file describes none.
    """
    if not name.endswith(".py"):
        return importlib.import_module(f"{__name__}.{name}").BOARD
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"meadowlark_board_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"board file {path}: {type(error).__name__}: {error}") from error
    board = getattr(module, "BOARD", None)
    if not isinstance(board, Board):
        raise ValueError(f"board file {path} defines no BOARD: see docs/add-a-board.md")
    if board.name != path.stem:
        raise ValueError(f"board file {path} calls its board {board.name!r}; both need one name")
    return board
