"""A GGUF file -> :class:`meadowlark.models.checkpoint.Model`."""
from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from gguf import quants

from ..errors import UserError, brief
from ..text.chat import ChatTemplate
from .blocks import KINDS, BlockTensor
from .checkpoint import Layer, Model
from .gguf_file import GgufFile
from .gguf_tokenizer import build_tokenizer, read_vocabulary
from .metadata import Metadata, rope_scaling

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

    def take(self, name: str, *shape: int, heads: int = 0) -> tuple[np.ndarray, BlockTensor | None]:
        """Float32 values, and the blocks they came in if they are of a kind that is kept.

        heads: of rows that get rotated. llama.cpp rotates neighbours, so row 2i+j of a head in the
        file is row i + j*head_dim/2 of the checkpoint; this puts them back.
        """
        path, info = self.file.path, self.file.tensors.get(name)
        if info is None:
            raise UserError(f"{path} has no tensor {name}; use a complete model of type llama.")
        if info.shape != shape:
            raise UserError(f"{path}: tensor {name} has shape {list(info.shape)} where the "
                            f"metadata imply {list(shape)}; get the file again.")
        kind = info.kind.name
        if kind not in KINDS and kind not in FLOATS:
            raise UserError(f"{path}: tensor {name} has type {kind}, which is not supported; use a "
                            f"file with {_KINDS}.")
        self.taken[name] = info.elements
        if self.outline:
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

    def take_neutral(self, name: str, *shape: int) -> None:
        """Raise if there are factors of this name that change something: that are not all 1."""
        if self.has(name):
            if (self.take(name, *shape)[0] != 1).any() and not self.outline:
                raise UserError(f"{self.file.path}: tensor {name} scales RoPE, which is not "
                                "supported; use a model without it.")
            self.taken[name] = 0

    def refuse_others(self) -> None:
        """Raise for tensors without a place in the model: it would be another model."""
        left = [n for n in self.file.tensors if n not in self.taken
                and not n.endswith(".attn_rot_embd.weight")]    # old tables of RoPE's angles
        if left:
            raise UserError(f"{self.file.path} has the tensor {brief(min(left))}, which a plain "
                            "model of type llama has not; use a model without it.")


#: What the keys of the architecture begin with. Others are about the tokenizer, which has a reader
#: of its own, or notes of those who made the file.
_ABOUT = "llama."
#: Keys of the architecture that change nothing of the arithmetic.
HARMLESS = ("llama.tensor_data_layout", "llama.vocab_size", "llama.pooling_type",
            "llama.rope.scaling.orig*", "llama.rope.scaling.finetuned", "llama.rope.scaling.yarn_*")
#: Keys that change nothing at this value.
NEUTRAL = {
    "llama.attention.causal": True, "llama.expert_used_count": 0, "llama.expert_shared_count": 0,
    "llama.leading_dense_block_count": 0, "llama.nextn_predict_layers": 0,
    "llama.attention.sliding_window": 0, "llama.attention.clamp_kqv": 0,
    "llama.attention.max_alibi_bias": 0, "llama.attention.scale": 0,
    "llama.rope.scaling.attn_factor": 1, "llama.logit_scale": 1, "llama.residual_scale": 1,
    "llama.embedding_scale": 1}
_REMEDY = ("use a plain Llama model, or take the entry out if you know that it changes nothing of "
           "what the model computes, with `gguf-new-metadata --remove-metadata {key} OLD NEW`")


def _refuse_unknown_shapes(meta: Metadata) -> None:
    """Raise for what this code would silently compute wrongly."""
    kind = meta.word("general.architecture")
    if kind != "llama":
        raise meta.refuse(f"architecture {kind!r} is not supported", "use a model of type llama")
    if (kind := meta.word("general.type", "model")) != "model":
        raise meta.refuse(f"it is no model but of type {kind!r} (general.type)",
                          "use the model that it belongs to")
    if (parts := meta.whole("split.count", 1, least=0)) > 1:
        raise meta.refuse(f"it is one of {parts} parts",
                          "join them with `llama-gguf-split --merge`")
    if experts := meta.whole("llama.expert_count", 0, least=0):
        raise meta.refuse(f"a model with {experts} experts is not supported",
                          "use one without experts")
    # As in llama.cpp, a factor of 0 is none, and one without a type is linear.
    factor = meta.number("llama.rope.scaling.factor", None, zero=True)
    older = meta.number("llama.rope.scale_linear", 1, zero=True)
    if scaling := rope_scaling(meta.word("llama.rope.scaling.type", None),
                               (older if factor is None else factor) or 1):
        raise meta.refuse(f"RoPE scaling {scaling} is not supported",
                          "use a model without RoPE scaling")


def load_gguf(path: str | Path, name: str | None = None, *, outline: bool = False) -> Model:
    """Read a model.

    Parameters
    ----------
    path : str or Path
        A GGUF file of architecture llama, version 2 or 3. Tensors in F32, F16, BF16, Q8_0, Q4_0,
        Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K; all become float32 exactly as in llama.cpp, and those
        in Q8_0, Q4_0 and Q4_1 are kept as they are beside it (``blocks`` of Model and Layer).
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
    _refuse_unknown_shapes(meta)
    hidden, ffn = meta.whole("llama.embedding_length"), meta.whole("llama.feed_forward_length")
    heads = meta.whole("llama.attention.head_count")
    kv_heads = meta.whole("llama.attention.head_count_kv", heads)
    if heads % kv_heads:
        raise meta.refuse(f"llama.attention.head_count {heads} is not a multiple of "
                          f"llama.attention.head_count_kv {kv_heads}")
    if "llama.attention.key_length" not in meta.values and hidden % heads:
        raise meta.refuse(f"llama.embedding_length {hidden} is not a multiple of "
                          f"llama.attention.head_count {heads}")
    head_dim = meta.whole("llama.attention.key_length", max(1, hidden // heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (length := meta.whole(key, head_dim)) != head_dim:
            raise meta.refuse(f"{key} is {length} and heads have {head_dim} dimensions, which is "
                              "not supported", "use a model where both are equal")
    if head_dim % 2:
        raise meta.refuse(f"heads of {head_dim} dimensions have no pairs for RoPE")
    layer_count, context = meta.whole("llama.block_count"), meta.whole("llama.context_length")
    rms_eps = meta.number("llama.attention.layer_norm_rms_epsilon")
    rope_theta = meta.number("llama.rope.freq_base", 10000.0)
    vocabulary = read_vocabulary(meta)
    meta.refuse_unread(HARMLESS, NEUTRAL, _REMEDY, _ABOUT)
    weights = _Weights(file, outline)
    # llama.vocab_size has been written with several meanings, and llama.cpp does not read it.
    vocab = weights.rows("token_embd.weight", least=len(vocabulary.tokens))

    def layer(i: int) -> Layer:
        at, out, blocks = f"blk.{i}.", {}, {}
        for key, tensor in (("norm1", "attn_norm"), ("norm2", "ffn_norm")):
            out[key] = weights.take(f"{at}{tensor}.weight", hidden)[0]
        wide, narrow = heads * head_dim, kv_heads * head_dim
        for key, tensor, rows, columns, rotated in (
                ("q", "attn_q", wide, hidden, heads), ("k", "attn_k", narrow, hidden, kv_heads),
                ("v", "attn_v", narrow, hidden, 0), ("o", "attn_output", hidden, wide, 0),
                ("gate", "ffn_gate", ffn, hidden, 0), ("up", "ffn_up", ffn, hidden, 0),
                ("down", "ffn_down", hidden, ffn, 0)):
            out[key], kept = weights.take(f"{at}{tensor}.weight", rows, columns, heads=rotated)
            if kept is not None:
                blocks[key] = kept
            if weights.has(bias := f"{at}{tensor}.bias"):
                out[f"{key}_bias"] = weights.take(bias, rows, heads=rotated)[0]
        return Layer(**out, blocks=blocks)

    embedding, kept = weights.take("token_embd.weight", vocab, hidden)
    blocks = {} if kept is None else {"embedding": kept}
    tied = not weights.has("output.weight")
    head = embedding
    if not tied:
        head, kept = weights.take("output.weight", vocab, hidden)
    if kept is not None:
        blocks["head"] = kept
    layers = tuple(layer(i) for i in range(layer_count))
    final_norm = weights.take("output_norm.weight", hidden)[0]
    weights.take_neutral("rope_freqs.weight", head_dim // 2)
    weights.refuse_others()
    template = meta.text("tokenizer.chat_template", None)
    return Model(
        name=name or file.path.stem, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, ffn=ffn, vocab=vocab, context=context,
        rms_eps=rms_eps, rope_theta=rope_theta, embedding=embedding,
        final_norm=final_norm, head=head, tied=tied,
        tokenizer=build_tokenizer(meta, vocabulary), bos_id=vocabulary.bos_id,
        stop_ids=vocabulary.stop_ids, parameters=sum(weights.taken.values()), blocks=blocks,
        chat=None if template is None else ChatTemplate(
            template=template, bos=vocabulary.bos, eos=vocabulary.eos,
            opened=vocabulary.bos_id is not None, source=str(file.path)))
