"""A checkpoint run in float32: what each operator computes."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from meadowlark_hdl.functions import FUNCTIONS

from .checkpoint import Model
from .graph import (Add, Attend, Embed, Gate, Head, Linear, Norm, Operator, Patches, Rates, Read,
                    Rope)

#: Called with (edge, float32[n, width]) as a run goes.
Observer = Callable[[str, np.ndarray], None]
#: Queries of one sequence that are handled at once; bounds the memory of the scores.
QUERIES = 256


class _Run(Protocol):
    """What operators depend on beside their inputs, of one pass through the graph.

    tokens: int[n], the rows of every edge; of an encoder float32[n, width], what each is given.
    """
    weights: Mapping[str, np.ndarray]
    tokens: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """int[n or 1], of the rows."""
        ...

    def turns(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of the rows' positions: float32[n or 1, 1, pairs]."""
        ...

    def attend(self, op: Attend, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """[n, heads, value_dim] from q[n, heads, head_dim], keys k[n, kv_heads, head_dim] and
        v[n, kv_heads, value_dim]."""
        ...


# ---- Operators: values of the inputs [n, width] -> value of the output

def _embed(run: _Run, op: Embed) -> np.ndarray:
    x = None if op.weight is None else scaled(run.weights[op.weight][run.tokens], op.scale)
    if op.positions is None:
        assert x is not None
        return x
    positions = run.weights[op.positions][op.offset + run.positions]
    return positions if x is None else x + positions


def _patches(run: _Run, op: Patches) -> np.ndarray:
    return run.tokens


def _norm(run: _Run, op: Norm, x: np.ndarray) -> np.ndarray:
    heads = in_heads(x, op)
    y = norm(heads, op) * run.weights[op.gamma]
    return (y if op.beta is None else y + run.weights[op.beta]).reshape(x.shape)


def _read(_: _Run, op: Read, x: np.ndarray) -> np.ndarray:
    return x


def _linear(run: _Run, op: Linear, x: np.ndarray) -> np.ndarray:
    return matrix(run.weights, op, x)


def _rope(run: _Run, op: Rope, x: np.ndarray) -> np.ndarray:
    return rotate(x, op.head_dim, *run.turns(op.table))


def _attend(run: _Run, op: Attend, *inputs: np.ndarray) -> np.ndarray:
    return run.attend(op, *split(op, *inputs)).reshape(len(inputs[0]), -1)


def _gate(_: _Run, op: Gate, gate: np.ndarray, *up: np.ndarray) -> np.ndarray:
    y = FUNCTIONS[op.fn].exact(gate)
    return y * up[0] if up else y


def _add(_: _Run, op: Add, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + scaled(y, op.scale)


def _head(run: _Run, op: Head, x: np.ndarray) -> np.ndarray:
    return head(run.weights, op, x)


#: How an operator is run; a row each.
FORWARD: Mapping[type[Operator], Callable[..., np.ndarray]] = {
    Embed: _embed, Patches: _patches, Norm: _norm, Read: _read, Linear: _linear, Rope: _rope,
    Attend: _attend, Gate: _gate, Add: _add, Head: _head}


def matrix(weights: Mapping[str, np.ndarray], op: Linear | Head, x: np.ndarray) -> np.ndarray:
    """weight @ x + bias, of rows."""
    y = x @ weights[op.weight].T
    return y if op.bias is None else y + weights[op.bias]


def head(weights: Mapping[str, np.ndarray], op: Head, x: np.ndarray) -> np.ndarray:
    """Logits of rows."""
    return capped(scaled(matrix(weights, op, x), op.scale), op.cap)


def scaled(x: np.ndarray, scale: float) -> np.ndarray:
    """x * scale, of x's type."""
    return x if scale == 1 else x * x.dtype.type(scale)


def capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap), of x's type."""
    return x if cap is None else x.dtype.type(cap) * np.tanh(x / x.dtype.type(cap))


def in_heads(x: np.ndarray, op: Norm) -> np.ndarray:
    """Rows [n, width] as what a norm takes together: the same, or [n, heads, head_dim]."""
    return x if op.head_dim is None else x.reshape(len(x), -1, op.head_dim)


def split(op: Attend, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """Queries, keys and values, heads each for itself: [n, heads or kv_heads, dimensions]."""
    q, k, v = (x.reshape(len(x), heads, -1) for x, heads in (
        (q, op.heads), (k, op.kv_heads), (v, op.kv_heads)))
    return q, np.concatenate([k, v], axis=-1) if op.latent else k, v


def norm(x: np.ndarray, op: Norm) -> np.ndarray:
    """A norm of rows, without gamma and beta."""
    wide = x.astype(np.float64)
    if op.centred:
        wide = wide - wide.mean(axis=-1, keepdims=True)
    mean = np.mean(wide ** 2, axis=-1, keepdims=True)
    return ((wide if op.centred else x) / np.sqrt(mean + op.eps)).astype(x.dtype)


def rotate(x: np.ndarray, head_dim: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Heads of rows [n, heads * head_dim] turned by angles [n or 1, 1, pairs]."""
    heads = x.reshape(len(x), -1, head_dim)
    pairs = cos.shape[-1]
    a, b, rest = np.split(heads, [pairs, 2 * pairs], axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos, rest],
                          axis=-1).reshape(x.shape)


def turns(rates: Rates, positions: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32[positions, 1, pairs]."""
    angles = rates.angles(positions)[:, None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def unseen(op: Attend, positions: np.ndarray, keys: int) -> np.ndarray:
    """bool[positions, keys]: keys that a query at a position does not see."""
    behind = np.arange(keys) - positions[:, None]
    out = (behind > 0) & (not op.ahead)
    return out if op.window is None else out | (behind <= -op.window)


# ---- Passes

class FloatModel:
    """Float32 reference of a :class:`meadowlark.models.checkpoint.Model`.

    Parameters
    ----------
    model : Model
        Its arrays are used, not copied.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def forward(self, tokens: Sequence[int] | np.ndarray, observe: Observer | None = None,
                ) -> np.ndarray:
        """Logits of a sequence that starts at position 0.

        Parameters
        ----------
        tokens : sequence of n ids, 1 <= n <= context
            Of an encoder float32[context, width], see :class:`meadowlark.models.graph.Patches`.
        observe : callable, optional
            Gets each edge of the graph, in order.

        Returns
        -------
        float32[n, vocab]
        """
        return _run(self.model, self._sequence(tokens), observe)

    def watch(self, tokens: Sequence[int] | np.ndarray, observe: Observer) -> None:
        """As :meth:`forward`, without logits: they may be a third of the work."""
        _run(self.model, self._sequence(tokens), observe, self.model.graph.operators[:-1])

    def _sequence(self, tokens: Sequence[int] | np.ndarray) -> _Sequence:
        encoder = self.model.graph.encoder
        tokens = np.asarray(tokens, np.float32 if encoder else np.int64)
        if encoder and len(tokens) != self.model.context:
            raise ValueError(f"an image has {self.model.context} tokens, not {len(tokens)}")
        if not 1 <= len(tokens) <= self.model.context:
            raise ValueError(f"a sequence must have 1..{self.model.context} tokens, not "
                             f"{len(tokens)}")
        return _Sequence(self.model, tokens)

    def stepper(self, sequences: int, length: int) -> Stepper:
        """Many sequences at once, a token of each at a time, up to a length."""
        return Stepper(self.model, sequences, length)


def _run(model: Model, run: _Run, observe: Observer | None = None,
         operators: Sequence[Operator] | None = None) -> np.ndarray:
    """What the last operator makes, of all by default: logits. Every edge is there as long as
    operators read it."""
    edges: dict[str, np.ndarray] = {}
    for op in model.graph.operators if operators is None else operators:
        edges[op.out] = FORWARD[type(op)](run, op, *(edges[name] for name in op.inputs))
        if observe is not None:
            observe(op.out, edges[op.out])
        for name in model.graph.spent[op.out]:
            del edges[name]
    return edges.popitem()[1]


class _Sequence:
    """Rows are the positions of one sequence."""

    def __init__(self, model: Model, tokens: np.ndarray) -> None:
        self.weights, self.tokens = model.weights, tokens
        self.positions: np.ndarray = np.arange(len(tokens))
        self._turns = {name: turns(rates, range(len(tokens)))
                       for name, rates in model.graph.tables.items()}

    def turns(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        return self._turns[table]

    def attend(self, op: Attend, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        group = op.heads // op.kv_heads
        out = np.empty((*q.shape[:2], op.value_dim), q.dtype)
        for start in range(0, len(q), QUERIES):
            stop = min(len(q), start + QUERIES)
            keys = len(q) if op.ahead else stop
            hidden = unseen(op, np.arange(start, stop), keys)
            for h in range(op.heads):
                s = capped(q[start:stop, h] @ k[:keys, h // group].T / q.dtype.type(op.divisor),
                           op.cap)
                s[hidden] = -np.inf
                p = np.exp(s - s.max(axis=-1, keepdims=True))
                out[start:stop, h] = p @ v[:keys, h // group] / p.sum(axis=-1, keepdims=True)
        return out


class Stepper:
    """Rows are sequences, all at one position; keys and values of earlier ones are kept."""

    def __init__(self, model: Model, sequences: int, length: int) -> None:
        self.model, self.weights = model, model.weights
        self.position = 0
        self._turns = {name: turns(rates, range(length))
                       for name, rates in model.graph.tables.items()}
        self._caches = {op.out: [np.zeros((sequences, op.kv_heads, length, width), np.float32)
                                 for width in (op.head_dim, op.value_dim)]
                        for op in model.graph.of(Attend)}

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """The next token of each sequence -> float32[sequences, vocab]."""
        self.tokens = tokens
        logits = _run(self.model, self)
        self.position += 1
        return logits

    @property
    def positions(self) -> np.ndarray:
        return np.array([self.position])

    def turns(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        cos, sin = self._turns[table]
        return cos[self.position, None], sin[self.position, None]

    def attend(self, op: Attend, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        t = self.position
        start = 0 if op.window is None else max(0, t + 1 - op.window)
        keys, values = self._caches[op.out]
        keys[:, :, t], values[:, :, t] = k, v
        q = q.reshape(len(q), op.kv_heads, -1, op.head_dim)
        s = q @ keys[:, :, start:t + 1].swapaxes(-1, -2)
        s = capped(s / np.float32(op.divisor), op.cap)
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True) @ values[:, :, start:t + 1]
