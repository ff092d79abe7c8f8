"""Vision transformers (arXiv:2010.11929), and DeiT without distillation (arXiv:2012.12877)."""
from __future__ import annotations

from typing import ClassVar

from ..metadata import Metadata
from ..pictures import shape_of
from .decoder import PLAIN, function, head_size, of_layers
from .encoder import Encoder
from .family import MAX_LAYERS, Family

#: Parts of a layer.
_PARTS = {**{part[0]: f"attention.attention.{part}" for part in ("query", "key", "value")},
          "o": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
          "up": "intermediate.dense", "down": "output.dense"}


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
    #: Classes are those of the mean over all patches; there is no token of its own.
    pooled: ClassVar[bool] = False

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
            vocab=len(shape["labels"]),
            context=(shape["side"] // shape["patch"]) ** 2 + (not self.pooled),
            fn=function(config, "hidden_act", "gelu"), gated=False, centred=True, ahead=True,
            rope=None, tied=False, biases=of_layers(layers, biased) | {"head"},
            pooled=self.pooled, **shape)
