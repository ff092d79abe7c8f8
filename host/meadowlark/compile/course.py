"""The course of one pass by the cycle model: which instruction the engine is at, and memory's bus.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meadowlark_hdl.control.sequencer_golden import (Lots, Pass, Place, batch_pass, decode_pass)
from meadowlark_hdl.isa import Instruction, Op

from .cycles import Machine, Spent, _Memory

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image


@dataclass(frozen=True, kw_only=True)
class Slice:
    """An instruction of a pass, or several of one operator behind each other. begin: in cycles from
    the pass's start. pc: of the first one. spent: as :class:`.cycles.Spent` has it."""
    begin: int
    operator: str
    pc: int
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class Course:
    """A pass as it goes.

    cycles: of it. slices: in order, without gaps but before the first and behind the last.
    bus: share of memory's best that it moves in each of as many equal parts of the pass, 0..1.
    """
    cycles: int
    slices: list[Slice]
    bus: list[float]


class _WatchedMemory(_Memory):
    """Keeps each burst: (its first cycle, words)."""

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.bursts: list[tuple[float, int]] = []

    def _burst(self, at: int, n: int, command: float, *, write: bool) -> tuple[float, float]:
        start, end = super()._burst(at, n, command, write=write)
        self.bursts.append((start, n))
        return start, end


class _Watched(Machine):
    """Keeps what each instruction took."""

    def __init__(self, image: Image, board: Board) -> None:
        super().__init__(image, board)
        self.memory = self.watched = _WatchedMemory(board)
        self.slices: list[Slice] = []
        self._pc = 0

    def _walk(self, p: Pass, begin: int) -> Iterator[tuple[int, Lots | None]]:
        for self._pc, lots in super()._walk(p, begin):
            yield self._pc, lots

    def _execute(self, spent: Spent, i: Instruction, p: Pass, lots: Lots | None) -> None:
        own, began, name = Spent(count=1), self.now, Op(i["op"]).name
        super()._execute(own, i, p, lots)
        spent.add(own)
        spent.count -= 1                # :meth:`run` has counted it
        last = self.slices[-1] if self.slices else None
        if last is not None and last.operator == name:
            last.spent.add(own)
        else:
            self.slices.append(Slice(begin=began, operator=name, pc=self._pc, spent=own))


def course(image: Image, board: Board, places: Sequence[tuple[int, int]], *,
           parts: int = 100) -> Course:
    """A pass that goes on with a token of each sequence, behind another one like it.

    places: of each sequence the number of its cache, and the token's position. parts: of the bus.

    Raises
    ------
    UserError
        The board does not fit the image.
    """
    image.check_board(board)
    machine, regs = _Watched(image, board), image.model_regs

    def at(before: int) -> Pass:
        if len(places) == 1:
            return decode_pass(board.config, regs, max(places[0][1] - before, 0))
        return batch_pass(board.config, regs, [Place(image.base(cache), max(position - before, 0))
                                               for cache, position in places])
    machine.run(at(1), len(places) - 1)
    began, machine.slices, machine.watched.bursts = machine.now, [], []
    cycles = machine.run(at(0), len(places) - 1)
    moved, word = [0.0] * parts, machine.memory.word
    for start, n in machine.watched.bursts:
        for part, share in _spread((start - began) * parts / cycles,
                                   (start - began + n * word) * parts / cycles):
            if 0 <= part < parts:
                moved[part] += share
    return Course(cycles=cycles, bus=[min(share, 1.0) for share in moved], slices=[
        Slice(begin=one.begin - began, operator=one.operator, pc=one.pc, spent=one.spent)
        for one in machine.slices])


def _spread(begin: float, end: float) -> Iterator[tuple[int, float]]:
    """The whole numbers whose units a stretch touches, and how much of each."""
    part = int(begin // 1)
    while part < end:
        yield part, min(end, part + 1) - max(begin, part)
        part += 1
