"""Granite 3 (IBM): Llama with four multipliers."""
from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import Decoder, multiplier
from .family import Tensors
from .llama import Llama


class Granite(Llama):
    """As Llama; what comes from the embedding, is added to the residual, becomes a score or a logit
    is multiplied by a number each."""
    name = "granite"
    classes = ("GraniteForCausalLM",)
    arch = MODEL_ARCH.GRANITE

    def from_config(self, config: Metadata) -> Decoder:
        return replace(
            super().from_config(config),
            embedding_scale=multiplier(config, "embedding_multiplier", 1.0),
            residual_scale=multiplier(config, "residual_multiplier", 1.0),
            divisor=1 / multiplier(config, "attention_multiplier", 1.0),
            logit_scale=1 / multiplier(config, "logits_scaling", 1.0))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made, at = super().from_gguf(meta, tensors, vocab), self.gguf_name
        # As in llama.cpp, a scale of 0 is none; and RoPE that is not "finetuned" is none.
        scores = multiplier(meta, f"{at}.attention.scale", 0.0)
        rotated = meta.flag(f"{at}.rope.scaling.finetuned", True)
        return replace(
            made, embedding_scale=multiplier(meta, f"{at}.embedding_scale", 0.0) or 1.0,
            residual_scale=multiplier(meta, f"{at}.residual_scale", 0.0) or 1.0,
            divisor=1 / scores if scores else None,
            logit_scale=1 / (multiplier(meta, f"{at}.logit_scale", 0.0) or 1.0),
            unrotated=() if rotated else range(made.layers))
