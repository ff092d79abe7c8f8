"""Float model -> integer model: codes, scales and shifts, ready for the compiler.

Weights: blocks of a GGUF file as they are (18-bit integers on a grid a row), or int8 with one scale
an output row (largest magnitude, no clipping). Linear inputs: int16 with a static scale a tensor
and one bit of headroom over calibration. Keys and values: int8 with a static scale a KV head.
docs/numerics.md has every format; every scale of the core is a 16-bit mantissa and a right shift.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import ceil, floor, log2, sqrt
from typing import Any

import numpy as np

from meadowlark_hdl.compute.softcap_golden import ARGUMENT_FRACTION as CAP_FRAC
from meadowlark_hdl.compute.softcap_golden import factor
from meadowlark_hdl.config import Config
from meadowlark_hdl.functions import ARGUMENT_FRACTION, FUNCTIONS, Function
from meadowlark_hdl.isa import Header, Mode
from meadowlark_hdl.weights.block_golden import GRID, block_weights, normalise
from meadowlark_hdl.weights.decoder_golden import SHORT_BITS
from meadowlark_hdl.weights.modes import MODES

from ..errors import UserError
from ..files import DATA
from ..models.blocks import BlockTensor
from ..models.checkpoint import Model
from ..models.float_model import FloatModel, Observer
from ..models.graph import Attend, Embed, Gate, Graph, Head, Kind, Linear, Norm, Rope
from ..models.pictures import Pictures
from ..text.chat import ChatTemplate
from .own_pictures import own_pictures
from .own_text import first, own_text
from .plan import (AddStep, AttendStep, EmbedStep, GateStep, HeadStep, Matrix, Normed, NormStep,
                   Order, PatchStep, Plan, ReadStep, Step, plan)
from .sampling import LOG2_E, mantissa_shift

ROPE_FRAC = 14          #: fractional bits of cos and sin
SCORE_FRAC = 10         #: fractional bits of scores, in log2 units
LOGIT_FRAC = 12         #: fractional bits of logits
K_EXTRA = 7             #: bits of a key before its rotation that its int8 code has not
MAX_RESIDUAL_FRAC = 16  #: finer than any input of the residual; the rest is headroom
MIN_RESIDUAL_FRAC = 8
FIRST = 1.25            #: headroom of what the first position of a sequence gives
HEADROOM = 2.0          #: of the static int16 scales over the calibrated maximum: one bit
UINT16, INT16, INT8 = (1 << 16) - 1, (1 << 15) - 1, (1 << 7) - 1
#: Most positions of a model that any core can hold (limit of ``Config.context``).
MAX_CONTEXT = 4096
#: Most columns of a matrix in blocks: 2**12 products of 17 and 15 bits fit the 45 of a sum.
MAX_BLOCK_COLUMNS = 4096
#: Weight -> (codes int8[rows, K], what one is worth float64[rows]).
Rounded = dict[str, tuple[np.ndarray, np.ndarray]]
#: What ``weights`` of :func:`quantise` can be.
WEIGHTS = ("auto", "int8")


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantLinear:
    """Rows of a linear layer with their requantisation.

    codes: int8[rows, K]. mant: uint16[rows] in 2**15..2**16-1, shift: uint8[rows] in 0..63:
    ``y = round(dot * mant / 2**shift) + bias``. bias: int32[rows] in units of y, or None. mode:
    Mode.INT8, or Q8_0, Q4_0, Q4_1; those have scale and, in Q4_1, minimum: float16[rows, K/32],
    normalised (see :func:`meadowlark_hdl.weights.block_golden.normalise`), and without a bias mant
    is a multiple of 32.
    """
    codes: np.ndarray
    mant: np.ndarray
    shift: np.ndarray
    bias: np.ndarray | None = None
    mode: Mode = Mode.INT8
    scale: np.ndarray | None = None
    minimum: np.ndarray | None = None

    @property
    def header(self) -> Header:
        """How mant, shift and bias lie in memory."""
        if self.bias is not None:
            return Header.BIAS
        return Header.SCALE if self.scale is None else Header.SHORT

    def weights(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """What is multiplied: int8[n, K], or int32[n, K] of 18 bits. rows: an index of rows."""
        if self.scale is None:
            return self.codes[rows]
        return block_weights(self.codes[rows], self.scale[rows],
                             None if self.minimum is None else self.minimum[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantNorm:
    """An RMSNorm of n values. gamma: int16[n], gamma * sqrt(n) / output scale * 2**(shift - 16);
    of heads in the chip's order, with zeros behind those of each."""
    gamma: np.ndarray
    shift: int


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantAttend:
    """Attention of G KV heads.

    score_shift: shift of QK. v_mant, v_shift: uint16[G], uint8[G], fields mant and shift of SV:
    value scale / scale of what attention gives. q_shift, k_shift: of the rotation of queries and
    keys, 0 where they are not rotated. phi: int8[G], unified maxima in log2 units, and their
    window; None and 0 for exact ones. missed: of a million rows of calibration those that have
    another one, see :mod:`meadowlark.quant.maximum`.
    """
    score_shift: int
    v_mant: np.ndarray
    v_shift: np.ndarray
    q_shift: int
    k_shift: int
    phi: np.ndarray | None = None
    window: int = 0
    missed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantPatches:
    """What tokens are given of an image: int16 with ``fraction`` fractional bits."""
    fraction: int


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantGate:
    """A function of rows, of pairs or alone. shift: what its product, or its value, loses."""
    shift: int


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantModel:
    """An integer model; the golden decoder and the compiler need nothing else.

    plan: its steps. numbers: of matrices by :attr:`Matrix.name` (of a diagonal what is on it,
    int8[rows, 1]), of norms, attention and gates by :attr:`Step.name`, of other norms by their
    edge. "embedding": [vocab, hidden]; requantised, a row is a residual; so are those of
    "positions", where a model has it. "head": rows give logits with 12 fractional bits; its codes
    are the embedding's array where they are equal (tied). rope: int16[tables, context, head_pad/2,
    2], cos and sin with 14 fractional bits, in the order of the plan's tables; (1, 0) in pairs that
    do not turn. eps: hidden * epsilon in
    squared units of the residual. residual_frac: fractional bits of the residual. context: most
    positions of the model, see :func:`longest`.
    tokenizer_json: contents of the file. chat: the model's template, or None. pictures: what an
    encoder is shown, or None. parameters: weights
    of the float model.
    """
    name: str
    plan: Plan
    numbers: Mapping[str, Any]
    context: int
    rope: np.ndarray
    eps: int
    residual_frac: int
    tokenizer_json: bytes
    bos_id: int | None
    stop_ids: tuple[int, ...]
    chat: ChatTemplate | None
    parameters: int
    pictures: Pictures | None = None

    @property
    def hidden(self) -> int:
        """Width of the residual."""
        return self.plan.graph.hidden

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        return self.plan.graph.vocab

    @property
    def head_pad(self) -> int:
        """What heads are padded to."""
        return self.plan.head_pad

    @property
    def tied(self) -> bool:
        """Head and embedding are one table."""
        return self.numbers["head"].codes is self.numbers["embedding"].codes

    @property
    def linears(self) -> dict[str, QuantLinear]:
        """All matrices by name: the embedding, then those of the weight stream in its order."""
        return {m.name: self.numbers[m.name] for m in self.plan.every_matrix}


# ---- Calibration

@dataclass
class Ranges:
    """Largest magnitudes met in calibration.

    The first position of a sequence sees nothing but itself, and in many models it gives by far the
    largest magnitudes, nearly the same whatever the token is (arXiv:2402.17762; SmolLM2: 3,034 in a
    layer whose other tokens stay below 10). They get the headroom :data:`FIRST` instead of
    :data:`HEADROOM`: an ample scale for them would cost all other tokens their bits.

    edges: of what matrices and gates read, and of norms of values before and behind, a value; of
    queries, keys and values, before and after their rotation, one a head. residual: over the
    model. tokens: how many were seen.
    """
    graph: Graph
    residual: float = 0.0
    tokens: int = 0
    edges: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Edges that have a scale a head -> heads."""
        found = {}
        for op in self.graph.of(Attend):
            for edge, heads in ((op.q, op.heads), (op.k, op.kv_heads), (op.v, op.kv_heads)):
                found[edge] = found[before_rotation(self.graph, edge)] = heads
        return found

    @cached_property
    def _wanted(self) -> set[str]:
        return {name for op in self.graph.of(Linear, Head, Gate) for name in op.inputs} | {
            name for op in self.graph.of(Norm) for name in (op.x, op.out)}

    @cached_property
    def _level(self) -> set[str]:
        """Edges that the head reads, whose first position counts as all others do."""
        return {op.x for op in self.graph.of(Head)}

    def observe(self, edge: str, value: np.ndarray) -> None:
        """An :data:`meadowlark.models.float_model.Observer`."""
        heads = self._heads.get(edge)
        if self.graph.edges[edge].kind is Kind.RESIDUAL:
            self.residual = max(self.residual, float(np.abs(value).max()))
        elif heads is not None:
            most = np.abs(value).reshape(len(value), heads, -1).max(axis=(0, 2))
            self.edges[edge] = np.maximum(self.edges.get(edge, 0.0), most)
        elif edge in self._wanted:
            size = np.abs(value)
            if edge not in self._level and not self.graph.encoder:
                size[:1] *= FIRST / HEADROOM
            self.edges[edge] = np.maximum(self.edges.get(edge, 0.0), size.max())


def before_rotation(graph: Graph, edge: str) -> str:
    """The edge that is rotated into this one, or this one."""
    maker = graph.maker[edge]
    return maker.x if isinstance(maker, Rope) else edge


def calibration_tokens(model: Model, text: str | None = None, *, max_tokens: int | None = None,
                       ) -> Sequence[Any]:
    """Text -> sequences for :func:`quantise`; of an encoder pictures.

    Each line alone, from bos to eos, cut to the model's context; about max_tokens in all (by
    default 16,384, fewer for models beyond 67 M parameters: at most 2**40 products, a minute).
    text: None takes the packaged calibration text; of a model that knows no text, its own tokens.
    """
    if max_tokens is None:
        max_tokens = max(1, min(1 << 14, (1 << 40) // model.parameters))
    if model.pictures is not None:
        return own_pictures(model.pictures, max(16, max_tokens // model.context))
    if text is None and model.tokenizer.missing:
        return first(own_text(model), max_tokens)
    if text is None:
        text = (DATA / "calibration.txt").read_text(encoding="utf-8")
    out, left = [], max_tokens
    for line in filter(None, map(str.strip, text.splitlines())):
        if left <= 0:
            break
        out.append(model.text_tokens(line)[:min(left, model.context)])
        left -= len(out[-1])
    if not out:
        raise UserError("the calibration text is empty; give a text with some hundred words.")
    return out


def observe(model: Model, calibration: Iterable[Sequence[int]], observer: Observer,
            progress: Callable[[int], None] | None = None) -> int:
    """Run the float model over token sequences, all edges but the logits watched; returns how many
    tokens that were. progress gets the number of tokens done."""
    runner, done = FloatModel(model), 0
    for tokens in calibration:
        runner.watch(tokens, observer)
        done += len(tokens)
        if progress:
            progress(done)
    if not done:
        raise UserError("calibration needs at least one sequence of tokens; give a text.")
    return done


def measure(model: Model, calibration: Iterable[Sequence[int]],
            progress: Callable[[int], None] | None = None) -> Ranges:
    """Run the float model over token sequences; progress gets the number of tokens done."""
    ranges = Ranges(model.graph)
    ranges.tokens = observe(model, calibration, ranges.observe, progress)
    return ranges


def _coarse(x: np.ndarray | float) -> np.ndarray:
    """Round up to 8 significant bits: float32 sums differ in their last bits from one BLAS to
    the next, and the integer model must not."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.ceil(mantissa * 256 - 1e-3) / 256, exponent)


# ---- Scales

def _scales(factor: np.ndarray, what: str, bits: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """factor[rows] -> mant uint16[rows] with ``bits`` that are not 0 at most, shift uint8[rows].

    A factor below 2**-48 gives 2**-48: with |dot| < 2**45 such a row rounds to zero either way.
    """
    factor = np.maximum(np.asarray(factor, np.float64), 2.0 ** -48)
    mantissa, exponent = np.frexp(factor)
    factor = np.ldexp(np.rint(mantissa * 2**bits) / 2**bits, exponent)
    if not (factor < 65536).all():
        raise UserError(f"{what}: a scale of {factor.max():.6g} does not fit 16 bits; the model "
                        "mixes magnitudes too far apart, so use another checkpoint.")
    pairs = [mantissa_shift(f) for f in factor.ravel()]
    mant, shift = (np.array(v) for v in zip(*pairs, strict=True))
    assert ((shift >= 0) & (shift <= 63) & (mant >> 15 == 1)).all()
    return mant.astype(np.uint16), shift.astype(np.uint8)


def int8_scale(weight: np.ndarray, grid: float | np.ndarray | None = None) -> np.ndarray:
    """float32[rows, K] -> float64[rows], what a code of 1 is worth; 0 for a row of zeros.

    grid: steps in a row's root mean square, one or float64[rows]; None: as fine as int8 holds the
    row's largest weight.
    """
    scale = np.abs(weight).max(axis=1).astype(np.float64) / INT8
    if grid is not None:
        mean_square = np.square(weight, dtype=np.float32).mean(axis=1, dtype=np.float64)
        scale = np.maximum(scale, np.sqrt(mean_square) / grid)
    return scale


def int8_codes(weight: np.ndarray, grid: float | np.ndarray | None = None,
               ) -> tuple[np.ndarray, np.ndarray]:
    """float32[rows, K] -> (int8[rows, K], float64 scale[rows]): the nearest of the grid that
    :func:`int8_scale` chooses."""
    scale = int8_scale(weight, grid)
    codes = np.rint(weight / np.where(scale > 0, scale, 1).astype(np.float32)[:, None])
    return codes.astype(np.int8), scale


def _integers(weight: np.ndarray, blocks: BlockTensor | None, what: str,
              rounded: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[dict, np.ndarray]:
    """float32[rows, K], and the same weights in blocks where they can be kept so; rounded: their
    codes and scales, where these are made already.

    Returns fields of a :class:`QuantLinear`, and the real weight of an integer of 1 in each row:
    float64[rows], 0 for a row of zeros.
    """
    if rounded or blocks is None or blocks.columns > MAX_BLOCK_COLUMNS:
        codes, step = rounded or int8_codes(weight)
        return dict(codes=codes), step
    try:
        scale, minimum, up = normalise(blocks.codes, blocks.scale, blocks.minimum)
    except ValueError as error:
        raise UserError(f"{what}: {error}; get the file again.") from error
    used = (scale != 0).any(axis=1)
    if minimum is not None:
        used |= (minimum != 0).any(axis=1)
    return dict(codes=blocks.codes, mode=Mode[blocks.kind], scale=scale, minimum=minimum), \
        np.where(used, np.ldexp(1.0, -(up + GRID)), 0.0)


def _linear(integers: tuple[dict, np.ndarray], bias: np.ndarray | None, x_scale: float, y_scale,
            what: str) -> QuantLinear:
    """x_scale of the input; y_scale of each output row (broadcasts)."""
    fields, step = integers
    y_scale = np.broadcast_to(np.asarray(y_scale, np.float64), step.shape)
    # A row of blocks has only a power of two of its own: what short mantissas round is a gain of
    # the whole matrix.
    short = "scale" in fields and bias is None
    mant, shift = _scales(step * x_scale / y_scale, what, SHORT_BITS if short else 16)
    if bias is not None:
        bias = np.rint(bias / y_scale)
        if not (np.abs(bias) < 2**31).all():
            raise UserError(f"{what}: a bias does not fit 32 bits in its output's units; use "
                            "another checkpoint.")
        bias = bias.astype(np.int32)
    return QuantLinear(**fields, mant=mant, shift=shift, bias=bias)


def _norm(gamma: np.ndarray, x_scale: float, what: str) -> QuantNorm:
    """gamma: float32[hidden]; x_scale: scale of the int16 output."""
    real = gamma.astype(np.float64) * sqrt(len(gamma)) / x_scale / 65536
    most = np.abs(real).max()
    # the finest grid on which the largest gamma fits int16; a zero norm takes any
    shift = min(63, floor(log2((INT16 + 0.5) / most))) if most > 0 else 0
    if shift < 0:
        raise UserError(f"{what}: gammas up to {np.abs(gamma).max():.6g} do not fit 16 bits; use "
                        "another checkpoint.")
    whole = np.clip(np.rint(real * 2.0**shift), -INT16, INT16)
    return QuantNorm(gamma=whole.astype(np.int16), shift=shift)


def _head_rows(values: np.ndarray, parts: tuple[tuple[int, int], ...], turning: int = 0,
               ) -> np.ndarray:
    """Heads with zero rows after each of their parts, see :attr:`Matrix.parts`. turning: pairs of
    a head that rotate; row 2i is then row i and row 2i+1 row i + turning."""
    head_dim, head_pad = map(sum, zip(*parts))
    heads = values.reshape(-1, head_dim, *values.shape[1:])
    if turning:
        order = np.arange(head_dim)
        order[:2 * turning] = order[:2 * turning].reshape(2, -1).T.ravel()
        heads = heads[:, order]
    out = np.zeros((heads.shape[0], head_pad, *values.shape[1:]), values.dtype)
    at = to = 0
    for count, padded in parts:
        out[:, to:to + count] = heads[:, at:at + count]
        at, to = at + count, to + padded
    return out.reshape(-1, *values.shape[1:])


def _moved(move: Callable[..., np.ndarray], *blocks: BlockTensor | None) -> BlockTensor | None:
    """Blocks whose rows are moved as those of the floats: ``move`` of each of their arrays.

    None where that is not possible: not all in blocks, or of kinds without a common one.
    """
    some = [b for b in blocks if b is not None]
    if len({b.kind for b in some}) > 1:
        some = [b for b in map(_with_minimum, some) if b is not None]
    if len(some) < len(blocks):
        return None
    arrays = {name: [getattr(b, name) for b in some] for name in ("codes", "scale", "minimum")}
    return replace(some[0], **{name: move(*values) for name, values in arrays.items()
                                 if values[0] is not None})


def _with_minimum(blocks: BlockTensor) -> BlockTensor | None:
    """Q4_0 as Q4_1, the same real weights; None if there is no such form."""
    if blocks.kind == Mode.Q4_1.name:
        return blocks
    offset = MODES[Mode.Q4_0].offset or 0
    if blocks.kind != Mode.Q4_0.name or (
            np.abs(blocks.scale.astype(np.float32)) * offset > 65504).any():
        return None
    return BlockTensor(kind=Mode.Q4_1.name, codes=blocks.codes + np.int8(offset),
                       scale=blocks.scale, minimum=blocks.scale * np.float16(-offset))


def _floor_of(most: np.ndarray, share: float = 2.0 ** -10) -> np.ndarray:
    """Largest magnitudes of the heads of a layer, none below a share of the largest, none 0."""
    return np.maximum(most, max(most.max() * share, 1e-6))


def _glu_scales(fraction: int, up: float, h: float) -> tuple[int, float, float]:
    """Largest |up| and |h| -> (shift, scale of up, scale of h).

    ``h = fn(gate) * up`` with so many fractional bits of the function: scale_up = scale_h *
    2**(fraction - shift). The largest shift (the finest grid) with a bit of headroom for up; if
    even shift 0 has none, h is so small beside up that its grid can be coarser.
    """
    up_floor = max(up, 1e-6) * HEADROOM / INT16
    h_scale = max(h, 1e-6) * HEADROOM / INT16
    shift = min(63, floor(log2(h_scale / up_floor)) + fraction)
    if shift < 0:
        return 0, up_floor, up_floor * 2.0 ** -fraction
    return shift, h_scale * 2.0 ** (fraction - shift), h_scale


def _alone_scales(function: Function, h: float) -> tuple[int, float, float]:
    """Largest |h| -> (shift, scale of the argument, scale of h), where ``h = fn(argument)``.

    Of a function that takes any scale, h has the finest. Another one takes its argument with
    ARGUMENT_FRACTION fractional bits, and h is a power of two; the finest with a bit of headroom.
    """
    finest = max(h, 1e-6) * HEADROOM / INT16
    if function.homogeneous:
        return 0, finest, finest
    shift = min(63, max(0, ceil(log2(finest)) + function.fraction))
    return shift, 2.0**-ARGUMENT_FRACTION, 2.0 ** (shift - function.fraction)


class _Quantiser:
    """Gives the steps of a plan their numbers, in order."""

    def __init__(self, model: Model, plan: Plan, ranges: Ranges, residual_scale: float,
                 rounded: Rounded) -> None:
        self.model, self.plan, self.ranges, self.rounded = model, plan, ranges, rounded
        self.residual_scale = residual_scale
        self.numbers: dict[str, Any] = {}
        self.scales: dict[str, float] = {}      # of edges that matrices read
        self.tables: dict[str, tuple[dict, np.ndarray]] = {}

    def step(self, step: Step) -> None:
        """Numbers of a step, and the scale of the edge that it makes."""
        _STEPS[type(step)](self, step)

    def _what(self, name: str) -> str:
        """A part of the model, for people."""
        return f"{self.model.name}, {name}"

    def _most(self, edge: str) -> np.ndarray:
        return _coarse(self.ranges.edges[edge])

    def _int16(self, edge: str) -> None:
        self.scales[edge] = max(float(self._most(edge)), 1e-6) * HEADROOM / INT16

    # ---- Matrices

    def _matrix(self, matrix: Matrix, x_scale: float, y_scale: float | np.ndarray) -> None:
        """A matrix, or two, with its rows (columns) where the chip wants them."""
        model, move = self.model, self._move(matrix)
        what, columns = self._what(matrix.name), matrix.padded_columns
        # blocks reach over heads and the zeros between them
        blocks = None if columns else _moved(move, *map(model.blocks.get, matrix.weights))
        bias = None
        if matrix.biases:
            bias = [model.weights[name] for name in matrix.biases]
            bias = bias[0] if columns else move(*bias)
        made = [self.rounded[name] for name in matrix.weights if name in self.rounded]
        done = None
        if made:            # where columns move, rows and so their scales do not
            codes, scales = zip(*made, strict=True)
            done = move(*codes), scales[0] if columns else move(*scales)
        weight = move(*(model.weights[name] for name in matrix.weights))
        self.numbers[matrix.name] = _linear(
            _integers(weight, blocks, what, done), bias, x_scale, y_scale, what)

    def _move(self, matrix: Matrix) -> Callable[..., np.ndarray]:
        """What brings rows of the checkpoint's matrices to their place."""
        parts = matrix.parts
        if matrix.padded_columns:
            return lambda x: np.ascontiguousarray(_head_rows(x.T, parts).T)
        match matrix.order:
            case Order.PLAIN | Order.DIAGONAL | Order.CONSTANT:
                return lambda x: x
            case Order.HEADS:
                return lambda x: _head_rows(x, parts)
            case Order.PAIRS:
                return lambda x: _head_rows(x, parts, matrix.turning)
            case Order.ALTERNATING:
                return lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:])

    # ---- Steps. The unit of an output whose operator has a scale is that much smaller.

    def _table(self, matrix: Matrix, x_scale: float, y_scale: float, *, head: bool = False,
               ) -> None:
        """A matrix with a row a token; of two that are one, the integers are made once."""
        (weight,), bias, what = matrix.weights, matrix.biases, self._what(matrix.name)
        own = self.rounded.get(weight) if head else None
        integers = self.tables.get(weight) if own is None else None
        if integers is None:
            integers = _integers(self.model.weights[weight], self.model.blocks.get(weight), what,
                                 own)
            self.tables[weight] = integers
        self.numbers[matrix.name] = _linear(integers, self.model.weights[bias[0]] if bias else None,
                                     x_scale, y_scale, what)

    def _embed(self, step: EmbedStep) -> None:
        if step.matrix is not None:
            self._table(step.matrix, 1.0, self.residual_scale / step.op.scale)
        if step.positions is not None:
            self._table(step.positions, 1.0, self.residual_scale)

    def _patches(self, step: PatchStep) -> None:
        """Of pixels the largest is known, so there is no headroom."""
        assert self.model.pictures is not None
        fraction = floor(log2(INT16 / self.model.pictures.largest))
        self.scales[step.name] = 2.0**-fraction
        self.numbers[step.name] = QuantPatches(fraction=fraction)

    def _diagonal(self, norm: Normed | None, matrix: Matrix, y_scale: float | np.ndarray) -> bool:
        """A norm of a matrix's outputs, if there is one, and what brings these to another unit.
        Returns whether there is one."""
        if norm is None:
            return False
        scale = self._inner(norm, matrix)
        if norm.diagonal is not None:
            rows = norm.diagonal.rows
            mant, shift = _scales(np.broadcast_to(scale / np.asarray(y_scale), rows),
                                  self._what(norm.op.gamma))
            ones = (np.arange(rows) < matrix.rows).astype(np.int8)
            self.numbers[norm.diagonal.name] = QuantLinear(
                codes=ones[:, None], mant=mant, shift=shift)
        return True

    def _inner(self, norm: Normed, matrix: Matrix) -> float:
        """A matrix, and a norm of its outputs; returns the scale of what it makes."""
        name, what = norm.op.out, self._what(norm.op.gamma)
        most = max(float(np.max(self._most(name))), 1e-6)
        scale = self.scales[name] = most * HEADROOM / INT16
        found = _norm(self.model.weights[norm.op.gamma], scale, what)
        if not matrix.padded_columns:       # where columns move, rows do not
            found = replace(found, gamma=self._move(matrix)(found.gamma))
        self.numbers[name] = found
        self._matrix(matrix, self.scales[matrix.x],
                     self.residual_scale * _unit_beside(norm, self.plan))
        return scale

    def _norm(self, step: NormStep) -> None:
        if step.inner is not None and step.matrix is not None:
            self._inner(step.inner, step.matrix)
            return
        self._int16(step.name)
        self.numbers[step.name] = _norm(
            self.model.weights[step.op.gamma], self.scales[step.name], self._what(step.op.gamma))

    def _read(self, step: ReadStep) -> None:
        """The root is of the square of what the residual reaches, with headroom."""
        self._int16(step.name)
        scale, rows = self.scales[step.name], step.matrix.rows
        top = min((1 << Config.RESID_BITS - 1) - 1, round(scale * INT16 / self.residual_scale))
        bias = np.zeros(rows, np.int32)
        bias[0] = top
        self.numbers[step.matrix.name] = QuantLinear(
            codes=np.zeros((rows, 1), np.int8), mant=np.full(rows, 1 << 15, np.uint16),
            shift=np.full(rows, 15, np.uint8), bias=bias)
        hidden = self.plan.graph.hidden
        gamma = np.full(hidden, top * self.residual_scale / sqrt(hidden))
        self.numbers[step.name] = _norm(gamma, scale, self._what(step.name))

    def _attend(self, step: AttendStep) -> None:
        op, graph = step.op, self.plan.graph
        _fits(score_cap, op)
        # Keys: int8 in the cache; before their rotation int16 with up to 7 bits more (fewer if
        # rotation shrinks the largest key, which it can by sqrt(2)).
        k_scale = _floor_of(self._most(op.k)) / INT8
        k_extra = 0
        if step.table is not None:
            before = self._most(before_rotation(graph, op.k))
            spare = INT16 / float(np.max(np.maximum(before / k_scale, INT8)))
            k_extra = max(0, min(K_EXTRA, floor(log2(spare))))
        # Queries: score = q.k * log2(e)/divisor, 10 fractional bits after a shift, or with a cap
        # q.k / divisor / cap, 15 of them; the largest
        # shift that leaves the queries of every head a bit of headroom.
        v_scale = _floor_of(self._most(op.v)) / INT8
        fold = np.repeat(k_scale, self.plan.key_pad).reshape(op.kv_heads, -1)
        if op.latent:           # which is in the key as in the value
            fold[:, step.k.rows:] = v_scale[:, None]
        fold = fold * _score_unit(op)                                      # [kv_heads, head]
        fold = np.repeat(fold, op.heads // op.kv_heads, axis=0)
        most = np.maximum(self._most(op.q), self._most(before_rotation(graph, op.q)))
        q_most = float(np.max(_floor_of(most) * fold.max(axis=1)))
        score_shift = floor(log2(INT16 / HEADROOM / q_most))
        if not 0 <= score_shift <= 63:
            raise UserError(f"{self._what(step.q.name)}: scores up to {q_most:.6g} do not fit "
                            "their format; use another checkpoint.")
        self._int16(step.name)
        v_mant, v_shift = _scales(v_scale / self.scales[step.name], self._what(step.v.name))
        for matrix, norm, rows in (
                (step.q, step.q_norm, 1 / (fold * 2.0**score_shift)),
                (step.k, step.k_norm, (k_scale * 2.0**-k_extra)[:, None]),
                (step.v, step.v_norm, v_scale[:, None])):
            end = matrix if norm is None or norm.diagonal is None else norm.diagonal
            rows = np.repeat(rows, end.rows // rows.size, axis=1).ravel()
            if not self._diagonal(norm, matrix, rows):
                self._matrix(matrix, self.scales[matrix.x], rows)
        rope = 0 if step.table is None else ROPE_FRAC
        self.numbers[step.name] = QuantAttend(
            score_shift=score_shift, v_mant=v_mant, v_shift=v_shift, q_shift=rope,
            k_shift=rope + k_extra)

    def _gate(self, step: GateStep) -> None:
        function, most = FUNCTIONS[step.op.fn], float(self._most(step.name))
        if step.op.up is None:
            shift, unit, self.scales[step.name] = _alone_scales(function, most)
            units = np.full(step.matrix.rows, unit)
        else:
            shift, unit, self.scales[step.name] = _glu_scales(
                function.fraction, float(self._most(step.op.up)), most)
            units = np.tile([2.0**-ARGUMENT_FRACTION, unit], step.matrix.rows // 2)
        self._matrix(step.matrix, self.scales[step.matrix.x], units)
        self.numbers[step.name] = QuantGate(shift=shift)

    def _add(self, step: AddStep) -> None:
        y_scale = self.residual_scale / step.op.scale
        if not self._diagonal(step.norm, step.matrix, y_scale):
            self._matrix(step.matrix, self.scales[step.matrix.x], y_scale)

    def _head(self, step: HeadStep) -> None:
        make = self._matrix if step.matrix.parts else partial(self._table, head=True)
        unit = 2.0**-LOGIT_FRAC
        if step.op.cap is not None:
            _fits(logit_cap, step.op)
            unit = step.op.cap * 2.0**-CAP_FRAC
        make(step.matrix, self.scales[step.matrix.x], unit / step.op.scale)


def score_cap(op: Attend) -> int:
    """Factor of the soft cap of scores, 0: there is none. Raises ValueError, see
    :func:`meadowlark_hdl.compute.softcap_golden.factor`."""
    return 0 if op.cap is None else factor(op.cap * LOG2_E * 2.0**SCORE_FRAC)


def logit_cap(op: Head) -> int:
    """Likewise, of logits."""
    return 0 if op.cap is None else factor(op.cap * 2.0**LOGIT_FRAC)


def _score_unit(op: Attend) -> float:
    """Of what is made of a dot product of a query and a key."""
    if op.cap is None:
        return LOG2_E / op.divisor * 2.0**SCORE_FRAC
    return 2.0**CAP_FRAC / (op.divisor * op.cap)


def _fits(cap: Callable[[Any], int], op: Attend | Head) -> None:
    try:
        cap(op)
    except ValueError as error:
        raise UserError(f"{op.out}: a soft cap of {op.cap:g} does not fit the format of what it "
                        "caps; use another checkpoint.") from error


_STEPS: dict[type[Step], Callable[..., None]] = {
    EmbedStep: _Quantiser._embed, PatchStep: _Quantiser._patches, NormStep: _Quantiser._norm,
    ReadStep: _Quantiser._read, AttendStep: _Quantiser._attend, GateStep: _Quantiser._gate,
    AddStep: _Quantiser._add, HeadStep: _Quantiser._head}


def _unit_beside(norm: Normed, plan: Plan) -> float:
    """Unit of values that are normed beside the residual, in units of that: with it the register
    of the epsilon is right for both."""
    hidden, ratio = plan.graph.hidden, norm.op.eps / plan.eps if plan.eps else 1.0
    return sqrt(norm.values * ratio / hidden)


def _rope_tables(plan: Plan, context: int) -> np.ndarray:
    """int16[tables, context, head_pad/2, 2]."""
    tables = np.zeros((len(plan.tables), context, plan.head_pad // 2, 2), np.int16)
    tables[..., 0] = 1 << ROPE_FRAC
    for table, name in zip(tables, plan.tables, strict=True):
        angles = plan.graph.tables[name].angles(range(context))
        for at, f in enumerate((np.cos, np.sin)):
            table[:, :angles.shape[1], at] = np.rint(f(angles) * 2.0**ROPE_FRAC)
    return tables


def longest(model: Model) -> int:
    """Most positions that the machine can hold of a model."""
    embed = next(model.graph.of(Embed))
    learned = model.graph.shapes[embed.positions][0] - embed.offset if embed.positions else \
        MAX_CONTEXT
    return min(model.context, learned, MAX_CONTEXT)


def quantise(model: Model, calibration: Iterable[Sequence[int]] | Ranges | None = None, *,
             context: int | None = None, weights: str = "auto", rounded: Rounded | None = None,
             head_pad: int = 1, progress: Callable[[int], None] | None = None) -> QuantModel:
    """Turn a float model into integers.

    Parameters
    ----------
    model : Model
    calibration : sequences of token ids, or Ranges from :func:`measure`, or None
        What the static scales are taken from; None takes the packaged text.
    context : int, optional
        Most positions to prepare for, by default those of :func:`longest`.
    weights : "auto" or "int8"
        auto: matrices that the model has in blocks stay as they are, except those of more than
        4,096 columns, the attention output where heads are padded, and gate and up in kinds
        without a common one; all others are int8. int8: all of them.
    rounded : dict, optional
        Codes of int8 and scales of some matrices (see :mod:`meadowlark.quant.budget`), instead of
        the finest that int8 has. Those of gate and up come together; the embedding's are not
        used.
    head_pad : int, power of two
        What heads are padded to at least.
    progress : callable, optional
        Gets the number of calibration tokens done.

    Raises
    ------
    UserError
        The model does not fit the formats of docs/numerics.md; names the tensor.
    """
    if calibration is None:
        calibration = calibration_tokens(model)
    ranges = calibration if isinstance(calibration, Ranges) \
        else measure(model, calibration, progress)
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
    if weights == "int8":
        model = replace(model, blocks={})
    limit = longest(model)
    if context is not None and not 1 <= context <= limit:
        raise UserError(f"a context of {context} positions is not possible with {model.name}; "
                        f"give 1 to {limit}.")
    context = context or limit
    steps = plan(model.graph, head_pad=head_pad)

    # Residual: 27 bits with a bit of headroom over calibration, as fine as is of any use, and as
    # the multipliers of all tokens hold, of which calibration meets some.
    residual_most = max(float(_coarse(ranges.residual)), 1e-6, *(
        float(np.max(_coarse(ranges.edges[norm.op.x]))) / _unit_beside(norm, steps)
        for norm in steps.norms))
    table_most = max(1e-6, *(float(np.abs(model.weights[name]).max()) * scale for op in
                             model.graph.of(Embed) for name, scale in (
                                 (op.weight, op.scale), (op.positions, 1.0)) if name is not None))
    residual_frac = min(MAX_RESIDUAL_FRAC,
                        floor(Config.RESID_BITS - 1 - log2(HEADROOM * residual_most)),
                        floor(log2(INT8 * UINT16 / table_most)))
    if residual_frac < MIN_RESIDUAL_FRAC:
        raise UserError(f"{model.name}: the residual reaches {residual_most:.6g}, which leaves "
                        f"{residual_frac} fractional bits of the {MIN_RESIDUAL_FRAC} needed; "
                        "use another checkpoint.")
    # at least 1: the root of the norm must be defined for a residual of zeros
    eps = max(1, round(model.hidden * steps.eps * 4.0**residual_frac))
    if eps >= 1 << 48:
        raise UserError(f"{model.name}: an epsilon of {steps.eps:g} in its norms does not fit 48 "
                        "bits; use another checkpoint.")

    quantiser = _Quantiser(model, steps, ranges, 2.0**-residual_frac, rounded or {})
    for step in steps.steps:
        quantiser.step(step)
    return QuantModel(
        name=model.name, plan=steps, numbers=quantiser.numbers, context=context,
        rope=_rope_tables(steps, context), eps=eps, residual_frac=residual_frac,
        tokenizer_json=model.tokenizer.json, bos_id=model.bos_id, stop_ids=model.stop_ids,
        chat=model.chat, parameters=model.parameters, pictures=model.pictures)
