"""Phi-3 (arXiv:2404.14219): Llama with tensors that are several matrices in one."""
from __future__ import annotations

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import SLIDING, sliding
from .llama import Llama


class Phi3(Llama):
    """As Llama, with a window; q, k and v are the rows of one tensor, gate and up of another."""
    name = "phi3"
    classes = ("Phi3ForCausalLM",)
    arch = MODEL_ARCH.PHI3
    defaults = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    names = {**Llama.names,
             **dict.fromkeys(("layers.{}.q", "layers.{}.k", "layers.{}.v"),
                             "model.layers.{}.self_attn.qkv_proj"),
             **dict.fromkeys(("layers.{}.gate", "layers.{}.up"),
                             "model.layers.{}.mlp.gate_up_proj")}
    interleaved = False

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        return sliding(config, [SLIDING] * layers, config.whole("sliding_window", None))
