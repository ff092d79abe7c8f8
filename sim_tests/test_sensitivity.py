"""What an error costs: the gradients against differences, of every kind of matrix and cache."""
from dataclasses import replace

import numpy as np
import pytest
from random_model import random_model

from meadowlark.models.float_model import FORWARD, FloatModel
from meadowlark.models.graph import Graph, Linear
from meadowlark.models.registry import load_model
from meadowlark.quant.sensitivity import Sensitivity
from meadowlark.run.evaluate import negative_log_likelihood

EPSILON = 2e-2


@pytest.fixture
def model(tmp_path, seed):
    return load_model(random_model(
        tmp_path / "m", seed=seed, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48,
        vocab=64, tied=False, attention_bias=True, mlp_bias=True))


def drawn(model, tokens, seed):
    """The labels that :class:`Sensitivity` draws."""
    logits = FloatModel(model).forward(tokens).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    below = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
    return (below < np.random.default_rng(seed).random((len(tokens), 1))).sum(axis=1)


def test_rows(model, seed, monkeypatch):
    """Squares of the gradient at a row's outputs, times those of the row's inputs."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.vocab, 6)
    found = Sensitivity(model, seed=seed)
    found.observe(tokens)
    assert found.tokens == 6
    labels, plain = drawn(model, tokens, seed), FORWARD[Linear]
    seen = {}
    FloatModel(model).forward(tokens, seen.__setitem__)
    for op in model.graph.of(Linear):
        square = np.square(seen[op.x]).sum(axis=1)
        rows = rng.choice(len(found.rows[op.weight]), 3, replace=False)
        want = []
        for row in rows:
            total = 0.0
            for t in range(len(tokens)):
                ends = []
                for sign in (1, -1):
                    def moved(run, given, x, op=op, sign=sign, t=t, row=row):
                        y = plain(run, given, x)
                        if given is op:
                            y = y.copy()
                            y[t, row] += sign * EPSILON
                        return y
                    with monkeypatch.context() as patch:
                        patch.setitem(FORWARD, Linear, moved)
                        logits = FloatModel(model).forward(tokens)
                    ends.append(negative_log_likelihood(logits, labels).sum())
                total += square[t] * ((ends[0] - ends[1]) / (2 * EPSILON)) ** 2
            want.append(total)
        np.testing.assert_allclose(found.rows[op.weight][rows], want, rtol=0.05,
                                   atol=1e-3 * found.rows[op.weight].max())


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_head(model, seed, scale):
    """Of the head the curvature itself, without drawing: p (1 - p)."""
    *operators, head = model.graph.operators
    model = replace(model, graph=Graph((*operators, replace(head, scale=scale)),
                                       model.graph.shapes, model.graph.tables))
    tokens = np.random.default_rng(seed).integers(0, model.vocab, 6)
    found = Sensitivity(model)
    found.observe(tokens)
    found.observe(tokens)
    seen = {}
    logits = FloatModel(model).forward(tokens, seen.__setitem__)
    p = np.exp(-np.array([negative_log_likelihood(logits, np.full(6, v))
                          for v in range(model.vocab)])).T
    want = 2 * np.square(scale * seen["final_norm.x"]).sum(axis=1) @ (p * (1 - p))
    np.testing.assert_allclose(found.rows["head"], want, rtol=1e-3)
