"""Rounding with feedback: against a naive one, and what it gains."""
import numpy as np
import pytest
from random_model import random_model

from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Head, Linear
from meadowlark.models.registry import load_model
from meadowlark.quant.feedback import DAMPING, MAX_COLUMNS, Moments, feedback, round_rows
from meadowlark.quant.quantise import int8_codes


def inputs(rng, n, K):
    """Correlated, as activations are."""
    return (rng.normal(size=(n, K // 4)) @ rng.normal(size=(K // 4, K))
            + 0.3 * rng.normal(size=(n, K))) * np.exp(rng.normal(0, 0.5, K))


def naive(weight, scale, moments):
    """Each column to the nearest, then all that are left moved to where the output's error is
    least (least squares), as GPTQ says."""
    h = moments + np.eye(len(moments)) * DAMPING * np.diagonal(moments).mean()
    order = np.argsort(-np.diagonal(moments), kind="stable")
    want = weight / scale[:, None]
    codes = np.zeros(weight.shape)
    for at, k in enumerate(order):
        rest = order[at:]
        done = order[:at]
        # minimum over the rest of (error H error'), with the errors of those that are done
        errors = want[:, done] - codes[:, done]
        moved = want[:, rest] + errors @ h[np.ix_(done, rest)] \
            @ np.linalg.inv(h[np.ix_(rest, rest)])
        codes[:, k] = np.clip(np.rint(moved[:, 0]), -127, 127)
    return codes


@pytest.mark.parametrize("K", [8, 33, 72])
def test_as_published(seed, K):
    rng = np.random.default_rng(seed)
    x = inputs(rng, 300, K)
    weight = rng.normal(size=(40, K)).astype(np.float32)
    scale = np.sqrt(np.square(weight).mean(axis=1)) / rng.uniform(2, 12, 40)
    codes = round_rows(weight, scale, *feedback(x.T @ x))
    assert codes.dtype == np.int8
    # Sums in float32 and float64 may differ where one is nearly half, and then all that follow.
    same = (codes == naive(weight.astype(np.float64), scale, x.T @ x)).all(axis=1)
    assert same.mean() > 0.8


def test_gain(seed):
    """On inputs it has not seen, the output is wrong by much less; rows of zeros, rows too large
    for int8 and more rows than are taken at once are no exception."""
    rng = np.random.default_rng(seed)
    x = inputs(rng, 4000, 64)
    weight = rng.normal(size=(5000, 64)).astype(np.float32)
    weight[7] = 0
    scale = int8_codes(weight, 6.0)[1]
    scale[3] /= 40
    codes = round_rows(weight, scale, *feedback(x[:2000].T @ x[:2000]))
    assert not codes[7].any() and np.abs(codes.astype(int)).max() == 127
    step = np.where(scale > 0, scale, 1)[:, None]
    nearest = np.clip(np.rint(weight / step), -127, 127)

    def wrong(codes):
        return np.square(x[2000:] @ np.delete(codes * step - weight, 3, axis=0).T).mean()
    assert wrong(codes) < 0.6 * wrong(nearest)


def test_unseen_columns(seed):
    """Moments of columns that are always 0 do no harm."""
    rng = np.random.default_rng(seed)
    x = inputs(rng, 100, 16)
    x[:, [2, 9]] = 0
    weight = rng.normal(size=(5, 16)).astype(np.float32)
    codes = round_rows(weight, np.full(5, 0.1), *feedback(x.T @ x))
    np.testing.assert_array_equal(codes[:, [2, 9]], np.rint(weight[:, [2, 9]] / np.float32(0.1)))
    assert not round_rows(0 * weight, np.zeros(5), *feedback(0 * x.T @ x)).any()


def test_moments(tmp_path, seed, monkeypatch):
    """Of each input, weighed by the residual behind it; none of wide ones."""
    model = load_model(random_model(tmp_path / "m", seed=seed, layers=2))
    tokens = np.random.default_rng(seed).integers(0, model.vocab, (2, 9))
    moments, seen = Moments(model.graph), {}
    for text in tokens:
        FloatModel(model).forward(text, moments.observe)
        FloatModel(model).forward(
            text, lambda edge, x: seen.setdefault(edge, []).append(x.astype(np.float64)))
    # what a matrix adds to the residual -> the residual then
    behind = {op.x: f"{op.out}.residual" for op in model.graph.of(Linear)
              if op.out.endswith((".o", ".down"))}
    assert len(behind) == 4
    assert moments.of.keys() == {op.x for op in model.graph.of(Linear, Head)}
    for edge, found in moments.of.items():
        want = 0
        for k, x in enumerate(seen[edge]):
            if edge in behind:
                r = seen[behind[edge]][k]
                # The random model has embeddings of zeros.
                x = x / np.sqrt(np.maximum(np.square(r).mean(axis=1, keepdims=True), 1e-12))
            want = want + x.T @ x
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    monkeypatch.setattr("meadowlark.quant.feedback.MAX_COLUMNS", model.hidden)
    moments = Moments(model.graph)
    FloatModel(model).forward(tokens[0], moments.observe)
    assert MAX_COLUMNS > model.graph.edges["layers.0.h"].width > model.hidden
    assert "layers.0.norm1.x" in moments.of and "layers.0.h" not in moments.of
