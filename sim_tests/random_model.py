"""Hugging Face folders with random weights, small enough for simulation."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from meadowlark.models.blocks import BlockTensor
from meadowlark.models.checkpoint import Model
from meadowlark.models.families import families
from meadowlark.models.families.decoder import Decoder
from meadowlark.models.families.deepseek_v2 import DeepseekV2
from meadowlark.models.families.family import Family
from meadowlark.models.families.gpt import Gpt
from meadowlark.models.families.nemotron_nas import NemotronNas
from meadowlark.models.graph import Rates, rates
from meadowlark.models.metadata import Metadata
from meadowlark.text.tokenizer import Tokenizer
from safetensors.numpy import save_file

BOS, EOS = 0, 1
#: Family -> its class in config.json.
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
           "qwen2": "Qwen2ForCausalLM", "granite": "GraniteForCausalLM",
           "smollm3": "SmolLM3ForCausalLM", "phi3": "Phi3ForCausalLM",
           "qwen3": "Qwen3ForCausalLM", "opt": "OPTForCausalLM", "gpt2": "GPT2LMHeadModel",
           "gpt_neox": "GPTNeoXForCausalLM", "gptj": "GPTJForCausalLM", "phi": "PhiForCausalLM",
           "gpt_neo": "GPTNeoForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
           "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
           "deepseek_v2": "DeepseekV2ForCausalLM",
           "deepseek_v3": "DeepseekV3ForCausalLM", "olmo2": "Olmo2ForCausalLM",
           "nemotron-nas": "DeciLMForCausalLM"}
#: Likewise, of those that read images.
ENCODERS = {"vit": "ViTForImageClassification", "ijepa": "IJepaForImageClassification"}
#: What a small model of a family needs in config.json.
SMALL = {"gptj": lambda layers: {"rotary_dim": 4},
         "gpt_neo": lambda layers: {"attention_types": [[["global"], layers]]},
         "deepseek_v2": lambda layers: _LATENT | {
             "first_k_dense_replace": layers, "q_lora_rank": None},
         "deepseek_v3": lambda layers: _LATENT | {
             "first_k_dense_replace": layers, "q_lora_rank": 24},
         # The first layer has attention, the second has not, and so on.
         "nemotron-nas": lambda layers: {
             "num_key_value_heads": None, "intermediate_size": None, "block_configs": [
                 {"attention": {"no_op": bool(i % 2), "n_heads_in_group": None if i % 2 else 2},
                  "ffn": {"no_op": False, "ffn_mult": 3.0}} for i in range(layers)]}}
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level tokenizer, printable ASCII first,
    so that a short vocabulary still covers English text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in printable}
    shown.update({b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(printable)))})
    order = [32, *range(97, 123), *range(65, 91), 46, 44, 10, *range(33, 127), *range(256)]
    return [shown[b] for b in dict.fromkeys(order)]


def tokenizer_json(vocab: int) -> dict:
    """A byte-level tokenizer with <|bos|> 0 (put before each text), <|eos|> 1 and bytes after."""
    symbols = ["<|bos|>", "<|eos|>", *_byte_alphabet()][:vocab]
    special = [{"id": i, "content": symbols[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True} for i in (BOS, EOS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [BOS], "tokens": ["<|bos|>"]}}},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {s: i for i, s in enumerate(symbols)}, "merges": []}}


def random_tensors(*, seed: int, hidden: int, layers: int, heads: int, kv_heads: int,
                   head_dim: int, ffn: int, vocab: int, tied: bool = True,
                   attention_bias: bool = False, mlp_bias: bool = False) -> dict[str, np.ndarray]:
    """Tensor name -> float32 array.

    Rows have a variance of 1/inputs, so activations stay near 1; what goes to the residual is
    smaller by the root of the number of layers, so it does not grow; queries and keys are larger,
    so that attention is not flat; a few rows of each matrix are ten times smaller or zero.
    """
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        w = rng.normal(size=(rows, columns)) * gain / np.sqrt(columns)
        w[rng.random(rows) < 0.05] *= 0.1
        w[rng.random(rows) < 0.01] = 0
        return w.astype(np.float32)

    def vector(n: int, mean: float, spread: float) -> np.ndarray:
        return rng.normal(mean, spread, n).astype(np.float32)

    out = {"model.embed_tokens.weight": matrix(vocab, hidden, np.sqrt(hidden)),
           "model.norm.weight": vector(hidden, 1.0, 0.2)}
    embedding = out["model.embed_tokens.weight"]
    if not embedding[BOS].any():        # all that calibration sees of a context of one token
        embedding[BOS] = embedding[EOS]
    if tied:        # logits come from these rows too: not too sure of themselves
        out["model.norm.weight"] *= 2 / np.sqrt(hidden)
    else:
        out["lm_head.weight"] = matrix(vocab, hidden, 2.0)
    quiet = 1 / np.sqrt(2 * layers)
    for i in range(layers):
        at = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{at}.{name}.weight"] = vector(hidden, 1.0, 0.2)
        for group, biased, shapes in (
                ("self_attn", attention_bias, {
                    "q": (heads * head_dim, hidden, 1.5), "k": (kv_heads * head_dim, hidden, 1.5),
                    "v": (kv_heads * head_dim, hidden, 1.0),
                    "o": (hidden, heads * head_dim, quiet)}),
                ("mlp", mlp_bias, {"gate": (ffn, hidden, 1.5), "up": (ffn, hidden, 1.0),
                                   "down": (hidden, ffn, quiet)})):
            for name, (rows, columns, gain) in shapes.items():
                out[f"{at}.{group}.{name}_proj.weight"] = matrix(rows, columns, gain)
                if biased:
                    out[f"{at}.{group}.{name}_proj.bias"] = vector(rows, 0.0, 0.3 * gain)
    return out


def norms(tensors: dict[str, np.ndarray], matrix: str, name: str, width: int | None = None,
          ) -> dict[str, np.ndarray]:
    """Gammas of a norm behind a matrix of each layer, of its outputs or of ``width`` of them."""
    found = {n: w for n, w in tensors.items() if n.endswith(f"{matrix}.weight")}
    return {n.replace(matrix, name): np.random.default_rng(len(name) + i).normal(
        1, 0.3, width or len(w)).astype(np.float32) for i, (n, w) in enumerate(found.items())}


def of_family(family: str, tensors: dict[str, np.ndarray], head_dim: int,
              ) -> dict[str, np.ndarray]:
    """Tensors of Llama as another family has them."""
    out = dict(tensors)
    if family == "qwen2":
        out = {n: v for n, v in out.items() if not n.endswith("o_proj.bias")}
    if family == "qwen3":
        out |= norms(out, "self_attn.q_proj", "self_attn.q_norm", head_dim)
        out |= norms(out, "self_attn.k_proj", "self_attn.k_norm", head_dim)
    if family == "gemma3_text":
        out |= norms(out, "self_attn.q_proj", "self_attn.q_norm", head_dim)
        out |= norms(out, "self_attn.k_proj", "self_attn.k_norm", head_dim)
    if family in ("gemma2", "gemma3_text"):
        for matrix, name in (
                ("self_attn.o_proj", "post_attention_layernorm"),
                ("mlp.down_proj", "post_feedforward_layernorm"),
                ("mlp.down_proj", "pre_feedforward_layernorm")):
            out |= norms(out, matrix, name)
    if family == "olmo2":
        out = {n: v for n, v in out.items() if "input_layernorm" not in n}
        for matrix, name in (("self_attn.q_proj", "self_attn.q_norm"),
                             ("self_attn.k_proj", "self_attn.k_norm"),
                             ("mlp.down_proj", "post_feedforward_layernorm")):
            out |= norms(out, matrix, name)
    if family == "phi3":
        for fused, parts in (("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
                             ("mlp.gate_up_proj", ("gate_proj", "up_proj"))):
            group = fused.partition(".")[0]
            for name in [n for n in out if n.endswith(f"{group}.{parts[0]}.weight")]:
                at = name.removesuffix(f"{group}.{parts[0]}.weight")
                out[f"{at}{fused}.weight"] = np.concatenate(
                    [out.pop(f"{at}{group}.{part}.weight") for part in parts])
    return out


def of_graph(seed: int, family: Family, config: dict) -> dict[str, np.ndarray]:
    """Tensors of a family, as its files have them."""
    rng = np.random.default_rng(seed)
    made = family.from_config(Metadata(Path("config.json"), {**family.defaults, **config}))
    graph = made.graph()
    shapes = made.stored(graph)
    gains = {"embedding": np.sqrt(graph.hidden), "positions": 1.0, "q": 1.5, "k": 1.5, "up": 1.5,
             "o": 0.3, "o_full": 0.3, "down": 0.3, "head": 2.0}
    together: dict[str, list[str]] = {}
    for weight in shapes:
        together.setdefault(family.tensor(weight), []).append(weight)
    out = {}
    for name, (first, *others) in together.items():
        shape, part = shapes[first], first.rpartition(".")[2]
        whole = family.stored(first, (shape[0] * (1 + len(others)), *shape[1:]))
        if len(shape) == 2:
            drawn = rng.normal(size=whole) * gains.get(part, 1.0) / np.sqrt(shape[1])
        elif len(shape) > 2:            # of an encoder of images: tokens, and patches
            drawn = rng.normal(size=whole) * (0.5 if len(shape) == 3 else
                                              2 / np.sqrt(np.prod(shape[1:])))
        else:
            drawn = rng.normal(0 if part in ("bias", "beta") else 1, 0.3, whole)
        out[name] = drawn.astype(np.float32)
    return out


def random_model(folder: str | Path, *, seed: int, hidden: int = 32, layers: int = 2,
                 heads: int = 4, kv_heads: int = 2, head_dim: int | None = None, ffn: int = 64,
                 vocab: int = 128, context: int = 128, tied: bool = True,
                 attention_bias: bool = False, mlp_bias: bool = False,
                 rope_theta: float = 10000.0, family: str = "llama", **config: object) -> Path:
    """Write a checkpoint that :func:`meadowlark.models.registry.load_model` reads.

    Parameters
    ----------
    folder : str or Path
        Made if need be; files in it are replaced.
    seed : int
        The same seed and shape give the same weights.
    head_dim : int, optional
        hidden / heads by default, and then absent from config.json.
    vocab : int, 64 at least
        Ids 0 and 1 are bos and eos, then come single bytes (all of them from 258 on; more ids
        have no text).
    family : str
        Of :data:`CLASSES`; qwen2 has biases. Those of :class:`.gpt.Gpt` have as many KV heads as
        heads, and no head_dim of their own.
    config : more entries of config.json, or other values for those made here.

    Returns
    -------
    Path of the folder.
    """
    if vocab < 64:
        raise ValueError(f"vocab must be at least 64 to cover letters, not {vocab!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = families().get(family)
    if isinstance(found, Gpt):
        values = {
            "architectures": [CLASSES[family]], "model_type": family, found.keys["hidden"]: hidden,
            found.keys["layers"]: layers, found.keys["heads"]: heads, found.keys["ffn"]: ffn,
            "vocab_size": vocab, found.keys["context"]: context, "tie_word_embeddings": tied,
            "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32",
            **SMALL.get(family, lambda _: {})(layers), **config}
        save_file(of_graph(seed, found, values), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocab)))
        return folder
    attention_bias |= family == "qwen2"
    values = {
        "architectures": [CLASSES[family]], "model_type": family, "hidden_act": "silu",
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocab,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": rope_theta,
        "tie_word_embeddings": tied, "attention_bias": attention_bias, "mlp_bias": mlp_bias,
        "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32"}
    if isinstance(found, DeepseekV2 | NemotronNas):
        values |= {**SMALL[family](layers), **config}
        save_file(of_graph(seed, found, values), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocab)))
        return folder
    tensors = random_tensors(
        seed=seed, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads, ffn=ffn, vocab=vocab, tied=tied,
        attention_bias=attention_bias, mlp_bias=mlp_bias)
    save_file(of_family(family, tensors, head_dim or hidden // heads),
              folder / "model.safetensors")
    if family in ("gemma", "gemma2", "gemma3_text"):
        del values["hidden_act"]
    # of another one by default
    if head_dim is not None or family in ("qwen3", "gemma", "gemma2", "gemma3_text"):
        values["head_dim"] = head_dim or hidden // heads
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocab)))
    return folder


def random_vit(folder: str | Path, *, seed: int, hidden: int = 32, layers: int = 2,
               heads: int = 4, ffn: int = 64, side: int = 8, patch: int = 2, channels: int = 3,
               classes: int = 10, kind: str = "vit", **config: object) -> Path:
    """Write the folder of a small encoder of images, of :data:`ENCODERS`; its pictures are as they
    come."""
    folder, family = Path(folder), families()[kind]
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "architectures": [ENCODERS[kind]], "model_type": kind, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn,
        "image_size": side, "patch_size": patch, "num_channels": channels, "layer_norm_eps": 1e-6,
        "id2label": {str(i): f"class {i}" for i in range(classes)}, **config}
    save_file(of_graph(seed, family, values), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "ViTImageProcessor", "do_resize": False, "do_normalize": True,
        "image_mean": [0.5] * channels, "image_std": [0.5] * channels}))
    return folder


def outlined(*, hidden: int = 128, layers: int = 6, heads: int = 4, kv_heads: int = 2,
             head_dim: int = 32, ffn: int = 384, vocab: int = 2048, context: int = 512,
             tied: bool = True, blocks: str = "") -> Model:
    """A Llama without values, by default of the shape of the packaged stories. blocks: the kind
    that all matrices are in."""
    graph = Decoder(
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn,
        vocab=vocab, context=context, tied=tied, eps=1e-5,
        rope=Rates(rates(head_dim // 2, 1e4))).graph()
    return Model(
        name="outline", family="llama", graph=graph, context=context, bos_id=BOS, stop_ids=(EOS,),
        weights={name: np.broadcast_to(np.float32(0), shape)
                 for name, shape in graph.shapes.items()},
        blocks={name: BlockTensor.outline(blocks, *shape) for name, shape in graph.shapes.items()
                if len(shape) == 2} if blocks else {},
        tokenizer=Tokenizer(json.dumps(tokenizer_json(258)).encode(), "outline"), parameters=1)


def name_tokens(folder: Path, names: dict[str, int], added: dict[str, bool] | None = None) -> Path:
    """Give tokens of a :func:`random_model` other texts, or its ids without a text one.

    names: text -> id. added: those of them that are one token wherever they stand -> is it a
    control token?
    """
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    texts = {i: name for name, i in names.items()}
    stored["model"]["vocab"] = {
        texts.get(i, t): i for t, i in stored["model"]["vocab"].items()} | names
    stored["added_tokens"] += [
        {"id": names[name], "content": name, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": True, "special": special}
        for name, special in (added or {}).items()]
    file.write_text(json.dumps(stored))
    return folder


def random_texts(model, *, seed: int, sequences: int = 8, length: int = 48) -> list[list[int]]:
    """Token sequences that begin with bos and are otherwise drawn evenly: for calibration."""
    rng = np.random.default_rng(seed)
    return [[BOS, *rng.integers(2, model.vocab, length - 1).tolist()] for _ in range(sequences)]


def packable(qm):
    """An integer model with fewer levels in some matrices, so that each packing is the best one
    somewhere."""
    steps = {"down": 9, "o": 40, "q": 6}

    def coarse(linear, step):
        return replace(linear, codes=(np.rint(linear.codes / step) * step).astype(np.int8))
    return replace(qm, numbers={
        name: coarse(q, steps[end]) if (end := name.rpartition(".")[2]) in steps else q
        for name, q in qm.numbers.items()})
