"""What an error costs: gradients of the loss at every row of every matrix."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.checkpoint import Model
from ..models.float_model import FloatModel, rope_angles

#: Matrices of a layer.
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Sensitivity:
    """Second moments of the gradient, summed over tokens.

    The labels are drawn from the model's own distribution, so that the mean square of the gradient
    is the curvature of the loss (Fisher's information): an error e of an output of a row costs
    ``e**2 / 2`` times it, in nats.

    rows: matrix, layer ("head", -1) -> float64[rows], each token's square times that of the
    row's input: errors of the weights of a row with a mean square of 1 cost half of it over all
    tokens. tokens: how many were seen.
    """

    def __init__(self, model: Model, seed: int = 1) -> None:
        self.model, self.runner = model, FloatModel(model)
        self.rng = np.random.default_rng(seed)
        self.rows: dict[tuple[str, int], np.ndarray] = {}
        self.tokens = 0

    def observe(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Add a sequence."""
        m, n = self.model, len(tokens)
        seen: dict[tuple[str, int], list[np.ndarray]] = {}
        logits = self.runner.forward(
            tokens, lambda node, i, value: seen.setdefault((node, i), []).append(value))
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        final = seen["final", -1][0]
        self._add("head", -1, np.square(final).sum(axis=1) @ (p * (1 - p)))
        drawn = (np.cumsum(p, axis=1) < self.rng.random((n, 1))).sum(axis=1)
        p[np.arange(n), np.minimum(drawn, m.vocab - 1)] -= 1
        residuals = {i: seen["residual", i] for i in range(-1, len(m.layers))}
        r = residuals[len(m.layers) - 1][1] if m.layers else residuals[-1][0]
        dr = self._norm_back(p @ m.head, r, m.final_norm)
        angles = rope_angles(m.head_dim, m.rope_theta, range(n))
        cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        for i in reversed(range(len(m.layers))):
            w = m.layers[i]

            def of(node: str) -> np.ndarray:
                return seen[node, i][0]
            dh = self._back("down", i, dr, of("h"), w.down)
            gate, up = of("gate"), of("up")
            s = 1 / (1 + np.exp(-np.maximum(gate, -80)))
            dx = self._back("gate", i, dh * up * s * (1 + gate * (1 - s)), of("x2"), w.gate) \
                + self._back("up", i, dh * gate * s, of("x2"), w.up)
            dr = dr + self._norm_back(dx, residuals[i][0], w.norm2)
            a = of("attention").reshape(n, -1)
            da = self._back("o", i, dr, a, w.o).reshape(n, m.heads, m.head_dim)
            dq, dk, dv = self._attention_back(da, of("q_rot"), of("k_rot"), of("v"))
            dq, dk = (FloatModel._rotate(d, cos, -sin).reshape(n, -1) for d in (dq, dk))
            dx = self._back("q", i, dq, of("x1"), w.q) + self._back("k", i, dk, of("x1"), w.k) \
                + self._back("v", i, dv.reshape(n, -1), of("x1"), w.v)
            before = residuals[i - 1][-1]
            dr = dr + self._norm_back(dx, before, w.norm1)
        self.tokens += n

    def _add(self, name: str, i: int, value: np.ndarray) -> None:
        self.rows[name, i] = self.rows.get((name, i), 0.0) + value.astype(np.float64)

    def _back(self, name: str, i: int, d: np.ndarray, x: np.ndarray, weight: np.ndarray,
              ) -> np.ndarray:
        """Gradient of a matrix's output [n, rows] -> of its input [n, K]."""
        self._add(name, i, np.square(x).sum(axis=1) @ np.square(d))
        return d @ weight

    def _norm_back(self, d: np.ndarray, r: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        square = np.mean(r.astype(np.float64) ** 2, axis=-1, keepdims=True) + self.model.rms_eps
        inverse = (1 / np.sqrt(square)).astype(np.float32)
        d, y = d * gamma, r * inverse
        return inverse * (d - y * np.mean(d * y, axis=-1, keepdims=True))

    @staticmethod
    def _attention_back(da, q, k, v):
        """[n, heads, d] and [n, kv_heads, d] -> the gradients of q, k (rotated) and v."""
        n, heads, dim = q.shape
        group, root = heads // k.shape[1], np.float32(np.sqrt(dim))
        hidden = np.arange(n) > np.arange(n)[:, None]
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        for h in range(heads):
            g = h // group
            s = q[:, h] @ k[:, g].T / root
            s[hidden] = -np.inf
            p = np.exp(s - s.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            dv[:, g] += p.T @ da[:, h]
            dp = da[:, h] @ v[:, g].T
            ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / root
            dq[:, h], dg = ds @ k[:, g], ds.T @ q[:, h]
            dk[:, g] += dg
        return dq, dk, dv
