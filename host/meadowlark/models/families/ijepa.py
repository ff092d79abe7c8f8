"""I-JEPA (arXiv:2301.08243): a vision transformer without a class token."""
from __future__ import annotations

from .vit import Vit


class IJepa(Vit):
    """As ViT, but classes are those of the mean over all patches; there is no class token."""
    name = "ijepa"
    classes = ("IJepaForImageClassification",)
    names = {weight: tensor.replace("vit.", "ijepa.", 1) for weight, tensor in Vit.names.items()
             if weight != "class_token"}
    pooled = True
