"""Gemma 3 (arXiv:2503.19786), of text alone."""
from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

from gguf import MODEL_ARCH

from .. import rope
from ..graph import Rates, rates
from ..metadata import Metadata
from .decoder import FULL, HEAD, SLIDING, Decoder, multiplier, sliding
from .family import Tensors
from .gemma import Gemma
from .gemma2 import BEHIND

#: Norms of a layer.
_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm", **BEHIND}
_NORMED: Any = dict(qk_norm=HEAD, behind=True)


class Gemma3(Gemma):
    """As Gemma, with norms of heads, and behind attention and MLP; layers with a window rotate by a
    table of their own."""
    name = "gemma3_text"
    classes = ("Gemma3ForCausalLM",)
    arch = MODEL_ARCH.GEMMA3
    defaults = {"head_dim": 256, "num_key_value_heads": 4, "max_position_embeddings": 131072,
                "sliding_window": 4096, "query_pre_attn_scalar": 256, "tie_word_embeddings": True}
    names = {**Gemma.names, **{f"layers.{{}}.{norm}": f"model.layers.{{}}.{name}"
                               for norm, name in _NORMS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        return replace(super().from_config(config), local=_local(config), **_NORMED,
                       divisor=sqrt(multiplier(config, "query_pre_attn_scalar", 256.0)))

    def rates(self, config: Metadata, head_dim: int) -> Rates:
        return rope.from_config(config, head_dim, base=1e6, kind=FULL)

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        every = config.whole("_sliding_window_pattern", None) or \
            config.whole("sliding_window_pattern", 6)
        return sliding(config, _kinds(layers, every), config.whole("sliding_window", None))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made, arch = super().from_gguf(meta, tensors, vocab), self.gguf_name
        every = meta.whole(f"{arch}.attention.sliding_window_pattern", 6)
        local = rates(made.head_dim // 2, meta.number(f"{arch}.rope.freq_base_swa", 10000.0))
        kinds = _kinds(made.layers, every)
        return replace(made, **_NORMED, local=Rates(local), windows={
            i: window for i, window in (made.windows or {}).items() if kinds[i] == SLIDING})


def _kinds(layers: int, every: int) -> list[str]:
    """Of layers: one of so many sees all."""
    return [SLIDING if (i + 1) % every else FULL for i in range(layers)]


def _local(config: Metadata) -> Rates:
    """How fast heads rotate in layers with a window."""
    head_dim, base = config.whole("head_dim"), config.number("rope_local_base_freq", 10000.0)
    return rope.from_config(config, head_dim, base=base, kind=SLIDING)
