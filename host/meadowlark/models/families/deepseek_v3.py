"""DeepSeek V3 (arXiv:2412.19437) without experts, and without the layers that draft."""
from __future__ import annotations

from .deepseek_v2 import DeepseekV2


class DeepseekV3(DeepseekV2):
    """As DeepSeek V2; llama.cpp converts it to ``deepseek2``."""
    name = "deepseek_v3"
    classes = ("DeepseekV3ForCausalLM",)
    arch = None
    defaults = {**DeepseekV2.defaults, "first_k_dense_replace": 3}
