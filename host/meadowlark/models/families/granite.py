"""Granite 3 (IBM): Llama with four multipliers."""
from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from ..metadata import Metadata
from .decoder import Decoder
from .family import Tensors
from .llama import Llama


#: Smallest multiplier; 0.001 is common.
LEAST = 1e-6


class Granite(Llama):
    """As Llama; what comes from the embedding, is added to the residual, becomes a score or a logit
    is multiplied by a number each."""
    name = "granite"
    classes = ("GraniteForCausalLM",)
    arch = MODEL_ARCH.GRANITE

    def from_config(self, config: Metadata) -> Decoder:
        return replace(
            super().from_config(config),
            embedding_scale=_number(config, "embedding_multiplier", 1.0),
            residual_scale=_number(config, "residual_multiplier", 1.0),
            divisor=1 / _number(config, "attention_multiplier", 1.0),
            logit_scale=1 / _number(config, "logits_scaling", 1.0))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        made, at = super().from_gguf(meta, tensors, vocab), self.gguf_name
        # As in llama.cpp, a scale of 0 is none; and RoPE that is not "finetuned" is none.
        scores = _number(meta, f"{at}.attention.scale", 0.0)
        rotated = meta.flag(f"{at}.rope.scaling.finetuned", True)
        return replace(
            made, embedding_scale=_number(meta, f"{at}.embedding_scale", 0.0) or 1.0,
            residual_scale=_number(meta, f"{at}.residual_scale", 0.0) or 1.0,
            divisor=1 / scores if scores else None,
            logit_scale=1 / (_number(meta, f"{at}.logit_scale", 0.0) or 1.0),
            unrotated=() if rotated else range(made.layers))


def _number(source: Metadata, key: str, default: float) -> float:
    """A multiplier that float32 has room for; 0 only where that is the default."""
    value = source.number(key, default, zero=default == 0)
    if value and not LEAST <= value <= 1 / LEAST:
        raise source.refuse(f"{source.named(key)} must be from {LEAST:g} to {1 / LEAST:g}, not "
                            f"{value:g}")
    return value
