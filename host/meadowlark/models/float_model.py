"""A checkpoint run in float32."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .checkpoint import Model


def rope_angles(head_dim: int, theta: float, positions: Iterable[int]) -> np.ndarray:
    """float64[positions, head_dim/2]: angle of pair i is position * theta**(-2i/head_dim)."""
    rate = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.asarray(list(positions), np.float64)[:, None] * rate


#: Called with (node, layer or -1, array) as a forward pass goes.
Observer = Callable[[str, int, np.ndarray], None]


class FloatModel:
    """Float32 reference of a :class:`Model`: one sequence at a time, no cache.

    Parameters
    ----------
    model : Model
        Its arrays are used, not copied.
    """

    #: Queries handled at once; bounds the memory of the scores.
    QUERIES = 256

    def __init__(self, model: Model) -> None:
        self.model = model

    def forward(self, tokens: Sequence[int] | np.ndarray, observe: Observer | None = None,
                ) -> np.ndarray:
        """Logits of a sequence that starts at position 0.

        Parameters
        ----------
        tokens : sequence of n ids, 1 <= n <= context
        observe : callable, optional
            Gets each node: "residual" (after the embedding with layer -1, then after each half of
            a layer), "x1", "x2", "final" (norm outputs), "q", "k" ([n, heads, head_dim] before
            rotation), "q_rot", "k_rot", "v", "attention" ([n, heads, head_dim]), "gate", "up",
            "h" (input of the down rows), "logits".

        Returns
        -------
        float32[n, vocab]
        """
        m = self.model
        tokens = np.asarray(tokens, np.int64)
        n = len(tokens)
        if not 1 <= n <= m.context:
            raise ValueError(f"a sequence must have 1..{m.context} tokens, not {n}")
        see = observe or (lambda *_: None)
        angles = rope_angles(m.head_dim, m.rope_theta, range(n))
        cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        r = m.embedding[tokens]
        see("residual", -1, r)
        for i, w in enumerate(m.layers):
            x = self._norm(r, w.norm1)
            see("x1", i, x)
            q = self._linear(x, w.q, w.q_bias).reshape(n, m.heads, m.head_dim)
            k, v = (self._linear(x, a, b).reshape(n, m.kv_heads, m.head_dim)
                    for a, b in ((w.k, w.k_bias), (w.v, w.v_bias)))
            see("q", i, q)
            see("k", i, k)
            see("v", i, v)
            q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
            see("q_rot", i, q)
            see("k_rot", i, k)
            a = self._attention(q, k, v)
            see("attention", i, a)
            r = r + self._linear(a.reshape(n, -1), w.o, w.o_bias)
            see("residual", i, r)
            x = self._norm(r, w.norm2)
            see("x2", i, x)
            gate = self._linear(x, w.gate, w.gate_bias)
            up = self._linear(x, w.up, w.up_bias)
            see("gate", i, gate)
            see("up", i, up)
            # exp(-88) is the smallest that float32 holds; silu is 0 to its precision long before
            h = gate / (1 + np.exp(-np.maximum(gate, -80))) * up
            see("h", i, h)
            r = r + self._linear(h, w.down, w.down_bias)
            see("residual", i, r)
        x = self._norm(r, m.final_norm)
        see("final", -1, x)
        logits = x @ m.head.T
        see("logits", -1, logits)
        return logits

    def _norm(self, r: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        mean = np.mean(r.astype(np.float64) ** 2, axis=-1, keepdims=True)
        return (r / np.sqrt(mean + self.model.rms_eps)).astype(np.float32) * gamma

    @staticmethod
    def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Causal attention; q [n, heads, d], k and v [n, kv_heads, d] -> [n, heads, d]."""
        n, heads, d = q.shape
        group = heads // k.shape[1]
        out = np.empty_like(q)
        for start in range(0, n, self.QUERIES):
            stop = min(n, start + self.QUERIES)
            hidden = np.arange(stop) > np.arange(start, stop)[:, None]
            for h in range(heads):
                s = q[start:stop, h] @ k[:stop, h // group].T / np.float32(np.sqrt(d))
                s[hidden] = -np.inf
                p = np.exp(s - s.max(axis=-1, keepdims=True))
                out[start:stop, h] = p @ v[:stop, h // group] / p.sum(axis=-1, keepdims=True)
        return out
