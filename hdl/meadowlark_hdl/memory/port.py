"""The two halves of a MemoryPort, for blocks that only read or only write."""
from amaranth.lib.wiring import Signature

from ..config import Config
from ..signatures import MemoryPort


def ReadPort(config: Config) -> Signature:
    """r_cmd, r_data of a :class:`~meadowlark_hdl.signatures.MemoryPort`, seen by the core."""
    members = MemoryPort(config).members
    return Signature({name: members[name] for name in ("r_cmd", "r_data")})


def WritePort(config: Config) -> Signature:
    """w_cmd, w_data, w_done of a :class:`~meadowlark_hdl.signatures.MemoryPort`."""
    members = MemoryPort(config).members
    return Signature({name: members[name] for name in ("w_cmd", "w_data", "w_done")})
