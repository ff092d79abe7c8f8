"""Golden model of fused tiles of QK and SV: key after key in Python's integers, and float."""
import numpy as np
import pytest
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import quantise
from meadowlark_hdl.compute.fused_golden import fused, references
from meadowlark_hdl.compute.softmax_golden import MASKED, probabilities
from meadowlark_hdl.compute.tiling_engine_golden import broadcast
from meadowlark_hdl.fixed import exp2_neg
from random_model import random_model


def key_by_key(s, values, rows):
    """A row, as a lane has it: one reference, one sum and a slice, shifted with a tile's first
    key."""
    top, reference, total, acc = MASKED, None, 0, [0] * len(values[0])
    for at in range(0, len(s), rows):
        top = max(top, *s[at:at + rows])
        new = -(-top // 1024)
        down = 0 if reference is None else min(new - reference, 63)
        reference = new
        for k, score in enumerate(s[at:at + rows], at):
            p = 0 if score == MASKED else int(exp2_neg(new * 1024 - score))
            total = (total >> down) + p
            acc = [(a >> down) + p * v for a, v in zip(acc, values[k], strict=True)]
            down = 0
    return acc, total


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_key_by_key(rows, seed):
    rng = np.random.default_rng(seed)
    for spread in (100, 5000, 131071):
        s = rng.integers(-spread, spread + 1, (2, 5, 29))
        s[0, 0] = np.sort(s[0, 0])              # each tile raises the reference
        s[0, 1, :9] = MASKED                    # nothing seen before the tenth key
        s[1, 2, 20:] = MASKED
        s[0, 2, :2], s[0, 2, -1] = -131071, 131071
        values = rng.integers(-128, 128, (2, 29, 4))
        products, total = fused(s, values, rows)
        for h in range(2):
            for n in range(5):
                assert (products[h, n].tolist(), total[h, n]) == key_by_key(
                    s[h, n].tolist(), values[h].tolist(), rows), (h, n, spread)
        # Keys that nobody sees change nothing: how long a pass is does not matter.
        longer = np.pad(s, ((0, 0), (0, 0), (0, 7)), constant_values=MASKED)
        more = fused(longer, np.pad(values, ((0, 0), (0, 7), (0, 0)), constant_values=99), rows)
        assert (more[0] == products).all() and (more[1] == total).all()


def test_references():
    """Up to whole units, never down; the lowest score is one already."""
    s = np.array([MASKED, MASKED, 1, -1024, 1024, 0, 1025, 131071])
    assert (references(s, 2)[:, 0] >> 10).tolist() == [-128, 1, 1, 128]
    # One tile and a maximum in whole units: today's sums.
    s, values = np.array([[0, -700, MASKED, -5000]]), np.arange(8).reshape(4, 2)
    p, total = probabilities(s)
    products, sums = fused(s, values, 4)
    assert (products == broadcast(p, values)).all() and (sums == total).all()


def test_softmax(seed):
    """Beside float64: the error is that of 15-bit probabilities and of 2^x."""
    rng = np.random.default_rng(seed)
    s, values = rng.integers(-6000, 6001, (40, 200)), rng.integers(-128, 128, (200, 8))
    p = 2.0 ** (s / 1024)
    want = p @ values / p.sum(axis=1, keepdims=True)
    products, total = fused(s, values, 16)
    assert np.abs(products / total[:, None] - want).max() < 1.5


def test_model(tmp_path):
    """A fixed case: equal logits however a prompt is cut, near those of one maximum."""
    folder = random_model(tmp_path, seed=5, context=60)
    qm = quantise(load_model(folder))
    tokens = np.random.default_rng(5).integers(0, qm.vocab, 50)
    whole, cut = GoldenModel(qm, tile=8), GoldenModel(qm, tile=8)
    want = whole.forward(tokens, want="all")
    got = [cut.forward(tokens[a:b], a, "all") for a, b in ((0, 7), (7, 8), (8, 50))]
    assert (np.concatenate(got) == want).all()
    plain = GoldenModel(qm).forward(tokens, want="all")
    assert np.corrcoef(want.ravel(), plain.ravel())[0, 1] > 0.99
    assert (want != plain).any()
    for bad in (dict(tile=0), dict(tile=8, gemm=True)):
        with pytest.raises(ValueError, match="no fused tiles of"):
            GoldenModel(qm, **bad)
