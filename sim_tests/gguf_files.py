"""GGUF files written from Hugging Face folders, as llama.cpp's converter does."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType, quants

from meadowlark.models.checkpoint import Model
from meadowlark.models.registry import load_model

_MATRICES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate",
             "up": "ffn_up", "down": "ffn_down"}


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k (or their bias) in the order of llama.cpp: pairs of RoPE side by side."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(model: Model) -> dict[str, np.ndarray]:
    """Name in GGUF -> float32 array, rotated rows interleaved."""
    out = {"token_embd.weight": model.embedding, "output_norm.weight": model.final_norm}
    if not model.tied:
        out["output.weight"] = model.head
    for i, layer in enumerate(model.layers):
        out[f"blk.{i}.attn_norm.weight"] = layer.norm1
        out[f"blk.{i}.ffn_norm.weight"] = layer.norm2
        for key, name in _MATRICES.items():
            for value, end in ((getattr(layer, key), "weight"),
                               (getattr(layer, f"{key}_bias"), "bias")):
                if value is not None:
                    if key in "qk":
                        value = interleaved(value, model.heads if key == "q" else model.kv_heads)
                    out[f"blk.{i}.{name}.{end}"] = np.ascontiguousarray(value)
    return out


def metadata(model: Model, *, pre: str = "gpt-2") -> dict[str, object]:
    """Key -> value of all that a model needs; the tokenizer must be byte-level BPE."""
    stored = json.loads(model.tokenizer.json)
    special = {t["id"]: t["content"] for t in stored["added_tokens"]}
    tokens = {i: t for t, i in stored["model"]["vocab"].items()} | special
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    out: dict[str, object] = {
        "llama.block_count": len(model.layers), "llama.context_length": model.context,
        "llama.embedding_length": model.hidden, "llama.feed_forward_length": model.ffn,
        "llama.attention.head_count": model.heads,
        "llama.attention.head_count_kv": model.kv_heads,
        "llama.attention.key_length": model.head_dim,
        "llama.attention.value_length": model.head_dim,
        "llama.rope.dimension_count": model.head_dim, "llama.rope.freq_base": model.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": model.rms_eps, "llama.vocab_size": model.vocab,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [int(TokenType.CONTROL if i in special else TokenType.NORMAL)
                                      for i in range(len(tokens))],
        "tokenizer.ggml.add_bos_token": model.bos_id is not None}
    if merges:                          # GGUFWriter leaves empty arrays out
        out["tokenizer.ggml.merges"] = merges
    for name, value in (("bos", model.bos_id), ("eos", model.eos_id)):
        if value is not None:
            out[f"tokenizer.ggml.{name}_token_id"] = value
    return out


def write_gguf(path: Path, folder: str | Path, *, kind: str = "F32",
               values: dict[str, object] | None = None,
               others: dict[str, tuple[np.ndarray, str]] | None = None) -> Path:
    """Write a model of a folder as GGUF.

    Parameters
    ----------
    kind : str
        Type of all matrices; vectors are F32.
    values : dict, optional
        Other metadata; None leaves a key out.
    others : dict of tensor name to (float32 array, or bytes as uint8[rows, bytes], and type)
        Tensors in place of those made here, or more; an array of None leaves one out.
    """
    model = load_model(folder)
    # A vector is never quantised.
    found = {n: (v, kind if v.ndim == 2 else "F32") for n, v in tensors(model).items()}
    writer = GGUFWriter(path, "llama")
    for key, value in {**metadata(model), **(values or {})}.items():
        if key == "general.architecture":
            writer.kv_data[0][key].value = value
        elif isinstance(value, (list, np.ndarray)):
            writer.add_array(key, value)
        elif value is not None:
            of = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING,
                  float: GGUFValueType.FLOAT32}[type(value)]
            writer.add_key_value(key, value, of)
    for name, (value, kind_of) in {**found, **(others or {})}.items():
        if value is None:
            continue
        which = GGMLQuantizationType[kind_of]
        raw = value if value.dtype == np.uint8 else quants.quantize(value, which)
        writer.add_tensor(name, raw, raw_dtype=which)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
