"""Encoders with more tokens than a pass takes: the residual goes to memory and comes back."""
import json
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile import limits, spill
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict_image
from meadowlark.compile.disassemble import listing, subjects
from meadowlark.compile.image import Image
from meadowlark.compile.layout import cuts
from meadowlark.compile.special import special
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import suited
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.own_pictures import own_pictures
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.prepare import Source
from meadowlark.run.targets import GoldenTarget
from meadowlark_boards import get_board
from meadowlark_hdl.compute.norm_golden import rmsnorm
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Op
from PIL import Image as Picture
from random_model import random_vit

#: Largest magnitude of a residual.
TOP = 1 << Config.RESID_BITS - 1


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """37 tokens, two heads of 64; `virtual` takes 32 tokens."""
    return random_vit(tmp_path_factory.mktemp("m"), seed=3, hidden=128, heads=2, ffn=48, side=6,
                      patch=1, classes=5)


@pytest.fixture(scope="module")
def spilled(narrow):
    """Its integers, and its image for `virtual`."""
    qm = quantise(suited(load_model(narrow), 1 << 12), head_pad=16)
    return qm, compile_model(qm, get_board("virtual"))


# ---- The planes

def test_all_bits_come_back(spilled, seed):
    """Digits have 8 bits, and their sum is the residual, whatever it and the epsilon are."""
    rng, (qm, _) = np.random.default_rng(seed), spilled
    for eps in (1, 1 << 32, int(2 ** rng.uniform(0, 31)), 3 << 30):
        r = np.concatenate([[-TOP, TOP - 1, 0, 1, -1], rng.integers(-TOP, TOP, 20000),
                            rng.integers(-TOP, TOP, 20000) >> rng.integers(0, 26, 20000)])
        if eps == 1 << 32:
            with pytest.raises(UserError, match="cannot be spilled, .* epsilon is too large"):
                spill.with_spill(replace(qm, eps=eps), spill.spilled(qm.plan, 16))
            continue
        numbers = spill.with_spill(replace(qm, eps=eps), spill.spilled(qm.plan, 16)).numbers
        left, came = r, 0
        for k, bits in enumerate(spill.PLANES):
            constant = numbers[f"spill.root.{k // 2}"].bias.astype(np.int64)
            norm = numbers[spill.digit_name(k)]
            digit = rmsnorm(left, np.uint64((constant ** 2).sum()), eps, norm.gamma[0], norm.shift)
            assert np.abs(digit).max() < 128
            for name, sign in (("less", -1), ("more", 1)):
                row = numbers[f"spill.{name}.{k}"]
                unit = int(row.codes[0, 0]) * int(row.mant[0])
                assert unit == sign << bits << int(row.shift[0])
            left, came = left - (digit << bits), came + (digit << bits)
        assert not left.any()
        np.testing.assert_array_equal(came, r)


def test_blocks_of_tokens():
    """As few as there can be, and none of them is a decode."""
    for slots in (3, 4, 5, 8, 40):
        for tokens in range(slots + 1, 300):
            sizes = cuts(tokens, slots)
            assert sum(sizes) == tokens and len(sizes) == -(-tokens // slots)
            assert max(sizes) <= slots and min(sizes) > 1 and sizes[0] == max(sizes)


# ---- The program

@pytest.mark.parametrize("case", range(5))
def test_program(tmp_path, seed, case):
    """GoldenCore in visits is GoldenModel, which knows of none, for cores of all widths, with a
    class token and with the mean over patches; two pictures, the second one in memories that the
    first one has used."""
    rng = np.random.default_rng([seed, case])
    W, P = int(rng.choice([4, 8, 16])), int(rng.integers(3, 6))
    heads, head = int(rng.integers(1, 4)), int(rng.choice([2, 3, 4])) * W
    model = suited(load_model(random_vit(
        tmp_path, seed=case, kind=("vit", "ijepa")[case % 2], hidden=heads * head, heads=heads,
        layers=int(rng.integers(1, 4)),
        ffn=int(rng.integers(20, 100)), side=6, patch=int(rng.choice([1, 2])),
        classes=int(rng.integers(2, 40)))), 1 << 12)
    tokens = int(rng.integers(1, 3)) * P
    board = replace(get_board("virtual"), config=Config(
        W=W, P=P, bus_bytes=4, residual_values=-(-(heads * head + W) * tokens // 4) * 4,
        act_words=4096, rope_pairs=4096, context=64, score_depth=64))
    qm = quantise(model, head_pad=W)
    image = compile_model(qm, board)
    if model.context <= limits.residents(qm.plan, board.config) * P:    # room for as many as it is
        assert not image.visits
        return
    image = Image.parse(b"".join(image._parts()))
    assert len(image.visits) == 1 + image.shape["layers"]
    assert len([*image.runs]) == 1 + image.shape["layers"] * -(-model.context // tokens)
    golden, target = GoldenModel(qm), GoldenTarget(board)
    source = Source("none", board)
    source.__dict__["image"] = image        # as if it came from a file
    assert image.vision is not None and model.pictures is not None
    target._image, target._core = image, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "is_image", True)
        target.load(source)
    for rows in own_pictures(model.pictures, 2, seed=seed):
        codes = image.vision.pictures.codes(rows, image.vision.fraction)
        want = golden.classify(codes)
        np.testing.assert_array_equal(target.classify(codes).logits, want)
        found = target.image_counters()
        assert found["passes"] == len([*image.runs]) and "saturations" in found


def test_no_visit_where_a_pass_is_enough(narrow):
    """The image of a model that fits says nothing of visits; its program is the one it was."""
    board = get_board("virtual")
    model = suited(load_model(narrow), 1 << 12)
    larger = replace(board, config=board.config.replace(rope_pairs=2048))
    image = compile_model(quantise(model, head_pad=16), larger)
    assert not image.visits and b"visits" not in image._parts()[1]
    run, = image.runs
    assert run.final and run.tokens == [0] * 37 and run.model_regs == image.model_regs


def test_listing(spilled):
    """A list a visit, and names of what each instruction works on go on from one to the next."""
    _, image = spilled
    lines = [*listing(image)]
    for k, visit in enumerate(image.visits):
        assert lines[lines.index(f"visit {k}:") + 1].split()[0] == str(visit.pc)
    names = subjects(image)
    assert names[image.visits[1].pc:][:50].count("spill.more.0") == 1
    program = image.listed
    head, = (at for at, i in enumerate(program) if i["op"] == Op.LINEAR and names[at] == "head")
    assert head == len(program) - 2
    assert "head at byte" in image.place(head) and "spill.less.3" in image.place(
        image.visits[1].pc - 2)


def test_damaged_visits(spilled):
    _, image = spilled
    first, second, *rest = image.visits
    for wrong in ((first, second._replace(pc=second.pc + 1), *rest),
                  (first, second._replace(pc=1 << 20)), (first, second._replace(pc=-1))):
        with pytest.raises(UserError, match="makes no sense"):
            Image.parse(b"".join(replace(image, visits=wrong)._parts()))
    with pytest.raises(UserError, match="makes no sense"):
        Image.parse(b"".join(replace(image, vision=None)._parts()))


# ---- What a board can

def test_deit_s(tmp_path):
    """Two layers at full width, from shapes alone: boards with batches take them, in visits."""
    folder = random_vit(tmp_path, seed=1, hidden=384, layers=2, heads=6, ffn=1536, side=224,
                        patch=16)
    shapes = Shapes.of_model(load_model(folder, outline=True))
    for name, blocks in (("virtual", 4), ("ulx3s_85f", 4), ("ecpix5_85f", 4)):
        board = get_board(name)
        needs = limits.need(shapes, board)
        assert needs.plan.spill is not None and not limits.fits(shapes, board), name
        assert limits.residents(needs.plan, board.config) == blocks, name
        assert needs.plan.spill.pieces == 8 and needs.plan.spill.planes == 4


def test_what_cannot_be_spilled(tmp_path, narrow, spilled):
    """Cores without bases for caches, heads of one word, and all tokens through the last layer."""
    board = get_board("virtual")
    shapes = Shapes.of_model(load_model(narrow, outline=True))
    for change in (dict(batches=False), dict(W=32, P=5, sv_cycles=8, residual_values=4096,
                                             gemm=False)):
        other = replace(board, config=board.config.replace(**change))
        on = limits.suited(shapes, other).plan
        assert spill.can(on, other.config) is ("W" in change)
    small = replace(board, config=board.config.replace(batches=False))
    reason, = limits.fits(shapes, small)
    assert (reason.limit.name, reason.need, reason.has) == ("tokens of an image", 37, 32)
    short = Shapes.of_model(load_model(random_vit(
        tmp_path / "s", seed=1, hidden=448, heads=28, side=8, patch=2), outline=True))
    reason, = limits.fits(short, board)
    assert (reason.limit.name, reason.need, reason.has) == ("tokens of an image", 17, 16)
    with pytest.raises(UserError, match="leave --all-tokens out"):
        compile_model(quantise(suited(load_model(narrow), 1 << 12), head_pad=16), board,
                      all_tokens=True)
    with pytest.raises(UserError, match="build virtual without --for"):
        special(board, spilled[1])


# ---- The gateware

def test_gateware(run, tmp_path, narrow, seed):
    """The command, as of any image: each logit, and as many cycles as predicted."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "x.png")
    status, _, err = run("classify", "-m", narrow, "--check", "--json", tmp_path / "x.json",
                         tmp_path / "x.png")
    assert status == 0 and "bit-exact with the golden model over 1 images" in err, err
    board = get_board("virtual")
    image = Source(str(narrow), board).image
    assert [(len(r.tokens), r.final) for r in image.runs] == 2 * [(32, False), (5, False)] + [
        (1, True)]
    counted = json.loads((tmp_path / "x.json").read_text())["images"][0]["cycles"]
    assert predict_image(image, board).cycles == pytest.approx(counted, rel=0.01)
