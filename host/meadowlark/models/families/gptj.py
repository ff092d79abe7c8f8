"""GPT-J (Wang and Komatsuzaki, GPT-J-6B, 2021)."""
from __future__ import annotations

import numpy as np

from ..graph import Attend, Graph, Rates, rates
from ..metadata import Metadata
from .decoder import PLAIN, SHARED
from .gpt import OLDER, Gpt

#: Parts of a layer.
_PARTS = {"norm1": "ln_1", "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj",
          "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"}


class GptJ(Gpt):
    """As Phi, but attention has no biases, and neighbours rotate together."""
    name = "gptj"
    classes = ("GPTJForCausalLM",)
    keys = OLDER
    biased = PLAIN
    head_bias = True
    parallel = SHARED
    neutral = {"rotary": True, "scale_attn_weights": True}
    defaults = {"n_positions": 2048, "rotary_dim": 64, "tie_word_embeddings": False}
    names = {"embedding": "transformer.wte", "final_norm": "transformer.ln_f", "head": "lm_head",
             **{f"layers.{{}}.{part}": f"transformer.h.{{}}.{name}"
                for part, name in _PARTS.items()}}

    def rates(self, config: Metadata, head_dim: int) -> Rates:
        turning = config.whole("rotary_dim", least=2, most=head_dim)
        if turning % 2:
            raise config.refuse(f"{turning} dimensions of a head have no pairs for RoPE")
        return Rates(rates(turning // 2, 10000.0))

    def restored(self, weight: str, value: np.ndarray, graph: Graph) -> np.ndarray:
        if weight.rpartition(".")[2] not in ("q", "k"):
            return value
        heads = value.reshape(-1, next(graph.of(Attend)).head_dim, value.shape[1]).copy()
        turning = 2 * len(graph.tables["rope"].values)
        heads[:, :turning] = np.concatenate([heads[:, :turning:2], heads[:, 1:turning:2]], axis=1)
        return heads.reshape(value.shape)
