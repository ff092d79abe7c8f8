"""Families that are known and not run, and what each would need."""
from __future__ import annotations

from . import families

#: model_type in config.json, architecture in GGUF ("" if none) -> what it needs.
_NEEDS = {
    ("beit", ""): "biases of scores by position, and means over tokens",
    ("bitnet", "bitnet"): "weights of three values, squares behind ReLU, and norms before the last "
                          "matrices of attention and MLP",
    ("deit", ""): "a token of distillation and, with a teacher, the mean of two heads; a DeiT "
                  "without distillation is a vit",
    ("dinov2", ""): "means over tokens beside the class token, and scales behind a block",
    ("gemma3", ""): "an encoder of images; its text alone is gemma3_text",
    ("gpt_bigcode", "starcoder"): "a family of its own",
    ("granitemoehybrid", "granitehybrid"): "layers of a state space model, and experts",
    ("lfm2", "lfm2"): "short convolutions",
    ("mixtral", ""): "experts",
    ("timm_wrapper", ""): "the families of timm; a ViT of transformers is a vit, and with a mean "
                          "over patches an ijepa",
    ("qwen2_moe", "qwen2moe"): "experts",
    ("qwen3_moe", "qwen3moe"): "experts"}


def missing() -> dict[str, str]:
    """Name of each family that is known and not run -> what it needs."""
    return {name: needs for (name, _), needs in _NEEDS.items() if name not in families()}


def refusal(name: str | None) -> tuple[str, str]:
    """What to say of a model that no family reads, and what to do.

    name: model_type of config.json or architecture of GGUF.
    """
    needs = next((needs for names, needs in _NEEDS.items() if name and name in names), None)
    because = "" if needs is None else f"; it needs {needs}"
    return f"architecture {name!r} is not supported{because}", \
        f"use a model of type {', '.join(families())}"
