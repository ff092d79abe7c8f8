"""Forecasts: a program from shapes alone, and what repeats gone through a few times."""
import json
from dataclasses import replace

import numpy as np
import pytest
from meadowlark import UserError
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.disassemble import subjects
from meadowlark.compile.forecast import ERROR, LAYERS, TILES, forecast, period
from meadowlark.compile.parts import BOUNDS, layers, operators, whole
from meadowlark.compile.sketch import sketch
from meadowlark.models.blocks import BlockTensor
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from random_model import outlined, random_model, random_texts
from test_shapes_of_models import SHAPES, built

import meadowlark as ml

#: What calibration decides.
NUMBERS = {"mant", "shift"}


def layout(image):
    return [{name: value for name, value in i.items() if name not in NUMBERS}
            for i in image.instructions]


@pytest.mark.parametrize("name", SHAPES)
def test_a_sketch_is_laid_out_as_the_model(name, seed):
    """Each address, size and field of the program; so the cycles are the same."""
    model = built(np.random.default_rng(seed), **SHAPES[name])
    board = get_board("virtual")
    qm = quantise(model, random_texts(model, seed=seed, sequences=1),
                  head_pad=board.config.W)
    image, drawn = compile_model(qm, board), sketch(model, board)
    assert layout(drawn) == layout(image)
    assert len(drawn.memory) == len(image.memory) and drawn.needs == image.needs
    assert drawn.facts == image.facts and drawn.shape == image.shape
    assert drawn.model_regs | {"eps": 0} == image.model_regs | {"eps": 0}
    assert subjects(drawn) == subjects(image)
    tests = dict(prompt=20, generate=3)
    assert predict(drawn, board, **tests).cycles == predict(image, board, **tests).cycles


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_sketch_of_blocks(kind, seed):
    """Modes and headers are those of GGUF files."""
    board, shape = get_board("ecpix5_85f"), dict(layers=2, vocab=300, hidden=64, ffn=96)
    drawn = sketch(outlined(blocks=kind, **shape), board)
    plain = sketch(outlined(**shape), board)
    assert (len(drawn.memory) < len(plain.memory)) is (kind == "Q4_1")
    assert drawn.needs_blocks and not plain.needs_blocks


def deep(layers=12, **kw):
    return outlined(layers=layers, hidden=96, ffn=256, heads=6, kv_heads=2, head_dim=16,
                    vocab=4096, context=512, **kw)


@pytest.mark.parametrize("board", ["virtual", "ulx3s_85f", "ecpix5_85f", "kv260"])
def test_forecasts_are_near(board):
    """Layers, tiles and passes are left out, and all that is said of them is as good as exact."""
    board = get_board(board)
    image = sketch(deep(), board, bits=5.0)         # where it reads them packed
    assert bool(image.needs_packing) is (board.name == "ulx3s_85f")
    for test in (dict(prompt=1, generate=40), dict(prompt=300, generate=1),
                 dict(prompt=5, generate=30, start_pos=400), dict(prompt=1, generate=1)):
        near, exact = forecast(image, board, **test), predict(image, board, **test)
        assert abs(near.cycles / exact.cycles - 1) < ERROR
        assert abs(near.prefill_cycles / exact.prefill_cycles - 1) < ERROR
        assert near.cycles == near.prefill_cycles + near.decode_cycles
        assert [p for p, _ in near.passes] == [p for p, _ in exact.passes]
        assert near.useful_bytes == exact.useful_bytes and near.useful_macs == exact.useful_macs
        assert abs(near.bus_words / exact.bus_words - 1) < ERROR
        assert near.by_pc.keys() == exact.by_pc.keys()
        for kind, spent in exact.by_kind().items():
            for name, value in vars(spent).items():
                if name != "words":
                    assert abs(vars(near.by_kind()[kind])[name] - value) \
                        < max(ERROR * exact.cycles, 2 * len(exact.by_pc)), (kind, name)
        for one, other in zip(layers(near, subjects(image)), layers(exact, subjects(image))):
            assert one.name == other.name
            assert abs(one.cycles - other.cycles) < max(
                3 * ERROR * exact.cycles / 12, 2 * len(exact.by_pc))


def test_memory_that_loses_its_lead():
    """Of a head whose tiles memory reads a little slower than the array takes them: the first
    hundred come from the run-ahead FIFO, the others wait."""
    board = get_board("kv260")
    image = sketch(outlined(layers=1, hidden=640, ffn=2048, heads=4, kv_heads=1, head_dim=256,
                            vocab=8192, context=64), board)
    for prompt in (1, 2):
        near, exact = (of(image, board, prompt=prompt, generate=1) for of in (forecast, predict))
        assert abs(near.cycles / exact.cycles - 1) < ERROR


def test_less_is_gone_through(monkeypatch):
    """Of layers, tiles and passes; else it would be no forecast."""
    from meadowlark.compile.forecast import _Fast
    board, seen = get_board("virtual"), []
    image = sketch(deep(layers=16), board)
    execute, wait = _Fast._execute, _Fast._wait
    monkeypatch.setattr(_Fast, "_execute", lambda self, spent, i, *rest: (
        seen.append("instruction"), execute(self, spent, i, *rest)))
    monkeypatch.setattr(_Fast, "_wait", lambda self, *rest: (
        seen.append("tile"), wait(self, *rest)))
    exact = predict(image, board, prompt=1, generate=61)
    forecast(image, board, prompt=1, generate=61)
    executed = sum(spent.count for spent in exact.by_pc.values())
    assert seen.count("instruction") < executed / 15 * (sum(LAYERS) + 3) / 16
    head = 4096 // 32           # tiles of it
    assert head > 2 * sum(TILES)
    assert seen.count("tile") < executed * 2


def test_windows_that_alternate_repeat_together():
    """A period is as many layers as it takes."""
    model = deep(layers=24)
    graph = model.graph
    from meadowlark.models.graph import Attend, Graph
    count = iter(range(24))
    operators_ = tuple(replace(op, window=32 if next(count) % 3 else None)
                       if isinstance(op, Attend) else op for op in graph.operators)
    model = replace(model, graph=Graph(operators_, graph.shapes, graph.tables))
    board = get_board("virtual")
    image, plain = sketch(model, board), sketch(deep(layers=24), board)
    begin = image.model_regs["decode_pc"]
    found, of_one = (period(im.listed, begin, len(im.listed)) for im in (image, plain))
    assert found is not None and of_one is not None
    assert found.length == 3 * of_one.length and found.count >= 6 and of_one.count >= 22
    assert period(image.listed, begin, begin + 2 * found.length) is None
    near, exact = (by(image, board, prompt=200, generate=20) for by in (forecast, predict))
    assert abs(near.cycles / exact.cycles - 1) < ERROR


def test_packed_weights_by_their_bits():
    """Within 2 % where the bits are known: 12,120,639 cycles were counted for 32 tokens."""
    board = get_board("ulx3s_85f")
    found = ml.load("stories", bits=5.0).predict(board="ulx3s_85f", prompt=1, generate=32)
    assert abs(found.prediction.cycles / 12_120_639 - 1) < 0.02
    for name in ("ulx3s_85f", "ulx3s_45f"):
        source = Source("stories", get_board(name))
        near, exact = (by(image, get_board(name), prompt=1, generate=8).cycles for by, image in (
            (forecast, source.sketch), (predict, source.image)))
        assert abs(near / exact - 1) < 0.02
        assert 6 < source.bits_per_code < 8
    assert Source("stories", board, packing="raw").bits_per_code == 8


def test_smollm2_as_counted():
    """Its shape alone: 31,049,887 cycles were counted at position 2,000 (docs/measured.md)."""
    board = get_board("ecpix5_85f")
    model = outlined(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=49152,
                     context=2048, blocks="Q4_1")
    table = next(name for name, shape in model.graph.shapes.items() if shape == (49152, 576))
    model = replace(model, blocks={**model.blocks, table: BlockTensor.outline("Q8_0", 49152, 576)})
    image = sketch(model, board)
    found = forecast(image, board, prompt=1, generate=2, start_pos=2000)
    assert abs(found.cycles / 31_049_887 - 1) < 0.01
    assert whole(found).bound == "memory"
    of_layers = layers(found, subjects(image))
    assert [part.name for part in of_layers] == [
        "embedding", *(f"layer {k}" for k in range(30)), "head", "passes"]
    assert sum(part.cycles for part in of_layers) == found.cycles == sum(
        part.cycles for part in operators(found))
    # The head has 28 of 134 million weights, all in 8 bits.
    assert 0.2 < of_layers[-2].bytes / sum(part.bytes for part in of_layers) < 0.4


def test_what_bounds_it():
    """Decode waits for memory, a prompt for the multipliers; small rows for their results."""
    model = ml.load("stories", packing="raw")
    one, many = (model.predict(board="ulx3s_85f", **test).whole for test in (
        dict(prompt=1, generate=8), dict(prompt=128, generate=1)))
    assert (one.bound, many.bound) == ("memory", "multipliers")
    assert one.memory > one.overhead and many.work > many.memory
    board = get_board("kv260")      # 8 tokens leave in 8 cycles, and a row has 2 beats
    narrow = sketch(outlined(hidden=32, ffn=32, heads=1, kv_heads=1, head_dim=32, layers=2,
                             vocab=2048), board)
    parts = operators(predict(narrow, board, prompt=64, generate=1))
    assert {part.name: part.bound for part in parts}["LINEAR -> logit"] == "drain"
    assert all(part.bound in BOUNDS for part in parts)
    assert all(part.cycles == part.work + part.drain + part.memory + part.overhead
               for part in parts)


# ---- The command

def test_command(run, tmp_path):
    status, out, _ = run("predict", "--board", "ulx3s_85f", "--packing", "raw", "-p", "16,32",
                         "-n", "4", "-d", "0,100", "--json", "-")
    found = json.loads(out)
    assert status == 0 and list(found["tests"]) == [
        "pp16", "pp32", "tg4", "pp16 @ d100", "pp32 @ d100", "tg4 @ d100"]
    model = ml.load("stories", packing="raw")
    by = model.predict(board="ulx3s_85f", prompt=1, generate=4, position=100).prediction
    one = found["tests"]["tg4 @ d100"]
    assert one["cycles"] == by.cycles and one["bytes"] == by.useful_bytes
    assert one["tokens_per_s"] == pytest.approx(4 * found["clock_mhz"] * 1e6 / by.cycles)
    assert one["bound"] == "memory" and one["counted_cycles"] is None
    assert sum(part["cycles"] for part in one["layers"]) == by.cycles
    exact = json.loads(run("predict", "--board", "ulx3s_85f", "--packing", "raw", "-p", "0", "-n",
                           "4", "--exact", "--json", "-")[1])["tests"]["tg4"]
    assert exact["cycles"] == model.predict(board="ulx3s_85f", prompt=1, generate=4,
                                            exact=True).prediction.cycles


def test_an_image_has_a_board(run, tmp_path):
    """Without --board that is what it is predicted for, as it is what it runs on."""
    model, image = random_model(tmp_path / "model", seed=1), tmp_path / "of.image"
    assert run("compile", model, "--board", "ulx3s_85f", "-o", image)[0] == 0
    args = ("predict", "-m", image, "-p", "0", "-n", "2")
    page = tmp_path / "page.html"
    assert json.loads(run(*args, "--html", page, "--json", "-")[1])["board"] == "ulx3s_85f"
    assert "ULX3S" in page.read_text()
    status, _, err = run(*args, "--board", "virtual")
    assert status == 2 and "compiled for a core with" in err


def counted(tmp_path, **fields):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"model": "stories", "board": "virtual",
                                "tests": {"tg4": {"cycles": 600_000}}} | fields))
    return path


def test_beside_what_was_counted(run, tmp_path):
    args = ("predict", "-p", "0", "-n", "4,5", "--counted", counted(tmp_path))
    found = json.loads(run(*args, "--json", "-")[1])["tests"]
    assert found["tg4"]["counted_cycles"] == 600_000 and found["tg5"]["counted_cycles"] is None
    out = run(*args)[1]
    assert f"600,000 ({found['tg4']['cycles'] / 600_000 - 1:+.2%})" in out
    assert "LINEAR -> logit" in out and "layer 3" not in out
    assert "layer 3" in run(*args, "--layers")[1]


@pytest.mark.parametrize("fields, words", [
    (dict(tests=[]), "no results"), (dict(tests={"tg4": {}}), "no results"),
    (dict(model="llama"), "--model"), (dict(board="kv260"), "--board")])
def test_counted_for_something_else(run, tmp_path, fields, words):
    file = counted(tmp_path, **fields)
    status, out, err = run("predict", "-p", "0", "-n", "4", "--counted", file)
    assert status == 2 and not out and words in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("args, words", [
    (["-p", "0", "-n", "0"], "nothing to measure"), (["-p", "600"], "do not fit"),
    (["--target-ppl", "2", "--board", "ulx3s_85f"], "--bits"), (["--bits", "5"], "--bits"),
    (["--counted", "/no/such/file"], "/no/such/file"), (["-m", "nobody"], "no model"),
    (["--board", "nobody"], "nobody"), (["-d", "-1"], "--position")])
def test_refused(run, args, words):
    status, out, err = run("predict", *args)
    assert status == 2 and not out and words in err.splitlines()[-1] and "Traceback" not in err


def test_exact_takes_any_budget():
    with pytest.raises(UserError, match="--bits"):
        ml.load("stories", target_ppl=2).predict(board="ulx3s_85f", generate=2)
