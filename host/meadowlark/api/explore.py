"""Sweeps of the design space: models, boards, sizes of the core and bandwidths, by the cycle model.

Shapes are enough, so a point takes a fifth of a second or so. Every point is a line of a CSV file
as soon as it is known; a sweep that was ended goes on behind the last whole line.
"""
from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.weights.modes import Packing

from ..compile import limits
from ..compile.forecast import forecast
from ..compile.sketch import sketch
from ..errors import UserError
from ..quant.shapes import Shapes

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..models.checkpoint import Model
    from ..progress import Progress

#: Columns behind those of a point's place.
RESULTS = ("multipliers", "bandwidth", "prefill_tokens_per_s", "decode_tokens_per_s", "cycles",
           "memory_bytes", "why_not")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is swept: all combinations.

    models: outlines. boards. sizes: fields of Config and their values. mbytes: of the memory a
    second, in MB/s; none: the board's own. prompt, generate: tokens of the test. bits: of a weight
    where the core reads entropy-coded ones.
    """
    models: Sequence[Model]
    boards: Sequence[Board]
    sizes: Mapping[str, Sequence[int]]
    mbytes: Sequence[float] = ()
    prompt: int = 128
    generate: int = 32
    bits: float = 8.0

    @property
    def columns(self) -> list[str]:
        """Of the file."""
        return ["model", "board", *self.sizes, "mbytes_per_s", "bits", "prompt", "generate",
                *RESULTS]

    def __len__(self) -> int:
        count = len(self.models) * len(self.boards) * (len(self.mbytes) or 1)
        for values in self.sizes.values():
            count *= len(values)
        return count

    def __iter__(self) -> Iterator[Point]:
        """Bandwidths are innermost: they change no program."""
        for model, board in product(self.models, self.boards):
            for values in product(*self.sizes.values()):
                sizes = dict(zip(self.sizes, values, strict=True))
                for mbytes in self.mbytes or (board.bandwidth / 1e6,):
                    place: dict[str, object] = {
                        "model": model.name, "board": board.name, **sizes,
                        "mbytes_per_s": f"{mbytes:g}", "bits": f"{self.bits:g}",
                        "prompt": self.prompt, "generate": self.generate}
                    yield Point({k: str(v) for k, v in place.items()}, model, board, sizes, mbytes)


def outlines(names: Sequence[str], progress: Progress | None = None) -> list[Model]:
    """Models by name or path, without their weights.

    Raises
    ------
    UserError
        There is no such model.
    """
    from ..models.registry import load_model
    return [load_model(name, outline=True, progress=progress) for name in names]


class Point(NamedTuple):
    """place: as it stands in the file."""
    place: dict[str, str]
    model: Model
    board: Board
    sizes: dict[str, int]
    mbytes: float


def check_sizes(names: Sequence[str]) -> None:
    """Raise :class:`UserError` unless all are fields of Config."""
    known = [f.name for f in fields(Config)]
    for name in names:
        if name not in known:
            raise UserError(f"a core has no size {name!r}; give one of {', '.join(known)}")


class _Sketches:
    """The latest program: bandwidths do not change it."""

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.image: Image | None = None

    def of(self, model: Model, board: Board, bits: float) -> Image:
        key = model.name, board.name, board.config, bits
        if self.image is None or self.key != key:
            self.key, self.image = key, sketch(model, board, bits=bits)
        return self.image


def results(space: Space, at: Point, sketches: _Sketches) -> dict[str, str]:
    """Of a point, by the names of :data:`RESULTS`; why_not: it does not fit, and by how much."""
    model, board = at.model, at.board
    found: dict[str, str] = {"bandwidth": f"{at.mbytes * 1e6:g}"}
    try:
        # The baseline of a paper is no part of a core that somebody looks for, unless asked for.
        config = board.config.replace(**{"gemm": False} | at.sizes)
    except ValueError as error:
        return found | {"why_not": f"no core: {error}"}
    board = replace(board, config=config, memory=replace(
        board.memory, bytes_per_s=at.mbytes * 1e6))
    found["multipliers"] = str(config.W * config.P)
    bits = space.bits if config.packing & Packing.ENTROPY else 8.0
    reasons = limits.fits(Shapes.of_model(model), board, bits=bits)
    if reasons:
        return found | {"why_not": "; ".join(map(str, reasons))}
    image = sketches.of(model, board, bits)
    tokens = space.prompt + space.generate - 1
    if tokens > image.context:
        return found | {"why_not": f"the test takes {tokens:,} tokens, at most {image.context:,}"}
    one = forecast(image, board, prompt=space.prompt, generate=space.generate)
    hertz = board.clock_mhz * 1e6
    found |= {"cycles": str(one.cycles), "memory_bytes": str(image.needs["memory_bytes"]),
              "prefill_tokens_per_s": f"{space.prompt * hertz / one.prefill_cycles:.6g}"}
    if space.generate > 1:
        found["decode_tokens_per_s"] = f"{(space.generate - 1) * hertz / one.decode_cycles:.6g}"
    return found


#: The space of a worker process, and its points.
_work: tuple[Space, list[Point]]


def _begin(space: Space) -> None:
    """A worker process: Ctrl-C is for the one that asked."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work = space, list(space)


def _some(numbers: Sequence[int]) -> list[dict[str, str]]:
    """Lines of points of one program, by their numbers."""
    return [*_each(*_work, numbers)]


def _each(space: Space, points: Sequence[Point], numbers: Sequence[int],
          ) -> Iterator[dict[str, str]]:
    sketches = _Sketches()
    for k in numbers:
        yield points[k].place | results(space, points[k], sketches)


def _lines(space: Space, groups: Sequence[Sequence[int]], jobs: int,
           ) -> Generator[dict[str, str], None, None]:
    """The lines of these points, one after the other, of so many processes."""
    if jobs == 1:
        points = list(space)
        for group in groups:
            yield from _each(space, points, group)
        return
    # A new interpreter each: a copy of this one may hold locks of threads that it does not have.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (space,))
    try:
        for lines in pool.map(_some, groups):
            yield from lines
    finally:
        pool.shutdown(cancel_futures=True)


def sweep(space: Space, path: str | Path,
          progress: Progress | None = None, jobs: int = 1,
          ) -> list[dict[str, str]]:
    """All points, in the order of the space; those that the file has are not computed again.

    jobs: processes. What all were at work on is lost when a sweep is ended: a program each, with
    its bandwidths.

    Raises
    ------
    UserError
        The file is of another sweep.
    """
    known, columns = _known(space, path), space.columns
    places = columns[:-len(RESULTS)]
    keys = [tuple(at.place[name] for name in places) for at in space]
    new = [k for k, key in enumerate(keys) if key not in known]
    each = len(space.mbytes) or 1           # points of a program
    groups = [list(group) for _, group in groupby(new, key=lambda k: k // each)]
    with open(path, "a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if not file.tell():
            table.writeheader()
        with closing(_lines(space, groups, jobs)) as lines:
            for done in range(len(new)):
                if progress:
                    progress("predicting points", len(keys) - len(new) + done, len(keys))
                row = next(lines)
                table.writerow(row)
                file.flush()
                known[tuple(row[name] for name in places)] = row
    return [{name: known[key].get(name, "") for name in columns} for key in keys]


def _known(space: Space, path: str | Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Points that a file has; half a line at its end is taken off."""
    path = Path(path)
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[:raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    try:
        lines = whole.decode().splitlines()
    except UnicodeDecodeError:
        lines = ["\0"]
    if lines and next(csv.reader(lines[:1])) != space.columns:
        raise UserError(f"{path} has other columns than this sweep; give another name to -o")
    places = space.columns[:-len(RESULTS)]
    return {tuple(row[name] for name in places): row for row in csv.DictReader(lines)}


def pareto(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Of each model, the points that no other one beats: as quick in decode and prefill or quicker,
    with as few multipliers and as little bandwidth or less. Quickest in decode first."""
    able = [row for row in rows if row["decode_tokens_per_s"]]

    def cost(row: Mapping[str, str]) -> tuple[float, float, float, float]:
        return (-float(row["decode_tokens_per_s"]), -float(row["prefill_tokens_per_s"]),
                float(row["multipliers"]), float(row["bandwidth"]))

    best: list[Mapping[str, str]] = []
    for _, same in groupby(sorted(able, key=lambda row: (row["model"], cost(row))),
                           key=lambda row: row["model"]):
        # What beats a point comes before it, and what beats that one as well beats both.
        front = np.empty((0, 4))
        for row in same:
            mine = np.array(cost(row))
            as_good = (front <= mine).all(axis=1)
            if not (as_good & (front < mine).any(axis=1)).any():
                front = np.vstack([front, mine])
                best.append(row)
    return best
