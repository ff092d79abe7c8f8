"""What an error costs: gradients of the loss at every row of every matrix."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.checkpoint import Model
from ..models.float_model import FloatModel
from ..models.graph import Head, Linear
from ..models.vjp import gradients


class Sensitivity:
    """Second moments of the gradient, summed over tokens.

    The labels are drawn from the model's own distribution, so that the mean square of the gradient
    is the curvature of the loss (Fisher's information): an error e of an output of a row costs
    ``e**2 / 2`` times it, in nats.

    rows: name of a weight -> float64[rows], each token's square times that of the row's input:
    errors of the weights of a row with a mean square of 1 cost half of it over all tokens. Where
    the head is the embedding, it counts as the head. tokens: how many were seen.
    """

    def __init__(self, model: Model, seed: int = 1) -> None:
        self.model, self.runner = model, FloatModel(model)
        self.rng = np.random.default_rng(seed)
        self.rows: dict[str, np.ndarray] = {}
        self.tokens = 0

    def observe(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Add a sequence."""
        m, n = self.model, len(tokens)
        values: dict[str, np.ndarray] = {}
        logits = self.runner.forward(tokens, values.__setitem__)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        # Of logits, the mean over all labels is known: no need to draw them.
        head = next(m.graph.of(Head))
        self._add(head.weight, np.square(values[head.x]).sum(axis=1) @ (p * (1 - p)),
                  head.scale ** 2)
        drawn = (np.cumsum(p, axis=1) < self.rng.random((n, 1))).sum(axis=1)
        p[np.arange(n), np.minimum(drawn, m.vocab - 1)] -= 1

        def matrix(op: Linear | Head, x: np.ndarray, d: np.ndarray) -> None:
            if isinstance(op, Linear):
                self._add(op.weight, np.square(x).sum(axis=1) @ np.square(d))
        gradients(m, values, p, matrix)
        self.tokens += n

    def _add(self, name: str, value: np.ndarray, factor: float = 1.0) -> None:
        self.rows[name] = self.rows.get(name, 0.0) + value.astype(np.float64) * factor
