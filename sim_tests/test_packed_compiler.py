"""Images with packed weights: the same logits, no larger, refused where they cannot be read."""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.image import Image
from meadowlark.compile.layout import LEAD, packed_jobs, spare_chunks
from meadowlark.compile.stream import Stream
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import QuantLinear, quantise
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.weights.decoder_golden import header_chunks
from meadowlark_hdl.weights.packing_golden import Unpacker
from random_model import packable, random_model, random_texts

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
    return packable(quantise(model, random_texts(model, seed=2)))


@pytest.mark.parametrize("packing", ["auto", "entropy", "meadow"])
def test_same_logits(qm, packing, seed):
    image = compile_model(qm, board(CONFIG), packing=packing)
    golden = GoldenModel(qm)
    chip = golden_core(image, CONFIG, seed)
    tokens = np.random.default_rng(seed).integers(0, qm.vocab, 9).tolist()
    want = golden.forward(tokens)
    np.testing.assert_array_equal(chip.forward(tokens), want)
    np.testing.assert_array_equal(chip.forward([5], 9), golden.forward([5], 9))
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
    with pytest.raises(UserError, match=f"packed for {CONFIG.W} lanes, but .* {CONFIG.W // 2};"):
        image.check_config(CONFIG.replace(unpack_cycles=4), memory_bytes=1 << 30)


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


def test_spare_chunks_make_jobs(seed):
    """The first tiles are the larger ones: with chunks at the end there are jobs, without not."""
    rng, helped = np.random.default_rng(seed), 0
    for _ in range(300):
        n = int(rng.integers(1, 400))
        sizes = np.sort(rng.integers(1, 600, n))[::-1].tolist()
        spare = spare_chunks(sizes)
        helped += packed_jobs(sizes) is None
        padded = [*sizes[:-1], sizes[-1] + spare]
        assert packed_jobs(padded), (n, spare)
    assert helped > 100


def test_a_tensor_whose_first_rows_need_more_is_packed(seed):
    """Spare words reach the image, decode to the same codes, and are counted."""
    rng = np.random.default_rng(seed)
    rows, columns = 2048, 64
    spread = np.linspace(30, 2, rows)[:, None]
    codes = np.clip(np.rint(rng.normal(size=(rows, columns)) * spread), -127, 127).astype(np.int8)
    q = QuantLinear(codes=codes, mant=np.full(rows, 1 << 15), shift=np.full(rows, 20))
    stream = Stream(CONFIG, "auto", CONFIG.P)
    t, fields, sizes = stream.linear(q, "head")
    assert fields["packed"] == 1 and packed_jobs(sizes)
    found = stream.tensors[0]
    assert found["mode"] == "entropy" and found["bytes"] < 0.95 * found["raw_bytes"]
    unpacker, raw, at, got = Unpacker(CONFIG.W), b"".join(stream.parts), 0, []
    for k in range(t.tiles):
        n = t.last_rows if k == t.tiles - 1 else t.rows
        at += header_chunks(q.header, n, CONFIG.W) * CONFIG.W
        plain, at = unpacker.tile(raw, at, n * t.row_beats)
        got.append(plain)
    assert at == len(raw)
    np.testing.assert_array_equal(np.concatenate(got).view(np.int8).reshape(rows, columns), codes)
