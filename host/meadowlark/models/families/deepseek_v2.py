"""DeepSeek V2 (arXiv:2405.04434) without experts."""
from __future__ import annotations

from dataclasses import fields
from math import sqrt
from typing import Any

from gguf import MODEL_ARCH

from ..metadata import Metadata
from ..rope import latent_scores, latent_temperature
from .decoder import Decoder
from .family import MAX_HEAD_DIM, Tensors
from .latent import LatentDecoder
from .llama import Llama

#: Those of attention.
_MATRICES = {"q_a": "q_a_proj", "q_norm": "q_a_layernorm", "q_full": "q_proj", "q_b": "q_b_proj",
             "kv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_b": "kv_b_proj",
             "k_b": "k_b_proj", "v_b": "v_b_proj", "o_full": "o_proj"}


class DeepseekV2(Llama):
    """As Llama, with a latent for keys and values of all heads; queries of a low rank or not."""
    name = "deepseek_v2"
    classes = ("DeepseekV2ForCausalLM",)
    arch = MODEL_ARCH.DEEPSEEK2
    interleaved = False
    defaults = {"first_k_dense_replace": 0, "q_lora_rank": 1536, "rms_norm_eps": 1e-6}
    unused = ("*_experts", "num_experts_per_tok", "expert_*", "moe_*", "n_group", "topk_*",
              "norm_topk_prob", "routed_scaling_factor", "scoring_func", "seq_aux",
              "aux_loss_alpha", "ep_size", "num_nextn_predict_layers", "qk_head_dim")
    names = {**{name: tensor for name, tensor in Llama.names.items() if name[-2:] not in (
        ".q", ".k", ".v", ".o")}, **{f"layers.{{}}.{part}": f"model.layers.{{}}.self_attn.{name}"
                                     for part, name in _MATRICES.items()}}

    def from_config(self, config: Metadata) -> LatentDecoder:
        if config.flag("attention_bias", False):
            raise config.refuse("attention_bias is not supported with latents",
                                "use a checkpoint without")
        # What rotates is of this size, whatever hidden_size is; all heads share its key.
        turning = config.whole("qk_rope_head_dim", 64)
        config.values = {**config.values, "head_dim": turning, "num_key_value_heads": None}
        made, dense = super().from_config(config), config.whole("first_k_dense_replace", least=0)
        if made.rope is not None and made.rope.longer != 1:     # the latents do not turn
            raise config.refuse("RoPE scaling without equal mscale and mscale_all_dim is not "
                                "supported with latents", "use another checkpoint")
        if dense < made.layers:
            raise config.refuse(f"layers from {dense} on have experts (first_k_dense_replace), "
                                "which are not supported", "use a dense checkpoint")
        latent, nope, value = (config.whole(key, size, most=MAX_HEAD_DIM) for key, size in (
            ("kv_lora_rank", 512), ("qk_nope_head_dim", 128), ("v_head_dim", 128)))
        return _with_latents(
            made, latent, nope, value, divisor=sqrt(nope + turning) / latent_temperature(config),
            rank=config.whole("q_lora_rank", None),
            neighbours=config.flag("rope_interleave", True))

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> LatentDecoder:
        at = f"{self.gguf_name}."
        log_multiplier = f"{at}rope.scaling.yarn_log_multiplier"
        turning, latent = (meta.whole(f"{at}{key}", most=MAX_HEAD_DIM) for key in (
            "rope.dimension_count", "attention.kv_lora_rank"))
        # Newer files have the size of what is kept at the older keys.
        own = "_mla" if meta.has(f"{at}attention.key_length_mla") else ""
        key, value = (meta.whole(f"{at}attention.{part}_length{own}", most=MAX_HEAD_DIM)
                      for part in ("key", "value"))
        if key <= turning:
            raise meta.refuse(f"keys of {key} dimensions have no others than the {turning} that "
                              "rotate, which is not supported", "use another model")
        # The converter writes a tenth of mscale_all_dim, and leaves mscale out, which is equal.
        times = meta.number(log_multiplier, None)
        lengths = (f"{at}attention.key_length", f"{at}attention.value_length")
        meta.values = {**meta.values, log_multiplier: None, f"{at}attention.head_count_kv": None,
                       **dict.fromkeys(lengths, turning)}
        made, colder = super().from_gguf(meta, tensors, vocab), 1.0
        if made.rope is not None and made.rope.longer != 1:
            if times is None:
                raise meta.refuse(f"yarn without {log_multiplier} is not supported with latents",
                                  "use another model")
            colder = latent_scores(meta, meta.number(f"{at}rope.scaling.factor"), 10 * times)
        return _with_latents(
            made, latent, key - turning, value, divisor=sqrt(key) / colder,
            rank=meta.whole(f"{at}attention.q_lora_rank", None),
            apart=tensors.has(self.gguf_tensor("layers.0.k_b")))


def _with_latents(made: Decoder, latent: int, nope: int, value: int, **more: Any) -> LatentDecoder:
    """A decoder whose heads are what rotates, with the latents and the rest of its keys."""
    shared: Any = {f.name: getattr(made, f.name) for f in fields(made)} | dict(
        kv_heads=1, head_dim=latent + made.head_dim)
    return LatentDecoder(**shared | more, latent=latent, nope=nope, value=value)
