"""Reading checkpoints, the tokenizer, and the float32 forward pass."""
import json
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
from hostile import MUTATIONS, WRONG, changed, refuses
from random_model import random_model, random_texts, tokenizer_json
from safetensors.numpy import load_file, save_file

from meadowlark.errors import UserError
from meadowlark.models import float_model
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Attend
from meadowlark.models.hf import HARMLESS, NEUTRAL
from meadowlark.models.registry import PACKAGED, load_model
from meadowlark.run.evaluate import negative_log_likelihood, validation_text, windows
from meadowlark.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def stories():
    return load_model("stories")


def change(folder, **values):
    """Set entries of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# ---- Against what is known of the packaged model

def test_packaged_facts(stories):
    attends = list(stories.graph.of(Attend))
    assert {(op.heads, op.kv_heads, op.head_dim) for op in attends} == {(4, 2, 32)}
    assert (stories.hidden, len(attends), stories.graph.edges["layers.0.h"].width, stories.vocab,
            stories.context) == (128, 6, 384, 2048, 512)
    assert stories.parameters == 1_443_456 and stories.tied and "head" not in stories.weights
    assert (stories.bos_id, stories.eos_id, stories.stop_ids) == (0, 1, (1,))
    assert stories.text_tokens("Hi")[0] == 0 and stories.text_tokens("Hi")[-1] == 1


def test_packaged_perplexity(stories):
    """Its training run measured 1.776 on these 60 stories, with an implementation of its own."""
    losses = [negative_log_likelihood(FloatModel(stories).forward(w[:-1]), np.array(w[1:]))
              for w in windows(stories, validation_text(), stories.context)]
    assert np.exp(np.concatenate(losses).mean()) == pytest.approx(1.776, abs=5e-4)


def test_packaged_greedy_text(stories):
    """Word for word what the implementation it was trained with gave."""
    ids = stories.tokenizer.encode("Once upon a time")
    runner = FloatModel(stories)
    for _ in range(40):
        ids.append(int(runner.forward(ids)[-1].argmax()))
    assert stories.tokenizer.decode(ids).startswith(
        "Once upon a time, there was a little boy named Sam. Sam was always very brave. One day, "
        "Sam was playing outside. He saw an old man")


# ---- Forward pass against a reference that shares nothing with it

def naive_logits(folder, tokens):
    """One token, one head, one pair at a time, in float64, from the checkpoint's tensors."""
    t = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    heads_count, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d, group = config.get("head_dim", config["hidden_size"] // heads_count), heads_count // kv_heads

    def norm(r, name):
        return r / sqrt((r * r).mean() + config["rms_norm_eps"]) * t[name]

    def linear(name, x):
        return t[f"{name}.weight"] @ x + t.get(f"{name}.bias", 0)

    def rotate(x, position):
        out = x.copy()
        for i in range(d // 2):
            angle = position * config["rope_theta"] ** (-2 * i / d)
            turned = (x[i] + 1j * x[i + d // 2]) * np.exp(1j * angle)
            out[i], out[i + d // 2] = turned.real, turned.imag
        return out

    cache = [([], []) for _ in range(config["num_hidden_layers"])]
    logits = []
    for position, token in enumerate(tokens):
        r = t["model.embed_tokens.weight"][token]
        for i, (keys, values) in enumerate(cache):
            at = f"model.layers.{i}"
            x = norm(r, f"{at}.input_layernorm.weight")
            q, k, v = (linear(f"{at}.self_attn.{n}_proj", x).reshape(-1, d) for n in "qkv")
            keys.append([rotate(h, position) for h in k])
            values.append(list(v))
            heads = []
            for h in range(heads_count):
                turned = rotate(q[h], position)
                w = np.exp([turned @ row[h // group] / sqrt(d) for row in keys])
                heads.append(sum(p * row[h // group]
                                 for p, row in zip(w / w.sum(), values, strict=True)))
            r = r + linear(f"{at}.self_attn.o_proj", np.concatenate(heads))
            x = norm(r, f"{at}.post_attention_layernorm.weight")
            gate = linear(f"{at}.mlp.gate_proj", x)
            h = gate / (1 + np.exp(-gate)) * linear(f"{at}.mlp.up_proj", x)
            r = r + linear(f"{at}.mlp.down_proj", h)
        head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
        logits.append(t[head] @ norm(r, "model.norm.weight"))
    return np.array(logits)


@pytest.mark.parametrize("shape", [
    dict(),
    dict(hidden=48, heads=6, kv_heads=2, head_dim=24, tied=False, attention_bias=True,
         mlp_bias=True, rope_theta=500.0),
    dict(heads=2, kv_heads=1, head_dim=6, attention_bias=True),
], ids=["tied", "biases", "head_dim6"])
def test_forward(tmp_path, seed, monkeypatch, shape):
    """Also a token at a time, with a cache, and many sequences at once."""
    folder = random_model(tmp_path, seed=seed, **shape)
    model = load_model(folder)
    tokens = random_texts(model, seed=seed, sequences=1, length=20)[0]
    runner = FloatModel(model)
    want = naive_logits(folder, tokens)
    stepper = runner.stepper(3, 20)
    steps = np.stack([stepper.step(np.array([t, 5, t])) for t in tokens])
    for k in (0, 2):
        np.testing.assert_allclose(steps[:, k], want, atol=2e-4 * np.abs(want).max())
    np.testing.assert_allclose(runner.forward(tokens), want, atol=2e-4 * np.abs(want).max())
    seen, watched = {}, {}
    runner.forward(tokens, seen.setdefault)
    runner.watch(tokens, watched.setdefault)
    assert [*watched, "logits"] == [*seen]
    assert all(np.array_equal(value, seen[edge]) for edge, value in watched.items())
    monkeypatch.setattr(float_model, "QUERIES", 3)      # however the queries are grouped
    np.testing.assert_allclose(runner.forward(tokens), want, atol=2e-4 * np.abs(want).max())


def test_forward_refuses_impossible_lengths(stories):
    for n in (0, 513):
        with pytest.raises(ValueError, match=rf"1\.\.512 tokens, not {n}$"):
            FloatModel(stories).forward([0] * n)


# ---- Formats

@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_formats(tmp_path, seed, dtype, shards):
    """Each type and sharding gives the same numbers, cut to the type's precision."""
    folder = random_model(tmp_path, seed=seed)
    tensors = load_file(folder / "model.safetensors")
    before = load_model(folder)
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for s in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{s + 1}-of-{shards}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        where.update(dict.fromkeys(part, file))
        if dtype == "BF16":
            save_bf16(part, folder / file)
        else:
            save_file({n: v.astype(dtype.replace("F", "f").replace("f", "float"))
                       for n, v in part.items()}, folder / file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    after = load_model(folder)
    bits = {"F16": 11, "F32": 24, "BF16": 8}[dtype]
    for name in ("embedding", "layers.1.down"):
        a, b = before.weights[name], after.weights[name]
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2.0 ** (1 - bits) if bits < 24 else 0, atol=1e-7)


def save_bf16(tensors, path):
    """A safetensors file by hand: NumPy has no bfloat16."""
    header, body = {}, b""
    for name, value in tensors.items():
        raw = (np.ascontiguousarray(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape),
                        "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def rates(model):
    """float64[pairs] of the only RoPE table."""
    table, = model.graph.tables.values()
    return table.values


def powers(theta):
    """What a head of 8 dimensions has without scaling."""
    return np.array([theta ** (-i / 4) for i in range(4)])


def test_rope_theta_in_either_place(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed, rope_theta=123.0)
    for values, theta in (
            ({}, 123.0),
            (dict(rope_theta=None,
                  rope_parameters={"rope_theta": 77.0, "rope_type": "default"}), 77.0),
            (dict(rope_theta=55.0), 77.0),          # as transformers 5: the object goes first,
            (dict(rope_scaling={"rope_type": "default"}), 55.0),    # and the older name before it
            (dict(rope_parameters=None, rope_scaling=None, rope_theta=None), 10000.0)):
        change(folder, **values)
        np.testing.assert_allclose(rates(load_model(folder)), powers(theta), rtol=1e-12)


def test_llama3_by_hand(tmp_path, seed):
    """Wavelengths against those of the original context: long, between and short."""
    folder = random_model(tmp_path, seed=seed, rope_theta=10.0 ** 4, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 100})
    want = []
    for rate in (1.0, 0.1, 0.01, 0.001):
        length = 2 * np.pi / rate
        smooth = (100 / length - 1) / (4 - 1)
        want.append(rate if length < 25 else rate / 8 if length > 100 else
                    (1 - smooth) * rate / 8 + smooth * rate)
    assert want[0] == 1.0 and want[1] < 0.1 and want[2] == 0.01 / 8
    np.testing.assert_allclose(rates(load_model(folder)), want, rtol=1e-12)


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize("values, result", [
    (dict(rope_scaling=None), 1),
    (dict(rope_scaling={}), 1),
    (dict(rope_scaling={"type": "linear", "factor": 1.0}), 1),
    (dict(rope_scaling={"factor": 1}), 1),
    (dict(rope_scaling={"rope_type": "default", "factor": 4.0, "low_freq_factor": 1}), 1),
    (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.0}), 1),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), 2),
    (dict(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 123.0}), 2.5),
    (dict(rope_scaling=LLAMA3), "rope_scaling.original_max_position_embeddings is missing"),
    (dict(rope_scaling=LLAMA3 | {"high_freq_factor": 1, "original_max_position_embeddings": 64}),
     "low_freq_factor 1 is not below high_freq_factor 1"),
    (dict(rope_scaling={"type": "linear"}), "rope_scaling.factor is missing"),
    (dict(rope_scaling={"factor": 4.0}), "RoPE scaling by a factor of 4 .rope_scaling. has no typ"),
    (dict(rope_parameters={"factor": 2}), "RoPE scaling by a factor of 2 .rope_parameters."),
    (dict(rope_scaling={"type": "dynamic", "factor": 2.0}), 1),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 1.0}), 1),
    (dict(rope_scaling={"rope_type": "yarn", "truncate": 1}), "truncate must be true or false"),
    (dict(rope_theta=1, rope_scaling={"rope_type": "yarn"}), "rope_theta 1 is not above 1"),
    (dict(rope_scaling={"rope_type": "longrope", "short_factor": 4 * [2.5]}), 2.5),
    (dict(rope_scaling={"rope_type": "longrope"}), "rope_scaling.short_factor is missing"),
    (dict(rope_scaling={"rope_type": "su", "short_factor": [1, 1, 1]}), "short_factor must be a l"),
    (dict(rope_scaling={"type": "longrope", "short_factor": [1, 1, 1, 0]}), "4 positive numbers"),
    (dict(rope_scaling={"rope_type": "new"}), "'new' .rope_scaling. is not supported; use a model"),
    (dict(rope_scaling="linear"), "rope_scaling must be an object, not 'linear'"),
    (dict(rope_scaling={"type": 3}), "rope_scaling.type must be a text, not 3"),
    (dict(rope_scaling={"factor": "4"}), "rope_scaling.factor must be a positive number, not '4'"),
    (dict(rope_parameters={"partial_rotary_factor": 0.5}),
     "rope_parameters.partial_rotary_factor = 0.5 is not supported"),
    (dict(rope_parameters={"full_attention": {"rope_type": "default"}}),
     "rope_parameters.full_attention = an object is not supported"),
])
def test_rope_scaling(tmp_path, seed, values, result):
    """A factor of 1 scales nothing; what is not known is refused whether it has a name or not."""
    folder = random_model(tmp_path, seed=seed, rope_theta=123.0)
    change(folder, **values)
    if isinstance(result, str):
        with pytest.raises(UserError, match=result):
            load_model(folder)
    else:
        np.testing.assert_allclose(rates(load_model(folder)) * result, powers(123.0), rtol=1e-12)


def test_harmless_entries(tmp_path, seed):
    """What files in circulation have in config.json; anything else that says something is
    refused."""
    folder = random_model(
        tmp_path, seed=seed, _name_or_path="x", transformers_version="4.45.0", use_cache=True,
        dtype="bfloat16", pretraining_tp=2, initializer_range=0.02, attention_dropout=0.1,
        _attn_implementation_autoset=True, auto_map={"AutoConfig": "x.Y"}, unsloth_fixed=True,
        unsloth_version="2024.9", pad_token_id=-1, is_llama_config=True, rope_interleaved=False,
        max_sequence_length=2048, id2label={"0": "a"}, quantization_config=None, head_dim=None,
        tokenizer_class="LlamaTokenizer", output_attentions=False, return_dict=True,
        sliding_window=None, use_sliding_window=False, num_experts=0, layer_types=[
            "full_attention"] * 2, **{"transformers.js_config": {"dtype": "q4"}})
    assert not load_model(folder).warnings
    for values, message in ((dict(rope_interleaved=True), "rope_interleaved = True is not suppor"),
                            (dict(sliding_window=64), "sliding_window = 64 is not supported; use"),
                            (dict(weight_bits=1, scale="x"), "weight_bits = 1 is not supported"),
                            (dict(logits_scaling=8.0), "logits_scaling = 8.0 is not supported"),
                            (dict(output_multiplier=2), "output_multiplier = 2 is not supported"),
                            (dict(layer_types=["sliding_attention"]), "layers without full atten"),
                            ({"a\nb" * 200: [1]}, r"a bx?a ba.* = a list of 1 is not supported")):
        other = random_model(tmp_path, seed=seed, **values)
        with pytest.raises(UserError, match=message) as error:
            load_model(other)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_ids_of_none(tmp_path, seed):
    """-1 is no id, wherever one is asked for."""
    folder = random_model(tmp_path, seed=seed, bos_token_id=-1, eos_token_id=[-1, 3])
    model = load_model(folder)
    assert (model.bos_id, model.stop_ids) == (0, (3,))     # the tokenizer puts a bos
    change(folder, eos_token_id=-2)
    with pytest.raises(UserError, match="eos_token_id must be a token id below 128, not -2"):
        load_model(folder)


def test_added_token_beyond_the_vocabulary(tmp_path, seed):
    """A <pad> that was added without a row of its own; only a text that has it is refused."""
    folder = random_model(tmp_path, seed=seed)
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["added_tokens"].append({**stored["added_tokens"][1], "id": 128, "content": "<pad>"})
    path.write_text(json.dumps(stored))
    model = load_model(folder)
    assert (model.vocab, model.tokenizer.size) == (128, 129)
    assert max(model.text_tokens("all is well")) < 128
    with pytest.raises(UserError, match="gives token 128 and the model knows 128; "):
        model.text_tokens("all is <pad>")
    # The model cannot end with it either.
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<pad>"}))
    assert load_model(folder).stop_ids == (1,)


@pytest.mark.parametrize("head, tied", [("same", True), ("other", False), ("alone", True)])
def test_a_head_beside_the_tied_flag(tmp_path, seed, head, tied):
    """As transformers has it: tied unless there are two tensors that differ."""
    folder = random_model(tmp_path, seed=seed)
    plain = load_model(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = (-3 if head == "other" else 1) * plain.weights["embedding"]
    if head == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, path)
    model = load_model(folder)
    own = model.weights["embedding" if tied else "head"]
    np.testing.assert_array_equal(own, tensors["lm_head.weight"])
    np.testing.assert_array_equal(model.weights["embedding"], plain.weights["embedding"])
    assert model.tied == tied == ("head" not in model.weights)
    assert model.parameters == plain.parameters + (0 if tied else own.size)
    outline = load_model(folder, outline=True)      # which decides how much memory a board needs
    assert (outline.tied, outline.parameters) == (model.tied, model.parameters)
    assert [("is tied to the embedding" in w) for w in model.warnings] == [True] * (not tied)


def test_unused_tensors(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, path)
    assert load_model(folder).warnings == ()
    bias = {f"model.layers.{i}.self_attn.q_proj.bias": np.ones(32, np.float32) for i in range(2)}
    save_file(tensors | bias, path)
    warning, = load_model(folder).warnings
    assert warning.endswith("not used: model.layers.0.self_attn.q_proj.bias and 1 more")


# ---- Error paths: each names what is wrong

@pytest.mark.parametrize("values, message", [
    (dict(architectures=["OPTForCausalLM"]), "architecture .*OPTForCausalLM.* 'llama' is not supp"),
    (dict(model_type="mistral"), "LlamaForCausalLM.* of model_type 'mistral' is not .* Mistral"),
    (dict(model_type="lfm2"), "'lfm2' is not supported; it needs short convolutions; use a"),
    (dict(model_type="new"), "architecture 'new' is not supported; use a model of type deep"),
    (dict(model_type=None), "architecture None is not supported; use a model of type deep"),
    (dict(hidden_act="mish"), "hidden_act 'mish'"),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8}), "low_freq_factor is missing"),
    (dict(rope_parameters={"rope_type": "new"}), "RoPE scaling 'new'"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers must be .* from 1 to 1,024, not 10000000"),
    (dict(head_dim=10**9), "heads of 1000000000 dimensions are beyond 4096"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5 is not supported; "),
    (dict(quantization_config={"bits": 4}), "already quantised"),
    (dict(hidden_size=None), "hidden_size is missing"),
    (dict(hidden_size="32"), "hidden_size must be .*not '32'"),
    (dict(num_hidden_layers=0), "num_hidden_layers must be .*not 0"),
    (dict(num_key_value_heads=3), "4 is not a multiple of num_key_value_heads 3"),
    (dict(head_dim=7), "heads of 7 dimensions have no pairs"),
    (dict(num_attention_heads=5, num_key_value_heads=5), "hidden_size 32 is not a multiple"),
    (dict(rope_theta=-1), "rope_theta must be .*not -1"),
    (dict(rms_norm_eps="x"), "rms_norm_eps must be .*not 'x'"),
    (dict(tie_word_embeddings=1), "tie_word_embeddings must be true or false, not 1"),
    (dict(eos_token_id=128), "eos_token_id must be a token id below 128, not 128"),
    (dict(num_hidden_layers=3), "no tensor model.layers.2.input_layernorm.weight"),
    (dict(tie_word_embeddings=False), "no tensor lm_head.weight"),
    (dict(attention_bias=True), "no tensor model.layers.0.self_attn.q_proj.bias"),
    (dict(intermediate_size=80), r"gate_proj.weight has shape \[64, 32\].*implies \[80, 32\]"),
    (dict(vocab_size=64), "has 128 ids and config.json a vocab_size of only 64"),
])
def test_config_errors(tmp_path, seed, values, message):
    folder = random_model(tmp_path, seed=seed)
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_values_of_every_type(tmp_path, seed, name):
    """Each entry in turn as each kind of value: a model or one sentence, never a traceback."""
    folder = random_model(tmp_path, seed=seed, layers=1)
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= dict.fromkeys(("eos_token_id", "bos_token_id"), 1)
    if name == "tokenizer_config.json":
        values = {"chat_template": "{{ bos_token }}{{ eos_token }}", "bos_token": "a",
                  "eos_token": {"content": "b"}}
    keys = [*values, *(("rope_scaling", "rope_parameters", "head_dim", "quantization_config",
                        "layer_types", "unknown") if name == "config.json" else ())]
    refused = 0
    for key in keys:
        for wrong in WRONG:
            path.write_text(json.dumps(values | {key: wrong}))
            try:
                model = load_model(folder)
                if model.chat:
                    model.chat.render([{"role": "user", "content": "a"}])
            except UserError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) < 1000
    assert refused > 4 * len(keys)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json",
                                  "tokenizer.json", "model.safetensors.index.json"])
def test_deep_json(tmp_path, seed, name):
    folder = random_model(tmp_path, seed=seed)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    with pytest.raises(UserError, match=f"{name} is not (JSON|a tokenizer)"):
        load_model(folder)


def test_mutated_configs(tmp_path, seed):
    """Whatever the files in JSON say: a model, or one sentence; and what is not known is refused.
    """
    folder = random_model(tmp_path, seed=seed, layers=1)
    files = {"config.json": (json.loads((folder / "config.json").read_text()),
                             (*HARMLESS, *NEUTRAL, "rope_scaling", "rope_parameters", "head_dim",
                              "quantization_config", "layer_types")),
             "generation_config.json": ({"eos_token_id": [1, 2], "bos_token_id": 0}, ()),
             "tokenizer_config.json": (
                 {"chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}"
                  "{% endfor %}", "bos_token": "<s>", "eos_token": {"content": "</s>"}}, ())}
    rng = np.random.default_rng(seed)
    refused = 0
    for turn in range(MUTATIONS):
        texts = {name: json.dumps(changed(rng, *file) if rng.random() < 0.6 else file[0])
                 for name, file in files.items()}
        name = str(rng.choice(list(texts)))
        if rng.random() < 0.2:          # damage
            text = texts[name]
            at, end = sorted(rng.integers(0, len(text) + 1, 2))
            texts[name] = text[:at] + str(rng.choice(list('{}[]",:0e-. ') + ['{"a":' * 5000])) + \
                text[end if rng.random() < 0.5 else at:]
        strange = turn % 10 == 0
        if strange:
            config = files["config.json"][0] | {f"k{rng.integers(10**9)}": 1 + turn}
            texts["config.json"] = json.dumps(config)
        for name, text in texts.items():
            (folder / name).write_text(text)
        found = refuses(lambda: load_model(folder))
        assert found or not strange
        refused += found
    assert MUTATIONS // 3 < refused < MUTATIONS


FOREIGN = {
    b"": "is empty; get it again",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n":
        "is a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"\n <!DOCTYPE html>\n<html><body>Sign in</body></html>": "is a web page .HTML., not the file",
}


@pytest.mark.parametrize("raw", FOREIGN, ids=["empty", "LFS", "HTML"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_foreign_files(tmp_path, seed, name, raw):
    """What a download leaves in place of a file is told as such."""
    folder = random_model(tmp_path, seed=seed)
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=f"{name} {FOREIGN[raw]}"):
        load_model(folder)


def test_file_errors(tmp_path, seed):
    with pytest.raises(UserError, match="no model 'nowhere'"):
        load_model("nowhere")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x.gguf").touch()
    with pytest.raises(UserError, match="files is no Hugging Face folder; give a .*files/x.gguf"):
        load_model(tmp_path / "files")
    folder = random_model(tmp_path, seed=seed)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-5], good[:100], b"not safetensors at all"):
        weights.write_bytes(bad)
        with pytest.raises(UserError, match="model.safetensors is damaged"):
            load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        load_model(folder)
    index = folder / "model.safetensors.index.json"
    for where, message in (({"a": "x.safetensors"}, "x.safetensors is missing"),
                           ({"a": "../x.safetensors"}, "'../x.safetensors' outside its folder"),
                           (None, "has no weight_map")):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(UserError, match=message):
            load_model(folder)
    weights.write_bytes(good)
    for name, message in (("tokenizer.json", "is not a tokenizer"),
                          ("config.json", "is not JSON")):
        path = folder / name
        text = path.read_text()
        path.write_text(text[:-20])
        with pytest.raises(UserError, match=message):
            load_model(folder)
        path.unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            load_model(folder).text_tokens("a")
        path.write_text(text)
    load_model(folder)


@pytest.mark.parametrize("value, message", [
    (np.zeros((128, 32), np.int8), "embed_tokens.weight has type I8"),
    (np.full((128, 32), np.nan, np.float32), "embed_tokens.weight holds values that are not fin"),
])
def test_tensor_errors(tmp_path, seed, value, message):
    folder = random_model(tmp_path, seed=seed)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.embed_tokens.weight": value}, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(folder)


# ---- Tokenizer

def test_stream_gives_whole_characters():
    """Bytes of a character are separate tokens here: nothing may come out half."""
    tokenizer = Tokenizer(json.dumps(tokenizer_json(258)).encode())
    text = "Zoë says: 你好 ✓ 🦜!"
    stream, pieces = tokenizer.stream(), []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in p for p in pieces) and "🦜" in pieces


def test_stream_of_damaged_text():
    """Bytes that never become a character are given after at most 4 tokens, and at the end."""
    tokenizer = Tokenizer(json.dumps(tokenizer_json(258)).encode())
    first = tokenizer.encode("🦜")[1]                   # the first of 4 bytes
    stream = tokenizer.stream()
    got = [stream.push(first) for _ in range(4)]
    assert got[:3] == ["", "", ""] and set(got[3]) == {"\ufffd"}
    assert stream.push(first) == "" and set(stream.flush()) == {"\ufffd"}
    assert stream.flush() == ""


def test_stream_continues_a_prompt(stories):
    prompt = stories.tokenizer.encode("Once upon a time")
    rest = stories.tokenizer.encode(" there was a cat.")[1:]
    stream = stories.tokenizer.stream(prompt)
    assert "".join(map(stream.push, rest)) + stream.flush() == " there was a cat."
    assert stories.tokenizer.decode([0, 1]) == ""


def test_stored_limits_do_not_cut_prompts():
    stored = tokenizer_json(128)
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                            "stride": 0}
    assert len(Tokenizer(json.dumps(stored).encode()).encode("hello world")) == 12


def test_no_amaranth():
    """The golden side needs no gateware tools."""
    code = ("import sys, meadowlark.run.evaluate, meadowlark.quant.sampling; "
            "sys.exit(any(m.split('.')[0] == 'amaranth' for m in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (PACKAGED["stories"] / "NOTICE").is_file()


def test_a_tokenizer_that_names_what_it_does_not_have():
    """The library panics, which is no Exception; people get a sentence."""
    source = json.loads((PACKAGED["stories"] / "tokenizer.json").read_text())
    source["post_processor"]["special_tokens"] = {}
    with pytest.raises(UserError, match=r"^mine is not a tokenizer \(.*\); get the file again"):
        Tokenizer(json.dumps(source).encode(), "mine").encode("Hello")
