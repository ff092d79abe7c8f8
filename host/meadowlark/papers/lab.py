"""Where rows get their numbers: images, the cycle model, and the simulated chip."""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compile.cycles import Prediction, predict
from ..compile.image import Image
from ..errors import UserError
from ..models.fusion import layers_of
from ..run import bench
from ..run.prepare import Source
from ..run.targets import open_target
from .rows import Value

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..progress import Progress

#: Tests by name: tokens of the prompt, and those generated; behind them may be the position of the
#: first, by default 0.
PREFILL, DECODE = (64, 1), (1, 4)


@dataclass(kw_only=True)
class Lab:
    """What rows are made with.

    model: by path or name. drop_attention: layers of it without attention, for :mod:`.ffn_fusion`,
    two at least. text: lines to predict, or None: the packaged ones. measure: run the simulated
    chip and texts, not only the cycle model. progress: as everywhere.
    """
    model: str = "stories"
    drop_attention: str = "3-4"
    text: Sequence[str] | None = None
    measure: bool = False
    progress: Progress | None = None
    _images: dict[tuple, Source] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(layers_of(self.drop_attention)) < 2:
            raise UserError("--drop-attention names fewer than two layers, and so there is nothing "
                            "to fuse; give some such as 3-4")

    @property
    def name(self) -> str:
        """Of the model, without folders."""
        return Path(self.model).name

    def source(self, board: Board, **options: Any) -> Source:
        """The model for a board; options: of :class:`meadowlark.run.prepare.Source`."""
        key = board.name, board.config, board.memory, *sorted(options.items())
        if key not in self._images:
            self._images[key] = Source(self.model, board, draft="none", progress=self.progress,
                                       **options)
        return self._images[key]

    def predict(self, image: Image, board: Board, test: tuple[int, ...],
                blocks: int | None = None) -> Prediction:
        """A test by the cycle model."""
        return predict(image, board, prompt=test[0], generate=test[1], start_pos=sum(test[2:]),
                       blocks=blocks)

    def cycles(self, image: Image, board: Board, test: tuple[int, ...], *,
               text: Sequence[int] | None = None, blocks: int | None = None) -> Value:
        """Cycles of a test, a token where it is one of decode; counted if that is asked for. text:
        ids from position 0 on, where cycles depend on them. blocks: of a prompt's passes."""
        tokens = test[1]
        predicted = self.predict(image, board, test, blocks).cycles / tokens
        counted = self._counted(image, board, test, text, blocks) / tokens \
            if self.measure else None
        return Value(predicted=predicted, measured=counted)

    def cells(self, board: Board) -> dict[str, int]:
        """Cells of the board's chip by kind, after synthesis: minutes; {} unless that is asked
        for.

        Raises
        ------
        UserError
            The tools are not installed.
        """
        if not self.measure:
            return {}
        from ..chip.build import synthesise
        progress = self.progress
        with tempfile.TemporaryDirectory() as folder:
            return synthesise(board, Path(folder), None if progress is None
                              else lambda line: progress(line, 0, 0))

    def _counted(self, image: Image, board: Board, test: tuple[int, ...],
                 text: Sequence[int] | None, blocks: int | None) -> int:
        """Cycles by the chip's own counter."""
        at = sum(test[2:])
        ids = tuple(range(2, 2 + at + test[0]) if text is None else text[:at + test[0]])
        with tempfile.TemporaryDirectory() as folder, closing(
                open_target("sim", board, progress=self.progress)) as target:
            path = Path(folder) / "image.mlk"
            image.save(path)
            target.load(Source(str(path), board))
            target.blocks = blocks
            plan = bench.Test(name="ablate", filled=ids[:at], prompt=ids[at:], generate=test[1])
            return bench.run(target, image, board, [plan], progress=self.progress)["ablate"].cycles


def at_bandwidth(board: Board, bytes_per_cycle: float) -> Board:
    """The same board with another memory bus; times between commands stay."""
    return replace(board, memory=replace(
        board.memory, bytes_per_s=bytes_per_cycle * board.clock_mhz * 1e6))
