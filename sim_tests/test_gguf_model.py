"""Models from GGUF: equal to those of Hugging Face folders, and nothing hostile gets through."""
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants
from gguf_files import ARCHITECTURES, NOT_CONVERTED, interleaved, write_gguf
from hostile import MUTATIONS, changed, refuses
from random_model import CLASSES, random_model

from meadowlark import cli
from meadowlark.errors import UserError
from meadowlark.models import gguf_model
from meadowlark.models.blocks import KINDS
from meadowlark.models.float_model import FloatModel
from meadowlark.models.gguf_file import GgufFile
from meadowlark.models.gguf_model import FLOATS, load_gguf
from meadowlark.models.graph import Attend, Norm
from meadowlark.models.registry import PACKAGED, load_model

SHAPES = {
    "tied": dict(),
    "own head, biases": dict(hidden=64, heads=4, kv_heads=2, head_dim=24, tied=False,
                             attention_bias=True, mlp_bias=True, rope_theta=500.0),
    "no groups": dict(heads=2, kv_heads=2),
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """The packaged model as GGUF, in float16 as its checkpoint."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "stories.gguf", PACKAGED["stories"],
                      kind="F16")


def float32(graph):
    """The graph with numbers as GGUF has them."""
    def of(op):
        return replace(op, eps=float(np.float32(op.eps))) if isinstance(op, Norm) else op
    tables = {name: np.float32(table.values).tolist() for name, table in graph.tables.items()}
    return tuple(map(of, graph.operators)), dict(graph.shapes), tables


def same(got, want):
    """Equal in all but the name, the tokenizer's file and blocks."""
    for name in ("family", "context", "bos_id", "eos_id", "stop_ids", "parameters"):
        assert getattr(got, name) == getattr(want, name), name
    assert float32(got.graph) == float32(want.graph)
    assert set(got.weights) == set(want.weights) == set(want.graph.shapes)
    for name, value in want.weights.items():
        assert got.weights[name].dtype == np.float32
        np.testing.assert_array_equal(got.weights[name], value, err_msg=name)


# ---- What a good file gives

def test_stories(stories):
    """Weights, hyperparameters, ids and tokens are those of the folder."""
    got, want = load_model(stories), load_model("stories")
    same(got, want)
    assert got.name == "stories" and not got.blocks and got.chat is None
    text = "Once upon a time, Zoë's 12 dogs  ran\n\naway.<|eos|> 🦜"
    assert got.tokenizer.encode(text) == want.tokenizer.encode(text)
    assert got.text_tokens(text) == want.text_tokens(text)
    ids = want.tokenizer.encode(text)
    # rms_eps differs in its eighth digit.
    np.testing.assert_allclose(FloatModel(got).forward(ids), FloatModel(want).forward(ids),
                               atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(tmp_path, seed, shape):
    folder = random_model(tmp_path, seed=seed, **shape)
    same(load_gguf(write_gguf(tmp_path / "m.gguf", folder)), load_model(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks(tmp_path, seed, kind):
    """Kept as the file has them, but for the order of rotated rows, and equal to the floats."""
    folder = random_model(tmp_path, seed=seed)
    path = write_gguf(tmp_path / "m.gguf", folder, kind=kind)
    got, want = load_gguf(path), load_model(folder)
    assert set(got.blocks) == {name for name, shape in got.graph.shapes.items() if len(shape) == 2}
    for name, blocks in got.blocks.items():
        assert blocks.kind == kind
        value, original = got.weights[name], want.weights[name]
        np.testing.assert_array_equal(blocks.dequantised(), value)
        if name[-2:] in (".q", ".k"):
            heads = {".q": 4, ".k": 2}[name[-2:]]
            value, original = interleaved(value, heads), interleaved(original, heads)
        which = GGMLQuantizationType[kind]
        np.testing.assert_array_equal(
            value, quants.dequantize(quants.quantize(original, which), which))


def test_own_head_has_its_own_blocks(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed, tied=False)
    got = load_gguf(write_gguf(tmp_path / "m.gguf", folder, kind="Q8_0"))
    np.testing.assert_array_equal(got.blocks["head"].dequantised(), got.weights["head"])
    assert not np.array_equal(got.weights["head"], got.weights["embedding"])
    # A head in float beside an embedding in blocks.
    got = load_gguf(write_gguf(tmp_path / "m.gguf", folder, kind="Q8_0",
                               others={
                               "output.weight": (load_model(folder).weights["head"], "F32")}))
    assert "embedding" in got.blocks and "head" not in got.blocks


@pytest.mark.parametrize("kind", FLOATS)
def test_other_types(tmp_path, seed, kind):
    """Types without blocks of their own here: as the gguf package dequantises them."""
    which = GGMLQuantizationType[kind]
    folder = random_model(tmp_path, seed=seed, ffn=256, layers=1)
    value = load_model(folder).weights["layers.0.down"]
    if kind.endswith("_K"):             # the package cannot quantise to these
        rng = np.random.default_rng(seed)
        size = GGML_QUANT_SIZES[which][1]
        raw = rng.integers(0, 256, (value.shape[0], size), np.uint8)
        for at in (208,) if kind == "Q6_K" else (0, 2):     # where the scales are
            raw[:, at:at + 2] = rng.normal(size=(len(raw), 1)).astype("<f2").view(np.uint8)
    else:
        raw = quants.quantize(value, which).view(np.uint8)
    path = write_gguf(tmp_path / "m.gguf", folder, others={"blk.0.ffn_down.weight": (raw, kind)})
    got = load_gguf(path)
    np.testing.assert_array_equal(got.weights["layers.0.down"], quants.dequantize(raw, which))
    assert not got.blocks


def test_against_the_librarys_reader(stories):
    """The walk through the header finds what gguf.GGUFReader finds."""
    ours, theirs = GgufFile(stories), GGUFReader(stories)
    keys = {k for k in theirs.fields if not k.startswith("GGUF.")}
    assert set(ours.metadata) == keys
    for key in keys:
        value, want = ours.metadata[key], theirs.fields[key].contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == want, key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        info = ours.tensors[t.name]
        assert (info.kind, info.shape, info.offset, info.size) == \
            (t.tensor_type, tuple(t.shape[::-1]), t.data_offset, t.n_bytes)


def test_smollm2(smollm2):
    """Hyperparameters of the model card, and an answer that only a sound reading gives."""
    m, attends = smollm2, list(smollm2.graph.of(Attend))
    assert {(op.heads, op.kv_heads, op.head_dim) for op in attends} == {(9, 3, 64)}
    assert (m.name, m.hidden, len(attends), m.graph.edges["layers.0.h"].width, m.vocab) == \
        ("smollm2", 576, 30, 1536, 49152)
    assert m.tied and m.parameters == 134_515_008 and m.context == 8192
    assert (m.bos_id, m.stop_ids) == (None, (2, 0, 4))
    np.testing.assert_allclose(m.graph.tables["rope"].values[1], 100000 ** (-1 / 32))
    kinds = {name == "embedding": b.kind for name, b in m.blocks.items()}
    assert kinds == {True: "Q8_0", False: "Q4_1"}
    ids = m.tokenizer.encode(m.chat.render([
        {"role": "user", "content": "What is the capital of France?"}]), special=False)
    asked, runner = len(ids), FloatModel(m)
    while ids[-1] != m.eos_id or len(ids) == asked:
        ids.append(int(runner.forward(ids)[-1].argmax()))
        assert len(ids) < asked + 12
    assert m.tokenizer.decode(ids[asked:]) == "The capital of France is Paris."


@pytest.mark.parametrize("values", [
    {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    {"llama.rope.scaling.type": "linear"}, {"llama.attention.sliding_window": 0},
    {"llama.vocab_size": 64}, {"llama.vocab_size": None},
    {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
    {"llama.rope.scaling.factor": 0.0, "llama.rope.scaling.attn_factor": 1.0},
    {"llama.rope.scale_linear": 1.0, "llama.tensor_data_layout": "Meta AI original pth"},
    {"llama.rope.scaling.original_context_length": 64, "llama.rope.scaling.finetuned": True},
    {"general.name": "x", "general.type": "model", "general.size_label": "1B",
     "general.base_model.0.name": "y", "general.tags": ["a"], "general.quantization_version": 2,
     "quantize.imatrix.file": "i.dat", "quantize.imatrix.entries_count": 7, "split.count": 1,
     "split.no": 0, "split.tensors.count": 21, "tokenizer.ggml.padding_token_id": 4_000_000_000,
     "tokenizer.ggml.add_eos_token": False, "tokenizer.huggingface.json": "{}",
     "llama.attention.causal": True, "llama.expert_count": 0, "llama.expert_used_count": 0,
     "llama.use_parallel_residual": False, "llama.new": "",
     "mradermacher.quantize_version": 2, "unsloth.made": ["x"]},
])
def test_harmless_metadata(tmp_path, seed, values):
    """What files in circulation have, and scalings that scale nothing, change nothing."""
    folder = random_model(tmp_path, seed=seed)
    others = {"rope_freqs.weight": (np.ones(4, np.float32), "F32"),
              "blk.0.attn_rot_embd.weight": (np.ones(4, np.float32), "F32")}
    same(load_gguf(write_gguf(tmp_path / "m.gguf", folder, values=values, others=others)),
         load_model(folder))


@pytest.mark.parametrize("scaling, values", [
    ({"rope_type": "linear", "factor": 2.0}, {}),
    ({"rope_type": "linear", "factor": 4.0}, {"llama.rope.scaling.type": None}),
    ({"rope_type": "linear", "factor": 3.0},
     {"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None,
      "llama.rope.scale_linear": 3.0}),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 64}, {})])
def test_scaled_rope(tmp_path, seed, scaling, values):
    """A factor, under each of its names, or factors in a tensor."""
    folder = random_model(tmp_path, seed=seed, rope_scaling=scaling)
    path = write_gguf(tmp_path / "m.gguf", folder, values=values)
    assert ("rope_freqs.weight" in GgufFile(path).tensors) == (scaling["rope_type"] == "llama3")
    for outline in (False, True):
        got, want = load_gguf(path, outline=outline), load_model(folder)
        np.testing.assert_allclose(got.graph.tables["rope"].values,
                                   want.graph.tables["rope"].values, rtol=1e-6)
    assert got.parameters == want.parameters


def test_window(tmp_path, seed):
    folder = random_model(tmp_path, seed=seed)
    got = load_gguf(write_gguf(tmp_path / "m.gguf", folder,
                               values={"llama.attention.sliding_window": 5}))
    assert {op.window for op in got.graph.of(Attend)} == {5}


# ---- What is refused, by name

@pytest.mark.parametrize("values, message", [
    ({"general.architecture": "lfm2"}, "'lfm2' is not supported; it needs short convolutions"),
    ({"general.architecture": "new"}, "architecture 'new' is not supported; use a model of type d"),
    ({"general.architecture": "qwen2"}, "qwen2.embedding_length is missing"),
    ({"general.architecture": "x" * 300}, "general.architecture has 300 characters"),
    ({"split.count": 3}, "is one of 3 parts"),
    ({"llama.expert_count": 8}, "8 experts is not supported"),
    ({"general.type": "adapter"}, "no model but of type 'adapter'"),
    ({"llama.rope.scaling.type": "new"}, "RoPE scaling 'new' is not supported; use a model"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
      "llama.rope.scaling.yarn_ext_factor": 0.5}, "scaling.yarn_ext_factor = 0.5 is not supported"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.freq_base": 0.5}, "not above 1, which yarn n"),
    ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported; it needs two sets of"),
    ({"llama.rope.scaling.factor": "4"}, "scaling.factor must be a positive number or 0, not '4'"),
    ({"llama.rope.scaling.attn_factor": 1.5}, "rope.scaling.attn_factor = 1.5 is not supported"),
    ({"llama.attention.causal": False, "llama.new": 3}, "llama.new = 3 is not supported; .*"
     "gguf-new-metadata --remove-metadata llama.new OLD NEW"),
    ({"llama.new": [1, 2]}, "llama.new = a list of 2 is not supported"),
    ({"llama.block_count": None}, "llama.block_count is missing"),
    ({"llama.block_count": 0}, "llama.block_count must be a whole number from 1 to 1,024, not 0"),
    ({"llama.block_count": 4_000_000_000}, "block_count must be .* to 1,024, not 4000000000"),
    ({"llama.attention.key_length": 2**30, "llama.attention.value_length": 2**30,
      "llama.rope.dimension_count": 2**30}, "heads of 1073741824 dimensions are beyond 4096"),
    ({"llama.block_count": 3}, "no tensor blk.2.attn_norm.weight"),
    ({"llama.block_count": 1}, "has the tensor blk.1.attn_k.weight, which a plain model"),
    ({"llama.block_count": 2.0}, "block_count must be a whole number from 1 to 1,024, not 2.0"),
    ({"llama.embedding_length": "64"}, "llama.embedding_length must be .*not '64'"),
    ({"llama.embedding_length": 64}, r"token_embd.weight has shape \[128, 32\].*\[128, 64\]"),
    ({"llama.attention.head_count": 4_000_000_000}, "not a multiple|shape"),
    ({"llama.attention.head_count_kv": 3}, "head_count 4 is not a multiple of .*_kv 3"),
    ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv must be .*not a list of 2;"),
    ({"llama.attention.key_length": 7, "llama.attention.value_length": 7,
      "llama.rope.dimension_count": 7}, "heads of 7 dimensions"),
    ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4 and heads have 8"),
    ({"llama.rope.freq_base": float("nan")}, "freq_base must be a positive number, not nan"),
    ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon must be .*not -1.0"),
    ({"tokenizer.ggml.tokens": [str(i) for i in range(129)],
      "tokenizer.ggml.token_type": [1] * 129}, r"129 tokens and tensor token_embd.*\[128, 32\]"),
    ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "tokens must be a list of texts, not a list of 2;"),
    ({"tokenizer.chat_template": 3}, "chat_template must be a text, not 3"),
    ({"general.alignment": 48}, "alignment 48 is not a power of two"),
])
def test_metadata_errors(tmp_path, seed, values, message):
    folder = random_model(tmp_path, seed=seed)
    path = write_gguf(tmp_path / "m.gguf", folder, values=values)
    with pytest.raises(UserError, match=message):
        load_gguf(path)


@pytest.mark.parametrize("name, value, kind, message", [
    ("output_norm.weight", None, "F32", "has no tensor output_norm.weight"),
    ("output_norm.weight", np.zeros(31, np.float32), "F32", r"shape \[31\].*imply \[32\]"),
    ("output_norm.weight", np.full(32, np.nan, np.float32), "F32", "output_norm.weight holds val"),
    ("blk.1.ffn_up.weight", np.full((64, 34), 255, np.uint8), "Q8_0", "ffn_up.weight holds values"),
    ("blk.1.ffn_up.weight", np.zeros((64, 32), np.uint8), "I8", "ffn_up.weight has type I8"),
    ("blk.0.attn_q_norm.weight", np.ones(8, np.float32), "F32", "attn_q_norm.weight, which a"),
    ("rope_freqs.weight", np.float32([1, 1, 0, 2]), "F32", "rope_freqs.weight holds factors that"),
    ("rope_factors_long.weight", np.ones(4, np.float32), "F32", "'longrope' is not supported"),
])
def test_tensor_errors(tmp_path, seed, name, value, kind, message):
    folder = random_model(tmp_path, seed=seed)
    path = write_gguf(tmp_path / "m.gguf", folder, others={name: (value, kind)})
    with pytest.raises(UserError, match=message):
        load_gguf(path)


def test_commands(tmp_path, seed, capsys, monkeypatch):
    """A GGUF file is a model wherever one is asked for; a bad one ends with status 2."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    folder = random_model(tmp_path, seed=seed, heads=2, kv_heads=2)
    path = str(write_gguf(tmp_path / "m.gguf", folder))
    assert cli.main(["info", path]) == 0
    assert "head_dim       16" in capsys.readouterr().out
    texts = []
    for model in (path, str(folder)):
        assert cli.main(["generate", "a b c", "--model", model, "--target", "golden", "-n", "4",
                         "--ignore-eos"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert cli.main(["compile", path, "-o", str(tmp_path / "m.mlk")]) == 0
    capsys.readouterr()
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    for command in (["info", path], ["generate", "a", "--model", path],
                    ["compile", path, "-o", str(tmp_path / "x")]):
        assert cli.main(command) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith(f"error: {path} is not a sound GGUF file: tensor ")


def test_not_installed(monkeypatch):
    from meadowlark.models import registry
    monkeypatch.setitem(registry.INSTALLED, "smollm2", ("no-such-package", "x.gguf"))
    with pytest.raises(UserError, match="^the model smollm2 is not installed; run `make setup-sm"):
        load_model("smollm2")


# ---- Mutated files

def mutate(raw: bytes, header: int, rng: np.random.Generator) -> bytes:
    """A few changes, most of them in the header: bits, numbers at their limits, cuts, shifts."""
    data = bytearray(raw)
    numbers = [0, 1, 2**16 + 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, len(raw)]
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(0, min(header if rng.random() < 0.9 else len(data), len(data))))
        what = rng.integers(0, 6)
        if what == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif what == 1:
            data[at] = int(rng.integers(0, 256))
        elif what == 2:
            width = int(rng.choice([4, 8]))
            number = int(numbers[rng.integers(0, len(numbers))]) % 256**width
            data[at:at + width] = number.to_bytes(width, "little")
        elif what == 3:
            del data[at:at + int(rng.integers(1, 64))]
        elif what == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            del data[max(at, 1):]
    return bytes(data)


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
def test_mutated_files(tmp_path, seed, tokenizer):
    """No crash, no hang, no large allocation: a model, or one sentence of a UserError."""
    folder = random_model(tmp_path, seed=seed, layers=1, vocab=96)
    path = write_gguf(tmp_path / "m.gguf", folder, kind="Q4_1", values={
        "tokenizer.ggml.model": tokenizer, "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.scores": [-float(i) for i in range(96)],
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    raw, info = path.read_bytes(), GgufFile(path).tensors
    header = min(t.offset for t in info.values())
    rng = np.random.default_rng(seed)
    refused = 0
    tracemalloc.start()
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(raw, header, rng))
        refused += refuses(lambda: load_gguf(path))
    assert refused > MUTATIONS // 3
    assert tracemalloc.get_traced_memory()[1] < 4 << 20     # bytes; the file has 30 kB
    tracemalloc.stop()


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
def test_mutated_metadata(tmp_path, seed, monkeypatch, tokenizer):
    """As above, with values of every kind behind a header that is sound, of any family."""
    rng = np.random.default_rng(seed)
    family = str(rng.choice([name for name in CLASSES if name not in NOT_CONVERTED]))
    arch = ARCHITECTURES.get(family, family)
    folder = random_model(tmp_path, seed=seed, layers=1, vocab=96, family=family)
    file = GgufFile(write_gguf(tmp_path / "m.gguf", folder, values={
        "tokenizer.ggml.model": tokenizer, "tokenizer.ggml.scores": [-float(i) for i in range(96)],
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
    monkeypatch.setattr(gguf_model, "GgufFile", lambda path: file)
    known = (*gguf_model.NEUTRAL, *(k for k in gguf_model.HARMLESS if "*" not in k))
    more = (*(f"{arch}.{key}" for key in (
                *known, "attention.sliding_window", "rope.scaling.type", "rope.scaling.factor",
                "rope.scale_linear", "expert_count")),
            "tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id",
            "tokenizer.ggml.add_space_prefix", "split.count", "general.type")
    plain = file.metadata
    refused = 0
    for turn in range(MUTATIONS):
        values = {k: as_gguf(v) for k, v in changed(rng, plain, more).items()}
        strange = turn % 10 == 0
        if strange:
            values = plain | {f"{arch}.k{rng.integers(10**9)}": 1 + turn}
        file.metadata = {k: v for k, v in values.items() if v is not None}
        found = refuses(lambda: load_gguf(file.path))
        assert found or not strange
        refused += found
    assert MUTATIONS // 3 < refused < MUTATIONS


def as_gguf(value):
    """A value as GGUF can have it: no objects, lists of one kind, numbers of 64 bits."""
    if isinstance(value, dict):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-2**63, min(value, 2**64 - 1))
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        texts = [as_gguf(v) for v in value if isinstance(v, str)]
        return texts or np.array([float(v) for v in value
                                  if isinstance(v, (int, float)) and abs(v) < 2**64])
    return value
