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

from ..models.checkpoint import Layer, Model
from .own_text import first
from .quantise import FIRST, HEADROOM, calibration_tokens, observe

#: Share of the spread of the activations (its logarithm) that the weights take over.
STRENGTH = {"x1": 0.5, "attention": 0.5, "x2": 0.5, "h": 0.5, "final": 0.25}
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
#: Inputs of matrices, as :data:`meadowlark.models.float_model.Observer` names them.
_NODES = ("x1", "attention", "x2", "h", "final")


class _Columns:
    """Mean square of each column, every token of equal weight: the first one of a sequence, with
    magnitudes a thousand times those of the others, would hide all of them. And the largest
    magnitudes of keys, values and the inputs of the down rows."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], np.ndarray] = {}
        self.peaks: dict[tuple[str, int], np.ndarray] = {}
        self.tokens = 0

    def observe(self, node: str, layer: int, value: np.ndarray) -> None:
        """An :data:`meadowlark.models.float_model.Observer`."""
        if node in _NODES:
            square = np.square(value.reshape(len(value), -1), dtype=np.float64)
            square /= np.maximum(square.mean(axis=1, keepdims=True), 1e-30)
            self.sums[node, layer] = self.sums.get((node, layer), 0.0) + square.sum(axis=0)
        if node in ("k_rot", "v", "h"):
            size = np.abs(value)
            if node == "h":
                size[:1] *= FIRST / HEADROOM        # as in quantise
            self.peaks[node, layer] = np.maximum(self.peaks.get((node, layer), 0.0),
                                                 size.max(axis=0))

    def rms(self, node: str, layer: int) -> np.ndarray:
        """float64[columns], in units of a token's root mean square."""
        return np.maximum(np.sqrt(self.sums[node, layer] / self.tokens), FLOOR)

    def factors(self, node: str, layer: int) -> np.ndarray:
        """float32[columns] with a geometric mean of about 1."""
        return _steps(self.rms(node, layer) ** STRENGTH[node])

    def keys(self, layer: int) -> np.ndarray:
        """float32[KV heads, head_dim], what the keys are divided by; the two of a pair that
        rotates together have one factor."""
        peak = self.peaks["k_rot", layer]
        pair = np.max(np.split(peak, 2, axis=-1), axis=0)
        pair = np.maximum(pair, SMALLEST_KEY * pair.max(axis=-1, keepdims=True))
        return _steps(np.tile(np.maximum(pair, 1e-12), 2))

    def values(self, layer: int, group: int) -> np.ndarray:
        """float32[KV heads, head_dim], what the values are divided by."""
        peak = self.peaks["v", layer]
        square = np.square(self.rms("attention", layer)).reshape(len(peak), group, -1).mean(axis=1)
        peak = np.maximum(peak, FLOOR * peak.max(axis=-1, keepdims=True) + 1e-12)
        # Within a head, peaks: its cache has one scale. From head to head it is the columns of o.
        heads = np.sqrt(square.mean(axis=-1, keepdims=True)) ** STRENGTH["attention"]
        return _steps(_even(np.sqrt(square) ** (STRENGTH["attention"] * (1 - PEAKS))
                            * peak ** PEAKS) * heads)

    def hidden(self, layer: int, down: np.ndarray) -> np.ndarray:
        """float32[columns] of the down rows' input. One column alone may have a magnitude that
        costs all others of the tensor their bits; then it takes more, as far as ``down`` has room
        in int8."""
        factors = _steps(self.rms("h", layer) ** STRENGTH["h"])
        peak = self.peaks["h", layer] / factors
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
    columns = _Columns()
    columns.tokens = observe(model, first(list(map(list, calibration)), TOKENS), columns.observe,
                             progress)
    final = columns.factors("final", -1)
    return replace(
        model, layers=tuple(_layer(model, i, layer, columns)
                            for i, layer in enumerate(model.layers)),
        final_norm=model.final_norm / final, head=model.head * final, tied=False, blocks={})


def _layer(model: Model, i: int, w: Layer, columns: _Columns) -> Layer:
    group = model.heads // model.kv_heads
    x1, x2, h = columns.factors("x1", i), columns.factors("x2", i), columns.hidden(i, w.down)

    def of_heads(factors: np.ndarray) -> np.ndarray:
        return np.repeat(factors[:, None], group, axis=1).ravel()
    keys, values = columns.keys(i), columns.values(i, group)
    q, k, attention, v = of_heads(keys), keys.ravel(), of_heads(values), values.ravel()

    def times(bias: np.ndarray | None, factors: np.ndarray) -> np.ndarray | None:
        return None if bias is None else bias * factors
    return replace(
        w, blocks={}, norm1=w.norm1 / x1, q=w.q * x1 * q[:, None], q_bias=times(w.q_bias, q),
        k=w.k * x1 / k[:, None], k_bias=times(w.k_bias, 1 / k),
        v=w.v * x1 / v[:, None], v_bias=times(w.v_bias, 1 / v), o=w.o * attention,
        norm2=w.norm2 / x2, gate=w.gate * x2, up=w.up * x2 / h[:, None],
        up_bias=times(w.up_bias, 1 / h), down=w.down * h)
