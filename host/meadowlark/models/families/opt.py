"""OPT (arXiv:2205.01068)."""
from __future__ import annotations

from dataclasses import replace

from ..metadata import Metadata
from .decoder import Decoder
from .gpt import NEWER, Gpt

#: Parts of a layer.
_PARTS = {"norm1": "self_attn_layer_norm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
          "v": "self_attn.v_proj", "o": "self_attn.out_proj", "norm2": "final_layer_norm",
          "up": "fc1", "down": "fc2"}


class Opt(Gpt):
    """As GPT-2, with ReLU; positions begin at the third row of their table."""
    name = "opt"
    classes = ("OPTForCausalLM",)
    keys = {**NEWER, "ffn": "ffn_dim", "fn": "activation_function"}
    positions = 2
    prefix = "model."
    neutral = {"layer_norm_elementwise_affine": True}
    defaults = {"activation_function": "relu", "max_position_embeddings": 2048}
    names = {"embedding": "model.decoder.embed_tokens",
             "positions": "model.decoder.embed_positions",
             "final_norm": "model.decoder.final_layer_norm", "head": "lm_head",
             **{f"layers.{{}}.{part}": f"model.decoder.layers.{{}}.{name}"
                for part, name in _PARTS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        made = super().from_config(config)
        if not config.flag("do_layer_norm_before", True):
            raise config.refuse("do_layer_norm_before false is not supported; it needs norms that "
                                "replace the residual", "use another size of OPT than 350M")
        if config.whole("word_embed_proj_dim", made.hidden) != made.hidden:
            raise config.refuse(
                "word_embed_proj_dim other than hidden_size is not supported; it needs a matrix "
                "between embedding and residual", "use another size of OPT than 350M")
        return made if config.flag("enable_bias", True) else replace(made, biases=())
