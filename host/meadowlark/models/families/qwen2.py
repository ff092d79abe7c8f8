"""Qwen2 and Qwen2.5 (arXiv:2407.10671, 2412.15115): Llama with biases of queries, keys and
values."""
from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import FULL, SLIDING, Decoder, of_layers, sliding
from .family import Tensors
from .llama import Llama


class Qwen2(Llama):
    """As Llama, with biases of q, k and v; the later layers may have a window."""
    name = "qwen2"
    classes = ("Qwen2ForCausalLM",)
    arch = MODEL_ARCH.QWEN2
    defaults = {"num_key_value_heads": 32, "max_position_embeddings": 32768,
                "sliding_window": 4096, "max_window_layers": 28}
    interleaved = False

    def from_config(self, config: Metadata) -> Decoder:
        made = super().from_config(config)
        return replace(made, biases=of_layers(made.layers, "qkv"))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made = super().from_gguf(meta, tensors, vocab)
        return replace(made, biases={*made.biases, *of_layers(made.layers, "qkv")})

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        window, first = config.whole("sliding_window", None), \
            config.whole("max_window_layers", least=0)
        kinds = [FULL if i < first else SLIDING for i in range(layers)]
        return sliding(config, kinds,
                       window if config.flag("use_sliding_window", False) else None)
