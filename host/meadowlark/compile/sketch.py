"""A program from shapes alone: as long as the model's own, and its weights are zeros.

Every instruction, address and size is that of the compiled model; only what calibration decides,
mantissas and shifts, is not, and no cycle depends on it. Weights that a board reads packed take a
number of bits that is given, spread evenly over the tiles of a matrix.
"""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Header, Mode
from meadowlark_hdl.weights.modes import MODES, BLOCK, Packing
from meadowlark_hdl.weights.packing_golden import CLASS_WORDS, ahead, head_words

from ..draft.table import DraftTable
from ..models.checkpoint import Model
from ..quant.plan import AttendStep, GateStep, Matrix, NormStep, Order, ReadStep
from ..quant.quantise import QuantAttend, QuantGate, QuantLinear, QuantModel, QuantNorm
from ..quant.shapes import Shapes
from . import limits
from .compiler import compile_model
from .layout import Tiling, spare_chunks
from .stream import Stream

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image

#: 32-bit words of the tables in a preamble: classes, and all symbols of a byte.
TABLE_WORDS = CLASS_WORDS + 256 // 4


class Sketch(Stream):
    """A stream of zeros. bits: of a byte of packed codes, 1..8; 8 leaves all as it is."""

    def __init__(self, config: Config, packing: str, most: int, *, bits: float) -> None:
        super().__init__(config, packing, most)
        able = bool(config.packing & Packing.ENTROPY) and packing in ("auto", "entropy")
        self.bits = bits if able else 8.0

    def _tiles(self, q: QuantLinear, name: str, t: Tiling, heads: list[int], each: int,
               diagonal: bool) -> tuple[list[bytes], bool]:
        W = self.config.W
        plain = [size - head for size, head in zip(
            [*[t.chunks] * (t.tiles - 1), t.last_chunks], heads)]
        coded = None if self.bits >= 8 or q.mode != Mode.INT8 else self._coded(plain, heads, each)
        self.tensors.append(dict(
            name=name, mode="raw" if coded is None else "entropy", how="",
            weights=int(q.codes.size), at=sum(map(len, self.parts)), raw_bytes=sum(plain) * W,
            bytes=sum(plain if coded is None else coded) * W, entropy=self.bits))
        if coded is None:
            return [bytes((head + n) * W) for head, n in zip(heads, plain)], False
        tiles = []
        for k, (head, n) in enumerate(zip(heads, coded)):
            raw = bytes(n * W)
            if k % each == 0:
                # What the cycle model reads: the segment has tables of its own, and its steps.
                steps = sum(plain[k:k + each]) * W // self.config.unpack_lanes
                first = np.array([2 | TABLE_WORDS - CLASS_WORDS << 16, steps, 0], "<u4").tobytes()
                raw = first + raw[len(first):]
            tiles.append(bytes(head * W) + raw)
        return tiles, True

    def _coded(self, plain: list[int], heads: list[int], each: int) -> list[int] | None:
        """Chunks of packed tiles; None where the jobs of an instruction do not go with them, or
        packing gains nothing."""
        W, lanes, found = self.config.W, self.config.unpack_lanes, []
        front = 4 * (head_words(lanes) + TABLE_WORDS) + ahead(lanes) * lanes * lanes
        for k in range(0, len(plain), each):
            some = plain[k:k + each]
            total = -(-(4 * (head_words(lanes) + TABLE_WORDS) + lanes) // W) + -int(
                -sum(some) * self.bits // 8)
            # The first tile has the preamble and what lanes hold ahead; the others share the rest.
            begin = min(-(-front // W), total - len(some))
            ends = np.cumsum(some) * (total - begin) // sum(some) + begin
            found.append(np.diff(ends, prepend=0).tolist())
        with_heads, at = [], 0
        for some in found:
            with_heads.append([n + h for n, h in zip(some, heads[at:])])
            at += len(some)
        if not self._fits(with_heads) and len(found) == 1:
            spare = spare_chunks(with_heads[0])
            found[0][-1] += spare
            with_heads[0][-1] += spare
        coded = sum(found, [])
        return coded if self._fits(with_heads) and sum(coded) < sum(plain) and min(coded) else None


def sketch(model: Model, board: Board, *, context: int | None = None, packing: str = "auto",
           weights: str = "auto", bits: float = 8.0, all_tokens: bool = False,
           draft: DraftTable | None = None, lanes: str = "auto") -> Image:
    """The image of a model for a board, with zeros in place of its weights.

    Parameters
    ----------
    model : Model
        It may be an outline.
    board, context, packing, all_tokens, draft, lanes : see :func:`.compiler.compile_model`
    weights : str
        See :func:`meadowlark.quant.quantise.quantise`.
    bits : float, 1..8
        What a byte of int8 codes takes where the board reads entropy-coded weights.

    Raises
    ------
    UserError
        The model does not fit the board.
    """
    needs = limits.need(Shapes.of_model(model, weights), board, context)
    return compile_model(stand_in(model, needs.shapes), board, context=context, packing=packing,
                         all_tokens=all_tokens, draft=draft, lanes=lanes,
                         stream=partial(Sketch, bits=bits))


def stand_in(model: Model, shapes: Shapes) -> QuantModel:
    """An integer model of these shapes whose numbers are zeros that take no memory.

    model: whose names and tokenizer it has. shapes: as they are on a board.
    """
    plan, numbers = shapes.plan, dict[str, Any]()
    for matrix in plan.every_matrix:
        numbers[matrix.name] = _linear(matrix, shapes)
    for step in plan.steps:
        if isinstance(step, AttendStep):
            of_heads = _zeros(np.uint16, step.op.kv_heads)
            numbers[step.name] = QuantAttend(score_shift=0, v_mant=of_heads, v_shift=of_heads,
                                             q_shift=0, k_shift=0)
        elif isinstance(step, GateStep):
            numbers[step.name] = QuantGate(shift=0)
        elif isinstance(step, (NormStep, ReadStep)):
            numbers[step.name] = QuantNorm(gamma=_zeros(np.int16, plan.graph.hidden), shift=0)
        numbers |= {norm.op.out: QuantNorm(gamma=_zeros(np.int16, norm.width), shift=0)
                    for norm in step.norms}
    return QuantModel(
        name=model.name, plan=plan, numbers=numbers, context=shapes.context, eps=1,
        rope=_zeros(np.int16, len(plan.tables), shapes.context, plan.head_pad // 2, 2),
        residual_frac=0, tokenizer_json=b"", bos_id=model.bos_id, stop_ids=model.stop_ids,
        chat=None, parameters=model.parameters)


def _linear(matrix: Matrix, shapes: Shapes) -> QuantLinear:
    """Zeros of a matrix."""
    mode, rows = shapes.mode(matrix), matrix.rows
    columns = 1 if matrix.order is Order.DIAGONAL else matrix.columns
    halves = {name: _zeros(np.float16, rows, columns // BLOCK) for name in MODES[mode].halves}
    return QuantLinear(
        codes=_zeros(np.int8, rows, columns), mant=_zeros(np.uint16, rows),
        shift=_zeros(np.uint8, rows), mode=mode, **halves,
        bias=_zeros(np.int32, rows) if shapes.header(matrix) == Header.BIAS else None)


def _zeros(kind: type, *shape: int) -> np.ndarray:
    return np.broadcast_to(kind(0), shape)
