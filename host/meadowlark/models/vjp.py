"""Gradients: what each operator gives back of the gradient of its output."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from meadowlark_hdl.functions import FUNCTIONS

from .checkpoint import Model
from .float_model import capped, head, in_heads, rotate, scaled, split, turns, unseen
from .graph import Add, Attend, Embed, Gate, Head, Linear, Norm, Operator, Patches, Read, Rope

#: Called with a matrix's operator, its inputs [n, columns] and the gradient of its outputs
#: [n, rows].
Observer = Callable[[Linear | Head, np.ndarray, np.ndarray], None]


def gradients(model: Model, values: Mapping[str, np.ndarray], logits: np.ndarray,
              observe: Observer | None = None) -> np.ndarray:
    """Walk a graph backwards over one sequence.

    Parameters
    ----------
    model : Model
    values : mapping of edge to [n, width]
        Of :meth:`meadowlark.models.float_model.FloatModel.forward`; all edges that are read.
    logits : [n, vocab]
        Gradient of the loss.
    observe : callable, optional
        Gets each matrix, from the last on.

    Returns
    -------
    [n, hidden], the gradient at the first edge.
    """
    graph = model.graph
    given: dict[str, dict[str, np.ndarray]] = {op.out: {} for op in graph.operators}
    at = logits
    for op in reversed(graph.operators):
        if (parts := given.pop(op.out)):
            # In the order of the readers, so that the sum does not depend on that of the walk.
            at, *others = (parts[by.out] for by in graph.readers[op.out])
            for other in others:
                at = at + other
        if isinstance(op, Head):            # from here on that of the matrix' own outputs
            at = _of_logits(model, op, at, values[op.x])
        if observe is not None and isinstance(op, (Linear, Head)):
            observe(op, values[op.x], at)
        inputs = [values[name] for name in op.inputs]
        for name, part in zip(op.inputs, VJP[type(op)](model, op, at, *inputs), strict=True):
            given[name][op.out] = part
    return at


# ---- Operators: gradient of the output, and values of the inputs -> gradients of the inputs

def _no_inputs(_: Model, op: Embed | Patches, d: np.ndarray) -> Sequence[np.ndarray]:
    return ()


def _norm(model: Model, op: Norm, d: np.ndarray, x: np.ndarray) -> Sequence[np.ndarray]:
    shape, d, x = x.shape, in_heads(d, op), in_heads(x, op)
    wide = x.astype(np.float64)
    if op.centred:
        wide = wide - wide.mean(axis=-1, keepdims=True)
    square = np.mean(wide ** 2, axis=-1, keepdims=True) + op.eps
    inverse = (1 / np.sqrt(square)).astype(x.dtype)
    y = wide.astype(x.dtype) * inverse
    d = d * model.weights[op.gamma]
    d = d - y * np.mean(d * y, axis=-1, keepdims=True) if not op.centred else \
        d - d.mean(axis=-1, keepdims=True) - y * np.mean(d * y, axis=-1, keepdims=True)
    return (inverse * d).reshape(shape),


def _read(_: Model, op: Read, d: np.ndarray, x: np.ndarray) -> Sequence[np.ndarray]:
    return d,


def _linear(model: Model, op: Linear | Head, d: np.ndarray, x: np.ndarray) -> Sequence[np.ndarray]:
    return d @ model.weights[op.weight],


def _rope(model: Model, op: Rope, d: np.ndarray, x: np.ndarray) -> Sequence[np.ndarray]:
    cos, sin = turns(model.graph.tables[op.table], range(len(x)))
    return rotate(d, op.head_dim, cos, -sin),


def _attend(_: Model, op: Attend, d: np.ndarray, *inputs: np.ndarray) -> Sequence[np.ndarray]:
    n, group = len(d), op.heads // op.kv_heads
    d, (q, k, v) = d.reshape(n, op.heads, -1), split(op, *inputs)
    divisor, hidden = q.dtype.type(op.divisor), unseen(op, np.arange(n), n)
    dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    for h in range(op.heads):
        g = h // group
        s = capped(q[:, h] @ k[:, g].T / divisor, op.cap)
        slope = _slope(s, op.cap)
        s[hidden] = -np.inf
        p = np.exp(s - s.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        dv[:, g] += p.T @ d[:, h]
        dp = d[:, h] @ v[:, g].T
        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) * slope / divisor
        dq[:, h] = ds @ k[:, g]
        dk[:, g] += ds.T @ q[:, h]
    if op.latent:           # what a key has of the value
        dv += dk[..., op.key_dim:]
    return [x.reshape(n, -1) for x in (dq, dk[..., :op.key_dim] if op.latent else dk, dv)]


def _gate(_: Model, op: Gate, d: np.ndarray, gate: np.ndarray, *up: np.ndarray,
          ) -> Sequence[np.ndarray]:
    function = FUNCTIONS[op.fn]
    slope = d * function.slope(gate)
    return (slope * up[0], d * function.exact(gate)) if up else (slope,)


def _add(_: Model, op: Add, d: np.ndarray, x: np.ndarray, y: np.ndarray) -> Sequence[np.ndarray]:
    return d, scaled(d, op.scale)


def _slope(y: np.ndarray, cap: float | None) -> np.ndarray | float:
    """Of the soft cap that gave y."""
    return 1.0 if cap is None else 1 - np.square(y / y.dtype.type(cap))


def _of_logits(model: Model, op: Head, d: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gradient of what the head's matrix gives, before scale and cap."""
    if op.cap is not None:
        d = d * _slope(head(model.weights, op, x), op.cap)
    return scaled(d, op.scale)


#: How the gradient of an operator is found; a row each.
VJP: Mapping[type[Operator], Callable[..., Sequence[np.ndarray]]] = {
    Embed: _no_inputs, Patches: _no_inputs, Norm: _norm, Read: _read, Linear: _linear, Rope: _rope,
    Attend: _attend, Gate: _gate, Add: _add, Head: _linear}
