"""Llama (arXiv:2302.13971, 2307.09288, 2407.21783)."""
from __future__ import annotations

from typing import ClassVar

from gguf import MODEL_ARCH

from .. import rope
from ..graph import Rates
from ..metadata import Metadata
from .decoder import ATTENTION, FULL, GATED, Decoder, function, head_size, of_layers
from .family import MAX_LAYERS, Family, Tensors

#: Matrices of a layer, and what transformers calls them.
_MATRICES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
             "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}


class Llama(Family):
    """Grouped queries, RoPE, RMSNorm, gated MLP; with or without biases; the head tied or
    not."""
    name = "llama"
    classes = ("LlamaForCausalLM",)
    arch = MODEL_ARCH.LLAMA
    names = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
             "layers.{}.norm1": "model.layers.{}.input_layernorm",
             "layers.{}.norm2": "model.layers.{}.post_attention_layernorm",
             **{f"layers.{{}}.{part}": f"model.layers.{{}}.{name}"
                for part, name in _MATRICES.items()}}
    interleaved = True
    #: The entry of config.json that names the function of the MLP, and what it is without.
    act: ClassVar[tuple[str, str]] = "hidden_act", "silu"

    def from_config(self, config: Metadata) -> Decoder:
        hidden, heads, kv_heads, head_dim = head_size(
            config, "hidden_size", "num_attention_heads", "head_dim", "num_key_value_heads")
        layers = config.whole("num_hidden_layers", most=MAX_LAYERS)
        parts = (*(ATTENTION if config.flag("attention_bias", False) else ()),
                 *(GATED if config.flag("mlp_bias", False) else ()))
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=config.whole("intermediate_size"), vocab=config.whole("vocab_size"),
            context=config.whole("max_position_embeddings", 2048),
            eps=config.number("rms_norm_eps", 1e-6),
            rope=self.rates(config, head_dim), fn=function(config, *self.act),
            biases=of_layers(layers, parts),
            windows=self.windows(config, layers), tied=config.flag("tie_word_embeddings", False))

    def rates(self, config: Metadata, head_dim: int) -> Rates:
        """How fast heads rotate."""
        return rope.from_config(config, head_dim)

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        """Layer -> how many positions it sees, where not all."""
        if set(config.texts("layer_types", [FULL])) != {FULL}:
            raise config.refuse("layer_types names layers without full attention, which are not "
                                "supported", f"use a plain {self.name} checkpoint")
        return {}

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        arch = self.gguf_name
        hidden, heads, kv_heads, head_dim = head_size(
            meta, f"{arch}.embedding_length", f"{arch}.attention.head_count",
            f"{arch}.attention.key_length", f"{arch}.attention.head_count_kv")
        for key in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
            if (length := meta.whole(key, head_dim)) != head_dim:
                raise meta.refuse(f"{key} is {length} and heads have {head_dim} dimensions, which "
                                  "is not supported", "use a model where both are equal")
        layers = meta.whole(f"{arch}.block_count", most=MAX_LAYERS)
        window = meta.whole(f"{arch}.attention.sliding_window", 0, least=0)
        parts = [part for part in _MATRICES if f"layers.{{}}.{part}" in self.names]
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=meta.whole(f"{arch}.feed_forward_length"), vocab=vocab,
            context=meta.whole(f"{arch}.context_length"),
            eps=meta.number(f"{arch}.attention.layer_norm_rms_epsilon"),
            rope=rope.from_gguf(meta, arch, head_dim, tensors),
            biases=frozenset(name for name in of_layers(layers, parts)
                             if tensors.has(self.gguf_tensor(f"{name}.bias"))),
            windows={i: window for i in range(layers)} if window else {},
            tied=not tensors.has(self.gguf_tensor("head")))
