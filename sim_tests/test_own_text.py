"""A model's own text: drawn from just what the model gives, and cut where it stops."""
from dataclasses import replace

import numpy as np
import pytest
from random_model import random_model

from meadowlark.models.float_model import FloatModel
from meadowlark.models.registry import load_model
from meadowlark.quant.own_text import first, own_text

SHAPE = dict(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64)


@pytest.mark.parametrize("bos", [True, False])
def test_drawn_from_the_model(tmp_path, seed, bos):
    """Token by token, what a forward pass over all before it gives, by the same chances."""
    model = load_model(random_model(tmp_path / "m", seed=seed, attention_bias=True, **SHAPE))
    model = replace(model, stop_ids=(), bos_id=model.bos_id if bos else None)
    texts = own_text(model, sequences=3, length=12, seed=seed)
    rng = np.random.default_rng(seed)
    starts = [model.bos_id] * 3 if bos else rng.integers(0, model.vocab, 3).tolist()
    assert [text[0] for text in texts] == starts and {len(text) for text in texts} == {12}
    chances = rng.random((11, 3))
    runner = FloatModel(model)
    for k, text in enumerate(texts):
        logits = runner.forward(text[:-1]).astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        below = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        drawn = np.arange(11), np.array(text[1:])
        assert (below[drawn] >= chances[:, k] - 1e-4).all()
        assert (below[drawn] - (p / p.sum(axis=1, keepdims=True))[drawn]
                <= chances[:, k] + 1e-4).all()


def test_stops(tmp_path, seed):
    """A sequence ends behind its first stop id; what it begins with is none."""
    model = load_model(random_model(tmp_path / "m", seed=seed, **SHAPE))
    whole = own_text(replace(model, stop_ids=()), sequences=20, length=30, seed=seed)
    stop = whole[0][5]
    cut = own_text(replace(model, stop_ids=(stop, model.bos_id)), sequences=20, length=30,
                   seed=seed)
    for long, short in zip(whole, cut, strict=True):
        assert short == long[:len(short)] and len(short) > 1
        assert not {stop, model.bos_id} & set(short[1:-1])
        assert len(short) == 30 or short[-1] in (stop, model.bos_id)
    assert len(cut[0]) <= 6


def test_context_and_first(tmp_path, seed):
    model = load_model(random_model(tmp_path / "m", seed=seed, **SHAPE))
    model = replace(model, context=7, stop_ids=())
    texts = own_text(model, sequences=4, length=30, seed=seed)
    assert {len(text) for text in texts} == {7}
    assert first(texts, 15) == texts[:3] and first(texts, 14) == texts[:2] and not first(texts, 0)
