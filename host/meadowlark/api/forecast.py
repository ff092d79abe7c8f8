"""How long a board would take, without running it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.cycles import Prediction
    from ..compile.image import Image
    from ..compile.parts import Part


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the cycle model says of a prompt and what is generated behind it, without running it.

    model: its name. prompt, generate: tokens. position: of the first one. board, clock_mhz: its
    name, and its core's clock. prediction: cycles, bytes and products of all of it, and by
    instruction. subjects: what each instruction works on.
    """
    model: str
    prompt: int
    generate: int
    position: int
    board: str
    clock_mhz: float
    prediction: Prediction = field(repr=False)
    subjects: Sequence[str] = field(repr=False)

    @property
    def whole(self) -> Part:
        """All of it, and what bounds it: see :class:`meadowlark.compile.parts.Part`."""
        from ..compile.parts import whole
        return whole(self.prediction)

    @property
    def operators(self) -> list[Part]:
        """By operator, most cycles first."""
        from ..compile.parts import operators
        return operators(self.prediction)

    @property
    def layers(self) -> list[Part]:
        """By layer, in the order of the program."""
        from ..compile.parts import layers
        return layers(self.prediction, self.subjects)

    @property
    def first_token_s(self) -> float:
        """From the start to the first token, in seconds."""
        return self.prediction.prefill_cycles / self.clock_mhz / 1e6

    @property
    def prompt_tokens_per_s(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt / self.first_token_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, behind the first one; 0 where there are none."""
        passes = max(self.generate - 1, 0)
        return passes * self.clock_mhz * 1e6 / self.prediction.decode_cycles if passes else 0.0


def forecast_of(image: Image, board: Board, *, prompt: int, generate: int, position: int = 0,
                exact: bool = False) -> Forecast:
    """What the cycle model says of an image on a board; see :meth:`.LoadedModel.predict`."""
    from ..compile.cycles import predict
    from ..compile.disassemble import subjects
    from ..compile.forecast import forecast
    found = (predict if exact else forecast)(image, board, prompt=prompt, generate=generate,
                                             start_pos=position)
    return Forecast(model=image.name, prompt=prompt, generate=generate, position=position,
                    board=board.name, clock_mhz=board.clock_mhz, prediction=found,
                    subjects=subjects(image))
