"""What encoders of images compute (arXiv:2010.11929)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph import Builder, Graph
from ..pictures import Pictures, read_pictures
from .decoder import Decoder

#: Matrices of the attention that pools: scores of 0, and values as they are.
_POOL = ("pool.q", "pool.k", "pool.v")


@dataclass(frozen=True, kw_only=True)
class Encoder(Decoder):
    """For side and so on see :class:`..pictures.Pictures`. pooled: classes are those of the mean
    over all patches, by one more attention whose scores are all equal; else of a class token, which
    is the last.
    """
    side: int
    patch: int
    channels: int
    labels: tuple[str, ...]
    pooled: bool = False

    def begin(self, b: Builder) -> str:
        r = b.embed(None, self.hidden, positions=self.context)
        patches = b.patches(self.channels * self.patch ** 2)
        return b.add(r, b.linear(patches, "embedding", self.hidden, bias=True))

    def end(self, b: Builder, x: str) -> str:
        if not self.pooled:
            return x
        q, k, v = (b.linear(x, name, self.hidden) for name in _POOL)
        return b.attend(q, k, v, "pool.attention", heads=self.heads, kv_heads=self.kv_heads,
                        head_dim=self.head_dim, ahead=True)

    def stored(self, graph: Graph) -> Mapping[str, tuple[int, ...]]:
        return {**{name: shape for name, shape in graph.shapes.items() if name not in _POOL},
                **({} if self.pooled else {"class_token": (1, 1, self.hidden)}),
                "positions": (1, self.context, self.hidden),
                "embedding": (self.hidden, self.channels, self.patch, self.patch)}

    def made(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """In files the class token is the first. It has no patch, so no bias of patches either."""
        first, *rest = weights["positions"][0]
        if self.pooled:
            positions, zeros = weights["positions"][0], np.zeros((self.hidden,) * 2, np.float32)
            more = dict(zip(_POOL, (zeros, zeros, np.eye(self.hidden, dtype=np.float32))))
        else:
            last = first + weights["class_token"][0, 0] - weights["embedding.bias"]
            positions, more = np.stack([*rest, last]), {}
        changed = {"positions": positions, **more,
                   "embedding": weights["embedding"].reshape(self.hidden, -1)}
        return {n: w for n, w in {**weights, **changed}.items() if n != "class_token"}

    def pictures(self, folder: Path) -> Pictures:
        return read_pictures(folder, self.side, self.patch, self.channels, self.labels,
                             others=0 if self.pooled else 1)
