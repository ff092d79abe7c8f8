"""Budgets of bits and of perplexity: what they choose, and what they refuse."""
import json
from dataclasses import replace
from math import exp

import numpy as np
import pytest
from random_model import random_model

from meadowlark import budget, cli
from meadowlark.budget import coded_size, grid_for_bits, grid_for_perplexity, rounded
from meadowlark.equalise import equalise
from meadowlark.errors import UserError
from meadowlark.evaluate import negative_log_likelihood, validation_text, windows
from meadowlark.model import FloatModel, load_model
from meadowlark.quantise import int8_codes


@pytest.fixture(scope="module")
def stories():
    return load_model("stories")


def test_codes(seed):
    """A step is a row's root mean square over the grid, and never so fine that codes overflow."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(50, 64)).astype(np.float32) * np.exp(rng.normal(size=(50, 1)))
    weight[3] = 0
    weight[4, 5] = 1000
    codes, scale = int8_codes(weight.astype(np.float32), 6.0)
    rms = np.sqrt((weight.astype(np.float64) ** 2).mean(axis=1))
    plain = np.delete(np.arange(50), [3, 4])
    np.testing.assert_allclose(scale[plain], rms[plain] / 6, rtol=1e-5)
    assert scale[3] == 0 and not codes[3].any()
    assert codes[4, 5] == 127 or scale[4] == pytest.approx(rms[4] / 6, rel=1e-5)
    error = np.abs(codes * scale[:, None] - weight).max(axis=1)
    assert (error <= 0.5001 * scale + 1e-12).all()


@pytest.mark.parametrize("bits", [2, 3.7, 5, 6.5])
def test_bits(stories, bits):
    """As many as asked for, no more, and nearly so many."""
    assert bits - 0.02 < coded_size(stories, grid_for_bits(stories, bits)) <= bits


def test_more_bits_than_int8_needs(stories):
    """The grid is then that of int8 without a budget."""
    grid = grid_for_bits(stories, 8)
    row = stories.layers[0].down
    np.testing.assert_array_equal(int8_codes(row, grid)[0], int8_codes(row)[0])


def test_too_few_bits(tmp_path, seed):
    model = load_model(random_model(tmp_path / "m", seed=seed))
    with pytest.raises(UserError, match="no grid brings the weights of m to 0.1 bits"):
        grid_for_bits(model, 0.1)


def test_equalise(tmp_path, seed):
    """The same function, with biases and shared heads; rounded, it is wrong by less."""
    folder = random_model(tmp_path / "m", seed=seed, hidden=64, layers=2, heads=6, kv_heads=2,
                          head_dim=16, ffn=96, vocab=200, tied=False, attention_bias=True,
                          mlp_bias=True)
    model = load_model(folder)
    rng = np.random.default_rng(seed)

    def spread():           # some of what a norm gives is large, as in trained models
        return np.exp(rng.normal(0, 1.2, 64)).astype(np.float32)
    layers = tuple(replace(layer, norm1=layer.norm1 * spread(), norm2=layer.norm2 * spread())
                   for layer in model.layers)
    model = replace(model, layers=layers, final_norm=model.final_norm * spread())
    texts = [rng.integers(0, 200, 50).tolist() for _ in range(4)]
    even = equalise(model, texts[:3])
    assert not even.tied and even.embedding is model.embedding

    def run(of):
        """Logits, and what comes of the first matrices alone."""
        found = {}
        logits = FloatModel(of).forward(texts[3], lambda *node: found.setdefault(node[:2], node[2]))
        return logits, found["q", 0]
    want, ours = run(model), run(even)
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())

    def wrong(of):
        return np.square(run(rounded(of, 12.0))[1] - want[1]).mean()
    assert wrong(even) < 0.85 * wrong(model)


def test_perplexity(stories, monkeypatch):
    """The coarsest of those tried that keeps the target, on the text that was looked at."""
    monkeypatch.setattr(budget, "TOKENS", 600)
    grids = {percent: grid_for_perplexity(stories, percent) for percent in (0.5, 5.0)}
    sizes = {percent: coded_size(stories, grid) for percent, grid in grids.items()}
    assert sizes[5.0] < sizes[0.5] < 6
    found = {}
    for name, model in (("float", stories), ("rounded", rounded(stories, grids[5.0]))):
        runner, losses = FloatModel(model), []
        for tokens in windows(stories, validation_text()[:5], stories.context):
            losses.append(negative_log_likelihood(runner.forward(tokens[:-1]),
                                                  np.array(tokens[1:])))
        found[name] = exp(np.concatenate(losses).mean())
    assert 1.0 < found["rounded"] / found["float"] < 1.2        # another text: it costs some


@pytest.mark.parametrize("args, message", [
    (["--bits", "5", "--target-ppl", "1"], "give one"),
    (["--bits", "0.5"], "1..8 bits a weight, not 0.5"),
    (["--bits", "9"], "1..8 bits a weight, not 9"),
    (["--target-ppl", "0"], "above 0 per cent, not 0"),
    (["--bits", "5", "--board", "virtual"], "save nothing on the board virtual"),
])
def test_refused(args, message, tmp_path, capsys):
    assert cli.main(["compile", "-o", str(tmp_path / "x.mlk"), *args]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compile(tmp_path, capsys, monkeypatch):
    """A budget is kept by the image, which then has a fixed one."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    image = str(tmp_path / "x.mlk")
    board = ["--board", "ulx3s_85f"]
    assert cli.main(["compile", "-o", image, "--bits", "5", *board]) == 0
    capsys.readouterr()
    assert cli.main(["info", image, "--json", "-"]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert {t["mode"] for t in tensors} == {"entropy"}
    # What segments and rows of the small matrices cost is not in the budget.
    assert 8 * sum(t["bytes"] for t in tensors) < 5.1 * sum(t["weights"] for t in tensors)
    assert cli.main(["generate", "a", "--model", image, "--bits", "4", *board]) == 2
    assert "was fixed when it was compiled" in capsys.readouterr().err
