"""A GGUF file -> :class:`meadowlark.models.checkpoint.Model`."""
from __future__ import annotations

from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import numpy as np
from gguf import quants

from ..errors import UserError, brief
from ..text.chat import ChatTemplate
from .blocks import KINDS, BlockTensor
from .checkpoint import Model
from .families import by_architecture
from .families.family import MAX_LAYERS, Family, read_weights
from .families.known import refusal
from .gguf_file import GgufFile, TensorInfo
from .gguf_tokenizer import build_tokenizer, read_vocabulary
from .metadata import Metadata

#: Types that are turned into float32 exactly, besides those of
#: :data:`meadowlark.models.blocks.KINDS`.
FLOATS = ("F32", "F16", "BF16", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
#: Most weights of a file: 8 GB in float32, far beyond the memory of any board.
MAX_WEIGHTS = 1 << 31

_KINDS = ", ".join((*KINDS, *FLOATS))


class _Weights:
    """The tensors of a file, taken by name and shape."""

    def __init__(self, file: GgufFile, outline: bool) -> None:
        self.file, self.outline = file, outline
        self.taken: dict[str, int] = {}     # name -> number of weights
        total = sum(t.elements for t in file.tensors.values())
        if total > MAX_WEIGHTS:
            raise UserError(f"{file.path} has {total:,} weights and at most {MAX_WEIGHTS:,} are "
                            "supported; use a smaller model.")

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def rows(self, name: str, *, least: int) -> int:
        """Number of outputs of a matrix. Raise where it has fewer than so many tokens."""
        shape = self.file.tensors[name].shape if self.has(name) else (least,)   # refused by take
        if shape[0] < least:
            raise UserError(f"{self.file.path} has {least:,} tokens and tensor {name} the shape "
                            f"{list(shape)}; get the file again.")
        return shape[0]

    def need(self, name: str) -> TensorInfo:
        """Raise if there is no such tensor."""
        if not self.has(name):
            raise UserError(f"{self.file.path} has no tensor {name}; use a complete model.")
        return self.file.tensors[name]

    def take(self, name: str, *shape: int, heads: int = 0, outline: bool | None = None,
             ) -> tuple[np.ndarray, BlockTensor | None]:
        """Float32 values, and the blocks they came in if they are of a kind that is kept.

        heads: of rows that get rotated. llama.cpp rotates neighbours, so row 2i+j of a head in the
        file is row i + j*head_dim/2 of the checkpoint; this puts them back. outline: False reads
        the values even where all others are outlines.
        """
        path, info = self.file.path, self.need(name)
        if info.shape != shape:
            raise UserError(f"{path}: tensor {name} has shape {list(info.shape)} where the "
                            f"metadata imply {list(shape)}; get the file again.")
        kind = info.kind.name
        if kind not in KINDS and kind not in FLOATS:
            raise UserError(f"{path}: tensor {name} has type {kind}, which is not supported; use a "
                            f"file with {_KINDS}.")
        self.taken[name] = info.elements
        if self.outline if outline is None else outline:
            return np.broadcast_to(np.float32(0), shape), \
                (BlockTensor.outline(kind, prod(shape[:-1]), shape[-1]) if kind in KINDS else None)
        raw = self.file.read(info)
        if heads:
            raw = raw.reshape(heads, -1, 2, raw.size // shape[0]).swapaxes(1, 2)
            raw = raw.reshape(shape[0], -1)     # a copy
        blocks = BlockTensor.from_bytes(kind, raw) if kind in KINDS else None
        with np.errstate(all="ignore"):     # what is not finite is refused below
            value = quants.dequantize(raw, info.kind) if blocks is None else blocks.dequantised()
        if not np.isfinite(value).all():
            raise UserError(f"{path}: tensor {name} holds values that are not finite; get the file "
                            "again.")
        return value.reshape(shape), blocks

    def factors(self, name: str, count: int) -> np.ndarray | None:
        """float64[count] of positive factors, read in an outline too; None without the tensor."""
        if not self.has(name):
            return None
        value = self.take(name, count, outline=False)[0]
        self.taken[name] = 0            # no weights
        if (value <= 0).any():
            raise UserError(f"{self.file.path}: tensor {name} holds factors that are not positive; "
                            "get the file again.")
        return value.astype(np.float64)

    def refuse_others(self, family: str) -> None:
        """Raise for tensors without a place in the model: it would be another model."""
        left = [n for n in self.file.tensors if n not in self.taken
                and not n.endswith(".attn_rot_embd.weight")]    # old tables of RoPE's angles
        if left:
            raise UserError(f"{self.file.path} has the tensor {brief(min(left))}, which a plain "
                            f"model of type {family} has not; use a model without it.")


#: Keys of an architecture, without its name, that change nothing of the arithmetic. Keys that do
#: not begin with its name are about the tokenizer, which has a reader of its own, or notes of those
#: who made the file.
HARMLESS = ("tensor_data_layout", "vocab_size", "pooling_type", "rope.scaling.orig*",
            "rope.scaling.finetuned", "rope.scaling.yarn_*")
#: Keys that change nothing at this value.
NEUTRAL = {
    "attention.causal": True, "expert_used_count": 0, "expert_shared_count": 0,
    "nextn_predict_layers": 0, "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0, "attention.scale": 0, "rope.scaling.attn_factor": 1,
    "logit_scale": 1, "residual_scale": 1, "embedding_scale": 1}
_REMEDY = ("use another model, or take the entry out if you know that it changes nothing of what "
           "the model computes, with `gguf-new-metadata --remove-metadata {key} OLD NEW`")


def _family(meta: Metadata) -> Family:
    """The family of a file. Raise for one that is not known, and for what is no whole model."""
    kind = meta.word("general.architecture")
    found = by_architecture(kind)
    if found is None:
        raise meta.refuse(*refusal(kind))
    if (kind := meta.word("general.type", "model")) != "model":
        raise meta.refuse(f"it is no model but of type {kind!r} (general.type)",
                          "use the model that it belongs to")
    if (parts := meta.whole("split.count", 1, least=0)) > 1:
        raise meta.refuse(f"it is one of {parts} parts",
                          "join them with `llama-gguf-split --merge`")
    arch = found.gguf_name
    experts = meta.whole(f"{arch}.expert_count", 0, least=0)
    dense = meta.whole(f"{arch}.leading_dense_block_count", 0, least=0)
    if experts and dense < meta.whole(f"{arch}.block_count", most=MAX_LAYERS):
        raise meta.refuse(f"a model with {experts} experts is not supported",
                          "use one without experts")
    return found


def load_gguf(path: str | Path, name: str | None = None, *, outline: bool = False) -> Model:
    """Read a model.

    Parameters
    ----------
    path : str or Path
        A GGUF file, version 2 or 3, of an architecture that
        :func:`meadowlark.models.families.families` have. Tensors in F32, F16, BF16, Q8_0, Q4_0,
        Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K; all become float32 exactly as in llama.cpp, and those
        in Q8_0, Q4_0 and Q4_1 are kept as they are beside it (``blocks`` of Model).
    name : str, optional
        The name of the model; by default that of the file.
    outline : bool
        See :func:`meadowlark.models.registry.load_model`.

    Raises
    ------
    UserError
        Anything missing, damaged, contradictory or not supported, by name.
    """
    file = GgufFile(path)
    meta = Metadata(file.path, file.metadata)
    family, weights = _family(meta), _Weights(file, outline)
    arch, vocabulary = family.gguf_name, read_vocabulary(meta)
    # vocab_size has been written with several meanings, and llama.cpp does not read it.
    made = family.from_gguf(meta, weights, weights.rows(family.gguf_tensor("embedding"),
                                                        least=len(vocabulary.tokens)))
    neutral = {f"{arch}.{key}": value for key, value in NEUTRAL.items()
               if not any(fnmatchcase(key, pattern) for pattern in family.unused)}
    meta.refuse_unread([f"{arch}.{key}" for key in (*HARMLESS, *family.unused)], neutral, _REMEDY,
                       f"{arch}.")
    weights.need(family.gguf_tensor(family.last(made.layers)))
    graph = made.graph()
    values, blocks = read_weights(graph, family.gguf_tensor, weights.take, family.rotated(graph),
                                  shapes=made.stored(graph))
    values = {name: np.broadcast_to(np.float32(0), shape) for name, shape in graph.shapes.items()
              } if outline else made.made(values)
    weights.refuse_others(family.name)
    template = meta.text("tokenizer.chat_template", None)
    return Model(
        name=name or file.path.stem, family=family.name, graph=graph, weights=values,
        context=made.context, tokenizer=build_tokenizer(meta, vocabulary),
        bos_id=vocabulary.bos_id, stop_ids=vocabulary.stop_ids,
        parameters=sum(weights.taken.values()),
        blocks={name: kept for name, kept in blocks.items() if name in values},
        chat=None if template is None else ChatTemplate(
            template=template, bos=vocabulary.bos, eos=vocabulary.eos,
            opened=vocabulary.bos_id is not None, source=str(file.path)))
