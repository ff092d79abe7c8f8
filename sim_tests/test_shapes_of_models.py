"""Models that are no Llama's: scales, layers without rotation, several FFNs or none in a row.

Their graphs are drawn; integers follow float32 on all of them.
"""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.errors import UserError
from meadowlark.models.checkpoint import untied
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import (Add, Attend, Builder, Embed, Gate, Head, Linear, Norm, Rates,
                                     Rope, rates)
from meadowlark.models.rewrite import cut_ffn
from meadowlark.quant import integers
from meadowlark.quant.budget import divergence, rounded_codes, shares
from meadowlark.quant.equalise import equalise
from meadowlark.quant.feedback import Moments
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import Order, plan
from meadowlark.quant.quantise import LOGIT_FRAC, observe, quantise
from meadowlark.quant.sensitivity import Sensitivity
from meadowlark_hdl.isa import Fn
from random_model import outlined, random_texts

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 48, 4, 2, 12, 96, 90
#: embedding, residual, logits, and what scores are divided by.
SCALES = {"llama": (1.0, 1.0, 1.0, None), "granite": (12.0, 0.22, 0.125, 64.0)}


def built(rng, *, scales="llama", turning=HEAD_DIM // 2, unrotated=(), faster=(), blocks="afaf",
          bias=False, tied=False, qk=None, behind=False, eps=1e-5, fn=Fn.SILU):
    """A model with random weights.

    turning: pairs of a head that rotate. unrotated: numbers of those attentions that do not,
    faster: of those that have another table, of a pair less.
    blocks: what adds to the residual in turn, an attention, an FFN or one without a gate ("m"),
    each behind a norm of its own unless a "+" stands before it, as slices of one FFN. fn: of
    FFNs. qk: whether queries and keys are
    normed, and how, see :class:`.llama.Decoder`; behind: so is what is added. eps: of both.
    """
    embedding, residual, logits, divisor = SCALES[scales]
    gains, b = {}, Builder()

    def linear(x, name, rows, gain):
        gains[name] = gain
        return b.linear(x, name, rows, bias=bias)
    r, table = b.embed(VOCAB, HIDDEN, scale=embedding), Rates(rates(turning, 100.0))
    gains["embedding"] = np.sqrt(HIDDEN) / embedding
    add = 1 / np.sqrt(len(blocks)) / residual
    x, attends = "", 0
    for i, kind in enumerate(blocks):
        at = f"layers.{i}"
        if kind == "+":
            continue
        if not i or blocks[i - 1] != "+":
            x = b.norm(r, f"{at}.norm", 1e-5)
        if kind == "a":
            q, k, v = (linear(x, f"{at}.{name}", heads * HEAD_DIM, gain)
                       for name, heads, gain in (("q", HEADS, 1.5), ("k", KV_HEADS, 1.5),
                                                 ("v", KV_HEADS, 1.0)))
            gains[q] *= (divisor or np.sqrt(HEAD_DIM)) / np.sqrt(HEAD_DIM)
            if qk is not None:
                q, k = (b.norm(y, f"{y}_norm", eps, head_dim=HEAD_DIM if qk == "head" else None)
                        for y in (q, k))
            if attends not in unrotated:
                some = attends in faster
                of = Rates(rates(turning - 1, 10.0)) if some else table
                q, k = (b.rope(y, HEAD_DIM, of, "faster" if some else "rope") for y in (q, k))
            attends += 1
            y = b.attend(q, k, v, f"{at}.attention", heads=HEADS, kv_heads=KV_HEADS,
                         head_dim=HEAD_DIM, divisor=divisor)
        elif kind == "m":
            y = b.gate(linear(x, f"{at}.up", FFN, 1.5), None, f"{at}.h", fn=fn)
        else:
            y = b.gate(linear(x, f"{at}.gate", FFN, 1.5), linear(x, f"{at}.up", FFN, 1.0),
                       f"{at}.h", fn=fn)
        y = linear(y, f"{at}.out", HIDDEN, add)
        r = b.add(r, b.norm(y, f"{at}.behind", eps) if behind else y, scale=residual)
    b.head(b.norm(r, "final_norm", 1e-5), VOCAB, weight="embedding" if tied else "head",
           scale=logits)
    gains["head"] = 2 / logits
    graph = b.graph()
    weights = {}
    for name, shape in graph.shapes.items():
        if len(shape) == 2:
            w = rng.normal(size=shape) * gains[name] / np.sqrt(shape[1])
        elif name.endswith(".bias"):
            w = rng.normal(0, 0.3 * gains[name.removesuffix(".bias")], shape)
        else:
            w = rng.normal(1.0, 0.2, shape)
        weights[name] = w.astype(np.float32)
    if tied:
        weights["final_norm"] *= np.float32(2 * embedding / logits / np.sqrt(HIDDEN))
    return replace(outlined(), graph=graph, weights=weights, context=128)


SHAPES = {
    "granite": dict(scales="granite"),
    "granite, tied and biased": dict(scales="granite", tied=True, bias=True),
    "some layers without rotation": dict(unrotated=(1,), blocks="afafaf"),
    "no rotation": dict(unrotated=(0, 1), bias=True),
    "half of a head rotates": dict(turning=HEAD_DIM // 4),
    "two tables": dict(blocks="aaafa", faster=(0, 1, 3), unrotated=(1,)),
    "slices": dict(blocks="af+f+faf"),
    "two attentions, one FFN": dict(blocks="aaf", scales="granite", unrotated=(0,)),
    "attention and FFN side by side": dict(blocks="a+fa+f"),
    "no gates, ReLU": dict(blocks="amam", fn=Fn.RELU, bias=True),
    "no gates, GELU": dict(blocks="a+mafm", fn=Fn.GELU, scales="granite"),
    "no gates, tanh": dict(blocks="am", fn=Fn.TANH, bias=True),
    "norms of heads": dict(qk="head", eps=1e-3),
    "norms of queries and of keys": dict(qk="projection", bias=True),
    "norms behind": dict(behind=True, scales="granite", eps=0.1),
    "all norms, some layers without rotation": dict(qk="head", behind=True, unrotated=(1,)),
}


@pytest.fixture(params=SHAPES)
def model(request, seed):
    return built(np.random.default_rng(seed), **SHAPES[request.param])


def run(golden, tokens):
    return golden.forward(tokens, want="all") / 2.0**LOGIT_FRAC


def test_integers_follow_float32(model, seed):
    """Little information is lost, and next to nothing is saturated; a cut prompt gives the same."""
    qm = quantise(model, random_texts(model, seed=seed, sequences=16, length=100))
    golden = GoldenModel(qm)
    for tokens in random_texts(model, seed=seed + 1, sequences=2, length=60):
        golden.forget()
        got, want = run(golden, tokens), FloatModel(model).forward(tokens)
        assert want.std() > 0.5
        assert divergence(want, got).mean() < 5e-3
        assert np.corrcoef(want.ravel(), got.ravel())[0, 1] > 0.999
    part = golden.forward(tokens[:7])
    np.testing.assert_array_equal(part / 2.0**LOGIT_FRAC, got[6])
    np.testing.assert_array_equal(run(golden, tokens), got)


def test_integers_survive(model, seed):
    qm = quantise(model, random_texts(model, seed=seed, sequences=2))
    raw = integers.dump(qm)
    found = integers.load(raw, model, "auto")
    assert integers.dump(found) == raw and found.plan == qm.plan and found.tied == qm.tied
    tokens = random_texts(model, seed=seed + 1, sequences=1, length=20)[0]
    np.testing.assert_array_equal(*(GoldenModel(of).forward(tokens) for of in (found, qm)))


def test_heads_padded_further(model, seed):
    """More zeros behind each head change nothing."""
    texts = random_texts(model, seed=seed, sequences=4)
    narrow, wide = quantise(model, texts), quantise(model, texts, head_pad=64)
    assert (narrow.head_pad, wide.head_pad) == (16, 64)
    assert wide.rope.shape[1:] == (128, 32, 2)
    np.testing.assert_array_equal(*(GoldenModel(qm).forward(texts[0], want="all")
                                    for qm in (narrow, wide)))


def test_scales_are_part_of_the_requantisation(seed):
    """Powers of two, moved from the weights to the scales, change no number but the codes' worth:
    logits are equal to the last bit."""
    plain = built(np.random.default_rng(seed))
    changes = {Embed: dict(scale=4.0), Add: dict(scale=0.25), Head: dict(scale=0.5)}
    operators = tuple(
        replace(op, divisor=op.divisor * 2) if isinstance(op, Attend)
        else replace(op, **changes.get(type(op), {})) for op in plain.graph.operators)

    def factor(name):
        last = name.rpartition(".")[2]
        return {"embedding": 0.25, "out": 4, "head": 2, "q": 2}.get(last, 1)
    scaled = replace(plain, graph=replace(plain.graph, operators=operators), weights={
        name: w * np.float32(factor(name)) for name, w in plain.weights.items()})
    texts = random_texts(plain, seed=seed, sequences=3)
    for a, b in zip(*(GoldenModel(quantise(m, texts)).forward(texts[0], want="all")
                      for m in (plain, scaled)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_queries_and_keys_without_rotation(seed):
    """Rows in the order of the checkpoint, and nothing to shift."""
    model = built(np.random.default_rng(seed), unrotated=(1,), blocks="aa")
    qm = quantise(model, random_texts(model, seed=seed, sequences=2))
    rotated, bare = qm.plan.attends
    assert [m.order for m in (rotated.k, bare.q, bare.k)] == [
        Order.PAIRS, Order.HEADS, Order.HEADS]
    assert (qm.numbers[bare.name].q_shift, qm.numbers[bare.name].k_shift) == (0, 0)
    codes = qm.numbers[bare.k.name].codes.reshape(KV_HEADS, 16, HIDDEN)
    real = model.weights[bare.k.name].reshape(KV_HEADS, HEAD_DIM, HIDDEN)
    step = np.abs(real).max(axis=2, keepdims=True) / 127
    np.testing.assert_allclose(codes[:, :HEAD_DIM] * step, real, atol=0.501 * step.max())
    assert not codes[:, HEAD_DIM:].any()


def test_each_slice_has_a_scale(seed):
    """Of an FFN whose columns differ by far, slices keep what one scale loses."""
    rng = np.random.default_rng(seed)
    model = built(rng, blocks="aff")
    weights = dict(model.weights)
    for i in (1, 2):
        large = np.where(np.arange(FFN) < FFN // 3, 1000, 1).astype(np.float32)
        weights[f"layers.{i}.up"] = weights[f"layers.{i}.up"] * large[:, None]
        weights[f"layers.{i}.out"] = weights[f"layers.{i}.out"] / large
    model = replace(model, weights=weights)
    texts = random_texts(model, seed=seed, sequences=4)
    cut = cut_ffn(model, FFN // 3)
    assert len(list(cut.graph.of(Gate))) == 6
    whole, slices = (divergence(FloatModel(model).forward(texts[0]),
                                run(GoldenModel(quantise(of, texts)), texts[0])).mean()
                     for of in (model, cut))
    assert slices < 5e-3 and slices < whole / 4


@pytest.mark.parametrize("fn", [Fn.RELU, Fn.GELU])
def test_functions_without_a_gate(fn, seed):
    """What ReLU makes has the finest scale, whatever its size; what GELU makes is a power of two,
    shifted where it is large."""
    model, texts = built(np.random.default_rng(seed), blocks="am", fn=fn), None
    for factor in (1, 1e-3, 5.0):
        large = replace(model, weights=model.weights | {
            "layers.1.up": model.weights["layers.1.up"] * np.float32(factor),
            "layers.1.out": model.weights["layers.1.out"] / np.float32(factor)})
        texts = texts or random_texts(model, seed=seed, sequences=4)
        made = {}
        qm = quantise(large, texts)
        golden = GoldenModel(qm, trace=made.__setitem__)
        near = divergence(FloatModel(large).forward(texts[0]), run(golden, texts[0])).mean()
        most = np.abs(made["layers.1.h"]).max()
        if fn == Fn.RELU:
            assert qm.numbers["layers.1.h"].shift == 0 and 1 << 13 < most < 1 << 15
        elif factor > 1:
            assert qm.numbers["layers.1.h"].shift > 0 and 1 << 12 < most < 1 << 15
        else:
            assert qm.numbers["layers.1.h"].shift == 0 and most < 1 << 15
        assert near < (1 if factor < 1 and fn == Fn.GELU else 5e-3), factor


def test_columns_are_evened_out(model, seed):
    """The same function, on any graph, and all that it reads from a norm, an attention or a gate is
    nearer to even."""
    rng = np.random.default_rng(seed)
    weights = dict(model.weights)
    for op in model.graph.of(Norm):
        gamma = weights[op.gamma]
        weights[op.gamma] = gamma * np.exp(rng.normal(0, 1, gamma.shape)).astype(np.float32)
    model = replace(model, weights=weights)
    texts = random_texts(model, seed=seed, sequences=4)
    even = equalise(model, texts)
    assert not even.tied and even.weights.keys() == untied(model).weights.keys()
    seen = []
    for of in (model, even):
        found = {}
        FloatModel(of).forward(texts[0], found.setdefault)
        seen.append(found)
    before, after = seen
    np.testing.assert_allclose(after["logits"], before["logits"],
                               atol=1e-3 * np.abs(before["logits"]).max())

    def spread(x):
        size = np.sqrt(np.square(x).mean(axis=0))
        return np.log(size[size > 0]).std()     # a ReLU may have columns that are never above 0
    for op in model.graph.of(Norm, Gate):
        if any(isinstance(by, (Rope, Attend, Add)) for by in model.graph.readers[op.out]):
            continue                    # no matrix whose columns could even it out
        if isinstance(op, Gate) and op.up is None and op.fn != Fn.RELU:
            continue                    # a function that takes no other scale
        assert spread(after[op.out]) < spread(before[op.out]), op.out
    for op in model.graph.of(Attend):
        for edge in (op.q, op.k, op.v, op.out):
            assert (after[edge] != before[edge]).any(), edge


@pytest.mark.parametrize("what, message", [
    ("heads", "q_norm.x, whose parts of 4 values are no heads"),
    ("values", "attention, whose values are normed"),
    ("latent", "attention, whose latents are of several heads, or not alone in being normed"),
    ("parts", "p.x, which norms the input of a matrix in parts"),
    ("offset", "k_norm.x, a norm with a mean or an offset"),
    ("twice", "norm2.x, which norms the residual behind a norm of values"),
    ("epsilon", "norms with an epsilon, and others without"),
    ("nobody", "k_norm2.x of k_norm.x, which is no matrix of its own")])
def test_norms_that_cannot_be(what, message):
    """Each is refused by its name."""
    b = Builder()
    r = b.embed(VOCAB, HIDDEN)
    x = b.norm(r, "norm", 1e-5)
    q, k, v = (b.linear(x, name, HEAD_DIM) for name in "qkv")
    q = b.norm(q, "q_norm", 0.0 if what == "epsilon" else 1e-5,
               head_dim=4 if what == "heads" else HEAD_DIM)
    if what in ("offset", "nobody"):
        k = b.norm(k, "k_norm", 1e-5, beta=what == "offset")
    if what == "nobody":
        k = b.norm(k, "k_norm2", 1e-5)
    if what in ("values", "latent"):
        v = b.norm(v, "v_norm", 1e-5)
    if what == "parts":
        x = b.norm(b.linear(x, "p_in", 2 * HEAD_DIM), "p", 1e-5, head_dim=HEAD_DIM)
        k = b.linear(x, "k2", HEAD_DIM)
    if what == "latent":
        q = b.norm(b.linear(x, "q2", 2 * HEAD_DIM), "q2_norm", 1e-5)
        a = b.attend(q, k, v, "attention", heads=1, kv_heads=1, head_dim=2 * HEAD_DIM,
                     latent=HEAD_DIM)
    else:
        a = b.attend(q, k, v, "attention", heads=1, kv_heads=1, head_dim=HEAD_DIM)
    y = b.norm(r, "norm2", 1e-5) if what == "twice" else x
    r = b.add(r, b.linear(a, "o", HIDDEN))
    r = b.add(r, b.linear(b.gate(b.linear(y, "gate", FFN), b.linear(y, "up", FFN), "h"), "down",
                          HIDDEN))
    b.head(b.norm(r, "final_norm", 1e-5), VOCAB)
    with pytest.raises(UserError, match=message):
        plan(b.graph())


def test_moments_wait_for_the_residual(seed):
    """What slices read is weighed by the sum of all of them, which the next norm divides by."""
    model = built(np.random.default_rng(seed), blocks="f+ff", bias=True)
    tokens = random_texts(model, seed=seed, sequences=1, length=20)[0]
    moments, seen = Moments(model.graph), {}
    FloatModel(model).forward(tokens, moments.observe)
    FloatModel(model).forward(tokens, seen.setdefault)
    assert moments.of.keys() == {op.x for op in model.graph.of(Linear, Head)}
    for edge, residual in (("layers.0.h", "layers.2.out.residual"),
                           ("layers.2.h", "layers.2.out.residual"),
                           ("layers.3.h", "layers.3.out.residual")):
        x = seen[edge] / np.sqrt(np.square(seen[residual]).mean(axis=1, keepdims=True))
        np.testing.assert_allclose(moments.of[edge], x.T @ x, rtol=1e-3, atol=1e-3)


def test_a_budget_takes_every_weight(model, seed):
    model = untied(model)
    texts = random_texts(model, seed=seed, sequences=2)
    cost, moments = Sensitivity(model), Moments(model.graph)
    for tokens in texts:
        cost.observe(tokens)
    observe(model, texts, moments.observe)
    share = shares(model, cost)
    codes = rounded_codes(model, 8.0, share, moments)
    assert codes.keys() == share.keys() == {op.weight for op in model.graph.of(Linear, Head)}
    qm = quantise(model, texts, weights="int8", rounded=codes)
    got = run(GoldenModel(qm), texts[0])
    assert divergence(FloatModel(model).forward(texts[0]), got).mean() < 0.05
