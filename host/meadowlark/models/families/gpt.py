"""What the families around GPT have in common (Radford et al., 2018, 2019; arXiv:2005.14165)."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from .. import rope
from ..graph import Rates
from ..metadata import Metadata
from .decoder import ATTENTION, PLAIN, Decoder, function, head_size, of_layers
from .family import MAX_LAYERS, Family, Tensors

#: Hyperparameter -> what config.json calls it, in older families and in newer ones.
OLDER = {"hidden": "n_embd", "heads": "n_head", "layers": "n_layer", "ffn": "n_inner",
         "context": "n_positions", "fn": "activation_function", "eps": "layer_norm_epsilon"}
NEWER = {"hidden": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers",
         "ffn": "intermediate_size", "context": "max_position_embeddings", "fn": "hidden_act",
         "eps": "layer_norm_eps"}


class Gpt(Family):
    """LayerNorm with an offset, and an MLP without a gate.

    keys: hyperparameter -> entry of config.json. biased: parts of a layer that have a bias;
    head_bias: so has the head. positions: as :class:`Decoder` has it; None: heads rotate.
    parallel: likewise.
    """
    keys: ClassVar[Mapping[str, str]] = NEWER
    biased: ClassVar[Collection[str]] = (*ATTENTION, *PLAIN)
    head_bias: ClassVar[bool] = False
    positions: ClassVar[int | None] = None
    parallel: ClassVar[str | None] = None
    prefix = "transformer."

    def from_config(self, config: Metadata) -> Decoder:
        keys = self.keys
        hidden, heads, kv_heads, head_dim = head_size(
            config, keys["hidden"], keys["heads"], kv=keys.get("kv_heads"),
            even=self.positions is None)
        layers = config.whole(keys["layers"], most=MAX_LAYERS)
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=config.whole(keys["ffn"], 4 * hidden), vocab=config.whole("vocab_size"),
            context=config.whole(keys["context"]), eps=config.number(keys["eps"], 1e-5),
            rope=self.rates(config, head_dim), positions=self.positions, parallel=self.parallel,
            fn=function(config, keys["fn"], "gelu_new"), gated=False, centred=True,
            biases=of_layers(layers, self.biased) | set(("head",) * self.head_bias),
            tied=config.flag("tie_word_embeddings", True))

    def rates(self, config: Metadata, head_dim: int) -> Rates | None:
        """How fast heads rotate."""
        return None if self.positions is not None else rope.from_config(config, head_dim, part=0.5)

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        arch, rotates = self.gguf_name, self.positions is None
        hidden, heads, kv_heads, head_dim = head_size(
            meta, f"{arch}.embedding_length", f"{arch}.attention.head_count",
            kv=f"{arch}.attention.head_count_kv", even=rotates)
        layers = meta.whole(f"{arch}.block_count", most=MAX_LAYERS)
        turning = meta.whole(f"{arch}.rope.dimension_count", head_dim, most=head_dim) \
            if rotates else 0
        if turning % 2:
            raise meta.refuse(f"{turning} dimensions of a head have no pairs for RoPE")
        own = [name for name in (*of_layers(layers, self.biased), "head")
               if tensors.has(self.gguf_tensor(f"{name}.bias"))]
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=meta.whole(f"{arch}.feed_forward_length"), vocab=vocab,
            context=meta.whole(f"{arch}.context_length"),
            eps=meta.number(f"{arch}.attention.layer_norm_epsilon"),
            rope=rope.from_gguf(meta, arch, head_dim, tensors, turning) if rotates else None,
            positions=self.positions, parallel=self.parallel,
            fn=function(Metadata(meta.source, self.defaults), self.keys["fn"], "gelu_new"),
            gated=False, centred=True, biases=frozenset(own),
            tied=not tensors.has(self.gguf_tensor("head")))
