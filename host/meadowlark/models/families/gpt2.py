"""GPT-2 (Radford et al., Language Models are Unsupervised Multitask Learners, 2019)."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
from gguf import MODEL_ARCH

from ..graph import Graph
from ..metadata import Metadata
from .decoder import Decoder
from .gpt import OLDER, Gpt

#: Parts of a layer; their tensors have a row an input.
_PARTS = {**dict.fromkeys(("q", "k", "v"), "attn.c_attn"), "o": "attn.c_proj", "up": "mlp.c_fc",
          "down": "mlp.c_proj"}


class Gpt2(Gpt):
    """LayerNorm, learned positions, an MLP without a gate; q, k and v are one tensor."""
    name = "gpt2"
    classes = ("GPT2LMHeadModel",)
    arch = MODEL_ARCH.GPT2
    keys = OLDER
    positions = 0
    neutral = {"reorder_and_upcast_attn": True}     # how others compute the same
    defaults = {"n_positions": 1024}
    names = {"embedding": "transformer.wte", "positions": "transformer.wpe",
             "final_norm": "transformer.ln_f", "head": "lm_head",
             "layers.{}.norm1": "transformer.h.{}.ln_1", "layers.{}.norm2": "transformer.h.{}.ln_2",
             **{f"layers.{{}}.{part}": f"transformer.h.{{}}.{name}"
                for part, name in _PARTS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        made = super().from_config(config)
        return made if config.flag("scale_attn_weights", True) else replace(made, divisor=1.0)

    def stored(self, weight: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if weight.startswith("layers.") else shape

    def restored(self, weight: str, value: np.ndarray, graph: Graph) -> np.ndarray:
        return np.ascontiguousarray(value.T) if weight.startswith("layers.") else value
