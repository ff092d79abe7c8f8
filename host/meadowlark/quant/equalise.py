"""Columns of matrices evened out, so that coarse weights cost less.

The error that a rounded weight makes is that of its code times the activation it meets, and some
activations of a layer are many times larger than others. A column may be multiplied by anything if
what feeds it is divided by the same: a norm's gamma, or the rows of the matrix before. Here it is
the square root of the column's activations, between none and all of their spread: all would leave
rows with a few weights too large for int8 on a fine grid.

Keys are divided, and queries multiplied, by the largest of each pair that rotates together, so that
the one scale of a head's cache serves all of them.

Source: AWQ, arXiv:2306.00978, section 3.2; half of the spread as in SmoothQuant, arXiv:2211.10438,
section 3.2. Measured in docs/packing.md.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from meadowlark_hdl.functions import FUNCTIONS

from ..models.checkpoint import Model, untied
from ..models.graph import Attend, Gate, Graph, Head, Linear, Norm, Operator, Rope
from .own_text import first
from .quantise import FIRST, HEADROOM, before_rotation, calibration_tokens, observe

#: Share of the spread of the activations (its logarithm) that the weights take over; of those that
#: the head reads.
STRENGTH, HEAD_STRENGTH = 0.5, 0.25
#: The share of peaks in the factors of values, whose cache has one scale a head.
PEAKS = 0.5
#: Keys of a pair below this share of their head's largest count as that much.
SMALLEST_KEY = 1 / 64
#: Largest magnitude of a down row's input over that of three quarters of the columns; what is
#: above takes up to ROOM times the root mean square of its matrix.
PEAK, ROOM = 16.0, 2.0
#: Factors are powers of two in steps of this: sums differ in their last bits from one BLAS to the
#: next, and the integer model must not.
STEP = 1 / 16
#: Tokens that the activations are measured on.
TOKENS = 2048
#: Activations below this share of their tensor's root mean square count as that much.
FLOOR = 1e-3


class _Columns:
    """Mean square of each column of what matrices read, every token of equal weight: the first one
    of a sequence, with magnitudes a thousand times those of the others, would hide all of them. And
    the largest magnitudes of keys, values and what gates make."""

    def __init__(self, graph: Graph) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.peaks: dict[str, np.ndarray] = {}
        self.tokens = 0
        self._inputs = {op.x for op in graph.of(Linear, Head)}
        self._heads = {op.x for op in graph.of(Head)}
        self._gates = {op.out for op in graph.of(Gate)}
        self._peaks = self._gates | {edge for op in graph.of(Attend) for edge in (op.k, op.v)}

    def observe(self, edge: str, value: np.ndarray) -> None:
        """An :data:`meadowlark.models.float_model.Observer`."""
        if edge in self._inputs:
            square = np.square(value, dtype=np.float64)
            square /= np.maximum(square.mean(axis=1, keepdims=True), 1e-30)
            self.sums[edge] = self.sums.get(edge, 0.0) + square.sum(axis=0)
        if edge in self._peaks:
            size = np.abs(value)
            if edge in self._gates:
                size[:1] *= FIRST / HEADROOM        # as in quantise
            self.peaks[edge] = np.maximum(self.peaks.get(edge, 0.0), size.max(axis=0))

    def rms(self, edge: str) -> np.ndarray:
        """float64[columns], in units of a token's root mean square."""
        return np.maximum(np.sqrt(self.sums[edge] / self.tokens), FLOOR)

    def factors(self, edge: str) -> np.ndarray:
        """float32[columns] with a geometric mean of about 1."""
        return _steps(self.rms(edge) ** (HEAD_STRENGTH if edge in self._heads else STRENGTH))

    def keys(self, op: Attend, turning: int) -> np.ndarray:
        """float32[KV heads, head_dim], what the keys are divided by. turning: pairs of a head that
        rotate; the two of a pair have one factor."""
        peak = self.peaks[op.k].reshape(op.kv_heads, -1).copy()
        first, second = peak[:, :turning], peak[:, turning:2 * turning]
        first[:] = second[:] = np.maximum(first, second)
        peak = np.maximum(peak, SMALLEST_KEY * peak.max(axis=-1, keepdims=True))
        return _steps(np.maximum(peak, 1e-12))

    def values(self, op: Attend) -> np.ndarray:
        """float32[KV heads, head_dim], what the values are divided by."""
        peak = self.peaks[op.v].reshape(op.kv_heads, -1)
        group = op.heads // op.kv_heads
        square = np.square(self.rms(op.out)).reshape(len(peak), group, -1).mean(axis=1)
        peak = np.maximum(peak, FLOOR * peak.max(axis=-1, keepdims=True) + 1e-12)
        # Within a head, peaks: its cache has one scale. From head to head it is the columns of o.
        heads = np.sqrt(square.mean(axis=-1, keepdims=True)) ** STRENGTH
        return _steps(_even(np.sqrt(square) ** (STRENGTH * (1 - PEAKS)) * peak ** PEAKS) * heads)

    def hidden(self, edge: str, down: np.ndarray) -> np.ndarray:
        """float32[columns] of what a gate makes. One column alone may have a magnitude that costs
        all others of the tensor their bits; then it takes more, as far as ``down``, the matrix that
        reads them, has room in int8."""
        factors = _steps(self.rms(edge) ** STRENGTH)
        peak = self.peaks[edge] / factors
        limit = PEAK * np.sort(peak)[len(peak) * 3 // 4]
        column = np.sqrt(np.square(down * factors, dtype=np.float32).mean(axis=0))
        room = ROOM * np.sqrt(np.square(column).mean()) / np.maximum(column, 1e-30)
        more = np.maximum(np.minimum(peak / max(limit, 1e-30), room), 1)
        return np.exp2(np.floor(np.log2(factors * more) / STEP) * STEP).astype(np.float32)


def _even(x: np.ndarray) -> np.ndarray:
    """Over its geometric mean along the last axis."""
    return x / np.exp(np.log(x).mean(axis=-1, keepdims=True))


def _steps(x: np.ndarray) -> np.ndarray:
    """The nearest powers of two in steps of STEP, of what has a geometric mean of 1."""
    log = np.log2(x)
    return np.exp2(np.rint((log - log.mean()) / STEP) * STEP).astype(np.float32)


def equalise(model: Model, calibration: Iterable[Sequence[int]] | None = None,
             progress: Callable[[int], None] | None = None) -> Model:
    """The same function in float32, but for rounding, with columns evened out.

    Parameters
    ----------
    model : Model
        Its blocks, if it has any, are dropped: they are of other weights.
    calibration : sequences of token ids, optional
        What the activations are measured on, up to :data:`TOKENS`; None takes the packaged text.
    progress : callable, optional
        Gets the number of tokens done.

    Returns
    -------
    Model
        Not tied: the head's columns are evened out, the embedding's are not.
    """
    if calibration is None:
        calibration = calibration_tokens(model)
    model = untied(model)
    columns = _Columns(model.graph)
    columns.tokens = observe(model, first(list(map(list, calibration)), TOKENS), columns.observe,
                             progress)
    even = _Evener(model, columns)
    for op in model.graph.operators:
        if rule := _RULES.get(type(op)):
            rule(even, op)
    return replace(model, weights=even.weights, blocks={})


class _Evener:
    """Weights of a model while they are evened out, an edge at a time."""

    def __init__(self, model: Model, columns: _Columns) -> None:
        self.graph, self.columns = model.graph, columns
        self.weights = dict(model.weights)

    def norm(self, op: Norm) -> None:
        """What a norm makes: its gamma, and the columns of all that read it."""
        if matrices := self._readers(op.out):
            factors = self.columns.factors(op.out)
            for name in op.weights:
                self.weights[name] = self.weights[name] / factors
            self._multiply_columns(matrices, factors)

    def attend(self, op: Attend) -> None:
        """Keys, against queries; values, against what reads the attention of their heads. Latents
        are both, and stay."""
        if op.latent:
            return
        group = op.heads // op.kv_heads

        def of_heads(factors: np.ndarray) -> np.ndarray:
            return np.repeat(factors[:, None], group, axis=1).ravel()
        rope = self.graph.maker[op.k]
        turning = len(self.graph.tables[rope.table].values) if isinstance(rope, Rope) else 0
        q, k = (self._maker(before_rotation(self.graph, edge)) for edge in (op.q, op.k))
        if q and k:
            keys = self.columns.keys(op, turning)
            self._multiply_rows(q, of_heads(keys))
            self._divide_rows(k, keys.ravel())
        v, matrices = self._maker(op.v), self._readers(op.out)
        if v and matrices:
            values = self.columns.values(op)
            self._divide_rows(v, values.ravel())
            self._multiply_columns(matrices, of_heads(values))

    def gate(self, op: Gate) -> None:
        """What a gate makes: the rows of up (without it those of the gate, if the function takes
        any scale), and the columns of all that read it."""
        alone = op.gate if FUNCTIONS[op.fn].homogeneous else None
        edge = alone if op.up is None else op.up
        up, matrices = edge and self._maker(edge), self._readers(op.out)
        if up and matrices:
            down = np.concatenate([self.weights[m.weight] for m in matrices])
            factors = self.columns.hidden(op.out, down)
            self._divide_rows(up, factors)
            self._multiply_columns(matrices, factors)

    def _maker(self, edge: str) -> Linear | None:
        """The matrix that makes an edge which nothing else reads."""
        op = self.graph.maker[edge]
        return op if isinstance(op, Linear) and len(self.graph.readers[edge]) == 1 else None

    def _readers(self, edge: str) -> list[Linear | Head]:
        """The matrices that read an edge; none if anything else reads it."""
        ops = self.graph.readers[edge]
        matrices = [op for op in ops if isinstance(op, Linear | Head)]
        return matrices if len(matrices) == len(ops) else []

    def _multiply_columns(self, matrices: Iterable[Linear | Head], factors: np.ndarray) -> None:
        for op in matrices:
            self.weights[op.weight] = self.weights[op.weight] * factors

    def _multiply_rows(self, op: Linear, factors: np.ndarray) -> None:
        self.weights[op.weight] = self.weights[op.weight] * factors[:, None]
        if op.bias is not None:
            self.weights[op.bias] = self.weights[op.bias] * factors

    def _divide_rows(self, op: Linear, factors: np.ndarray) -> None:
        self.weights[op.weight] = self.weights[op.weight] / factors[:, None]
        if op.bias is not None:
            self.weights[op.bias] = self.weights[op.bias] * (1 / factors)


_RULES: dict[type[Operator], Callable[..., None]] = {
    Norm: _Evener.norm, Attend: _Evener.attend, Gate: _Evener.gate}
