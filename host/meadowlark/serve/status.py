"""What the page shows by the cycle model: where the cycles of a token go, and a pass."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..compile.course import course
from ..compile.disassemble import subjects
from ..compile.parts import layer_names

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..api.model import LoadedModel
    from ..compile.image import Image


def of_a_token(model: LoadedModel, board: Board) -> dict:
    """A token in the middle of the context: tokens a second, the share of the memory's bandwidth,
    and its cycles by layer and by operator."""
    found = model.predict(board=board, prompt=1, generate=1,
                          position=model.image_for(board)[1].context // 2)
    by = found.prediction
    return {"tokens_per_s": found.clock_mhz * 1e6 / by.cycles, "cycles": by.cycles,
            "memory": by.memory_utilisation, "bound": found.whole.bound,
            "layers": [asdict(part) for part in found.layers],
            "operators": [asdict(part) for part in found.operators]}


def of_a_pass(image: Image, board: Board, places: Sequence[tuple[int, int]]) -> dict:
    """The course of a pass, see :func:`meadowlark.compile.course.course`: its cycles, the sequences
    and the position of the first one, of each slice [begin, cycles, operator, layer, what takes
    most of it], and the use of memory's bus."""
    found, layers = course(image, board, places), layer_names(subjects(image))
    slices = []
    for one in found.slices:
        spent = one.spent
        kinds = {"work": spent.work, "memory": spent.memory, "drain": spent.drain,
                 "overhead": spent.overhead}
        slices.append([one.begin, spent.cycles, one.operator, layers[one.pc],
                       max(kinds, key=lambda kind: kinds[kind])])
    return {"cycles": found.cycles, "sequences": len(places), "position": places[0][1],
            "slices": slices, "bus": [round(share, 3) for share in found.bus]}
