"""What the page shows of the chip: where the cycles of a token go, by the cycle model."""
from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..api.model import LoadedModel


def of_a_token(model: LoadedModel, board: Board) -> dict:
    """A token in the middle of the context: tokens a second, the share of the memory's bandwidth,
    and its cycles by layer and by operator."""
    found = model.predict(board=board, prompt=1, generate=1,
                          position=model.compile(board).context // 2)
    by = found.prediction
    return {"tokens_per_s": found.clock_mhz * 1e6 / by.cycles, "cycles": by.cycles,
            "memory": by.memory_utilisation, "bound": found.whole.bound,
            "layers": [asdict(part) for part in found.layers],
            "operators": [asdict(part) for part in found.operators]}
