"""Vision transformers (arXiv:2010.11929), and DeiT without distillation (arXiv:2012.12877)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph import Builder, Graph
from ..metadata import Metadata
from ..pictures import Pictures, read_pictures, shape_of
from .decoder import PLAIN, Decoder, function, head_size, of_layers
from .family import MAX_LAYERS, Family

#: Parts of a layer.
_PARTS = {**{part[0]: f"attention.attention.{part}" for part in ("query", "key", "value")},
          "o": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
          "up": "intermediate.dense", "down": "output.dense"}


@dataclass(frozen=True, kw_only=True)
class Encoder(Decoder):
    """The class token is the last. For side and so on see :class:`..pictures.Pictures`."""
    side: int
    patch: int
    channels: int
    labels: tuple[str, ...]

    def begin(self, b: Builder) -> str:
        r = b.embed(None, self.hidden, positions=self.context)
        patches = b.patches(self.channels * self.patch ** 2)
        return b.add(r, b.linear(patches, "embedding", self.hidden, bias=True))

    def stored(self, graph: Graph) -> Mapping[str, tuple[int, ...]]:
        return {**graph.shapes, "class_token": (1, 1, self.hidden),
                "positions": (1, self.context, self.hidden),
                "embedding": (self.hidden, self.channels, self.patch, self.patch)}

    def made(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """In files the class token is the first. It has no patch, so no bias of patches either."""
        first, *rest = weights["positions"][0]
        last = first + weights["class_token"][0, 0] - weights["embedding.bias"]
        changed = {"positions": np.stack([*rest, last]),
                   "embedding": weights["embedding"].reshape(self.hidden, -1)}
        return {n: w for n, w in {**weights, **changed}.items() if n != "class_token"}

    def pictures(self, folder: Path) -> Pictures:
        return read_pictures(folder, self.side, self.patch, self.channels, self.labels, others=1)


class Vit(Family):
    """Images in patches, whose classes are those of a token of its own; LayerNorm, an MLP without
    a gate. DeiT without distillation is one."""
    name = "vit"
    classes = ("ViTForImageClassification",)
    unused = ("pooler_*", "encoder_stride", "label2id")
    names = {"embedding": "vit.embeddings.patch_embeddings.projection",
             "class_token": "vit.embeddings.cls_token",
             "positions": "vit.embeddings.position_embeddings", "final_norm": "vit.layernorm",
             "head": "classifier", **{f"layers.{{}}.{part}": f"vit.encoder.layer.{{}}.{name}"
                                      for part, name in _PARTS.items()}}

    def tensor(self, weight: str) -> str:
        bare = weight in ("class_token", "positions")
        return super().tensor(weight).removesuffix(".weight" if bare else "")

    def from_config(self, config: Metadata) -> Encoder:
        hidden, heads, _, head_dim = head_size(
            config, "hidden_size", "num_attention_heads", even=False)
        layers = config.whole("num_hidden_layers", most=MAX_LAYERS)
        shape = shape_of(config)
        biased = (*"qkv"[:3 * config.flag("qkv_bias", True)], "o", *PLAIN)
        return Encoder(
            hidden=hidden, heads=heads, kv_heads=heads, head_dim=head_dim, layers=layers,
            ffn=config.whole("intermediate_size"), eps=config.number("layer_norm_eps", 1e-12),
            vocab=len(shape["labels"]), context=(shape["side"] // shape["patch"]) ** 2 + 1,
            fn=function(config, "hidden_act", "gelu"), gated=False, centred=True, ahead=True,
            rope=None, tied=False, biases=of_layers(layers, biased) | {"head"}, **shape)
