"""Where rows get their numbers: images, the cycle model, and the simulated chip."""
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meadowlark_hdl.sampler.sampler_golden import Sampling

from ..compile.cycles import Prediction, predict
from ..compile.image import Image
from ..errors import UserError
from ..models.fusion import layers_of
from ..run import bench
from ..run.prepare import Source
from ..run.targets import Target, open_target
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

    def predict(self, image: Image, board: Board, test: tuple[int, ...]) -> Prediction:
        """A test by the cycle model."""
        return predict(image, board, prompt=test[0], generate=test[1], start_pos=sum(test[2:]))

    def cycles(self, image: Image, board: Board, test: tuple[int, ...], *,
               text: Sequence[int] | None = None) -> Value:
        """Cycles of a test, a token where it is one of decode; counted if that is asked for. text:
        ids from position 0 on, where cycles depend on them."""
        tokens = test[1]
        predicted = self.predict(image, board, test).cycles / tokens
        counted = self._counted(image, board, test, text) / tokens if self.measure else None
        return Value(predicted=predicted, measured=counted)

    def parts(self, image: Image, board: Board, sizes: Sequence[int]) -> Value:
        """Cycles of a prompt and its first token, cut into runs of so many tokens, each of them a
        pass."""
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        ends = [int(k == len(sizes) - 1) for k in range(len(sizes))]
        predicted = sum(predict(image, board, prompt=n, generate=end, start_pos=start).cycles
                        for n, end, start in zip(sizes, ends, starts, strict=True))
        if not self.measure:
            return Value(predicted=predicted)
        measured = 0
        with self._loaded(image, board) as target:
            for n, end, start in zip(sizes, ends, starts, strict=True):
                with closing(target.run(range(2 + start, 2 + start + n), Sampling(),
                                        start_pos=start, max_new=end, stop_ids=())) as events:
                    for _ in events:
                        pass
                measured += target.counters()["cycles"]
        return Value(predicted=predicted, measured=measured)

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
                 text: Sequence[int] | None) -> int:
        """Cycles by the chip's own counter."""
        at = sum(test[2:])
        ids = tuple(range(2, 2 + at + test[0]) if text is None else text[:at + test[0]])
        with self._loaded(image, board) as target:
            plan = bench.Test(name="ablate", filled=ids[:at], prompt=ids[at:], generate=test[1])
            return bench.run(target, image, board, [plan], progress=self.progress)["ablate"].cycles

    @contextmanager
    def _loaded(self, image: Image, board: Board) -> Iterator[Target]:
        """The simulated chip with an image."""
        with tempfile.TemporaryDirectory() as folder, closing(
                open_target("sim", board, progress=self.progress)) as target:
            path = Path(folder) / "image.mlk"
            image.save(path)
            target.load(Source(str(path), board))
            yield target


def at_bandwidth(board: Board, bytes_per_cycle: float) -> Board:
    """The same board with another memory bus; times between commands stay."""
    return replace(board, memory=replace(
        board.memory, bytes_per_s=bytes_per_cycle * board.clock_mhz * 1e6))
