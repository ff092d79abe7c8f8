"""Phi-1, Phi-1.5 and Phi-2 (arXiv:2306.11644, 2309.05463; Microsoft, 2023)."""
from __future__ import annotations

from gguf import MODEL_ARCH

from .decoder import SHARED
from .gpt import NEWER, Gpt

#: Parts of a layer.
_PARTS = {"norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
          "v": "self_attn.v_proj", "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}


class Phi(Gpt):
    """LayerNorm, which attention and an MLP without a gate share; a part of a head rotates."""
    name = "phi"
    classes = ("PhiForCausalLM",)
    arch = MODEL_ARCH.PHI2
    keys = {**NEWER, "kv_heads": "num_key_value_heads"}
    head_bias = True
    parallel = SHARED
    prefix = "model."
    defaults = {"max_position_embeddings": 2048, "tie_word_embeddings": False}
    names = {"embedding": "model.embed_tokens", "final_norm": "model.final_layernorm",
             "head": "lm_head", **{f"layers.{{}}.{part}": f"model.layers.{{}}.{name}"
                                   for part, name in _PARTS.items()}}
