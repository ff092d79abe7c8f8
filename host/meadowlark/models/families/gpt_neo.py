"""GPT-Neo (Black et al., 2021, doi:10.5281/zenodo.5297715)."""
from __future__ import annotations

from dataclasses import replace

from ..metadata import Metadata
from .decoder import PLAIN, Decoder
from .gpt import NEWER, OLDER, Gpt

#: Parts of a layer.
_PARTS = {"norm1": "ln_1", "q": "attn.attention.q_proj", "k": "attn.attention.k_proj",
          "v": "attn.attention.v_proj", "o": "attn.attention.out_proj", "norm2": "ln_2",
          "up": "mlp.c_fc", "down": "mlp.c_proj"}
#: Most layers that a pair of attention_types may say.
_MOST = 1 << 10


class GptNeo(Gpt):
    """As GPT-2, with scores that are not divided; some layers have a window."""
    name = "gpt_neo"
    classes = ("GPTNeoForCausalLM",)
    keys = {**NEWER, "heads": "num_heads", "layers": "num_layers", "fn": OLDER["fn"],
            "eps": OLDER["eps"]}
    biased = ("o", *PLAIN)
    positions = 0
    defaults = {"max_position_embeddings": 2048, "window_size": 256,
                "attention_types": [[["global", "local"], 12]]}
    names = {"embedding": "transformer.wte", "positions": "transformer.wpe",
             "final_norm": "transformer.ln_f", "head": "lm_head",
             **{f"layers.{{}}.{part}": f"transformer.h.{{}}.{name}"
                for part, name in _PARTS.items()}}

    def from_config(self, config: Metadata) -> Decoder:
        made, window = super().from_config(config), config.whole("window_size")
        kinds = config.texts("attention_layers", _kinds(config))
        if len(kinds) != made.layers or not set(kinds) <= {"global", "local"}:
            raise config.refuse(f"attention_types or attention_layers must name {made.layers} "
                                "layers global or local")
        return replace(made, divisor=1.0, windows={
            i: window for i, kind in enumerate(kinds) if kind == "local"})


def _kinds(config: Metadata) -> list[str]:
    """Of the layers: attention_types has pairs of a list of them and how often it is repeated."""
    found = []
    for pair in config.entries("attention_types"):
        match pair:
            case [list() as some, int() as count] if 0 <= count * len(some) <= _MOST:
                found += count * some
            case _:
                raise config.refuse("attention_types must be pairs of a list and a number")
    return found
