"""Limits from shapes: what they say is what quantiser and compiler come to."""
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from gguf_files import tensors, write_gguf
from meadowlark.compile import limits
from meadowlark.compile.compiler import compile_model
from meadowlark.errors import UserError
from meadowlark.models.graph import Gate
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import suited
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.prepare import Source
from meadowlark_boards import BOARDS, get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Mode
from random_model import outlined, random_model, random_texts


def drawn_model(rng, folder):
    """A folder, or a file in one of the kinds of GGUF."""
    head_dim = rng.choice((8, 16, 16, 32))
    kv_heads = rng.choice((1, 2))
    made = random_model(
        folder, seed=rng.randrange(1000), hidden=32 * rng.randint(1, 3), layers=rng.randint(1, 2),
        heads=kv_heads * rng.choice((1, 2, 3)), kv_heads=kv_heads,
        head_dim=head_dim if rng.random() < 0.8 else 12, ffn=32 * rng.randint(1, 3),
        vocab=rng.randint(64, 200), context=rng.choice((32, 100, 5000)), tied=rng.random() < 0.5,
        attention_bias=rng.random() < 0.5, mlp_bias=rng.random() < 0.5)
    kind = rng.choice(("", "F32", "Q8_0", "Q4_0", "Q4_1"))
    if not kind:
        return made
    others = {}
    for name, value in tensors(load_model(made), 10000.0).items():
        if value.ndim == 2 and value.shape[1] % 32:
            others[name] = value, "F32"
        elif name == "blk.0.ffn_gate.weight" and kind in ("Q4_0", "Q4_1"):
            others[name] = value, "Q4_0" if kind == "Q4_1" else "Q4_1"      # have a common one
        elif value.ndim == 2 and rng.random() < 0.2:
            others[name] = value, rng.choice(("Q8_0", "Q4_0", "Q4_1"))
    return write_gguf(folder / "m.gguf", made, kind=kind, others=others)


@pytest.mark.parametrize("case", range(12))
def test_shapes_are_those_of_quantiser_and_compiler(seed, case, tmp_path):
    """From an outline: matrices, instructions and bytes that the integers then have, as they are
    rewritten for a core: with padded heads and slices of FFNs."""
    rng = random.Random(f"{seed} {case}")
    path = drawn_model(rng, tmp_path)
    model, weights = load_model(path), rng.choice(("auto", "auto", "int8"))
    shapes = Shapes.of_model(load_model(path, outline=True), weights)
    config = Config(W=rng.choice((4, 8, 16)), P=rng.choice((3, 4, 5)), bus_bytes=4, context=4096,
                    score_depth=4096)
    widest = max(m.columns for m in shapes.suited(config.W, 32).plan.matrices)
    if rng.random() < 0.5:
        config = config.replace(tile_beats=max(8, 1 << (2 * widest // config.W - 1).bit_length()))
    board = replace(get_board("virtual"), config=config)
    most = limits.most_ffn(model.hidden, board)
    qm = quantise(suited(model, most), random_texts(model, seed=case, sequences=2, length=16),
                  weights=weights, head_pad=config.W)
    assert Shapes.of_integers(qm) == limits.suited(shapes, board)
    for matrix in qm.plan.every_matrix:
        assert qm.numbers[matrix.name].codes.shape == (matrix.rows, matrix.columns)
        assert (qm.numbers[matrix.name].bias is None) == (not matrix.biases)
        assert qm.numbers[matrix.name].header == Shapes.of_integers(qm).header(matrix)
    context = rng.choice((None, rng.randint(1, shapes.context)))
    image = compile_model(qm, board, context=context, packing="raw")
    needs = limits.need(shapes, board, context)
    assert image.context == needs.context
    assert image.needs["prog_depth"] == needs.instructions
    assert image.needs["memory_bytes"] == needs.memory_bytes


@pytest.mark.parametrize("hidden, heads, kv_heads, head_dim, ffn", [
    (2048, 32, 4, 64, 5632), (896, 14, 2, 64, 4864), (2048, 32, 8, 64, 8192)],
    ids=["TinyLlama-1.1B", "Qwen2.5-0.5B", "Llama-3.2-1B"])
def test_wide_ffns_are_no_reason(hidden, heads, kv_heads, head_dim, ffn):
    """They are cut into as few slices as a board needs, and their blocks stay blocks."""
    shapes = Shapes.of_model(outlined(
        hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn, vocab=2048,
        layers=2, blocks="Q4_0"))
    for board in BOARDS.values():
        needs = limits.need(shapes, board, 64)
        told = {reason.limit.name for reason in limits.fits(shapes, board, context=64)}
        if "hidden size" in told:
            continue
        assert not told & {"widest matrix row", "activations"}
        most = limits.most_ffn(hidden, board)
        slices = [needs.plan.graph.edges[op.out].width for op in needs.plan.graph.of(Gate)]
        assert sum(slices) == 2 * ffn and max(slices) <= most
        assert len(slices) == 2 * -(-ffn // (most // 32 * 32))
        blocks = Mode.Q4_0 if board.config.block_modes else Mode.INT8
        assert {needs.shapes.mode(m) for m in needs.plan.matrices} == {blocks}


def test_the_smallest_model_that_people_have_fits_every_board():
    """stories260K; test_chip.py runs its shape."""
    shapes = Shapes.of_model(outlined(hidden=64, layers=5, heads=8, kv_heads=4, head_dim=8, ffn=172,
                                      vocab=512))
    for board in BOARDS.values():
        assert not limits.fits(shapes, board, context=512)


def test_the_outline_is_the_model_without_values(seed, tmp_path):
    rng = random.Random(seed)
    for case in range(6):
        path = drawn_model(rng, tmp_path / str(case))
        model, outline = load_model(path), load_model(path, outline=True)
        for name in ("name", "hidden", "vocab", "context", "stop_ids", "bos_id", "parameters",
                     "family", "tied"):
            assert getattr(model, name) == getattr(outline, name), name
        assert model.tokenizer.json == outline.tokenizer.json
        assert model.graph == outline.graph and model.blocks.keys() == outline.blocks.keys()
        for name, shape in model.graph.shapes.items():
            assert model.weights[name].shape == outline.weights[name].shape == shape
        for name, blocks in model.blocks.items():
            assert blocks.kind == outline.blocks[name].kind
            assert blocks.codes.shape == outline.blocks[name].codes.shape


@pytest.mark.parametrize("change, shape, words", [
    (dict(residual_values=8 * 2048), dict(hidden=2056), "hidden size 2,056, at most 2,048"),
    (dict(), dict(heads=66), "widest matrix row 2,112 weights, at most 2,048 (tile_beats / 2"),
    (dict(), dict(vocab=1 << 19), "vocabulary 524,288 tokens, at most 524,287"),
    (dict(prog_depth=128), dict(), "program 216 instructions, at most 128 (prog_depth)"),
    (dict(act_words=16), dict(), "activations 18 words, at most 16 (act_words)"),
    (dict(scratch_bytes=1024), dict(heads=8, kv_heads=8),
     "new keys 256 bytes, at most 128 (scratch_bytes / P)"),
    (dict(rope_pairs=64), dict(), "padded head dimension 32, at most 16"),
])
def test_each_limit_is_told(change, shape, words):
    board = get_board("ulx3s_85f")
    board = replace(board, config=board.config.replace(**change))
    assert not limits.fits(Shapes.of_model(outlined()), get_board("ulx3s_85f"))
    shapes = Shapes.of_model(outlined(**shape))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        limits.check(shapes, board)
    assert str(caught.value).startswith("the model does not fit the board ulx3s_85f: ")
    assert "; it fits " in str(caught.value)


def test_advice_is_true(seed):
    """Whatever option or board is named, the model goes with it."""
    rng, told = random.Random(seed), 0
    for _ in range(40):
        shapes = Shapes.of_model(outlined(layers=rng.randint(1, 12), context=4096))
        name = rng.choice(list(BOARDS))
        board = BOARDS[name]
        full = limits.need(shapes, board).memory_bytes
        size = rng.randint(full // 4, full)
        small = replace(board, memory=replace(board.memory, size_bytes=size // 4096 * 4096 or 4096,
                                              page_bytes=1024))
        asked = rng.choice((None, 1024, 4096))
        text = limits.advice(shapes, small, context=asked)
        for bits, context in re.findall(rf"{name} with(?: --bits ([0-9.]+))?"
                                        r"(?: --ctx (\d+))?", text):
            told += 1
            assert not limits.fits(shapes, small, bits=float(bits or 8),
                                   context=int(context) if context else asked)
            if not bits:
                assert limits.fits(shapes, small, context=int(context) + 1)
        for other in re.findall(r"\w+", text):
            if other in BOARDS and other != name and f"{other} with" not in text:
                assert not limits.fits(shapes, BOARDS[other], context=asked)
    assert told


def test_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    """A model that is too wide: from config.json and the headers of its files."""
    path = random_model(tmp_path / "m", seed=1, hidden=2112, heads=33,
                        kv_heads=1, ffn=64, layers=1)
    source = Source(str(path), get_board("virtual"))
    monkeypatch.setattr(Source, "model", property(lambda _: pytest.fail("weights were read")))
    with pytest.raises(UserError, match=r"hidden size 2,112, at most 2,048 .*fits ecpix5_85f$"):
        source.check_fits()


def test_packed_weights_are_judged_by_their_entropy(tmp_path, monkeypatch):
    """Beyond the memory as they are: refused where no packing can help, before calibration."""
    path = random_model(tmp_path / "m", seed=1, hidden=64, ffn=256, layers=2)
    board = get_board("ulx3s_85f")
    config = board.config.replace(W=4, unpack_cycles=1)
    shapes = Shapes.of_model(load_model(path, outline=True))
    small = replace(board, config=config)
    needs, model = limits.need(shapes, small), load_model(path)
    raw, bits = needs.memory_bytes, limits.entropy_bits(model, needs)
    image = compile_model(quantise(model, random_texts(model, seed=1, sequences=2)), small)
    real = image.needs["memory_bytes"]
    least = limits.need(shapes, small, bits=bits).memory_bytes
    assert least <= real < raw and np.isclose(least, real, rtol=0.05)

    def sized(size):
        return replace(small, memory=replace(board.memory, size_bytes=-(-size // 4) * 4,
                                             page_bytes=4))
    assert Source(str(path), sized(real)).image.needs["memory_bytes"] == real
    monkeypatch.setattr(Source, "quantised", property(lambda _: pytest.fail("calibrated")))
    with pytest.raises(UserError, match=f"memory {raw:,} bytes, at most .*; it fits"):
        Source(str(path), sized(least - 4)).check_fits()
