"""OLMo 2 (arXiv:2501.00656): norms behind attention and MLP, and none before them."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import PROJECTION, Decoder
from .family import Tensors
from .llama import Llama

#: Norms of a layer.
_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
          "norm1_behind": "post_attention_layernorm", "norm2_behind": "post_feedforward_layernorm"}
_NORMED: Any = dict(qk_norm=PROJECTION, behind=True, before=False)


class Olmo2(Llama):
    """As Llama, with norms of all queries and all keys, and behind attention and MLP, which read
    the residual as it is."""
    name = "olmo2"
    classes = ("Olmo2ForCausalLM",)
    arch = MODEL_ARCH.OLMO2
    interleaved = False
    defaults = {"rms_norm_eps": 1e-5}
    names = {**{name: tensor for name, tensor in Llama.names.items() if "norm1" not in name
                and "norm2" not in name},
             **{f"layers.{{}}.{norm}": f"model.layers.{{}}.{name}"
                for norm, name in _NORMS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        return replace(super().from_config(config), **_NORMED)

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        return replace(super().from_gguf(meta, tensors, vocab), **_NORMED)
