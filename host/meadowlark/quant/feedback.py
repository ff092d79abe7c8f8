"""Rounding with feedback: what rounding one weight does wrong, the next ones of its row make good.

An output's error is that of its row times the input, so its square is ``e H e'`` with e the errors
of the row and H the inputs' second moments. Columns are rounded one after the other, each after
what the errors before it suggest.

Source: GPTQ, arXiv:2210.17323, section 3; in the form of QuIP, arXiv:2307.13304, section 3.1.
"""
from __future__ import annotations

import numpy as np

from .quantise import INT8

#: Inputs of the matrices of a layer.
INPUTS = {"q": "x1", "k": "x1", "v": "x1", "o": "attention", "gate": "x2", "up": "x2", "down": "h",
          "head": "final"}
#: Matrices of more columns are rounded without feedback: their moments take too much memory.
MAX_COLUMNS = 2048
#: Share of the moments' mean diagonal that is added to it: what calibration has not seen.
DAMPING = 0.1
#: Columns and rows at once: what a processor's cache holds.
COLUMNS, ROWS = 32, 4096


class Moments:
    """Second moments of the inputs of matrices, tokens weighed by what the residual behind them
    is: the next norm divides by it. of: node, layer -> float32[columns, columns]."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, int], np.ndarray] = {}
        self._waiting: tuple[tuple[str, int], np.ndarray] | None = None

    def observe(self, node: str, layer: int, value: np.ndarray) -> None:
        """An :data:`meadowlark.models.float_model.Observer`."""
        if node == "residual" and self._waiting:
            weight = 1 / np.sqrt(np.maximum(np.mean(np.square(value), axis=1), 1e-12))
            self._add(self._waiting[0], self._waiting[1] * weight[:, None])
            self._waiting = None
        elif node in INPUTS.values() and value.reshape(len(value), -1).shape[1] <= MAX_COLUMNS:
            value = value.reshape(len(value), -1)
            if node in ("attention", "h"):
                self._waiting = (node, layer), value
            else:
                self._add((node, layer), value)

    def _add(self, key: tuple[str, int], x: np.ndarray) -> None:
        if key in self.of:
            self.of[key] += x.T @ x
        else:
            self.of[key] = x.T @ x


def feedback(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float[K, K] -> (order of the columns int[K], float32[K, K]): what is added to column k is
    the errors of those before it in the order times column k, above the diagonal."""
    h = np.asarray(moments, np.float64)
    diagonal = np.diagonal(h)
    order = np.argsort(-diagonal, kind="stable")
    h = h[order][:, order]
    h[np.diag_indices(len(h))] += max(DAMPING * float(diagonal.mean()), 1e-12)
    # H = R R' with R upper triangular, from Cholesky's of H with its order reversed.
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return order, np.ascontiguousarray(upper / np.diagonal(upper), np.float32)


def round_rows(weight: np.ndarray, scale: np.ndarray, order: np.ndarray, back: np.ndarray,
               ) -> np.ndarray:
    """Codes of a matrix.

    Parameters
    ----------
    weight : float32[rows, K]
    scale : float64[rows]
        Of a code of 1; 0 for a row of zeros.
    order, back : see :func:`feedback`

    Returns
    -------
    int8[rows, K], -127..127
    """
    out = np.empty(weight.shape, np.int8)
    K = weight.shape[1]
    for at in range(0, len(weight), ROWS):
        rows = slice(at, at + ROWS)
        step = np.where(scale[rows] > 0, scale[rows], 1).astype(np.float32)
        want = np.ascontiguousarray((weight[rows] / step[:, None])[:, order].T)
        errors, codes = np.empty_like(want), np.empty(want.shape, np.int8)
        for start in range(0, K, COLUMNS):
            stop = min(K, start + COLUMNS)
            part = want[start:stop] + back[:start, start:stop].T @ errors[:start]
            for k in range(start, stop):
                code = np.clip(np.rint(part[k - start]), -INT8, INT8)
                codes[k] = code
                errors[k] = want[k] - code
                part[k - start + 1:] += back[k, k + 1:stop, None] * errors[k]
        out[rows, order] = codes.T
    return out
