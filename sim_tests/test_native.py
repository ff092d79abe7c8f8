"""Blocks of GGUF files on their way to the chip: kept as they are, from file to logits."""
from dataclasses import replace

import numpy as np
import pytest
from gguf_files import tensors, write_gguf
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.disassemble import listing
from meadowlark.errors import UserError
from meadowlark.models.blocks import KINDS
from meadowlark.models.float_model import FloatModel
from meadowlark.models.gguf_model import load_gguf
from meadowlark.models.registry import load_model
from meadowlark.quant import quantise as quantising
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import measure, quantise
from meadowlark.run.evaluate import perplexity
from meadowlark.run.prepare import Source
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.compute import tiling_engine_golden
from meadowlark_hdl.compute.tiling_engine_golden import FLOATS_KEPT
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Mode, Op, Sink, Src
from meadowlark_hdl.weights.decoder_golden import decode_tile
from random_model import random_model, random_texts

#: Kind by name of the tensor, the first that is in it; all else is Q4_1.
MIXED = {"token_embd": "Q8_0", "attn_q": "Q4_0", "attn_k": "Q8_0", "attn_output": "Q4_0",
         "0.ffn_gate": "Q4_0", "1.ffn_gate": "Q8_0", "0.ffn_down": "F16"}
SHAPES = {
    "mixed": (MIXED, dict(hidden=64, ffn=96)),
    # five rows of five blocks: with 32 weights a beat an odd number of beats a row
    "odd": ({}, dict(hidden=160, heads=5, kv_heads=1, ffn=96, vocab=77, layers=1)),
    "own head": ({"output.": "Q4_0"}, dict(hidden=64, heads=2, kv_heads=2, ffn=64, tied=False,
                                           vocab=301, attention_bias=True, mlp_bias=True)),
    "padded": ({}, dict(hidden=96, heads=4, kv_heads=2, head_dim=24, ffn=64)),
}
NARROW = Config(W=8, P=4, bus_bytes=2, act_words=256, residual_values=4096, score_depth=128,
                rope_pairs=512, tile_beats=64, tile_rows=16, fifo_words=256, burst_words=64,
                context=128)
WIDE = Config(W=32, P=5, bus_bytes=32, residual_values=4000, score_depth=128, tile_beats=64,
              context=128, sv_cycles=4)


def board(config):
    return replace(get_board("virtual"), config=config)


def stream(qm):
    """Matrix -> its numbers, in the order of the weight stream."""
    return {m.name: qm.numbers[m.name] for m in qm.plan.matrices}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(float model of a GGUF file, its ranges) by name, made when asked for."""
    made = {}

    def get(name):
        if name not in made:
            kinds, shape = SHAPES[name]
            folder = random_model(tmp_path_factory.mktemp("model"), seed=3, **shape)
            others = {n: (v, next((kind for part, kind in kinds.items() if part in n), "Q4_1"))
                      for n, v in tensors(load_model(folder), 10000.0).items() if v.ndim == 2}
            model = load_gguf(write_gguf(folder / "model.gguf", folder, others=others))
            made[name] = model, measure(model, random_texts(model, seed=4))
        return made[name]
    return get


def test_a_core_without_blocks(models, tmp_path):
    """The compiler refuses, an image is refused; what a command reads from a file is converted."""
    model, ranges = models("mixed")
    small = board(NARROW.replace(block_modes=False))
    qm = quantise(model, ranges)
    with pytest.raises(UserError, match="^the board virtual cannot read weights in blocks, as GGUF "
                       r"files have them; quantise the model to int8 \(--weights int8\)$"):
        compile_model(qm, small)
    image = compile_model(qm, board(NARROW))
    assert image.needs_blocks
    with pytest.raises(UserError, match="^the image holds weights in blocks, .* that this board "
                       "cannot read; compile the model for that board$"):
        image.check_config(small.config, memory_bytes=1 << 30)
    plain = compile_model(quantise(model, ranges, weights="int8"), small)
    assert not plain.needs_blocks
    plain.check_config(small.config, memory_bytes=1 << 30)
    folder = random_model(tmp_path / "m", seed=3, hidden=64, ffn=64)
    path = write_gguf(tmp_path / "m.gguf", folder, kind="Q4_1")
    assert [Source(str(path), board(config)).image.needs_blocks for config in
            (NARROW, small.config)] == [True, False]


def test_modes_and_weights(models):
    """Blocks stay blocks, and a row's integers are its real weights but for one factor."""
    model, ranges = models("mixed")
    qm = quantise(model, ranges)
    modes = {name: w.mode for name, w in stream(qm).items()}
    embedding, head = qm.numbers["embedding"], qm.numbers["head"]
    assert embedding.mode == head.mode == Mode.Q8_0
    assert head.codes is embedding.codes and head.scale is embedding.scale
    for i in (0, 1):
        assert [modes[f"layers.{i}.{name}"] for name in "qkvo"] == [
            Mode.Q4_0, Mode.Q8_0, Mode.Q4_1, Mode.Q4_0]
    # Q4_0 beside Q4_1 becomes Q4_1; Q8_0 beside Q4_1 and a tensor in F16 become int8
    assert [modes[f"layers.{i}.gate_up"] for i in (0, 1)] == [Mode.Q4_1, Mode.INT8]
    assert [modes[f"layers.{i}.down"] for i in (0, 1)] == [Mode.INT8, Mode.Q4_1]
    pairs = np.arange(16).reshape(2, 8).T.ravel()
    for i in (0, 1):
        w = {name: model.weights[f"layers.{i}.{name}"]
             for name in ("q", "k", "v", "o", "gate", "up", "down")}
        for name, real in (
                ("q", w["q"].reshape(4, 16, 64)[:, pairs]),
                ("k", w["k"].reshape(2, 16, 64)[:, pairs]), ("v", w["v"]), ("o", w["o"]),
                ("gate_up", np.stack([w["gate"], w["up"]], 1)), ("down", w["down"])):
            linear = qm.numbers[f"layers.{i}.{name}"]
            got = linear.weights().astype(float)
            real = real.reshape(got.shape).astype(float)
            if linear.mode == Mode.INT8:
                continue
            assert np.abs(got).max(axis=1)[real.any(axis=1)].min() > 1 << 15
            step = (got * real).sum(1) / np.maximum((got * got).sum(1), 1)
            # half a step for the sum, and 2**-7 of one a unit of the code for the scale
            most = 0.51 + np.abs(linear.codes.astype(int)).max() / 128
            assert (np.abs(got * step[:, None] - real) <= most * step[:, None]).all(), (name, i)
    some = np.array([5, 0, 77])
    np.testing.assert_array_equal(embedding.weights(some), embedding.weights()[some])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_near_the_float_models(models, name, monkeypatch):
    model, ranges = models(name)
    qm = quantise(model, ranges)
    ids = random_texts(model, seed=5, sequences=1, length=40)[0]
    golden = GoldenModel(qm)
    logits = golden.forward(ids, want="all")
    assert np.corrcoef(logits.ravel(), FloatModel(model).forward(ids).ravel())[0, 1] > 0.999
    lean = GoldenModel(replace(qm, parameters=FLOATS_KEPT + 1))
    monkeypatch.setattr(tiling_engine_golden, "AT_ONCE", 1000)
    np.testing.assert_array_equal(lean.forward(ids, want="all"), logits)


def test_perplexity_is_that_of_the_dequantised_weights(models):
    model, ranges = models("mixed")
    lines = ["the quick brown fox jumps over the lazy dog. " * 2] * 2
    native, int8 = (perplexity(model, quantise(model, ranges, weights=weights), lines)
                    for weights in ("auto", "int8"))
    assert native.ppl_float == int8.ppl_float and abs(native.delta_pct) < 1


@pytest.mark.parametrize("name, config", [
    ("mixed", NARROW), ("odd", NARROW), ("odd", WIDE), ("own head", WIDE), ("padded", NARROW)])
def test_program_gives_golden_logits(models, name, config, seed):
    qm = quantise(*models(name))
    image = compile_model(qm, board(config))
    chip, golden = golden_core(image, config, seed), GoldenModel(qm)
    tokens = np.random.default_rng(seed).integers(0, qm.vocab, 11).tolist()
    want = golden.forward(tokens)
    np.testing.assert_array_equal(chip.forward(tokens), want)
    token = int(want.argmax())
    np.testing.assert_array_equal(chip.forward([token], 11), golden.forward([token], 11))


@pytest.mark.parametrize("name, config", [("mixed", NARROW), ("odd", WIDE), ("own head", NARROW)])
def test_tiles_decode_to_the_weights(models, name, config):
    """All tiles of the stream and of the embedding, decoded, are weights(); sizes fit fields."""
    qm, W = quantise(*models(name)), config.W
    image = compile_model(qm, board(config))
    at, found, listed = 0, [], "\n".join(listing(image))
    for i in image.instructions[image.model_regs["decode_pc"]:]:
        tiles = i["tiles"] if i["src"] == Src.STREAM else 0
        for k in range(tiles):
            end = k == tiles - 1
            rows, chunks = (i["last_rows"], i["last_chunks"]) if end else (i["rows"], i["chunks"])
            assert rows * i["row_beats"] <= config.tile_beats and chunks < 1 << 12
            raw = image.memory[at * W:(at + chunks) * W]
            at += chunks
            if i["op"] == Op.LINEAR:
                tile = decode_tile(raw, W=W, rows=rows, row_beats=i["row_beats"], mode=i["mode"],
                                   header=i["header"])
                found.append((i, tile[0], tile[1], tile[3].reshape(rows, -1)))
    for w in stream(qm).values():
        left = len(w.codes)
        rows = []
        while left > 0:
            i, mant, shift, values = found.pop(0)
            assert i["mode"] == w.mode and f"{w.mode.name.lower()}+" in listed
            rows.append((mant[:left], shift[:left], values[:left]))
            assert not values[left:].any() and (len(values) <= left or i["sink"] != Sink.LOGIT)
            left -= len(values)
        mant, shift, values = (np.concatenate(x) for x in zip(*rows, strict=True))
        np.testing.assert_array_equal(values, w.weights())
        np.testing.assert_array_equal(mant, w.mant)
        np.testing.assert_array_equal(shift, w.shift)
    assert not found
    i, embedding = next(i for i in image.instructions if i["op"] == Op.EMBED), \
        qm.numbers["embedding"]
    for row in range(qm.vocab):
        start = (i["addr"] + row * i["chunks"]) * W
        mant, shift, _, values = decode_tile(
            image.memory[start:start + i["chunks"] * W], W=W, rows=1, row_beats=i["row_beats"],
            mode=i["mode"], header=i["header"])
        np.testing.assert_array_equal(values.ravel(), embedding.weights([row])[0])
        assert (mant[0], shift[0]) == (embedding.mant[row], embedding.shift[row])


def test_useful_bytes_are_those_of_the_file(models):
    qm = quantise(*models("mixed"))
    image = compile_model(qm, board(NARROW))
    want = 5 * 2 * 64                   # gammas
    for w in stream(qm).values():
        want += len(w.codes) * (4 if w.mode == Mode.INT8 else 2)        # row scales
        want += w.codes.size if w.mode == Mode.INT8 else w.codes.size // 32 * KINDS[w.mode.name]
    assert image.facts["layer_bytes"] + image.facts["tail_bytes"] == want
    assert image.facts["embedding_bytes"] == 2 + 2 * 34


def test_what_stays_int8(models, monkeypatch):
    model, ranges = models("padded")
    for name, w in stream(quantise(model, ranges)).items():
        assert w.mode == (Mode.INT8 if name.endswith(".o") else Mode.Q4_1)
    model, ranges = models("mixed")
    assert all(w.mode == Mode.INT8
               for w in stream(quantise(model, ranges, weights="int8")).values())
    with pytest.raises(ValueError, match="weights must be one of auto, int8, not 'q4'"):
        quantise(model, ranges, weights="q4")
    monkeypatch.setattr(quantising, "MAX_BLOCK_COLUMNS", 64)
    # of 96 columns
    assert quantise(model, ranges).numbers["layers.1.down"].mode == Mode.INT8


def changed(model, name, **arrays):
    """The model with other arrays in the blocks of a matrix."""
    blocks = {**model.blocks, name: replace(model.blocks[name], **arrays)}
    return replace(model, blocks=blocks)


def test_a_minimum_that_does_not_fit_keeps_kinds_apart(models):
    model, ranges = models("mixed")
    large = np.full_like(model.blocks["layers.0.gate"].scale, 8192)
    qm = quantise(changed(model, "layers.0.gate", scale=large), ranges)
    assert qm.numbers["layers.0.gate_up"].mode == Mode.INT8


@pytest.mark.parametrize("name", ["layers.0.v", "layers.0.o"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite(models, name, value):
    model, ranges = models("mixed")
    scale = model.blocks[name].scale.copy()
    scale[3, 1] = value
    with pytest.raises(UserError, match=f"{name}: a scale or minimum .* not finite"):
        quantise(changed(model, name, scale=scale), ranges)


def test_cycles_of_the_decoder(models):
    """Where memory is fast, a tile of 4-bit codes takes a cycle a beat and one a chunk of scales,
    and the pipeline runs empty after each."""
    image = compile_model(quantise(*models("odd")), board(WIDE))
    least = 0
    for i in image.instructions[image.model_regs["decode_pc"]:]:
        if i["src"] == Src.STREAM and i["mode"] == Mode.Q4_1:
            beats = i["row_beats"] * ((i["tiles"] - 1) * i["rows"] + i["last_rows"])
            least += beats + beats * WIDE.W // 32 * 4 // WIDE.W + 20 * i["tiles"]
    found = predict(image, board(WIDE), prompt=1, generate=3).decode_cycles / 2
    assert least < found < 2 * least
