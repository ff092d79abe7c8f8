"""Columns of matrices evened out, so that coarse weights cost less.

The error that a rounded weight makes is that of its code times the activation it meets, and some
activations of a layer are many times larger than others. A column may be multiplied by anything if
what feeds it is divided by the same: a norm's gamma, or the rows of the matrix before. Here it is
the square root of the column's activations, between none and all of their spread: all would leave
rows with a few weights too large for int8 on a fine grid.

Source: AWQ, arXiv:2306.00978, section 3.2; half of the spread as in SmoothQuant, arXiv:2211.10438,
section 3.2. Measured in docs/packing.md.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from .model import Layer, Model
from .quantise import calibration_tokens, observe

#: Share of the spread of the activations (its logarithm) that the weights take over.
STRENGTH = 0.5
#: Factors are powers of two in steps of this: sums differ in their last bits from one BLAS to the
#: next, and the integer model must not.
STEP = 1 / 16
#: Tokens that the activations are measured on.
TOKENS = 2048
#: Activations below this share of their tensor's root mean square count as that much.
FLOOR = 1e-3
#: Inputs of matrices, as :data:`meadowlark.model.Observer` names them.
_NODES = ("x1", "attention", "x2", "h", "final")


class _Columns:
    """Mean square of each column, every token of equal weight: the first one of a sequence, with
    magnitudes a thousand times those of the others, would hide all of them."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], np.ndarray] = {}
        self.tokens = 0

    def observe(self, node: str, layer: int, value: np.ndarray) -> None:
        """An :data:`meadowlark.model.Observer`."""
        if node in _NODES:
            square = np.square(value.reshape(len(value), -1), dtype=np.float64)
            square /= np.maximum(square.mean(axis=1, keepdims=True), 1e-30)
            self.sums[node, layer] = self.sums.get((node, layer), 0.0) + square.sum(axis=0)

    def factors(self, node: str, layer: int, groups: tuple[int, int, int] | None = None,
                ) -> np.ndarray:
        """float32[columns] with a geometric mean of about 1. groups: (KV heads, heads of each,
        head_dim); then float32[KV heads, head_dim], common to the heads of a group."""
        square = self.sums[node, layer] / self.tokens
        if groups:
            square = square.reshape(groups).mean(axis=1)
        log = STRENGTH * np.log2(np.maximum(np.sqrt(square), FLOOR))
        return np.exp2(np.rint((log - log.mean()) / STEP) * STEP).astype(np.float32)


def equalise(model: Model, calibration: Iterable[Sequence[int]] | None = None,
             progress: Callable[[int], None] | None = None) -> Model:
    """The same function in float32, but for rounding, with columns evened out.

    Parameters
    ----------
    model : Model
        Its blocks, if it has any, are dropped: they are of other weights.
    calibration : sequences of token ids, optional
        What the activations are measured on; None takes the packaged text.
    progress : callable, optional
        Gets the number of tokens done.

    Returns
    -------
    Model
        Not tied: the head's columns are evened out, the embedding's are not.
    """
    if calibration is None:
        calibration = calibration_tokens(model, max_tokens=TOKENS)
    columns = _Columns()
    columns.tokens = observe(model, calibration, columns.observe, progress)
    final = columns.factors("final", -1)
    return replace(
        model, layers=tuple(_layer(model, i, layer, columns)
                            for i, layer in enumerate(model.layers)),
        final_norm=model.final_norm / final, head=model.head * final, tied=False, blocks={})


def _layer(model: Model, i: int, w: Layer, columns: _Columns) -> Layer:
    group = model.heads // model.kv_heads
    x1, x2, h = (columns.factors(node, i) for node in ("x1", "x2", "h"))
    v = columns.factors("attention", i, (model.kv_heads, group, model.head_dim))
    attention = np.repeat(v[:, None], group, axis=1).ravel()
    v = v.ravel()

    def over(bias: np.ndarray | None, factors: np.ndarray) -> np.ndarray | None:
        return None if bias is None else bias / factors
    return replace(
        w, blocks={}, norm1=w.norm1 / x1, q=w.q * x1, k=w.k * x1, v=w.v * x1 / v[:, None],
        v_bias=over(w.v_bias, v), o=w.o * attention, norm2=w.norm2 / x2, gate=w.gate * x2,
        up=w.up * x2 / h[:, None], up_bias=over(w.up_bias, h), down=w.down * h)
