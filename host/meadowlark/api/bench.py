"""Prefill and decode of a chip, measured by its own counters."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import UserError
from ..run import bench, bench_drafts
from ..run.targets import SIMULATED, unfillable
from .forecast import forecast_of
from .predicted import Predicted, predicted

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..run.bench import Measured, Test
    from ..run.prepare import Source
    from ..run.targets import Target


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was measured.

    results: by the name of a test. images: what they ran on, by what stands behind the names: the
    model's with "", and with " raw" that of weights as they are. tests: but for those of texts.
    """
    board: Board
    images: Mapping[str, Image]
    tests: Sequence[Test]
    results: dict[str, Measured]

    def as_dict(self) -> dict:
        """For JSON. speedup: of the tests that have a twin, raw or without drafts, by cycles."""
        return bench.as_json(self.results, self.images[""], self.board)

    def table(self, form: str = "md") -> str:
        """"md" (the columns of llama-bench, then ours), "csv" or "json"."""
        return bench.as_table(self.results, self.images[""], self.board, form=form)

    @property
    def predicted(self) -> dict[str, Predicted]:
        """What the cycle model says of each of :attr:`tests`, beside what was counted."""
        return {test.name + suffix: predicted(forecast_of(
            image, self.board, prompt=len(test.prompt), generate=test.generate,
            position=len(test.filled)), self.results[test.name + suffix].cycles)
            for suffix, image in self.images.items() for test in self.tests}


def check_measures(target: str, positions: Sequence[int] = ()) -> None:
    """Raise a :class:`UserError` unless a target counts cycles, and can begin at positions."""
    if target == "golden":
        raise UserError("the golden model has no clock to measure; use --target sim or the port "
                        "of a board")
    if any(positions) and target not in SIMULATED:
        raise unfillable(target)


def measure(target: Target, source: Source, *, load: Callable[[], None],
            recorded: Callable[[str, Image], AbstractContextManager[None]],
            prompts: Sequence[int], generates: Sequence[int], positions: Sequence[int],
            batches: Sequence[int], texts: Sequence[str] | None, against_raw: bool) -> Bench:
    """See :meth:`.Chip.bench`. load: makes the target ready for the source. recorded: of a run, by
    its name and what runs. Behind ``against_raw`` the target holds another image."""
    board = target.board
    check_measures(target.name)
    source.check_reads(images=False)
    image = source.image
    tests = bench.plan(image, prompts=prompts, generates=generates, batches=batches,
                       positions=positions)
    if texts is not None and not generates:
        raise UserError("texts are gone on with for numbers of tokens; give generates one above 0")
    begun = [] if texts is None else [(bench_drafts.prompts(source, texts, n), n)
                                      for n in generates]

    def counted(image: Image, suffix: str = "") -> dict[str, Measured]:
        def record(name: str) -> AbstractContextManager[None]:
            return recorded(name + suffix, image)
        found = bench.run(target, image, board, tests, progress=source.tell, record=record)
        return {name + suffix: measured for name, measured in found.items()}
    load()
    images, results = {"": image}, counted(image)
    for ids, n in begun:
        results |= bench_drafts.run(target, image, board, ids, n, progress=source.tell)
    if against_raw:
        raw = replace(source, packing="raw", bits=None, target_ppl=None, warn=None)
        target.load(raw)
        images[" raw"] = raw.image
        results |= counted(raw.image, " raw")
    return Bench(board=board, images=images, tests=tests, results=results)
