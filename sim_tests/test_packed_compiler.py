"""Images with packed weights: the same logits, no larger, refused where they cannot be read."""
from dataclasses import replace

import numpy as np
import pytest
from interpreter import Interpreter
from meadowlark.compiler import compile_model
from meadowlark.errors import UserError
from meadowlark.golden import GoldenModel
from meadowlark.image import Image
from meadowlark.layout import LEAD, packed_jobs
from meadowlark.model import load_model
from meadowlark.quantise import quantise
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from random_model import random_model, random_texts

CONFIG = Config(W=8, P=4, bus_bytes=2, act_words=256, residual_values=4096, score_depth=128,
                rope_pairs=512, tile_beats=256, tile_rows=16, fifo_words=512, burst_words=64,
                context=128, packing=3)
#: Large enough for tables to pay; two groups of heads, biases, an own head.
SHAPE = dict(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=24, ffn=208, vocab=301, tied=False,
             attention_bias=True, mlp_bias=True)


def board(config):
    return replace(get_board("virtual"), config=config)


@pytest.fixture(scope="module")
def qm(tmp_path_factory):
    model = load_model(random_model(tmp_path_factory.mktemp("packed"), seed=1, **SHAPE))
    qm = quantise(model, random_texts(model, seed=2))

    def coarse(linear, step):
        return replace(linear, codes=(np.rint(linear.codes / step) * step).astype(np.int8))
    # Fewer levels in some, so that each packing is the best one somewhere.
    layers = [replace(layer, down=coarse(layer.down, 9), o=coarse(layer.o, 40),
                      q=coarse(layer.q, 6)) for layer in qm.layers]
    return replace(qm, layers=tuple(layers))


@pytest.mark.parametrize("packing", ["auto", "entropy", "meadow"])
def test_same_logits(qm, packing, seed):
    image = compile_model(qm, board(CONFIG), packing=packing)
    golden = GoldenModel(qm)
    chip = Interpreter(image, CONFIG, seed)
    tokens = np.random.default_rng(seed).integers(0, qm.vocab, 9).tolist()
    want = golden.forward(tokens)
    np.testing.assert_array_equal(chip.prompt(tokens), want)
    np.testing.assert_array_equal(chip.step(5, 9), golden.forward([5], 9))
    modes = {t["mode"] for t in image.tensors}
    assert modes - {"raw"} and modes <= ({packing, "raw"} if packing != "auto" else
                                         {"raw", "entropy", "meadow"})


def test_auto_is_the_smallest(qm):
    by_name = {p: {t["name"]: t for t in compile_model(qm, board(CONFIG), packing=p).tensors}
               for p in ("auto", "raw", "entropy")}
    for name, t in by_name["auto"].items():
        assert t["bytes"] <= by_name["raw"][name]["bytes"] == t["raw_bytes"]
        assert t["mode"] == "raw" or t["bytes"] < t["raw_bytes"]
    images = {p: len(compile_model(qm, board(CONFIG), packing=p).memory) for p in ("auto", "raw")}
    assert images["auto"] < 0.95 * images["raw"]


def test_image_keeps_tensors(qm, tmp_path):
    image = compile_model(qm, board(CONFIG))
    image.save(tmp_path / "x")
    assert Image.load(tmp_path / "x").tensors == image.tensors
    with pytest.raises(UserError, match="packed weights that this board cannot read"):
        image.check_config(CONFIG.replace(packing=0), memory_bytes=1 << 30)


def test_a_core_without_the_unpacker(qm):
    assert {t["mode"] for t in compile_model(qm, board(CONFIG.replace(packing=0))).tensors} \
        == {"raw"}
    with pytest.raises(UserError, match="cannot read the packing entropy"):
        compile_model(qm, board(CONFIG.replace(packing=2)), packing="entropy")


def test_jobs_cover_the_tiles(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        sizes = rng.integers(1, 60, rng.integers(1, 200)).tolist()
        jobs = packed_jobs(sizes)
        if jobs is None:
            continue
        given = np.cumsum([jobs["chunks"]] * (len(sizes) - 1) + [jobs["last_chunks"]])
        needed = np.cumsum(sizes)
        assert given[-1] == needed[-1]
        ahead = np.minimum(np.arange(len(sizes)) + LEAD, len(sizes) - 1)
        assert (needed <= given[ahead]).all()
    assert packed_jobs([500] + [1] * 100) is None
