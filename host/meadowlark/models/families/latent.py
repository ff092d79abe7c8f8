"""What decoders with latent attention compute (arXiv:2405.04434), its projections absorbed."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..graph import Builder, Graph
from .decoder import Decoder

#: Epsilon of the norms of latents, whatever that of the others is.
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LatentDecoder(Decoder):
    """A decoder whose keys are a part that rotates, one for all heads, and a latent, which is the
    value as well (section 2.1 of the paper, appendix C).

    nope, value: dimensions of a head that do not rotate, and of its values, before they are
    absorbed. latent: of a token. rank: of the queries' projection, or None. neighbours: of the part
    that rotates, dimensions 2i and 2i+1 do so together in files; else i and i + D/2. apart: files
    have the matrices from latents to keys, transposed, and to values, not one of both.
    """
    nope: int
    value: int
    latent: int
    rank: int | None
    neighbours: bool = True
    apart: bool = False

    def attend(self, b: Builder, x: str, i: int) -> str:
        at, turning = f"layers.{i}", self.head_dim - self.latent
        assert self.rope is not None
        c = b.norm(self.linear(b, x, f"{at}.c", self.latent), f"{at}.kv_norm", _EPS)
        k = b.rope(self.linear(b, x, f"{at}.k", turning), turning, self.rope)
        if self.rank is not None:
            x = b.norm(self.linear(b, x, f"{at}.q_a", self.rank), f"{at}.q_norm", _EPS)
        q = b.rope(self.linear(b, x, f"{at}.q", self.heads * self.head_dim), self.head_dim,
                   self.rope)
        return b.attend(q, k, c, f"{at}.attention", heads=self.heads, kv_heads=1,
                        head_dim=self.head_dim, latent=self.latent, divisor=self.divisor)

    def stored(self, graph: Graph) -> Mapping[str, tuple[int, ...]]:
        shapes, turning = dict(graph.shapes), self.head_dim - self.latent
        for at in (f"layers.{i}" for i in range(self.layers)):
            for part in "qkco":
                columns = shapes.pop(f"{at}.{part}")[1]
                if part == "q":
                    shapes[self._queries(at)] = self.heads * (self.nope + turning), columns
            shapes |= {f"{at}.kv_a": (self.latent + turning, self.hidden),
                       f"{at}.o_full": (self.hidden, self.heads * self.value)}
            shapes |= {f"{at}.k_b": (self.heads, self.latent, self.nope),
                       f"{at}.v_b": (self.heads, self.value, self.latent)} if self.apart else \
                {f"{at}.kv_b": (self.heads * (self.nope + self.value), self.latent)}
        return shapes

    def made(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Queries take in the keys' way from latents, the last matrix that of the values."""
        found = dict(weights)
        for at in (f"layers.{i}" for i in range(self.layers)):
            if self.apart:
                found[f"{at}.kv_b"] = np.concatenate(
                    [found.pop(f"{at}.k_b").swapaxes(1, 2), found.pop(f"{at}.v_b")], axis=1)
            q, kv_a, kv_b, o = (found.pop(name).astype(np.float64) for name in (
                self._queries(at), f"{at}.kv_a", f"{at}.kv_b", f"{at}.o_full"))
            q = q.reshape(self.heads, -1, q.shape[1])
            keys, values = np.split(kv_b.reshape(self.heads, -1, self.latent), [self.nope], axis=1)
            parts = {
                "q": np.concatenate([self._turned(q[:, self.nope:]),
                                     keys.swapaxes(1, 2) @ q[:, :self.nope]], axis=1),
                "k": self._turned(kv_a[self.latent:][None]), "c": kv_a[:self.latent],
                "o": (o.reshape(len(o), self.heads, 1, -1) @ values).reshape(len(o), -1)}
            found |= {f"{at}.{part}": w.reshape(-1, w.shape[-1]).astype(np.float32)
                      for part, w in parts.items()}
        return found

    def _queries(self, at: str) -> str:
        return f"{at}.q_full" if self.rank is None else f"{at}.q_b"

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        """Rows [heads, D, ...] that rotate, i with i + D/2."""
        if not self.neighbours:
            return rows
        return np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)
