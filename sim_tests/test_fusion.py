"""FFN Fusion: attentions left out, dependence measured, FFNs side by side as one, in float64."""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.errors import UserError
from meadowlark.models.float_model import FloatModel
from meadowlark.models.fusion import (altered, check_fusion, choose, dependence, fuse, groups,
                                      layers_of, runs, without_attention)
from meadowlark.models.graph import Add, Attend, Gate, Graph
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import fold_layer_norms, suited
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import plan
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from random_model import outlined, random_model, random_texts
from test_rewrite import FFN, VOCAB, built, close, logits


def side_by_side(model, parts):
    """The graph in which the FFNs of each part read what the first one reads, nothing stacked."""
    changes = {}
    for part in parts:
        for ffn in part:
            changes[ffn.norm] = replace(ffn.norm, x=part[0].norm.x)
    operators = tuple(changes.get(op, op) for op in model.graph.operators)
    return replace(model, graph=Graph(operators, model.graph.shapes, model.graph.tables))


@pytest.mark.parametrize("options", [
    {}, dict(bias=True), dict(beta=False, bias=False, tied=False), dict(centred=False),
    dict(centred=False, beta=False, gated=False)])
def test_one_is_many_side_by_side(options, seed):
    """Exact but for the order of sums, whatever norms, biases and gates are."""
    rng = np.random.default_rng(seed)
    model = fold_layer_norms(without_attention(built(rng, layers=4, **options), {1, 2, 3}))
    run, = runs(model.graph)
    assert [ffn.name for ffn in run] == [f"layers.{i}" for i in range(4)]
    model.weights[run[1].norm.gamma][3] = 0         # a factor that another norm does not have
    for norm in run[0].norm, run[1].norm:           # of both: one of nothing
        model.weights[norm.gamma][5] = 0
    model.weights[run[1].norm.gamma][7] *= -1
    for parts in ([run[:2]], [run[:2], run[2:]], [run[1:]], [run]):
        made = fuse(model, parts)
        assert close(side_by_side(model, parts), made, rng, 1e-10)
        assert not close(model, made, rng, 1e-3)    # another model
        assert [made.graph.edges[op.out].width for op in made.graph.of(Gate)] == [
            FFN * len(next((part for part in parts if ffn in part), [ffn]))
            for ffn in run if not any(ffn in part[1:] for part in parts)]
        assert {n: w.shape for n, w in made.weights.items()} == made.graph.shapes
        assert set(made.blocks) <= set(made.weights)
        plan(made.graph)
    assert fuse(model, []) is model
    largest = np.abs([model.weights[ffn.norm.gamma] for ffn in run]).max(axis=0)
    np.testing.assert_array_equal(made.weights["layers.0.fused4.norm2"], largest)


def test_a_fused_model_runs_in_integers(seed):
    rng = np.random.default_rng(seed)
    model = fold_layer_norms(without_attention(built(rng, layers=3), {1, 2}))
    model = replace(model, weights={n: v.astype(np.float32) for n, v in model.weights.items()})
    run, = runs(model.graph)
    made = suited(fuse(model, [run]), 200)          # and is cut again for a small board
    assert sum(1 for _ in made.graph.of(Gate)) == -(-3 * FFN // 192)
    assert close(fuse(model, [run]), made, rng, 1e-6)
    qm = quantise(made, random_texts(made, seed=seed))
    tokens = rng.integers(0, VOCAB, 20)
    want, got = logits(made, tokens), GoldenModel(qm).forward(tokens, want="all") / 4096
    assert np.abs(got - want).max() < 0.1 * want.std()


# ---- Attentions left out

def test_attention_is_left_out(seed):
    """As much as if what it adds were zero; nothing of it is left."""
    rng = np.random.default_rng(seed)
    model = built(rng, layers=4)
    zeros = {name: np.zeros_like(w) if name.startswith(("layers.1.o", "layers.3.o")) else w
             for name, w in model.weights.items()}
    made = without_attention(model, {1, 3})
    assert close(replace(model, weights=zeros), made, rng, 1e-12)
    assert not any(name.startswith(("layers.1.", "layers.3."))
                   and name.split(".")[2] in ("q", "k", "v", "o", "norm1")
                   for name in (*made.weights, *made.graph.shapes, *made.graph.edges))
    assert len([*made.graph.of(Attend)]) == 2 and len([*made.graph.of(Gate)]) == 4
    gone = sum(w.size for name, w in model.weights.items() if name not in made.weights)
    assert gone > 0 and made.parameters == model.parameters - gone
    assert without_attention(model, ()) is model


@pytest.mark.parametrize("asked, layers", [
    ("", set()), ("3", {3}), ("3-6", {3, 4, 5, 6}), ("1,3-4,8", {1, 3, 4, 8}), ("2-2", {2})])
def test_layers_are_named(asked, layers):
    assert layers_of(asked) == layers


@pytest.mark.parametrize("asked", ["x", "-1", "3-", "-", "1,,2", "3-x", "1.5", " 1"])
def test_no_layers(asked):
    with pytest.raises(UserError, match="names no layers; give some such as 3-6"):
        layers_of(asked)


def test_layers_that_are_not_there(seed):
    model = built(np.random.default_rng(seed))
    with pytest.raises(UserError, match="names layer 2 and outline has 2, counted from 0"):
        without_attention(model, {0, 2})
    with pytest.raises(UserError, match="leaves no attention at all"):
        without_attention(model, {0, 1})


# ---- What follows what, and what depends on what

def test_runs(seed):
    """FFNs with attention between, of other constructions or that differ are no run."""
    rng = np.random.default_rng(seed)
    model = built(rng, layers=5, centred=False, beta=False)
    assert runs(model.graph) == []

    def names(model):
        return [[ffn.name for ffn in run] for run in runs(model.graph)]
    assert names(without_attention(model, {1, 4})) == [
        ["layers.0", "layers.1"], ["layers.3", "layers.4"]]
    apart = without_attention(model, {1, 2, 3, 4})

    def changed(old, **new):
        return replace(apart, graph=Graph(
            tuple(replace(op, **new) if op.out == old else op for op in apart.graph.operators),
            apart.graph.shapes, apart.graph.tables))
    assert names(changed("layers.2.norm2.x", eps=0.1)) == [
        ["layers.0", "layers.1"], ["layers.3", "layers.4"]]
    add = [*apart.graph.of(Add)][-2]
    assert names(changed(add.out, scale=0.5))[0][-1] == "layers.2"
    shared = changed("layers.2.gate", x="layers.0.norm2.x")     # a norm that others read, too
    assert names(shared) == [["layers.3", "layers.4"]]


def test_dependence(seed):
    """The definition, run on the whole model; of a block that adds nothing it is 0."""
    rng = np.random.default_rng(seed)
    model = without_attention(built(rng, layers=4, centred=False, beta=False), {1, 2, 3})
    run, = runs(model.graph)
    model.weights[run[1].down.weight][:] = 0
    if run[1].down.bias is not None:
        model.weights[run[1].down.bias][:] = 0
    texts = [rng.integers(0, VOCAB, n).tolist() for n in (7, 3)]
    found = dependence(model, run, texts)
    assert found.shape == (4, 4) and not found[np.tril_indices(4)].any()
    np.testing.assert_allclose(found[1], 0, atol=1e-12)
    assert found[0, 1] == 0             # it adds nothing either way
    want = []
    for text in texts:
        added = []
        for scale in (1.0, 0.0):
            graph = Graph(tuple(replace(op, scale=scale) if op is run[0].add else op
                                for op in model.graph.operators),
                          model.graph.shapes, model.graph.tables)
            edges = {}
            FloatModel(replace(model, graph=graph)).forward(text, edges.__setitem__)
            added.append(edges[run[3].down.out])
        a, b = added
        want += (1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                 ).tolist()
    assert found[0, 3] == pytest.approx(np.mean(want), rel=1e-5)


def test_groups_are_chosen():
    """As long as none depends on another; never with the last one."""
    run = list("abcdef")

    def of(limit, **pairs):
        found = np.full((6, 6), 0.01)
        for pair, value in pairs.items():
            found[run.index(pair[0]), run.index(pair[1])] = value
        return ["".join(part) for part in choose(run, found, limit)]
    assert of(0.1) == ["abcde"]
    assert of(0.1, ef=0.9, af=0.9) == ["abcde"]
    assert of(0.1, bc=0.1) == ["abcde"]
    assert of(0.1, bc=0.11) == ["ab", "cde"]
    assert of(0.1, ac=0.11) == ["ab", "cde"]
    assert of(0.1, ab=1, bc=1) == ["cde"]
    assert of(0.001) == []


@pytest.mark.parametrize("asked, want", [
    ("none", []), ("2", ["01", "23"]), ("3", ["012", "34"]), ("4", ["0123"]), ("9", ["01234"]),
    ("1-2", ["12"]), ("0-1,3-4", ["01", "34"])])
def test_groups_are_asked_for(asked, want, seed):
    model = without_attention(built(np.random.default_rng(seed), layers=5, centred=False,
                                    beta=False), {1, 2, 3, 4})
    check_fusion(asked)
    assert ["".join(ffn.name[-1] for ffn in part)
            for part in groups(model, asked, lambda _: [])] == want


@pytest.mark.parametrize("asked", ["", "1", "0", "-2", "x", "2-1", "3-3", "1-2,", "2.5", "a-b"])
def test_no_way_to_fuse(asked):
    with pytest.raises(UserError, match="is no way to fuse; give auto, none, how many"):
        check_fusion(asked)


def test_what_cannot_be_fused(seed):
    rng = np.random.default_rng(seed)
    model = built(rng, layers=5, centred=False, beta=False)
    with pytest.raises(UserError, match="outline has no two FFNs without attention between them"):
        groups(model, "auto", lambda _: [])
    model = without_attention(model, {1, 4})
    for asked in "0-2", "1-2", "4-5":
        with pytest.raises(UserError, match="which do not follow each other without attention "
                                            "between; parts of 0-1 and of 3-4 can be fused"):
            groups(model, asked, lambda _: [])
    with pytest.raises(UserError, match="0-1 of outline, twice"):
        groups(model, "0-1,0-1", lambda _: [])


# ---- By name

def test_an_outline_is_fused_as_its_model_is(tmp_path, seed):
    """From options to an image: outline and values have one graph, and the image runs."""
    folder = random_model(tmp_path, seed=seed, layers=4)
    board = get_board("virtual")
    auto = {}

    def texts(model):
        auto["asked"] = auto.get("asked", 0) + 1
        return random_texts(model, seed=seed)
    for asked in "3", "auto", "1-2":
        whole, outline = (load_model(folder, outline=o) for o in (False, True))
        one, two = (altered(m, fuse_ffn=asked, drop_attention="1-3", whole=lambda w=whole: w,
                            texts=texts) for m in (whole, outline))
        assert str(one.graph) == str(two.graph) and one.parameters == two.parameters
        assert not any(any(w.strides) for w in two.weights.values())
    assert auto["asked"] == 2
    source = Source(str(folder), board, fuse_ffn="1-2", drop_attention="1-3")
    assert source.image.shape["layers"] == 1
    assert "layers.1.fused2.down" in [t["name"] for t in source.image.tensors]
    assert source.quantised.parameters < load_model(folder).parameters


def test_a_large_outline_takes_no_memory():
    model = without_attention(outlined(hidden=4096, ffn=1 << 15), {1, 2, 3})
    made = fuse(model, groups(model, "4", lambda _: []))
    assert not any(any(w.strides) for w in made.weights.values())
    assert {n: w.shape for n, w in made.weights.items()} == made.graph.shapes
