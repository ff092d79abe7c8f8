"""Encoders of images: pictures, float, integers, program and gateware, and the command."""
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import meadowlark
import numpy as np
import pytest
from hostile import WRONG
from meadowlark.compile import limits
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.image import Image as Compiled
from meadowlark.compile.image import Vision
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Attend, Linear
from meadowlark.models.pictures import Pictures
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import suited
from meadowlark.quant import integers
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.own_pictures import own_pictures
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run import targets
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget, GoldenTarget, SimTarget
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from PIL import Image
from random_model import random_model, random_vit

DIGITS = Path(__file__).parents[1] / "models" / "digits-vit"
ENCODERS = Path(__file__).parent / "encoders"


@pytest.fixture(scope="module")
def digits():
    return load_model(DIGITS)


@pytest.fixture(scope="module")
def known():
    """images: uint8[360, 8, 8]; labels; logits: float32[360, 10], by transformers."""
    with np.load(DIGITS / "test_set.npz") as file:
        return dict(file)


def pictures_of(model) -> Pictures:
    assert model.pictures is not None
    return model.pictures


def vision_of(image) -> Vision:
    assert image.vision is not None
    return image.vision


def codes_of(vision, file):
    return vision.pictures.codes(vision.pictures.open(file), vision.fraction)


def shown(model, images):
    """What tokens are given of images as they are, uint8[n, side, side]."""
    pictures = pictures_of(model)
    values = images.astype(np.float32) * np.float32(pictures.rescale)
    return [pictures.rows(((v - 0.5) / 0.5)[None]) for v in values.astype(np.float32)]


# ---- Pictures

def an_image(path, size, mode="RGB", seed=1, top=256):
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    pixels = np.random.default_rng(seed).integers(0, top, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_values_of_a_picture(tmp_path, seed):
    """Rescaled, normed by channel, in the order of channels; a patch after the other."""
    pixels = an_image(tmp_path / "x.png", (8, 8), seed=seed)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.5, 1.5)
    plain = Pictures(side=8, channels=3, patch=4, others=2, labels=("a",), mean=mean, std=std)
    values = (pixels / 255 - mean) / std
    for pictures, want in ((plain, values), (replace(plain, flipped=True),
                                             (pixels[..., ::-1] / 255 - mean) / std)):
        rows = pictures.open(tmp_path / "x.png")
        assert rows.shape == (6, 48) and not rows[4:].any() and pictures.tokens == 6
        for token, (y, x) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
            patch = want[y:y + 4, x:x + 4].transpose(2, 0, 1).ravel()
            np.testing.assert_allclose(rows[token], patch, atol=1e-6)
    assert plain.largest == pytest.approx(4.5) and np.abs(values).max() <= 4.5
    codes = plain.codes(np.array([[1.0, -1.0, 0.3]]), 3)
    assert codes.dtype == np.int16 and codes.tolist() == [[8, -8, 2]]


def test_resized_and_cut(tmp_path, seed):
    """As Pillow does it; the middle, and the longer side rounded down."""
    an_image(tmp_path / "x.jpg", (21, 10), seed=seed)
    with Image.open(tmp_path / "x.jpg") as image:
        whole = image.convert("L")
    grey = Pictures(side=8, channels=1, patch=8, others=0, labels=("a",), mean=(0.0,), std=(1.0,))
    for pictures, want in (
            (replace(grey, resize=(8, 8), resample=3), whole.resize((8, 8), 3)),
            (replace(grey, resize=(12, 9), crop=8), whole.resize((9, 12), 2).crop((0, 2, 8, 10))),
            (replace(grey, resize=(9,), crop=8), whole.resize((18, 9), 2).crop((5, 0, 13, 8))),
            (replace(grey, crop=8), whole.crop((6, 1, 14, 9)))):
        np.testing.assert_allclose(pictures.open(tmp_path / "x.jpg")[0] * 255,
                                   np.asarray(want).ravel(), atol=1e-3)
    with pytest.raises(UserError, match="x.jpg has 21 x 10 pixels, and the model takes 8 x 8"):
        grey.open(tmp_path / "x.jpg")


def test_files_that_are_no_images(tmp_path):
    grey = Pictures(side=8, channels=1, patch=8, others=0, labels=("a",), mean=(0.0,), std=(1.0,))
    (tmp_path / "a.png").write_bytes(b"nothing")
    an_image(tmp_path / "b.png", (8, 8), "L")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[:len(whole) // 2])
    for name in ("a.png", "c.png", "d.png", "."):
        with pytest.raises(UserError, match="cannot be read .*; give a PNG or JPEG file"):
            grey.open(tmp_path / name)
    with pytest.raises(UserError, match=r"has pixels of 2\d\d, and the model was made for 0 to 16"):
        replace(grey, rescale=1 / 16).open(tmp_path / "b.png")


def test_preprocessor_config(tmp_path, seed):
    """What it says, in each form that it has; and what is refused."""
    folder = random_vit(tmp_path / "m", seed=seed)
    file = folder / "preprocessor_config.json"

    def read(**values):
        file.write_text(json.dumps(values))
        found = pictures_of(load_model(folder, outline=True))
        assert Pictures.from_dict(json.loads(json.dumps(found.as_dict()))) == found
        return found
    plain = read()
    assert (plain.resize, plain.resample, plain.rescale, plain.mean) == (
        (8, 8), 2, 1 / 255, (0.5,) * 3)
    assert read(size=12, do_center_crop=True, crop_size=8, resample=3) == replace(
        plain, resize=(12, 12), crop=8, resample=3)
    assert read(size={"shortest_edge": 9}, crop_size={"height": 8, "width": 8},
                do_center_crop=True) == replace(plain, resize=(9,), crop=8)
    assert read(size={"height": 8, "width": 9}).resize == (8, 9)
    assert read(do_rescale=False, do_normalize=False, do_resize=False, size=7,
                crop_size=5) == replace(plain, rescale=1.0, top=255.0, mean=(0.0,) * 3,
                                        std=(1.0,) * 3, resize=())
    assert read(do_flip_channel_order=True).flipped
    for values, message in (
            (dict(image_mean=[0.5]), "image_mean must be a list of 3 numbers"),
            (dict(image_std=[1, 0, 1]), "image_std must be a list of 3 numbers"),
            (dict(do_thumbnail=True), "do_thumbnail = True is not supported"),
            (dict(do_center_crop=True, crop_size={"height": 8, "width": 9}), "is not square"),
            (dict(size={"longest_edge": 8}), "size.height is missing"),
            (dict(resample=6), "resample must be a whole number from 0 to 5")):
        with pytest.raises(UserError, match=message):
            read(**values)
    for key in ("size", "image_mean", "image_std", "rescale_factor", "resample", "do_resize",
                "crop_size", "do_center_crop"):
        for wrong in WRONG:
            try:
                read(**({"do_center_crop": True} | {key: wrong}))
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) < 1000
    file.unlink()
    with pytest.raises(UserError, match="preprocessor_config.json is missing"):
        load_model(folder)


def test_config(tmp_path, seed):
    folder = random_vit(tmp_path / "m", seed=seed, qkv_bias=False)
    model = load_model(folder)
    assert model.vocab == 10 and model.context == 17 and pictures_of(model).labels[3] == "class 3"
    assert {op.weight.rpartition(".")[2] for op in model.graph.of(Linear) if op.bias is None} == \
        set("qkv")
    assert all(op.ahead for op in model.graph.of(Attend)) and not model.warnings
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for change, message in ((dict(hidden_act="mish"), "hidden_act 'mish' is not supported"),
                            (dict(patch_size=3), "in patches of 3 are not supported"),
                            (dict(model_type="deit", architectures=["D"]), "distillation is a vit"),
                            (dict(model_type="beit", architectures=["B"]), "means over tokens"),
                            (dict(use_mask_token=True), "use_mask_token = True"),
                            (dict(qkv_bias=True), "no tensor .*query.bias")):
        path.write_text(json.dumps(values | change))
        with pytest.raises(UserError, match=message):
            load_model(folder)


# ---- Against transformers, and integers

def test_mean_over_patches():
    """I-JEPA of random weights: float within 1e-4 of the spread, integers near it."""
    model = load_model(ENCODERS / "ijepa")
    with np.load(ENCODERS / "ijepa" / "reference.npz") as file:
        images, want = file["images"], file["logits"]
    pictures = pictures_of(model)
    rows = [pictures.rows(((v.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1))
            for v in images]
    assert model.context == len(rows[0]) == 16 and not model.warnings
    got = np.array([FloatModel(model).forward(row)[-1] for row in rows])
    assert np.abs(got - want).max() < 1e-4 * want.std()
    qm = quantise(suited(model, 1 << 12), head_pad=16)
    golden, fraction = GoldenModel(qm), qm.numbers["patches"].fraction
    near = np.array([golden.classify(pictures.codes(row, fraction)) for row in rows]) / 4096
    assert np.abs(near - want).max() < 0.2 * want.std()


def test_float(digits, known):
    """All logits within 1e-4 of their spread."""
    runner = FloatModel(digits)
    got = np.array([runner.forward(rows)[-1] for rows in shown(digits, known["images"])])
    assert np.abs(got - known["logits"]).max() < 1e-4 * known["logits"].std()
    with pytest.raises(ValueError, match="an image has 17 tokens, not 5"):
        runner.forward(np.zeros((5, 4)))


def test_integers(digits, known):
    """All 360 images: as many right as float32, to half a point."""
    model = suited(digits, 1 << 12)
    qm = quantise(model, head_pad=16)
    again = integers.load(integers.dump(qm), model, "auto")
    assert again.pictures == digits.pictures
    golden, fraction = GoldenModel(again), qm.numbers["patches"].fraction
    got = np.array([golden.classify(digits.pictures.codes(rows, fraction))
                    for rows in shown(digits, known["images"])])
    right = [(x.argmax(axis=1) == known["labels"]).mean() for x in (got, known["logits"])]
    assert right[1] > 0.98 and abs(right[0] - right[1]) <= 0.005
    assert np.corrcoef(got.ravel(), known["logits"].ravel())[0, 1] > 0.998
    with pytest.raises(ValueError, match="codes must be of 17 tokens"):
        golden.classify(np.zeros((16, 4), np.int16))


def test_own_pictures(digits):
    """The same ones each time, from dark to bright."""
    rows = own_pictures(digits.pictures, 20)
    for a, b in zip(rows, own_pictures(digits.pictures, 20)):
        np.testing.assert_array_equal(a, b)
    patches = np.array(rows)[:, :16]
    assert patches.min() == -1 and patches.max() == 1 and not np.array(rows)[:, 16:].any()
    assert np.ptp(patches.mean(axis=(1, 2))) > 0.5


# ---- The program

@pytest.mark.parametrize("case", range(6))
def test_program(tmp_path, seed, case):
    """GoldenCore is GoldenModel, for cores of all widths; a mask would not be."""
    rng = np.random.default_rng([seed, case])
    heads = int(rng.integers(1, 4))
    model = load_model(random_vit(
        tmp_path, seed=case, kind=("vit", "ijepa")[case % 2],
        hidden=heads * int(rng.choice([8, 12, 16])), heads=heads,
        ffn=int(rng.integers(20, 70)), side=8, patch=int(rng.choice([1, 2, 4])),
        channels=int(rng.choice([1, 3])), classes=int(rng.integers(2, 40))))
    board = replace(get_board("virtual"), config=Config(
        W=int(rng.choice([4, 8, 16])), P=int(rng.integers(3, 6)), bus_bytes=4, residual_values=8192,
        act_words=4096, rope_pairs=4096, scratch_bytes=16384, context=128, score_depth=256))
    model = suited(model, 1 << 12)
    qm = quantise(model, head_pad=board.config.W)
    image = compile_model(qm, board)
    compiled = Compiled.parse(b"".join(image._parts()))
    assert compiled.vision == image.vision
    golden, core = GoldenModel(qm), targets.golden_core(compiled, board.config)
    vision, rows = vision_of(compiled), own_pictures(pictures_of(model), 2, seed=seed)
    for one in rows:
        codes = vision.pictures.codes(one, vision.fraction)
        tiles = vision.tiles(codes, board.config.W)
        core.memory[vision.at:vision.at + len(tiles)] = np.frombuffer(tiles, np.uint8)
        want = golden.classify(codes)
        np.testing.assert_array_equal(core.forward([0] * model.context), want)
    near = FloatModel(model).forward(rows[1])[-1]
    assert np.abs(want / 4096 - near).max() < 0.5 * max(near.std(), 0.2)


def test_damaged_vision(tmp_path, seed):
    """Where patches go in an image file is checked."""
    model = suited(load_model(random_vit(tmp_path, seed=seed)), 1 << 12)
    image = compile_model(quantise(model, head_pad=16), get_board("virtual"))
    vision = vision_of(image)
    for wrong in (dict(at=1 << 40), dict(at=vision.at + 1), dict(stride=0), dict(fraction=99),
                  dict(stride=vision.stride + 16),
                  dict(pictures=replace(vision.pictures, labels=("a",))),
                  dict(pictures=replace(vision.pictures, others=0))):
        damaged = replace(image, vision=replace(vision, **wrong))
        with pytest.raises(UserError, match="makes no sense"):
            Compiled.parse(b"".join(damaged._parts()))


def test_images_with_too_many_tokens(tmp_path):
    """Heads of one word, or a board without batches: one sentence, from its shapes."""
    folder = random_vit(tmp_path, seed=1, hidden=384, layers=1, heads=24, ffn=96, side=224,
                        patch=16, classes=5)
    shapes = Shapes.of_model(load_model(folder, outline=True))
    found = {name: limits.fits(shapes, get_board(name)) for name in ("virtual", "ulx3s_85f")}
    assert [(r.limit.name, r.need, r.has) for r in found["virtual"]] == [
        ("tokens of an image", 197, 20)]
    assert [r.has for r in found["ulx3s_85f"]] == [40]
    with pytest.raises(UserError, match="tokens of an image 197, at most 20 .*it fits ulx3s_45f"):
        limits.check(shapes, get_board("virtual"))
    with pytest.raises(UserError, match="an image has 197 tokens, .* leave --ctx out"):
        limits.check(shapes, get_board("virtual"), context=20)


@pytest.mark.parametrize("beside", [True, False])
def test_predicted(monkeypatch, beside):
    """As counted in simulation, with a pass's values beside its keys, and where they wait for room:
    as if passes were longer than an image."""
    if not beside:
        residents = limits.residents
        monkeypatch.setattr(limits, "residents", lambda steps, config, at_once=1, context=None:
                            residents(steps, config, at_once))
    board = get_board("ulx3s_85f")
    image = Source(str(DIGITS), board).image
    assert any(i["wait"] for i in image.listed) != beside
    assert image.model_regs["blocks"] == (3 if beside else 32)      # of 8 tokens; there are 17
    counted, error = (66_013, 0.01) if beside else (67_572, 0.015)
    assert abs(predict(image, board, prompt=17, generate=1).cycles / counted - 1) < error


# ---- The gateware

def test_gateware(tmp_path, seed, known):
    """Digits, and shapes that fill no word; each class and each logit."""
    board = get_board("virtual")
    others = [random_vit(tmp_path / kind, seed=seed, kind=kind, hidden=40, heads=2, ffn=50, side=12,
                         patch=4, classes=7) for kind in ("vit", "ijepa")]
    files = []
    for k, (size, top) in enumerate(((8, 17), (12, 256), (12, 256))):
        files.append([tmp_path / f"{k}{i}.png" for i in range(2)])
        for i, file in enumerate(files[-1]):
            an_image(file, (size, size), "RGB" if k else "L", seed=seed + i, top=top)
    with closing(SimTarget(board)) as sim:
        for model, some in zip((DIGITS, *others), files, strict=True):
            source = Source(str(model), board)
            sim.load(source)
            golden = GoldenTarget(board)
            golden.load(source)
            for file in some:
                codes = codes_of(vision_of(source.image), file)
                got, want = sim.classify(codes), golden.classify(codes)
                assert (got.token, got.crc) == (want.token, want.crc)
                np.testing.assert_array_equal(got.logits, want.logits)


# ---- The command

def test_classify(run, tmp_path):
    """The model, and its image without it; several files."""
    names = [str(DIGITS / f"{k}.png") for k in range(10)]
    status, out, _ = run("classify", "-m", DIGITS, "--target", "golden", *names)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()] == [str(k) for k in range(10)]
    assert len(out.splitlines()[0].split()) == 1 + 2 * 3
    assert run("compile", DIGITS, "-o", tmp_path / "m.mlk")[0] == 0
    status, again, _ = run("classify", "-m", tmp_path / "m.mlk", "--target", "golden", *names[:3])
    assert again.splitlines() == out.splitlines()[:3]
    status, out, _ = run("classify", "-m", DIGITS, "--target", "golden", "--top", 1, "--json", "-",
                         names[7])
    found = json.loads(out)
    image, = found["images"]
    assert image["label"] == "7" and image["class"] == 7 and found["labels"][7] == "7"
    assert image["probability"] == max(image["probabilities"]) > 0.8
    assert sum(image["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize("spoil", [None, 1])
def test_classify_over_the_link(run, monkeypatch, spoil):
    """A chip tells class and CRC; probabilities are those of the golden model that has it too."""
    board = get_board("virtual")
    source = Source(str(DIGITS), board)
    golden, count = GoldenTarget(board), 0
    golden.load(source)
    names = [str(DIGITS / f"{k}.png") for k in (4, 5)]
    vision = vision_of(source.image)
    codes = [codes_of(vision, name) for name in names]

    def answer(history):
        nonlocal count
        at = vision.at
        tiles = bytes(fake.memory[at:at + vision.stride * len(history)])
        k = [vision.tiles(code, board.config.W) for code in codes].index(tiles)
        event = golden.classify(codes[k])
        count += 1
        return event.token, event.crc ^ (spoil == k)
    fake = FakeBoard(board.config, next_token=answer, memory_bytes=4 << 20)
    monkeypatch.setattr(targets, "open_target",
                        lambda *a, **k: BoardTarget("fake", Driver(fake)))
    status, out, err = run("classify", "-m", DIGITS, *names)
    assert count == 2 and [line.split()[1] for line in out.splitlines()] == ["4", "5"][:spoil]
    assert status == (spoil is not None) and ("NOT bit-exact: image 1" in err) == status


def test_wrong_use(run, tmp_path, seed):
    image = DIGITS / "0.png"
    text = random_model(tmp_path / "t", seed=seed)
    for args, words in (
            (("classify", "-m", text, "--target", "golden", image), "reads text, not images"),
            (("classify", image), "Missing option '-m'"),
            (("classify", "-m", DIGITS), "Missing argument 'IMAGE...'"),
            (("classify", "-m", DIGITS, "--target", "golden", tmp_path / "no.png"),
             "no.png cannot be read"),
            (("classify", "-m", DIGITS, "--target", "golden", "--check", image), "leave one of"),
            (("classify", "-m", DIGITS, "-c", "5", "--target", "golden", image), "leave --ctx out"),
            (("classify", "-m", DIGITS, "--bits", "5", "--board", "ulx3s_85f", "--target",
              "golden", image), "writes no text, which --bits"),
            (("generate", "-m", DIGITS, "--target", "golden", "x"), "use meadowlark classify"),
            (("chat", "-m", DIGITS, "--target", "golden"), "use meadowlark classify"),
            (("eval", "-m", DIGITS), "use meadowlark classify"),
            (("bench", "-m", DIGITS), "use meadowlark classify")):
        status, out, err = run(*args)
        assert (status, out) == (2, "") and words in err, (args, err)
    shutil.copytree(DIGITS, tmp_path / "d")
    (tmp_path / "d" / "preprocessor_config.json").unlink()
    status, _, err = run("info", tmp_path / "d")
    assert status == 2 and "preprocessor_config.json is missing" in err


def test_from_python():
    """As the command says; and what text models and encoders refuse."""
    with meadowlark.load(DIGITS).on("golden") as chip:
        found = chip.classify(DIGITS / "3.png", str(DIGITS / "8.png"))
        assert [one.label for one in found] == ["3", "8"] and found[0].token == 3
        assert found[0].probabilities.sum() == pytest.approx(1)
        with pytest.raises(UserError, match="use meadowlark classify"):
            chip.generate("x")
    for ask in (lambda: meadowlark.load(DIGITS).predict(),
                lambda: meadowlark.load(DIGITS).perplexity()):
        with pytest.raises(UserError, match="use meadowlark classify"):
            ask()
    with meadowlark.load("stories").on("golden") as chip:
        with pytest.raises(UserError, match="reads text, not images"):
            chip.classify(DIGITS / "3.png")
