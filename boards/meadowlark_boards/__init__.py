"""One file a board: its core's Config, memory, clock and link. Data, no logic."""
from .board import Board, LinkInfo, MemoryTiming, SdramInfo
from .ecpix5_85f import BOARD as ECPIX5_85F
from .ulx3s_45f import BOARD as ULX3S_45F
from .ulx3s_85f import BOARD as ULX3S_85F
from .virtual import BOARD as VIRTUAL

__all__ = ["BOARDS", "Board", "LinkInfo", "MemoryTiming", "SdramInfo", "get_board"]

#: Name -> board, in the order they are listed to people; the first is the default.
BOARDS = {board.name: board for board in (VIRTUAL, ULX3S_85F, ULX3S_45F, ECPIX5_85F)}


def get_board(name: str) -> Board:
    """Board by name.

    Raises
    ------
    ValueError
        No such board; the message lists those there are.
    """
    try:
        return BOARDS[name]
    except KeyError:
        raise ValueError(f"no board named {name!r}; there are: {', '.join(BOARDS)}") from None
