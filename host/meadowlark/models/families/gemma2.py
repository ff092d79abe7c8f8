"""Gemma 2 (arXiv:2408.00118)."""
from __future__ import annotations

from dataclasses import replace
from math import sqrt

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import FULL, SLIDING, Decoder, multiplier, sliding
from .family import Tensors
from .gemma import Gemma

#: Norms of a layer with some behind attention and MLP, too.
BEHIND = {"norm1_behind": "post_attention_layernorm", "norm2": "pre_feedforward_layernorm",
          "norm2_behind": "post_feedforward_layernorm"}
#: Caps of scores and logits, in config.json and behind the architecture in GGUF -> usual value.
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
#: Layers of the one model whose scores are not divided by the root of head_dim; GGUF files do not
#: say by what.
_27B = 46


class Gemma2(Gemma):
    """As Gemma, with norms behind attention and MLP, soft caps of scores and logits, and a window
    in every other layer."""
    name = "gemma2"
    classes = ("Gemma2ForCausalLM",)
    arch = MODEL_ARCH.GEMMA2
    defaults = {"head_dim": 256, "num_key_value_heads": 4, "max_position_embeddings": 8192,
                "sliding_window": 4096, "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
                **_CAPS}
    names = {**Gemma.names, **{f"layers.{{}}.{norm}": f"model.layers.{{}}.{name}"
                               for norm, name in BEHIND.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        scores, logits = (multiplier(config, key, 0.0) or None for key in _CAPS)
        return replace(super().from_config(config), behind=True, score_cap=scores,
                       logit_cap=logits,
                       divisor=sqrt(multiplier(config, "query_pre_attn_scalar", 256.0)))

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        return sliding(config, _kinds(layers), config.whole("sliding_window", None))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made, arch = super().from_gguf(meta, tensors, vocab), self.gguf_name
        scores, logits = (multiplier(meta, f"{arch}.{key}", value) for key, value in _CAPS.items())
        window = meta.whole(f"{arch}.attention.sliding_window", 4096)
        divisor = made.hidden / made.heads if made.layers == _27B else made.head_dim
        return replace(made, behind=True, score_cap=scores, logit_cap=logits,
                       divisor=sqrt(divisor), windows={
                           i: window for i, kind in enumerate(_kinds(made.layers))
                           if kind == SLIDING})


def _kinds(layers: int) -> list[str]:
    """Of layers: every other one sees all."""
    return [FULL if i % 2 else SLIDING for i in range(layers)]
