"""SmolLM3 (Hugging Face): Llama with layers without RoPE (arXiv:2501.18795)."""
from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import FULL, SLIDING, Decoder, sliding
from .family import Tensors
from .llama import Llama


class SmolLM3(Llama):
    """As Llama; in every fourth layer nothing rotates."""
    name = "smollm3"
    classes = ("SmolLM3ForCausalLM",)
    arch = MODEL_ARCH.SMOLLM3
    defaults = {"num_key_value_heads": 4, "max_position_embeddings": 32768,
                "rope_theta": 2000000.0, "tie_word_embeddings": True}

    def from_config(self, config: Metadata) -> Decoder:
        made = super().from_config(config)
        return replace(made, unrotated=_unrotated(config, made.layers))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made = super().from_gguf(meta, tensors, vocab)
        return replace(made, unrotated=range(3, made.layers, 4))    # which no key says

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        window, bare = config.whole("sliding_window", None), _unrotated(config, layers)
        kinds = [SLIDING if i in bare else FULL for i in range(layers)]
        return sliding(config, kinds,
                       window if config.flag("use_sliding_window", False) else None)


def _unrotated(config: Metadata, layers: int) -> list[int]:
    """Layers without RoPE; in the file a 1 stands for one with it."""
    every = config.whole("no_rope_layer_interval", 4)
    rotated = config.flags("no_rope_layers", layers,
                           [bool((i + 1) % every) for i in range(layers)])
    return [i for i, flag in enumerate(rotated) if not flag]
