"""Rounding with feedback: what rounding one weight does wrong, the next ones of its row make good.

An output's error is that of its row times the input, so its square is ``e H e'`` with e the errors
of the row and H the inputs' second moments. Columns are rounded one after the other, each after
what the errors before it suggest.

Source: GPTQ, arXiv:2210.17323, section 3; in the form of QuIP, arXiv:2307.13304, section 3.1.
"""
from __future__ import annotations

import numpy as np

from ..models.graph import Add, Graph, Head, Linear, Norm
from .quantise import INT8

#: Matrices of more columns are rounded without feedback: their moments take too much memory.
MAX_COLUMNS = 2048
#: Share of the moments' mean diagonal that is added to it: what calibration has not seen.
DAMPING = 0.1
#: Columns and rows at once: what a processor's cache holds.
COLUMNS, ROWS = 32, 4096


class Moments:
    """Second moments of the inputs of matrices. of: edge -> float32[columns, columns].

    Where the output is added to the residual, tokens are weighed by what that is afterwards: the
    next norm divides by it.
    """

    def __init__(self, graph: Graph) -> None:
        self.of: dict[str, np.ndarray] = {}
        self._graph = graph
        self._inputs = {op.x for op in graph.of(Linear, Head)}
        self._waiting: dict[str, list[tuple[str, np.ndarray]]] = {}     # by residual

    def observe(self, edge: str, value: np.ndarray) -> None:
        """An :data:`meadowlark.models.float_model.Observer`."""
        if waiting := self._waiting.pop(edge, None):
            weight = 1 / np.sqrt(np.maximum(np.mean(np.square(value), axis=1), 1e-12))
            for name, x in waiting:
                self._add(name, x * weight[:, None])
        if edge in self._inputs and value.shape[1] <= MAX_COLUMNS:
            if behind := self._normed(edge):
                self._waiting.setdefault(behind, []).append((edge, value))
            else:
                self._add(edge, value)

    def _normed(self, edge: str) -> str | None:
        """The residual that a norm reads next, where the edge's matrix adds to one; or what the
        matrix makes, where that is normed."""
        readers = self._graph.readers
        if len(readers[edge]) > 1:
            return None
        name = readers[edge][0].out
        while not any(isinstance(op, Norm) for op in readers[name]):
            add = next((op for op in readers[name] if isinstance(op, Add)), None)
            if add is None:
                return None
            name = add.out
        return name

    def _add(self, edge: str, x: np.ndarray) -> None:
        if edge in self.of:
            self.of[edge] += x.T @ x
        else:
            self.of[edge] = x.T @ x


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
