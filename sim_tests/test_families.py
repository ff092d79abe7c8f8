"""Families of models: against what transformers computes, in both formats, and what is refused."""
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import NOT_CONVERTED, write_gguf
from hostile import WRONG
from random_model import CLASSES, ENCODERS, random_model
from reference_models import RANDOM, TRAINED, reference, reference_model
from safetensors.numpy import load_file, save_file

from meadowlark.compile import limits
from meadowlark.compile.compiler import compile_model
from meadowlark.errors import UserError
from meadowlark.models.checkpoint import untied
from meadowlark.models.families import by_architecture, families
from meadowlark.models.families.known import missing
from meadowlark.models.float_model import FloatModel
from meadowlark.models.gguf_file import GgufFile
from meadowlark.models.gguf_model import load_gguf
from meadowlark.models.graph import Add, Attend, Embed, Gate, Head, Linear, Norm, Rope
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.own_text import own_text
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.isa import Fn

ROOT = Path(__file__).resolve().parents[1]
#: Largest difference of logits, as a part of their spread.
CLOSE = 1e-4
#: Models of families whose programs differ in more than sizes from Llama's.
INTEGERS = ("deepseek_v2", "deepseek_v3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "olmo2", "opt",
            "phi", "qwen3", "gemma2", "gemma3")


def close(got, want):
    assert np.abs(got - want).max() < CLOSE * want.std()


def steps(model, tokens):
    """Logits of one sequence, a token at a time."""
    stepper = FloatModel(model).stepper(1, len(tokens))
    return np.concatenate([stepper.step(tokens[i:i + 1]) for i in range(len(tokens))])


# ---- Against transformers

@pytest.mark.parametrize("name", RANDOM)
def test_random_weights(tmp_path, name):
    """A whole sequence and a token at a time."""
    model, known = load_model(reference_model(name, tmp_path)), reference(name)
    assert not model.warnings and model.family.removesuffix("_text") in name
    close(FloatModel(model).forward(known["tokens"]), known["logits"])
    close(steps(model, known["tokens"]), known["logits"])


@pytest.mark.parametrize("name", TRAINED)
def test_trained(tmp_path, name):
    model, known = load_model(reference_model(name, tmp_path)), reference(name)
    runner = FloatModel(model)
    for tokens, want in zip(known["tokens"], known["logits"], strict=True):
        close(runner.forward(tokens)[known["positions"]], want)
    greedy = known["greedy"].tolist()
    ids = model.tokenizer.encode("Once upon a time")
    assert ids == greedy[:len(ids)]
    stepper = runner.stepper(1, len(greedy))
    for at, token in enumerate(greedy[:-1]):
        logits = stepper.step(np.array([token]))
        assert at + 1 < len(ids) or logits.argmax() == greedy[at + 1]


# ---- GGUF as llama.cpp's converter writes it

@pytest.mark.parametrize("name", [n for n in RANDOM
                                  if n != "smollm3" and n not in NOT_CONVERTED])
def test_gguf(tmp_path, name):
    folder = shutil.copytree(reference_model(name, tmp_path), tmp_path / name)
    # GGUF has no models without tokens.
    shutil.copy(random_model(tmp_path / "r", seed=1, vocab=256) / "tokenizer.json", folder)
    model = load_gguf(write_gguf(tmp_path / "m.gguf", folder))
    known = reference(name)
    if name == "mistral-window":        # the converter leaves the window out
        assert model.family == "llama" and set(windows(model.graph)) == {None}
        model = load_gguf(write_gguf(tmp_path / "m.gguf", folder,
                                     values={"llama.attention.sliding_window": 16}))
    if name == "gemma3":                # where the last of six layers has no window
        assert set(windows(model.graph)) == {16}
        model = load_gguf(write_gguf(tmp_path / "m.gguf", folder,
                                     values={"gemma3.attention.sliding_window_pattern": 2}))
    close(FloatModel(model).forward(known["tokens"]), known["logits"])


def test_gguf_latents(tmp_path, seed):
    """One matrix from latents to keys and values, as older files have, is the same model; layers
    with experts are refused, and so are scalings without all that they need."""
    folder = random_model(tmp_path / "m", seed=seed, family="deepseek_v3", n_routed_experts=4)
    stored, want = load_file(folder / "model.safetensors"), load_model(folder)
    at, path = "deepseek2.attention.", tmp_path / "m.gguf"
    older = {f"blk.{i}.attn_{part}_b.weight": (value, "F32") for i in range(2) for part, value in (
        ("k", None), ("v", None),
        ("kv", stored[f"model.layers.{i}.self_attn.kv_b_proj.weight"]))}
    got = load_gguf(write_gguf(path, folder, others=older, values={
        f"{at}key_length": 20, f"{at}value_length": 10, f"{at}key_length_mla": None,
        f"{at}value_length_mla": None, f"{at}head_count_kv": 4}))
    assert got.parameters == want.parameters
    for name, value in want.weights.items():
        np.testing.assert_array_equal(got.weights[name], value, err_msg=name)
    close(FloatModel(got).forward([1, 2, 3]), FloatModel(want).forward([1, 2, 3]))
    outline = load_gguf(path, outline=True)
    assert {name: w.shape for name, w in outline.weights.items()} == want.graph.shapes
    for values, message in (
            ({"deepseek2.leading_dense_block_count": 1}, "a model with 4 experts is not supported"),
            ({"deepseek2.rope.scaling.type": "yarn", "deepseek2.rope.scaling.factor": 4.0,
              "deepseek2.rope.scaling.yarn_log_multiplier": 1e30}, "1.39e.30 times larger"),
            ({"deepseek2.rope.scaling.type": "yarn", "deepseek2.rope.scaling.factor": 4.0},
             "yarn without deepseek2.rope.scaling.yarn_log_multiplier is not supported"),
            ({f"{at}kv_lora_rank": None}, "attention.kv_lora_rank is missing"),
            ({f"{at}key_length_mla": 8}, "keys of 8 dimensions have no others than the 8 that"),
            ({f"{at}value_length_mla": 9}, r"attn_output.weight has shape \[32, 40\]")):
        with pytest.raises(UserError, match=message):
            load_gguf(write_gguf(path, folder, values=values))


def test_gguf_latents_in_blocks(tmp_path, seed):
    """Matrices that are absorbed become numbers; the others keep their blocks."""
    folder = random_model(tmp_path / "m", seed=seed, family="deepseek_v3", hidden=32, ffn=64,
                          kv_lora_rank=32, q_lora_rank=32)
    model = load_gguf(write_gguf(tmp_path / "m.gguf", folder, kind="Q8_0", others={
        f"blk.{i}.attn_output.weight": (np.ones((32, 40), np.float32), "F32") for i in range(2)}))
    assert {name.rpartition(".")[2] for name in model.blocks} == {
        "embedding", "q_a", "gate", "up", "down"}
    assert all(name in model.weights for name in model.blocks)
    assert np.isfinite(FloatModel(model).forward([1, 2, 3])).all()


@pytest.mark.parametrize("family", [name for name in CLASSES if name not in NOT_CONVERTED])
def test_gguf_weights(tmp_path, seed, family):
    """Bit for bit those of the folder; biases, heads and scales too."""
    more = {"granite": dict(attention_multiplier=0.2, embedding_multiplier=3.0,
                            residual_multiplier=0.5, logits_scaling=2.0),
            "gemma2": dict(query_pre_attn_scalar=8),
            "gemma3_text": dict(query_pre_attn_scalar=8)}.get(family, {})
    folder = random_model(tmp_path / "m", seed=seed, family=family, layers=5, kv_heads=1,
                          tied=family != "phi3", rope_theta=100.0, **more)
    got, want = load_gguf(write_gguf(tmp_path / "m.gguf", folder)), load_model(folder)
    assert set(got.weights) == set(want.weights) and got.parameters == want.parameters
    for name, value in want.weights.items():
        np.testing.assert_array_equal(got.weights[name], value, err_msg=name)
    tokens = np.random.default_rng(seed).integers(0, want.vocab, 20)
    close(FloatModel(got).forward(tokens), FloatModel(want).forward(tokens))
    outline = load_model(folder, outline=True)
    assert outline.graph == want.graph and outline.parameters == want.parameters


def test_blocks_of_fused_tensors(tmp_path, seed):
    """Parts of a tensor have their blocks."""
    folder = random_model(tmp_path / "m", seed=seed, family="phi3", layers=1)
    path = write_gguf(tmp_path / "m.gguf", folder, kind="Q4_1")
    model = load_gguf(path)
    assert {"blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"} <= set(GgufFile(path).tensors)
    parts = [f"layers.0.{part}" for part in ("q", "k", "v", "gate", "up")]
    for name in parts:
        blocks = model.blocks[name]
        assert (blocks.rows, blocks.columns) == model.weights[name].shape
        np.testing.assert_array_equal(blocks.dequantised(), model.weights[name])
    outline = load_gguf(path, outline=True)
    assert {n: b.kind for n, b in outline.blocks.items()} == dict.fromkeys(model.blocks, "Q4_1")


# ---- What each family reads

def graph(folder, **values):
    """Of a folder, with other entries in config.json; None is null there."""
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | values))
    try:
        return load_model(folder).graph
    finally:
        path.write_text(before)


def windows(made):
    return [op.window for op in made.of(Attend)]


def test_windows(tmp_path, seed):
    def model(family, **values):
        return random_model(tmp_path / family, seed=seed, family=family, layers=3, **values)
    full, part = "full_attention", "sliding_attention"
    mistral = model("mistral")
    assert windows(graph(mistral)) == [4096] * 3        # as transformers has it
    assert windows(graph(mistral, sliding_window=None)) == [None] * 3
    assert windows(graph(mistral, sliding_window=9)) == [9] * 3
    assert windows(graph(mistral, sliding_window=9, layer_types=[full, part, full])) == \
        [None, 9, None]
    qwen = model("qwen2")
    assert windows(graph(qwen)) == [None] * 3
    assert windows(graph(qwen, sliding_window=7, use_sliding_window=False,
                         max_window_layers=1)) == [None] * 3
    assert windows(graph(qwen, sliding_window=7, use_sliding_window=True,
                         max_window_layers=1)) == [None, 7, 7]
    assert windows(graph(qwen, sliding_window=7, use_sliding_window=True,
                         layer_types=[part, full, full])) == [7, None, None]
    assert windows(graph(model("phi3"), sliding_window=5)) == [5] * 3
    smol = model("smollm3", no_rope_layers=[0, 1, 0], max_window_layers=28)
    assert windows(graph(smol, sliding_window=5)) == [None] * 3
    assert windows(graph(smol, sliding_window=5, use_sliding_window=True)) == [5, None, 5]
    for values in (dict(layer_types=[part]), dict(layer_types=[full, part, "chunked"])):
        with pytest.raises(UserError, match="layer_types must name 3 layers full_attention or"):
            graph(mistral, **values)


def test_window_is_seen(tmp_path, seed):
    """Within the window nothing changes; behind it, what is far is not seen."""
    folder = random_model(tmp_path, seed=seed, family="mistral", layers=1, sliding_window=6)
    seen, full = load_model(folder), graph(folder, sliding_window=None)
    tokens = np.random.default_rng(seed).integers(0, seen.vocab, 14)
    with_window = FloatModel(seen).forward(tokens)
    without = FloatModel(replace(seen, graph=full)).forward(tokens)
    np.testing.assert_array_equal(with_window[:6], without[:6])
    assert (with_window[6:] != without[6:]).any(axis=1).all()
    alone = FloatModel(seen).forward(np.array([*tokens[7:8], *tokens[8:]]))
    assert alone.shape == (7, seen.vocab)
    close(steps(seen, tokens), with_window)


def test_window_leaves_the_context(tmp_path, seed):
    """It is as long as without."""
    folder = random_model(tmp_path, seed=seed, family="mistral", layers=1, sliding_window=40,
                          context=128)
    shapes, board = Shapes.of_model(load_model(folder)), get_board("virtual")
    assert limits.need(shapes, board).context == 128
    with pytest.raises(UserError, match=r"must be in 1\.\.128 for this model, not 129"):
        limits.check(shapes, board, context=129)


def test_window_in_integers(tmp_path, seed):
    """A text three times as long as the window: near what transformers computes, with a window in
    all layers and in one; the program gives the same, in prefill and token by token."""
    model, known = load_model(reference_model("mistral-window", tmp_path)), reference(
        "mistral-window")
    tokens, board = known["tokens"].tolist(), get_board("virtual")
    kinds = {"all": model.graph, "one": replace(model.graph, operators=tuple(
        replace(op, window=None) if op.out == "layers.0.attention" else op
        for op in model.graph.operators))}
    for graph in kinds.values():
        some = replace(model, graph=graph)
        qm = quantise(some, np.random.default_rng(seed).integers(0, 256, (8, 48)).tolist(),
                      head_pad=board.config.W)
        want = GoldenModel(qm).forward(tokens, want="all")
        near = FloatModel(some).forward(tokens)
        assert np.abs(want / 4096 - near).max() < 0.5 * near.std()
        core = golden_core(compile_model(qm, board), board.config)
        np.testing.assert_array_equal(core.forward(tokens[:40]), want[39])
        for at in range(40, 48):
            np.testing.assert_array_equal(core.forward(tokens[at:at + 1], at), want[at])


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(tmp_path, seed, name):
    """Near what transformers computes; the program gives the same, of a prompt and of a token."""
    model, known = load_model(reference_model(name, tmp_path)), reference(name)
    tokens, board = known["tokens"].tolist(), get_board("virtual")
    shapes = Shapes.of_model(model).suited(board.config.W, 1 << 16)
    qm = quantise(shapes.model, np.random.default_rng(seed).integers(0, 256, (8, 48)).tolist(),
                  head_pad=board.config.W)
    want = GoldenModel(qm).forward(tokens, want="all")
    assert np.corrcoef(want.ravel(), known["logits"].ravel())[0, 1] > 0.995
    core = golden_core(compile_model(qm, board), board.config)
    np.testing.assert_array_equal(core.forward(tokens[:47]), want[46])
    np.testing.assert_array_equal(core.forward(tokens[47:], 47), want[47])


def rotated(made):
    return [isinstance(made.maker[op.q], Rope) and isinstance(made.maker[op.k], Rope)
            for op in made.of(Attend)]


def test_layers_without_rotation(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed, family="smollm3", layers=5)
    assert rotated(graph(folder)) == [True, True, True, False, True]
    assert rotated(graph(folder, no_rope_layer_interval=2)) == [True, False, True, False, True]
    assert rotated(graph(folder, no_rope_layers=[0, 1, 1, 1, 0])) == \
        [False, True, True, True, False]
    for wrong in ([0, 1], [2] * 5, ["1"] * 5, {"a": 1}, "1"):
        with pytest.raises(UserError, match="no_rope_layers must be a list"):
            graph(folder, no_rope_layers=wrong)


def test_multipliers(tmp_path, seed):
    """Granite's, in the graph and against weights that have them multiplied in."""
    folder = random_model(
        tmp_path, seed=seed, family="granite", tied=False, head_dim=8, attention_multiplier=0.25,
        embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=4.0)
    model = load_model(folder)
    assert {op.divisor for op in model.graph.of(Attend)} == {4.0}
    assert ([op.scale for op in model.graph.of(Embed, Head)],
            {op.scale for op in model.graph.of(Add)}) == ([3.0, 0.25], {0.5})
    plain = graph(folder, attention_multiplier=8 ** -0.5, embedding_multiplier=1.0,
                  residual_multiplier=1.0, logits_scaling=1.0)
    factors = {"embedding": 3.0, "head": 0.25, "q": 0.25 * 8 ** 0.5, "o": 0.5, "down": 0.5}
    folded = {name: value * np.float32(factors.get(name.rpartition(".")[2], 1.0))
              for name, value in model.weights.items()}
    tokens = np.random.default_rng(seed).integers(0, model.vocab, 20)
    close(FloatModel(replace(model, graph=plain, weights=folded)).forward(tokens),
          FloatModel(model).forward(tokens))
    bare = load_gguf(write_gguf(tmp_path / "m.gguf", folder,
                                values={"granite.rope.scaling.finetuned": False}))
    assert rotated(bare.graph) == [False, False]


def test_defaults(tmp_path, seed):
    """Entries that a file lacks are as transformers has them."""
    for family, context, eps in (("llama", 2048, 1e-6), ("mistral", 131072, 1e-6),
                                 ("qwen2", 32768, 1e-6), ("smollm3", 32768, 1e-6),
                                 ("granite", 2048, 1e-6), ("phi3", 4096, 1e-5)):
        folder = random_model(tmp_path / family, seed=seed, family=family, layers=1, heads=2,
                              kv_heads=2, tied=family == "smollm3")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key in ("max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act",
                    "tie_word_embeddings"):
            del config[key]
        path.write_text(json.dumps(config))
        model = load_model(folder)
        assert (model.context, model.tied) == (context, family == "smollm3"), family
        assert {op.eps for op in model.graph.of(Norm)} == {eps}
        theta = 2e6 if family == "smollm3" else 1e4
        np.testing.assert_allclose(model.graph.tables["rope"].values,
                                   theta ** (-np.arange(8) / 8))


@pytest.mark.parametrize("family, entries", {
    "mistral": ("sliding_window", "layer_types"),
    "qwen2": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "granite": ("embedding_multiplier", "residual_multiplier", "attention_multiplier",
                "logits_scaling"),
    "smollm3": ("no_rope_layers", "no_rope_layer_interval", "sliding_window",
                "use_sliding_window"),
    "phi3": ("sliding_window", "original_max_position_embeddings"),
    "gpt2": ("n_inner", "n_positions", "activation_function", "layer_norm_epsilon",
             "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"),
    "opt": ("ffn_dim", "do_layer_norm_before", "word_embed_proj_dim", "enable_bias",
            "layer_norm_elementwise_affine", "_remove_final_layer_norm"),
    "gpt_neox": ("rotary_pct", "rotary_emb_base", "use_parallel_residual", "attention_bias",
                 "partial_rotary_factor", "rope_parameters", "rope_theta"),
    "gemma3_text": ("query_pre_attn_scalar", "sliding_window", "_sliding_window_pattern",
                    "layer_types", "rope_local_base_freq", "rope_parameters",
                    "attn_logit_softcapping", "hidden_activation"),
    "gemma": ("hidden_act", "hidden_activation", "head_dim", "num_key_value_heads"),
    "gemma2": ("query_pre_attn_scalar", "sliding_window", "layer_types", "rope_parameters",
               "attn_logit_softcapping", "final_logit_softcapping"),
    "gptj": ("rotary_dim", "n_inner", "rotary"),
    "phi": ("partial_rotary_factor", "num_key_value_heads", "qk_layernorm"),
    "gpt_neo": ("attention_types", "attention_layers", "window_size"),
    "deepseek_v3": ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim",
                    "v_head_dim", "first_k_dense_replace", "rope_interleave", "attention_bias",
                    "rope_parameters")}.items())
def test_values_of_every_type(tmp_path, seed, family, entries):
    """Each entry in turn as each kind of value: a model that runs, or one sentence."""
    folder = random_model(tmp_path, seed=seed, family=family, layers=1)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    refused = 0
    rotates = family not in ("gpt2", "gpt_neo", "gptj", "opt")
    for key in (*entries, *(("rope_scaling",) if rotates else ())):
        for wrong in (*WRONG, 1e-300, 1e300):
            path.write_text(json.dumps(values | {key: wrong}))
            try:
                logits = FloatModel(load_model(folder)).forward([1, 2, 3])
                assert np.isfinite(logits).all()
            except UserError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) < 1000
    assert refused > 4 * len(entries)


def test_gpt2(tmp_path, seed):
    """A checkpoint made without a head, with tables of masks; scores as they come; what cannot
    be."""
    folder = random_model(tmp_path / "m", seed=seed, family="gpt2", n_inner=None, ffn=1)
    model = load_model(folder)
    assert model.graph.edges["layers.0.h"].width == 4 * 32
    assert {op.divisor for op in graph(folder, scale_attn_weights=False).of(Attend)} == {1.0}
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value
               for name, value in load_file(path).items()}
    mask = np.ones((1, 1, 8, 8), np.float32)
    save_file(tensors | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": mask[:1, 0, 0]}, path)
    bare = load_model(folder)
    assert not bare.warnings and bare.parameters == model.parameters
    for name, value in model.weights.items():
        np.testing.assert_array_equal(bare.weights[name], value)
    for values, message in (
            (dict(n_head=5), "n_embd 32 is not a multiple of n_head 5"),
            (dict(n_inner=64), r"attn|c_fc.weight has shape \[32, 128\] .* implies \[32, 64\]"),
            (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
            (dict(activation_function="mish"), "activation_function 'mish' is not supported")):
        with pytest.raises(UserError, match=message):
            graph(folder, **values)


def test_opt(tmp_path, seed):
    """What the 350M has is refused by name, and there may be no biases."""
    folder = random_model(tmp_path / "m", seed=seed, family="opt", enable_bias=False)
    assert all(op.bias is None for op in load_model(folder).graph.of(Linear))
    for values, message in (
            (dict(do_layer_norm_before=False), "it needs norms that replace the residual"),
            (dict(word_embed_proj_dim=16), "needs a matrix between embedding and residual"),
            (dict(_remove_final_layer_norm=True), "_remove_final_layer_norm = True"),
            (dict(enable_bias=True), "no tensor model.decoder.layers.0.self_attn.q_proj.bias")):
        with pytest.raises(UserError, match=message):
            graph(folder, **values)


def test_gpt_neox(tmp_path, seed):
    """Attention and MLP beside each other or one behind the other; how much of a head rotates."""
    folder = random_model(tmp_path / "m", seed=seed, family="gpt_neox")
    found = graph(folder, attention_bias=False)
    assert {op.weight.rpartition(".")[2] for op in found.of(Linear) if op.bias is None} == set(
        "qkvo")
    reads = {op.out: op.x for op in found.of(Norm)}
    assert reads["layers.0.norm1.x"] == reads["layers.0.norm2.x"] == "residual"
    other = graph(folder, use_parallel_residual=False)
    assert {op.out: op.x for op in other.of(Norm)}["layers.0.norm2.x"] == "layers.0.o.residual"
    for values, rates in ((dict(rotary_pct=0.5, rotary_emb_base=100), [1, 0.1]),
                          (dict(partial_rotary_factor=1.0, rope_theta=16.0), [1, 0.5, 0.25, 0.125]),
                          (dict(rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 100,
                                                 "rope_type": "default"}), [1, 0.1]), ({}, [1])):
        np.testing.assert_allclose(graph(folder, **values).tables["rope"].values, rates)
    for part in (0.1, 0.4, 1.5):
        with pytest.raises(UserError, match=f"{part:g} of heads of 8 dimensions are no pairs"):
            graph(folder, rotary_pct=part)


def test_gpt_neo(tmp_path, seed):
    """Layers of both kinds, by pairs or one by one, and no other."""
    folder = random_model(tmp_path / "m", seed=seed, family="gpt_neo", layers=4, window_size=5)
    pairs = [[["global", "local"], 1], [["local"], 2]]
    assert windows(graph(folder)) == [None] * 4
    assert windows(graph(folder, attention_types=pairs)) == [None, 5, 5, 5]
    assert windows(graph(folder, attention_layers=["local", "global", "local", "global"])) == [
        5, None, 5, None]
    assert {op.divisor for op in graph(folder).of(Attend)} == {1.0}
    for values, message in (
            (dict(attention_types=pairs[:1]), "must name 4 layers global or local"),
            (dict(attention_types=[[["full"], 4]]), "must name 4 layers global or local"),
            (dict(attention_types=[[["global"], 10**9]]), "pairs of a list and a number"),
            (dict(attention_types=[["global", 4]]), "pairs of a list and a number")):
        with pytest.raises(UserError, match=message):
            graph(folder, **values)


def test_gemma(tmp_path, seed):
    """Against a Llama whose weights have all of it multiplied in."""
    folder = random_model(tmp_path / "m", seed=seed, family="gemma", hidden_act="gelu")
    model, file = load_model(folder), load_file(folder / "model.safetensors")
    tensors = {name: value + np.float32(1) if "norm" in name else value
               for name, value in file.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] * np.float32(32 ** 0.5)
    other = random_model(tmp_path / "o", seed=seed, hidden_act="gelu_pytorch_tanh", tied=False)
    save_file(tensors, other / "model.safetensors")
    tokens = np.random.default_rng(seed).integers(0, model.vocab, 20)
    close(FloatModel(model).forward(tokens), FloatModel(load_model(other)).forward(tokens))
    assert {op.fn for op in graph(folder, hidden_activation="relu").of(Gate)} == {Fn.RELU}
    with pytest.raises(UserError, match="hidden_act 'relu' is not supported; name the one"):
        graph(folder, hidden_act="relu")


def test_gemma3(tmp_path, seed):
    """Which layers have a window, and by what each kind rotates, in files of both forms."""
    folder = random_model(tmp_path / "m", seed=seed, family="gemma3_text", layers=3, head_dim=4)
    assert windows(graph(folder)) == [4096] * 3
    assert windows(graph(folder, _sliding_window_pattern=2)) == [4096, None, 4096]
    kinds = dict(layer_types=["full_attention", "sliding_attention", "full_attention"],
                 sliding_window=7, rope_theta=None)
    assert windows(graph(folder, **kinds)) == [None, 7, None]

    def turning(**values):
        """Rates of the second pair: of layers with full attention, and of those with a window."""
        found = graph(folder, **kinds, **values)
        assert [found.maker[op.q].table for op in found.of(Attend)] == ["rope", "local", "rope"]
        return [found.tables[name].values[1] for name in ("rope", "local")]
    np.testing.assert_allclose(turning(), [1e-3, 1e-2])
    np.testing.assert_allclose(turning(
        rope_local_base_freq=16.0, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        [1e-3 / 8, 0.25])
    nested = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 4.0},
              "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    np.testing.assert_allclose(turning(rope_parameters=nested), [0.25, 0.1])
    assert {op.scale for op in graph(folder).of(Embed)} == {32 ** 0.5}
    assert {op.divisor for op in graph(folder, query_pre_attn_scalar=9).of(Attend)} == {3.0}
    for values, message in ((dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
                            (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0"),
                            (dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
                            (dict(rope_parameters={**nested, "x": 1}), "rope_parameters.x = 1")):
        with pytest.raises(UserError, match=message):
            graph(folder, **values)


def test_gemma2(tmp_path, seed):
    """Which layers have a window, what caps there are, and that they are of use."""
    folder = random_model(tmp_path / "m", seed=seed, family="gemma2", layers=3, head_dim=4)
    assert windows(graph(folder)) == [4096, None, 4096]
    kinds = dict(layer_types=["full_attention", "sliding_attention", "full_attention"])
    assert windows(graph(folder, sliding_window=7, **kinds)) == [None, 7, None]

    def caps(**values):
        found = graph(folder, **values)
        return {op.cap for op in found.of(Attend)}, {op.cap for op in found.of(Head)}
    assert caps() == ({50.0}, {30.0})
    assert caps(attn_logit_softcapping=3.5, final_logit_softcapping=None) == ({3.5}, {None})
    assert caps(attn_logit_softcapping=None, final_logit_softcapping=7) == ({None}, {7.0})
    assert {op.divisor for op in graph(folder).of(Attend)} == {16.0}
    assert {op.divisor for op in graph(folder, query_pre_attn_scalar=9).of(Attend)} == {3.0}
    for values, message in (
            (dict(final_logit_softcapping=-1), "must be a positive number"),
            (dict(attn_logit_softcapping=1e9), "must be from 1e-06 to 1e.06"),
            (dict(layer_types=["x"] * 3), "must name 3 layers")):
        with pytest.raises(UserError, match=message):
            graph(folder, **values)


def test_gemma2_gguf(tmp_path, seed):
    """Keys that older files have not, and the one model that divides scores by something else."""
    folder = random_model(tmp_path / "m", seed=seed, family="gemma2", query_pre_attn_scalar=8)
    missing_keys = {f"gemma2.{key}": None for key in (
        "attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")}
    got = load_gguf(write_gguf(tmp_path / "m.gguf", folder, values=missing_keys))
    want = load_model(folder)
    for kind in (Attend, Head):
        assert list(got.graph.of(kind)) == list(want.graph.of(kind))
    deep = random_model(tmp_path / "d", seed=seed, family="gemma2", layers=46, head_dim=4,
                        query_pre_attn_scalar=8, final_logit_softcapping=9.0)
    model = load_gguf(write_gguf(tmp_path / "d.gguf", deep))
    assert {op.divisor for op in model.graph.of(Attend)} == {(32 / 4) ** 0.5}
    assert {op.cap for op in model.graph.of(Head)} == {9.0}


def test_gptj(tmp_path, seed):
    """How much of a head rotates is said, and is pairs."""
    folder = random_model(tmp_path / "m", seed=seed, family="gptj")
    np.testing.assert_allclose(load_model(folder).graph.tables["rope"].values, [1, 0.01])
    for value, message in ((3, "3 dimensions of a head have no pairs"), (None, "is missing"),
                           (10, "rotary_dim must be a whole number from 2 to 8")):
        with pytest.raises(UserError, match=message):
            graph(folder, rotary_dim=value)


def test_deepseek(tmp_path, seed):
    """Where the part that rotates comes from, and what is refused."""
    folder = random_model(tmp_path, seed=seed, family="deepseek_v3", hidden=48)
    path, tensors = folder / "config.json", load_file(folder / "model.safetensors")
    config, tokens = json.loads(path.read_text()), list(range(2, 30))
    want = FloatModel(load_model(folder)).forward(tokens)
    model = load_model(folder, outline=True)
    assert {name: w.shape for name, w in model.weights.items()} == model.graph.shapes
    assert not any(any(w.strides) for w in model.weights.values())
    op, = {replace(op, out="", q="", k="", v="") for op in model.graph.of(Attend)}
    assert (op.heads, op.kv_heads, op.head_dim, op.latent) == (4, 1, 24, 16)
    assert op.divisor == np.sqrt(12 + 8)

    # The same pairs as halves.
    def halves(rows):
        return np.concatenate([rows[..., 0::2, :], rows[..., 1::2, :]], axis=-2)
    for name, w in list(tensors.items()):
        if "q_b_proj" in name:
            heads = w.reshape(4, 20, -1).copy()
            heads[:, 12:] = halves(heads[:, 12:])
            tensors[name] = heads.reshape(w.shape)
        if "kv_a_proj" in name:
            tensors[name] = np.concatenate([w[:16], halves(w[16:])])
    save_file(tensors, folder / "model.safetensors")
    path.write_text(json.dumps(config | {"rope_interleave": False}))
    close(FloatModel(load_model(folder)).forward(tokens), want)
    for changes, message in (
            ({"first_k_dense_replace": 1}, "layers from 1 on have experts"),
            ({"attention_bias": True}, "attention_bias is not supported with latents"),
            ({"qk_rope_head_dim": 7}, "heads of 7 dimensions have no pairs"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "mscale": 1e300,
                               "mscale_all_dim": 1e300}}, "1.39e.299 times larger"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "without equal mscale")):
        path.write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            load_model(folder)


@pytest.mark.parametrize("factor", [1 / 16, 16])
def test_latents_have_a_scale_of_their_own(tmp_path, factor):
    """In the scores, beside the part that rotates: larger or smaller latents that queries and the
    last matrix make up for are the same model."""
    model, known = load_model(reference_model("deepseek_v2", tmp_path)), reference("deepseek_v2")
    weights, tokens = dict(model.weights), known["tokens"].tolist()
    op = next(model.graph.of(Attend))
    for name, w in model.weights.items():
        if name.endswith(".kv_norm"):
            weights[name] = w * np.float32(factor)
        if name.endswith(".q"):
            heads = w.reshape(op.heads, op.head_dim, -1).copy()
            heads[:, op.key_dim:] /= factor
            weights[name] = heads.reshape(w.shape)
        if name.endswith(".o"):
            weights[name] = w / np.float32(factor)
    scaled = replace(model, weights=weights)
    close(FloatModel(scaled).forward(tokens), known["logits"])
    plain, other = (GoldenModel(quantise(m, [tokens])).forward(tokens, want="all") / 4096
                    - known["logits"] for m in (model, scaled))
    assert np.sqrt(np.square(other).mean()) < 1.5 * np.sqrt(np.square(plain).mean())


def test_rope_turns_too_fast(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed, rope_scaling={"type": "linear", "factor": 1e-300})
    with pytest.raises(UserError, match=r"RoPE turns by 1e\+300 radians a position"):
        load_model(folder)


def test_layers_without_attention(tmp_path, seed):
    """Every other one of a Nemotron; what its blocks may not say."""
    folder = random_model(tmp_path, seed=seed, family="nemotron-nas", layers=3, heads=4, kv_heads=2)
    model = load_model(folder)
    assert [*map(str, (op.out for op in model.graph.of(Attend)))] == [
        "layers.0.attention", "layers.2.attention"]
    assert model.graph.shapes["layers.0.gate"][0] == 256        # 3 x 2 / 3 of 32, and rounded up
    assert "layers.1.norm1" not in model.weights and "layers.1.norm2" in model.weights
    stored = json.loads((folder / "config.json").read_text())
    plain = {"no_op": False, "n_heads_in_group": 2}
    for block, message in (
            ({"attention": plain | {"n_heads_in_group": 1}}, "layers of different shapes"),
            ({"attention": plain, "ffn": {"ffn_mult": 9.0}}, "layers of different shapes"),
            ({"attention": plain, "ffn": {"ffn_mult": 3.0, "no_op": True}}, "without an MLP"),
            ({"attention": plain | {"replace_with_linear": True}}, "a matrix or a window"),
            ({"attention": plain | {"window_length": 8}}, "a matrix or a window"),
            ({"attention": {"no_op": 3}}, r"block_configs\[2\].attention.no_op must be true"),
            (7, "an object for each of 3 layers")):
        changed = stored["block_configs"][:2] + [
            {"ffn": {"ffn_mult": 3.0}} | block if isinstance(block, dict) else block]
        (folder / "config.json").write_text(json.dumps(stored | {"block_configs": changed}))
        with pytest.raises(UserError, match=message):
            load_model(folder)


# ---- The registry

def test_registry():
    assert CLASSES.keys() | ENCODERS.keys() == families().keys()
    for name, family in families().items():
        assert family.name == name and family.classes == ((CLASSES | ENCODERS)[name],)
        if family.arch is not None:
            assert by_architecture(family.gguf_name) is family
            names = {family.gguf_tensor(weight.format(3)) for weight in family.names}
            assert {n.rpartition(".")[2] for n in names} == {"weight"}
            assert len(names) == len(set(family.names.values()))
    assert by_architecture("new") is None
    assert not set(missing()) & set(families())


def test_measured_fidelity():
    """What docs/families.json says of families that there are: within half a per cent."""
    measured = json.loads((ROOT / "docs" / "families.json").read_text())
    models = measured["fidelity"]["models"]
    assert {one["family"] for one in models} | measured["public"].keys() <= families().keys()
    assert {"opt", "gpt2", "gpt_neox", "qwen3", "gemma3_text", "deepseek_v2", "vit"} <= {
        one["family"] for one in models}
    for one in models:
        if "images" in one:
            assert abs(one["accuracy_fixed"] - one["accuracy_float"]) <= 0.005, one
            continue
        delta = 100 * (one["ppl_fixed"] / one["ppl_float"] - 1)
        assert abs(one["delta_pct"]) <= 0.5 and delta == pytest.approx(one["delta_pct"], abs=0.006)


@pytest.mark.parametrize("name", missing())
def test_known_and_not_run(tmp_path, seed, name):
    """Refused with what it needs."""
    folder = random_model(tmp_path, seed=seed, model_type=name, architectures=["XForCausalLM"])
    with pytest.raises(UserError, match=f"architecture '{name}' is not supported; it needs .*; "
                                        "use a model of type .* llama, "):
        load_model(folder)


def test_without_a_tokenizer(tmp_path):
    """A model that takes ids; what has to know text says what is missing."""
    model = load_model(reference_model("qwen2", tmp_path))
    assert model.tokenizer.missing and (model.bos_id, model.stop_ids) == (None, (1,))
    assert model.tokenizer.size == 0 and not model.tokenizer.json
    for use in (lambda: model.text_tokens("a"), lambda: model.tokenizer.decode([5]),
                lambda: model.tokenizer.added):
        with pytest.raises(UserError, match="qwen2/tokenizer.json is missing, .*or give token ids"):
            use()
    assert len(own_text(model, sequences=2, length=5)) == 2


def test_untied(tmp_path, seed):
    """A head of its own that is equal: the same logits, and the embedding may change alone."""
    model = load_model(random_model(tmp_path, seed=seed))
    own = untied(model)
    assert model.tied and not own.tied and untied(own) is own
    assert own.graph.shapes["head"] == model.graph.shapes["embedding"]
    tokens = [3, 4, 5]
    np.testing.assert_array_equal(FloatModel(own).forward(tokens),
                                  FloatModel(model).forward(tokens))


def test_random_checkpoint(tmp_path):
    """A family of docs/families.json, and a config.json: a checkpoint in that shape."""
    def run(*args):
        return subprocess.run([sys.executable, ROOT / "scripts/random_checkpoint.py", *args, "-o",
                               tmp_path / "m"], capture_output=True, text=True)
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps({
        "model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 2, "vocab_size": 90}))
    assert run(shape, "--layers", "3").returncode == 0
    model = load_model(tmp_path / "m")
    assert (model.family, model.vocab, len([*model.graph.of(Attend)])) == ("gpt2", 90, 3)
    assert all(value.any() for value in model.weights.values())
    for wrong, says in ((shape.with_name("none"), "is no family of docs"), (__file__, "no JSON")):
        told = run(wrong)
        assert told.returncode == 2 and says in told.stderr
