"""Passes over a model: in float64 it computes the same before and after."""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.models.blocks import KINDS, BlockTensor
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import (Add, Attend, Builder, Embed, Gate, Graph, GraphError, Head,
                                     Linear, Norm, Rates, Rope, rates)
from meadowlark.models.rewrite import cut_ffn, fold_layer_norms, suited
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import plan
from meadowlark.quant.quantise import quantise
from random_model import outlined, random_texts

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 48, 4, 2, 6, 208, 70


def built(rng, *, centred=True, beta=True, bias=None, tied=True, blocks="", ffn=FFN, gated=True,
          layers=2):
    """A model with values in float64: its norms have a mean that matters, and its scales are not 1.
    bias: of all matrices; None: of some, by chance. blocks: the kind of the FFN's matrices. gated:
    FFNs have a gate."""
    b = Builder()

    def linear(x, name, rows):
        return b.linear(x, name, rows, bias=bool(rng.random() < 0.5 if bias is None else bias))
    r, table = b.embed(VOCAB, HIDDEN, scale=1.5), Rates(rates(HEAD_DIM // 2, 100.0))
    for i in range(layers):
        at = f"layers.{i}"
        x = b.norm(r, f"{at}.norm1", 1e-5, centred=centred, beta=beta)
        q, k, v = (linear(x, f"{at}.{name}", heads * HEAD_DIM)
                   for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))
        q, k = b.rope(q, HEAD_DIM, table), b.rope(k, HEAD_DIM, table)
        a = b.attend(q, k, v, f"{at}.attention", heads=HEADS, kv_heads=KV_HEADS,
                     head_dim=HEAD_DIM)
        r = b.add(r, linear(a, f"{at}.o", HIDDEN), scale=0.7)
        x = b.norm(r, f"{at}.norm2", 1e-5, centred=centred, beta=beta)
        both = bool(rng.random() < 0.5 if bias is None else bias)
        gate, up = (b.linear(x, f"{at}.{name}", ffn, bias=both)
                    if gated or name == "gate" else None for name in ("gate", "up"))
        r = b.add(r, linear(b.gate(gate, up, f"{at}.h"), f"{at}.down", HIDDEN))
    b.head(b.norm(r, "final_norm", 1e-5, centred=centred, beta=beta), VOCAB,
           weight="embedding" if tied else "head", scale=0.25)
    graph = b.graph()
    weights = {name: rng.normal(0.3, 1.0, shape) / np.sqrt(shape[-1]) + (len(shape) == 1)
               for name, shape in graph.shapes.items()}
    made = {}
    for name, shape in graph.shapes.items() if blocks else ():
        if name.rpartition(".")[2] in ("gate", "up", "down") and not shape[1] % 32:
            raw = rng.integers(0, 256, (shape[0], shape[1] // 32 * KINDS[blocks]), np.uint8)
            raw.reshape(shape[0], -1, KINDS[blocks])[..., 1] = 0x20     # scales of 0.01
            raw.reshape(shape[0], -1, KINDS[blocks])[..., 3] = 0x20
            made[name] = BlockTensor.from_bytes(blocks, raw)
            weights[name] = made[name].dequantised().astype(np.float64)
    return replace(outlined(), graph=graph, weights=weights, blocks=made)


def logits(model, tokens):
    """float64[n, vocab], each operator as its definition reads."""
    w, edges, n = model.weights, {}, len(tokens)
    for op in model.graph.operators:
        x = [edges[name].astype(np.float64) for name in op.inputs]
        match op:
            case Embed():
                y = w[op.weight][tokens] * op.scale
            case Norm():
                y = x[0] - x[0].mean(axis=1, keepdims=True) if op.centred else x[0]
                y = y / np.sqrt((y**2).mean(axis=1, keepdims=True) + op.eps) * w[op.gamma]
                y = y if op.beta is None else y + w[op.beta]
            case Linear() | Head():
                y = x[0] @ w[op.weight].T + (0 if op.bias is None else w[op.bias])
                y = y * getattr(op, "scale", 1)
            case Rope():
                a, b = np.split(x[0].reshape(n, -1, op.head_dim), 2, axis=2)
                turn = np.exp(1j * model.graph.tables[op.table].angles(range(n)))[:, None]
                z = (a + 1j * b) * turn
                y = np.concatenate([z.real, z.imag], axis=2).reshape(n, -1)
            case Attend():
                q, k, v = (part.reshape(n, -1, op.head_dim) for part in x)
                k, v = (np.repeat(part, op.heads // op.kv_heads, axis=1) for part in (k, v))
                s = np.einsum("qhd,khd->hqk", q, k) / op.divisor
                p = np.exp(np.where(np.tri(n, dtype=bool), s, -np.inf))
                y = np.einsum("hqk,khd->qhd", p / p.sum(axis=2, keepdims=True), v).reshape(n, -1)
            case Gate():
                y = x[0] / (1 + np.exp(-x[0])) * (x[1] if op.up else 1)
            case Add():
                y = x[0] + op.scale * x[1]
        edges[op.out] = y
    return y


def close(model, other, rng, share):
    """Logits that differ by no more than a share of their spread."""
    tokens = rng.integers(0, VOCAB, 9)
    one, two = logits(model, tokens), logits(other, tokens)
    return np.abs(one - two).max() <= share * one.std()


@pytest.mark.parametrize("options", [
    {}, dict(tied=False, bias=True), dict(beta=False, bias=False), dict(centred=False),
    dict(centred=False, tied=False)])
def test_layer_norms_are_folded(options, seed):
    rng = np.random.default_rng(seed)
    model = built(rng, **options)
    folded = fold_layer_norms(model)
    assert all(not op.centred and op.beta is None for op in folded.graph.of(Norm))
    assert close(model, folded, rng, 1e-10)
    single = replace(model, weights={n: v.astype(np.float32) for n, v in model.weights.items()})
    assert close(single, fold_layer_norms(single), rng, 1e-6)
    tokens = rng.integers(0, VOCAB, 9)
    want, got = logits(model, tokens), FloatModel(folded).forward(tokens)   # RoPE is of float32
    assert np.abs(want - got).max() <= 1e-4 * want.std()
    # Without the mean of its writers a residual has none; that alone would not do.
    if options.get("centred", True):
        assert not close(model, replace(folded, weights=folded.weights | {
            "embedding": model.weights["embedding"]}), rng, 1e-3)
    plan(folded.graph)
    assert fold_layer_norms(folded) is folded


def test_a_folded_model_runs_in_integers(seed):
    """Offsets end in the biases, the head's too."""
    rng = np.random.default_rng(seed)
    model = built(rng, bias=True)
    model = fold_layer_norms(replace(model, weights={
        n: v.astype(np.float32) for n, v in model.weights.items()}))
    assert next(model.graph.of(Head)).bias == "head.bias" and not model.tied
    qm = quantise(model, random_texts(model, seed=seed))
    tokens = rng.integers(0, VOCAB, 20)
    want = logits(model, tokens)
    got = GoldenModel(qm).forward(tokens, want="all") / 4096
    assert np.abs(got - want).max() < 0.1 * want.std()


def test_norms_of_both_kinds_are_refused(seed):
    model = built(np.random.default_rng(seed))
    first, *_ = model.graph.of(Norm)
    graph = Graph(tuple(replace(op, centred=False) if op is first else op
                        for op in model.graph.operators), model.graph.shapes, model.graph.tables)
    with pytest.raises(GraphError, match="some norms subtract the mean and others do not"):
        fold_layer_norms(replace(model, graph=graph))


@pytest.mark.parametrize("most, widths", [
    (208, [208]), (207, [128, 80]), (100, [96, 96, 16]), (64, [64, 64, 64, 16]), (63, [32] * 6
                                                                                  + [16])])
@pytest.mark.parametrize("gated", [True, False])
def test_wide_ffns_are_cut(most, widths, gated, seed):
    """As few slices as fit, of equal widths, and the bias of the sum once."""
    rng = np.random.default_rng(seed)
    model = built(rng, centred=False, beta=False, gated=gated)
    cut = cut_ffn(model, most)
    for i in range(2):
        assert [cut.graph.edges[op.out].width for op in cut.graph.of(Gate)
                if op.out.startswith(f"layers.{i}.")] == widths
    assert close(model, cut, rng, 1e-10)
    assert set(cut.weights) == set(cut.graph.shapes)
    assert {n: w.shape for n, w in cut.weights.items()} == cut.graph.shapes
    if len(widths) > 1:
        assert [m.name for m in plan(cut.graph).matrices][4:6] == [
            f"layers.0.slice0.gate{'_up' * gated}", "layers.0.slice0.down"]
        both = sum(w.size for n, w in cut.weights.items())
        assert both == sum(w.size for n, w in model.weights.items())
        assert cut_ffn(cut, most) is cut
    else:
        assert cut is model


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_stay_blocks(kind, seed):
    rng = np.random.default_rng(seed)
    model = built(rng, centred=False, beta=False, blocks=kind, ffn=192)
    cut = cut_ffn(model, 80)
    named = [name for name in cut.weights if ".down" in name and not name.endswith(".bias")]
    assert len(named) == 6 and cut.blocks.keys() == set(named)
    for name in named:
        np.testing.assert_array_equal(cut.blocks[name].dequantised(), cut.weights[name])


def test_an_outline_takes_no_memory():
    model = outlined(vocab=1 << 17, hidden=4096, ffn=1 << 15)
    b = replace(model, graph=Graph(
        tuple(replace(op, centred=True) if isinstance(op, Norm) else op
              for op in model.graph.operators), model.graph.shapes, model.graph.tables))
    made = suited(b, 4096)
    assert sum(1 for _ in made.graph.of(Gate)) == 8 * 6
    assert {n: w.shape for n, w in made.weights.items()} == made.graph.shapes
    assert not any(any(w.strides) for w in made.weights.values())
