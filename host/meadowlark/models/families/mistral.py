"""Mistral (arXiv:2310.06825): Llama with a window of attention."""
from __future__ import annotations

from ..metadata import Metadata
from .decoder import SLIDING, sliding
from .llama import Llama


class Mistral(Llama):
    """As Llama; each layer sees the last positions only. llama.cpp converts it to ``llama``."""
    name = "mistral"
    classes = ("MistralForCausalLM",)
    arch = None
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131072,
                "sliding_window": 4096}

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        return sliding(config, [SLIDING] * layers, config.whole("sliding_window", None))
