"""The cycle model for people who wait: what repeats is taken once, or a few times.

Three things repeat. Layers: the instructions of one are those of the next but for addresses. Tiles:
a long matrix settles into a rhythm. Passes: one position later a pass takes a few cycles more. Of
each the first ones and the last ones are gone through by :class:`.cycles.Machine`, and of those
between, time and everything else that they spend is that of the latest ones before them, or, of
passes, lies on a line between two. :data:`ERROR` bounds the difference; a test holds it to that.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.control.sequencer_golden import Lots, Pass, decode_pass, prompt_passes
from meadowlark_hdl.isa import Instruction, Op

from .cycles import Machine, Prediction, Spent, check_test
from .passes import prompt_regs

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image

#: Share of the exact cycles that a forecast is off at most.
ERROR = 0.002
#: Layers that settle, and those that stand for the ones behind them.
LAYERS = 2, 2
#: Tiles of a matrix, likewise; those that stand for others come once memory's lead is steady.
TILES = 16, 32
#: Passes of a kind that are gone through: so many, and one more for so many passes.
PASSES, EACH = 3, 128
#: Fields of an instruction on which no cycle depends.
_FREE = {"addr", "x", "y", "mant", "shift"}


@dataclass(frozen=True)
class Period:
    """Instructions begin..begin+length-1 of a program, and count - 1 times more like them."""
    begin: int
    length: int
    count: int

    @property
    def last(self) -> int:
        """Where the last ones begin."""
        return self.begin + (self.count - 1) * self.length


def period(program: Sequence[Instruction], begin: int, end: int) -> Period | None:
    """What repeats in begin..end-1: the shortest that, as often as it stands there one behind the
    other, is half of it. None if nothing does so more often than :data:`LAYERS` are gone through.
    """
    known: dict[tuple, int] = {}
    ids = np.array([known.setdefault(tuple((k, v) for k, v in i.items() if k not in _FREE),
                                     len(known)) for i in program[begin:end]])
    least = sum(LAYERS) + 2
    for length in range(1, len(ids) // least + 1):
        alike = np.concatenate([[False], ids[:-length] == ids[length:], [False]])
        edges = np.flatnonzero(alike[1:] != alike[:-1]).reshape(-1, 2)
        if not len(edges):
            continue
        first, stop = max(edges.tolist(), key=lambda edge: edge[1] - edge[0])
        if 2 * (stop - first + length) < len(ids):
            continue
        # Not within an attention, whose instructions come several times.
        start = next((k for k in range(first, first + length)
                      if program[begin + k]["op"] == Op.NORM), None)
        if start is not None and (stop + length - start) // length >= least:
            return Period(begin + start, length, (stop + length - start) // length)
    return None


class _Fast(Machine):
    """Goes through layers and tiles that repeat a few times only."""

    @cached_property
    def _periods(self) -> dict[int, Period | None]:
        """By the first instruction of a list."""
        starts = sorted((self.regs["prefill_pc"], self.regs["decode_pc"]))
        return {begin: period(self.program, begin, end)
                for begin, end in zip(starts, [*starts[1:], len(self.program)])}

    def _walk(self, p: Pass, begin: int) -> Iterator[tuple[int, Lots | None]]:
        steps, found = super()._walk(p, begin), self._periods[begin]
        if found is None:
            yield from steps
            return
        first = found.begin + LAYERS[0] * found.length
        there = [first + k * found.length for k in range(LAYERS[1] + 1)]
        marks: list[tuple[int, int, int]] = []
        for pc, lots in steps:
            if len(marks) < len(there) and pc == there[len(marks)]:
                marks.append((self.now, self.memory.words, self.stream))
                if len(marks) == len(there):
                    self._skip_layers(found, there, marks)
                    pc, lots = next(step for step in steps if step[0] == found.last)
            yield pc, lots

    def _skip_layers(self, found: Period, there: list[int], marks: list[tuple[int, int, int]],
                     ) -> None:
        """From there[-1] to the last ones: those between are, in turn, as those at there."""
        for k, begin in enumerate(range(there[-1], found.last, found.length)):
            like = k % LAYERS[1]
            now, words, stream = (b - a for a, b in zip(marks[like], marks[like + 1]))
            self.shift(now, words)
            self.stream += stream
            for at in range(found.length):
                if (spent := self.by_pc.get(there[like] + at)) is not None:
                    self.by_pc.setdefault(begin + at, Spent()).add(spent)

    def _tiles(self, i: Instruction, spent: Spent) -> Iterator[int]:
        done, like = TILES
        yield from range(min(done, i["tiles"]))
        while i["tiles"] - 1 - done >= 2 * like:
            now, words, before = self.now, self.memory.words, Spent(**vars(spent))
            lead = self.memory.command - now
            yield from range(done, done + like)
            done, took = done + like, self.now - now
            # While the run-ahead FIFO fills or drains, this is another rhythm than the one behind.
            if abs(self.memory.command - self.now - lead) > ERROR / 2 * took:
                continue
            times = (i["tiles"] - 1 - done) // like
            words = times * (self.memory.words - words)
            self.stream += times * like * i["chunks"]
            for name, value in vars(before).items():
                setattr(spent, name, value + (times + 1) * (getattr(spent, name) - value))
            self.shift(times * took, words, words)
            done += times * like
            break
        yield from range(done, i["tiles"])

    def alone(self, p: Pass) -> tuple[int, int, dict[int, Spent]]:
        """A pass: cycles, words on the bus, and what its instructions spent."""
        self.by_pc, words = {}, self.memory.words
        return self.run(p), self.memory.words - words, self.by_pc


@lru_cache(maxsize=64)
def _taken(n: int) -> list[int]:
    """Which of n passes are gone through."""
    return np.linspace(0, n - 1, min(n, PASSES + n // EACH)).round().astype(int).tolist()


def forecast(image: Image, board: Board, *, prompt: int, generate: int, start_pos: int = 0,
             blocks: int | None = None) -> Prediction:
    """As :func:`.cycles.predict` without drafts, within :data:`ERROR`, in a fraction of its time.

    Raises
    ------
    UserError
        The tokens do not fit the image's context, or the board does not fit the image.
    """
    check_test(image, board, prompt, generate, start_pos)
    machine, end = _Fast(image, board), start_pos + prompt
    regs = prompt_regs(image, board, prompt, start_pos, blocks)
    prefill = list(prompt_passes(board.config, regs, start_pos, prompt, generate > 0))
    decode = [decode_pass(board.config, regs, end + k) for k in range(generate - 1)]
    began = machine.now
    passes: list[tuple[Pass, int]] = []
    words, by_pc = 0.0, dict[int, np.ndarray]()
    for plan in (prefill, decode):
        for _, group in groupby(plan, key=lambda p: (p.n, p.final, p.sub_heads, p.sub_blocks)):
            some = list(group)
            taken = _taken(len(some))
            found = [machine.alone(some[k]) for k in taken]
            cycles = np.interp(range(len(some)), taken, [one[0] for one in found])
            passes += zip(some, cycles.round().astype(int).tolist())
            # How many passes each of those that were gone through stands for.
            for k, (_, moved, spent) in enumerate(found):
                share = float(np.interp(range(len(some)), taken, np.eye(len(taken))[k]).sum())
                words += share * moved
                for pc, one in spent.items():
                    by_pc[pc] = by_pc.get(pc, 0) + share * np.array([*vars(one).values()])
    first = began + sum(n for _, n in passes[:len(prefill)])
    later = sum(n for _, n in passes[len(prefill):])
    plan = prefill + decode
    return Prediction(
        cycles=first + later, prefill_cycles=first, decode_cycles=later, passes=passes,
        by_pc={pc: Spent(*np.floor(by_pc[pc]).astype(int).tolist()) for pc in sorted(by_pc)},
        program=machine.program,
        useful_bytes=sum(image.useful_bytes(pos0=p.pos0, n=p.n, final=p.final) for p in plan),
        useful_macs=sum(image.useful_macs(pos0=p.pos0, n=p.n, final=p.final) for p in plan),
        bus_words=round(words), config=board.config, bytes_per_cycle=board.bytes_per_cycle)
