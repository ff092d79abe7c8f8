"""One file per board: its core's Config, memory, clock and link. Data, no logic."""
from .board import Board, Ddr3Info, LinkInfo, MemoryTiming, SdramInfo, ZynqInfo
from .ecpix5_85f import BOARD as ECPIX5_85F
from .kv260 import BOARD as KV260
from .ulx3s_25f import BOARD as ULX3S_25F
from .ulx3s_45f import BOARD as ULX3S_45F
from .ulx3s_85f import BOARD as ULX3S_85F
from .virtual import BOARD as VIRTUAL
from .zcu102 import BOARD as ZCU102

__all__ = ["BOARDS", "Board", "Ddr3Info", "LinkInfo", "MemoryTiming", "SdramInfo",
           "ZynqInfo", "get_board"]

#: Name -> board, in the order they are listed to people; the first is the default.
BOARDS = {board.name: board for board in (VIRTUAL, ULX3S_85F, ULX3S_45F, ULX3S_25F, ECPIX5_85F,
                                          KV260, ZCU102)}


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
