"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373)."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
from gguf import MODEL_ARCH

from .. import rope
from ..graph import Attend, Graph, Rates
from ..metadata import Metadata
from .decoder import ATTENTION, OWN, Decoder
from .family import Tensors
from .gpt import Gpt

#: Parts of a layer; of q, k and v each head has its rows together.
_PARTS = {"norm1": "input_layernorm",
          **dict.fromkeys(("q", "k", "v"), "attention.query_key_value"), "o": "attention.dense",
          "norm2": "post_attention_layernorm", "up": "mlp.dense_h_to_4h",
          "down": "mlp.dense_4h_to_h"}


class GptNeoX(Gpt):
    """LayerNorm, an MLP without a gate, which may read what attention reads; a part of a head
    rotates."""
    name = "gpt_neox"
    classes = ("GPTNeoXForCausalLM",)
    arch = MODEL_ARCH.GPTNEOX
    prefix = "gpt_neox."
    defaults = {"hidden_act": "gelu", "max_position_embeddings": 2048,
                "tie_word_embeddings": False}
    names = {"embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm",
             "head": "embed_out", **{f"layers.{{}}.{part}": f"gpt_neox.layers.{{}}.{name}"
                                     for part, name in _PARTS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        made = super().from_config(config)
        unbiased = () if config.flag("attention_bias", True) else ATTENTION
        return replace(
            made, parallel=OWN if config.flag("use_parallel_residual", True) else None,
            biases=frozenset(name for name in made.biases
                             if name.rpartition(".")[2] not in unbiased))

    def rates(self, config: Metadata, head_dim: int) -> Rates:
        return rope.from_config(config, head_dim, part=config.number("rotary_pct", 0.25),
                                base=config.number("rotary_emb_base", 10000.0))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        parallel = meta.flag(f"{self.gguf_name}.use_parallel_residual", True)
        return replace(super().from_gguf(meta, tensors, vocab), parallel=OWN if parallel else None)

    def restored(self, weight: str, value: np.ndarray, graph: Graph) -> np.ndarray:
        if weight.removesuffix(".bias").rpartition(".")[2] != "q":
            return value
        heads = value.reshape(next(graph.of(Attend)).heads, 3, -1, *value.shape[1:])
        return heads.swapaxes(0, 1).reshape(value.shape)
