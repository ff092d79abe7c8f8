"""Qwen3 (arXiv:2505.09388): Qwen2 whose queries and keys are normed, each head alone."""
from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import HEAD, Decoder
from .family import Tensors
from .llama import Llama
from .qwen2 import Qwen2


class Qwen3(Qwen2):
    """As Qwen2, with norms of heads; biases, if any, as Llama has them."""
    name = "qwen3"
    classes = ("Qwen3ForCausalLM",)
    arch = MODEL_ARCH.QWEN3
    defaults = {**Qwen2.defaults, "head_dim": 128}
    names = {**Llama.names, **{
        f"layers.{{}}.{norm}": f"model.layers.{{}}.self_attn.{norm}"
        for norm in ("q_norm", "k_norm")}}

    def from_config(self, config: Metadata) -> Decoder:
        return replace(Llama.from_config(self, config), qk_norm=HEAD)

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        return replace(Llama.from_gguf(self, meta, tensors, vocab), qk_norm=HEAD)
