"""Gemma (arXiv:2403.08295)."""
from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
from gguf import MODEL_ARCH
from meadowlark_hdl.isa import Fn

from ..graph import Graph
from ..metadata import Metadata
from .decoder import Decoder
from .family import Tensors
from .llama import Llama

#: What the first files call the function that was trained, which is GELU by tanh.
_ACTS = ("gelu", "gelu_pytorch_tanh")


class Gemma(Llama):
    """As Llama, with GELU for its gates, and a scaled embedding, which is the head, too."""
    name = "gemma"
    classes = ("GemmaForCausalLM",)
    arch = MODEL_ARCH.GEMMA
    act = "hidden_activation", "gelu_pytorch_tanh"
    defaults = {"head_dim": 256, "num_key_value_heads": 16, "max_position_embeddings": 8192,
                "tie_word_embeddings": True}
    interleaved = False

    def from_config(self, config: Metadata) -> Decoder:
        if (act := config.word("hidden_act", _ACTS[0])) not in _ACTS:
            raise config.refuse(f"activation hidden_act {act!r} is not supported",
                                "name the one that was trained as hidden_activation")
        return _scaled(super().from_config(config))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        return replace(_scaled(super().from_gguf(meta, tensors, vocab)), fn=Fn.GELU_TANH)

    def restored(self, weight: str, value: np.ndarray, graph: Graph) -> np.ndarray:
        return value + np.float32(1) if "norm" in weight.rpartition(".")[2] else value


def _scaled(made: Decoder) -> Decoder:
    return replace(made, embedding_scale=sqrt(made.hidden))
