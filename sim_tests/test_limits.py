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
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.prepare import Source
from meadowlark_boards import BOARDS, get_board
from meadowlark_hdl.config import Config
from random_model import random_model, random_texts


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
    for name, value in tensors(load_model(made)).items():
        if value.ndim == 2 and value.shape[1] % 32:
            others[name] = value, "F32"
        elif name == "blk.0.ffn_gate.weight" and kind in ("Q4_0", "Q4_1"):
            others[name] = value, "Q4_0" if kind == "Q4_1" else "Q4_1"      # have a common one
        elif value.ndim == 2 and rng.random() < 0.2:
            others[name] = value, rng.choice(("Q8_0", "Q4_0", "Q4_1"))
    return write_gguf(folder / "m.gguf", made, kind=kind, others=others)


@pytest.mark.parametrize("case", range(12))
def test_shapes_are_those_of_quantiser_and_compiler(seed, case, tmp_path):
    """From an outline: matrices, instructions and bytes that the integers then have."""
    rng = random.Random(f"{seed} {case}")
    path = drawn_model(rng, tmp_path)
    model, weights = load_model(path), rng.choice(("auto", "auto", "int8"))
    shapes = Shapes.of_model(load_model(path, outline=True), weights)
    qm = quantise(model, random_texts(model, seed=case, sequences=2, length=16), weights=weights)
    assert Shapes.of_integers(qm) == shapes
    config = Config(W=rng.choice((4, 8)), P=rng.choice((4, 5)), bus_bytes=4, context=4096,
                    score_depth=4096)
    board = replace(get_board("virtual"), config=config)
    context = rng.choice((None, rng.randint(1, shapes.shape.context)))
    image = compile_model(qm, board, context=context, packing="raw")
    on = shapes.on(board, context)
    assert image.context == on.shape.context
    assert image.needs["prog_depth"] == limits.instructions(on.shape, config)
    assert image.needs["memory_bytes"] == limits.memory_bytes(on, config)


def test_the_outline_is_the_model_without_values(seed, tmp_path):
    rng = random.Random(seed)
    for case in range(6):
        path = drawn_model(rng, tmp_path / str(case))
        model, outline = load_model(path), load_model(path, outline=True)
        for name in ("name", "hidden", "heads", "context", "stop_ids", "bos_id", "parameters",
                     "rms_eps", "tied"):
            assert getattr(model, name) == getattr(outline, name), name
        assert model.tokenizer.json == outline.tokenizer.json
        for one, other in zip(model.layers, outline.layers, strict=True):
            assert one.q.shape == other.q.shape and one.blocks.keys() == other.blocks.keys()
            for name, blocks in one.blocks.items():
                assert blocks.kind == other.blocks[name].kind
                assert blocks.codes.shape == other.blocks[name].codes.shape


@pytest.mark.parametrize("change, shape, words", [
    (dict(residual_values=8 * 2048), dict(hidden=2056), "hidden size 2,056, at most 2,048"),
    (dict(), dict(ffn=2056), "widest matrix row 2,056 weights, at most 2,048 (tile_beats / 2"),
    (dict(), dict(vocab=1 << 18), "vocabulary 262,144 tokens, at most 262,143"),
    (dict(prog_depth=128), dict(), "program 252 instructions, at most 128 (prog_depth)"),
    (dict(act_words=16), dict(), "activations 32 words, at most 16 (act_words)"),
    (dict(rope_pairs=64), dict(), "padded head dimension 32, at most 16"),
])
def test_each_limit_is_told(change, shape, words):
    board = get_board("ulx3s_85f")
    board = replace(board, config=board.config.replace(**change))
    shapes = Shapes.of_model(load_model("stories", outline=True))
    assert not limits.fits(shapes, get_board("ulx3s_85f"))
    shapes = replace(shapes, shape=replace(shapes.shape, **shape))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        limits.check(shapes, board)
    assert str(caught.value).startswith("the model does not fit the board ulx3s_85f: ")
    assert "; it fits " in str(caught.value)


def test_advice_is_true(seed):
    """Whatever option or board is named, the model goes with it."""
    rng, told = random.Random(seed), 0
    base = Shapes.of_model(load_model("stories", outline=True))
    for _ in range(40):
        layers = rng.randint(1, 12)
        shapes = replace(base, shape=replace(base.shape, layers=layers, context=4096),
                         layers=base.layers[:1] * layers)
        name = rng.choice(list(BOARDS))
        board = BOARDS[name]
        full = limits.memory_bytes(shapes.on(board, None), board.config)
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
    raw = limits.memory_bytes(shapes.on(board, None), config)
    model = load_model(path)
    small = replace(board, config=config)
    bits = limits.entropy_bits(model, shapes, small)
    image = compile_model(quantise(model, random_texts(model, seed=1, sequences=2)), small)
    real = image.needs["memory_bytes"]
    least = limits.memory_bytes(shapes.on(board, None), config, bits)
    assert least <= real < raw and np.isclose(least, real, rtol=0.05)

    def sized(size):
        return replace(small, memory=replace(board.memory, size_bytes=-(-size // 4) * 4,
                                             page_bytes=4))
    assert Source(str(path), sized(real)).image.needs["memory_bytes"] == real
    monkeypatch.setattr(Source, "quantised", property(lambda _: pytest.fail("calibrated")))
    with pytest.raises(UserError, match=f"memory {raw:,} bytes, at most .*; it fits"):
        Source(str(path), sized(least - 4)).check_fits()
