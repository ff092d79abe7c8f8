"""Lane pairs: which query heads have several lanes in decode.

See "Lane pairs" in docs/architecture.md for what a core makes of them, and for the cycles.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meadowlark_hdl.config import Config

from ..errors import UserError
from ..quant.plan import Plan

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: A lane a head; ``Config.sv_cycles`` lanes for each head that attends at once wherever these are
#: enough; where that makes SV quicker.
LANES = ("direct", "pairs", "auto")


@dataclass(frozen=True)
class Pairs:
    """What a core's decode does.

    lanes: of :data:`LANES`. row_beats: of a row of values.
    """
    lanes: str
    config: Config
    row_beats: int

    def fits(self, heads: int) -> bool:
        """So many query heads that attend at once have several lanes each."""
        return self.lanes != "direct" and self.config.lane_pairs and \
            heads * self.config.sv_cycles <= self.config.P and \
            (self.lanes == "pairs" or self.quicker)

    @property
    def quicker(self) -> bool:
        """A key then takes fewer cycles of SV. Everything else takes as many, or drains fewer."""
        alone = self.row_beats * self.config.sv_cycles
        return max(self.row_beats, Config.ACC_TURN) < max(alone, Config.ACC_TURN)

    def fields(self, heads: int) -> dict[str, int]:
        """Of instructions for so many query heads at once, on lanes."""
        each = self.config.sv_cycles if self.fits(heads) else 1
        return dict(heads=1, lanes=heads * each) | (dict(add=1) if each > 1 else {})


def check_lanes(lanes: str, board: Board, plan: Plan) -> None:
    """Raise :class:`UserError` unless a model can have the lanes that are asked for.

    lanes: of :data:`LANES`.
    """
    config = board.config
    if lanes != "pairs":
        return
    if not config.lane_pairs:
        raise UserError(f"the core of the board {board.name} has a lane for each query head; leave "
                        "--lanes out, or take the board kv260")
    op = plan.attends[0].op
    heads = op.heads // op.kv_heads % config.P or config.P      # of the last that attend at once
    if heads * config.sv_cycles > config.P:
        raise UserError(f"a KV head with {op.heads // op.kv_heads} query heads leaves no lanes for "
                        f"pairs on the board {board.name}, which has {config.P}; leave --lanes out")
