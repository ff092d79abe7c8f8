"""GGUF files written from Hugging Face folders, as llama.cpp's converter does."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType, quants
from safetensors.numpy import load_file

from meadowlark.models.checkpoint import Model
from meadowlark.models.graph import Add, Attend, Embed, Head, Norm
from meadowlark.models.registry import load_model

_MATRICES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate",
             "up": "ffn_up", "down": "ffn_down"}
#: Several matrices in one, by architecture.
_QKV = {"attn_qkv": ("q", "k", "v")}
_FUSED = {"phi3": {**_QKV, "ffn_up": ("gate", "up")}, "gpt2": _QKV, "gptneox": _QKV}
#: Family -> architecture, where it has another name.
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "phi": "phi2",
                 "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2"}
#: Families that llama.cpp does not convert.
NOT_CONVERTED = ("opt", "gptj", "gpt_neo", "phi3-longrope", "nemotron-nas")
#: Architectures whose converter is that of Llama: it interleaves what rotates.
_INTERLEAVED = ("llama", "granite", "smollm3")


def architecture(model: Model) -> str:
    """What llama.cpp's converter makes of a family."""
    return ARCHITECTURES.get(model.family, model.family)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k (or their bias) in the order of llama.cpp: pairs of RoPE side by side."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(model: Model, theta: float) -> dict[str, np.ndarray]:
    """Name in GGUF -> float32 array, as the converter orders its rows. theta: base of RoPE."""
    w, arch = model.weights, architecture(model)
    out = {gguf: w[name] for gguf, name in (
        ("token_embd.weight", "embedding"), ("position_embd.weight", "positions"),
        ("output_norm.weight", "final_norm"), ("output_norm.bias", "final_norm.beta"),
        ("output.weight", "head"), ("output.bias", "head.bias")) if name in w}
    attends = list(model.graph.of(Attend))
    for i, op in enumerate(attends):
        at = f"layers.{i}"
        for norm, name in (("norm1", "attn_norm"), ("norm2", "ffn_norm"),
                           ("q_norm", "attn_q_norm"), ("k_norm", "attn_k_norm"),
                           ("norm1_behind", "post_attention_norm"),
                           ("norm2_behind", "post_ffw_norm")):
            out |= {f"blk.{i}.{name}.{end}": w[f"{at}.{norm}{of}"]
                    for end, of in (("weight", ""), ("bias", ".beta")) if f"{at}.{norm}{of}" in w}
        for end, suffix in (("weight", ""), ("bias", ".bias")):
            parts = {key: w[f"{at}.{key}{suffix}"] for key in _MATRICES
                     if f"{at}.{key}{suffix}" in w}
            if arch in _INTERLEAVED:
                parts |= {key: interleaved(parts[key], heads) for key, heads in
                          (("q", op.heads), ("k", op.kv_heads)) if key in parts}
            made = {_MATRICES[key]: value for key, value in parts.items()}
            for n, keys in _FUSED.get(arch, {}).items():
                if parts.keys() >= set(keys):
                    made = {m: v for m, v in made.items() if m not in [_MATRICES[k] for k in keys]}
                    made[n] = np.concatenate([parts[key] for key in keys])
            out |= {f"blk.{i}.{n}.{end}": np.ascontiguousarray(v) for n, v in made.items()}
    factors = slower(model, theta)
    if factors.size and np.ptp(factors) > 1e-9:
        out["rope_freqs.weight"] = factors.astype(np.float32)
    return out


def latents(folder: Path, config: dict) -> dict[str, np.ndarray]:
    """Tensors of DeepSeek's attention, which a model of the project has absorbed: name in GGUF ->
    float32 array. The matrix from latents to keys and values is two, that of keys transposed."""
    stored, out = load_file(folder / "model.safetensors"), {}
    for i in range(config["num_hidden_layers"]):
        for gguf, name in (
                ("attn_q", "q_proj"), ("attn_q_a", "q_a_proj"), ("attn_q_b", "q_b_proj"),
                ("attn_q_a_norm", "q_a_layernorm"), ("attn_kv_a_mqa", "kv_a_proj_with_mqa"),
                ("attn_kv_a_norm", "kv_a_layernorm"), ("attn_kv_b", "kv_b_proj"),
                ("attn_output", "o_proj")):
            found = stored.get(f"model.layers.{i}.self_attn.{name}.weight")
            if found is not None:
                out[f"blk.{i}.{gguf}.weight"] = found.astype(np.float32)
        both = out.pop(f"blk.{i}.attn_kv_b.weight").reshape(
            config["num_attention_heads"], -1, config["kv_lora_rank"])
        keys, values = np.split(both, [config["qk_nope_head_dim"]], axis=1)
        out[f"blk.{i}.attn_k_b.weight"] = np.ascontiguousarray(keys.swapaxes(1, 2))
        out[f"blk.{i}.attn_v_b.weight"] = np.ascontiguousarray(values)
    return out


def of_latents(config: dict) -> dict[str, object]:
    """Metadata of DeepSeek, without the architecture."""
    nope, turning, value, latent = (config[key] for key in (
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
    out = {"rope.dimension_count": turning, "attention.kv_lora_rank": latent,
           "attention.q_lora_rank": config["q_lora_rank"],
           "attention.key_length": latent + turning, "attention.value_length": latent,
           "attention.key_length_mla": nope + turning, "attention.value_length_mla": value,
           "leading_dense_block_count": config["first_k_dense_replace"],
           "expert_feed_forward_length": config["intermediate_size"], "expert_shared_count": 1,
           "expert_weights_scale": 1.5}
    if config.get("n_routed_experts"):
        out |= {"expert_count": config["n_routed_experts"], "expert_used_count": 1}
    return {key: value for key, value in out.items() if value is not None}


def of_yarn(arch: str, scaling: dict) -> dict[str, object]:
    """Metadata of RoPE scaled by YaRN, without the architecture."""
    out = {"type": "yarn", "factor": scaling["factor"],
           "original_context_length": scaling["original_max_position_embeddings"]}
    out |= {f"yarn_{key}": float(scaling[key]) for key in ("beta_fast", "beta_slow")
            if key in scaling}
    if arch == "deepseek2" and "mscale_all_dim" in scaling:
        out["yarn_log_multiplier"] = 0.1 * scaling["mscale_all_dim"]
    return {f"rope.scaling.{key}": value for key, value in out.items()}


def slower(model: Model, theta: float) -> np.ndarray:
    """float64[pairs]: how much slower each pair turns than with this base alone."""
    table = model.graph.tables.get("rope")
    if table is None:
        return np.zeros(0)
    count = len(table.values)
    return theta ** (-np.arange(count) / count) / table.values


def metadata(model: Model, theta: float, *, pre: str = "gpt-2") -> dict[str, object]:
    """Key -> value of all that a model needs; the tokenizer must be byte-level BPE."""
    stored = json.loads(model.tokenizer.json)
    special = {t["id"]: t["content"] for t in stored["added_tokens"]}
    tokens = {i: t for t, i in stored["model"]["vocab"].items()} | special
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    graph, arch = model.graph, architecture(model)
    attends, factors = list(graph.of(Attend)), slower(model, theta)
    one, norm = attends[0], next(graph.of(Norm))
    out: dict[str, object] = {
        "block_count": len(attends), "context_length": model.context,
        "embedding_length": model.hidden,
        "feed_forward_length": graph.edges["layers.0.h"].width,
        "attention.head_count": one.heads, "attention.head_count_kv": one.kv_heads,
        "vocab_size": model.vocab,
        f"attention.layer_norm_{'' if norm.centred else 'rms_'}epsilon": norm.eps}
    if graph.tables:
        out |= {"rope.dimension_count": one.head_dim, "rope.freq_base": float(theta)}
    if norm.centred:
        if graph.tables:
            out["rope.dimension_count"] = 2 * len(factors)
        if arch == "gptneox":
            by = graph.maker["layers.0.norm2.x"]
            out["use_parallel_residual"] = isinstance(by, Norm) and by.x == "residual"
    elif arch != "granite":             # "no head_dim support"
        out |= {"attention.key_length": one.head_dim, "attention.value_length": one.head_dim}
    else:
        out |= {"attention.scale": 1 / one.divisor,
                "embedding_scale": next(graph.of(Embed)).scale,
                "residual_scale": next(graph.of(Add)).scale,
                "logit_scale": 1 / next(graph.of(Head)).scale}
    if arch in ("gemma2", "gemma3"):
        out["attention.sliding_window"] = max(op.window or 0 for op in attends)
    if arch == "gemma2":
        out |= {"attn_logit_softcapping": one.cap,
                "final_logit_softcapping": next(graph.of(Head)).cap}
    if arch == "phi3":
        out["attention.sliding_window"] = one.window or 0
        out["rope.scaling.original_context_length"] = model.context
    if factors.size and np.ptp(factors) < 1e-9 < abs(factors[0] - 1):
        out |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factors[0])}
    out = {f"{arch}.{key}": value for key, value in out.items()}
    out |= {
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
    config = json.loads((Path(folder) / "config.json").read_text())
    found = config.get("rope_parameters") or config
    theta = found.get("full_attention", found).get("rope_theta", 10000.0)
    # A vector is never quantised.
    made, arch, more = tensors(model, theta), architecture(model), {}
    if arch == "deepseek2":
        made = {n: v for n, v in made.items() if ".attn_" not in n or "attn_norm" in n}
        made, more = made | latents(Path(folder), config), of_latents(config)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "yarn":
        made.pop("rope_freqs.weight", None)
        more |= of_yarn(arch, scaling)
    found = {n: (v, kind if v.ndim == 2 else "F32") for n, v in made.items()}
    values = {f"{arch}.{key}": value for key, value in more.items()} | (values or {})
    writer = GGUFWriter(path, arch)
    for key, value in {**metadata(model, theta), **values}.items():
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
