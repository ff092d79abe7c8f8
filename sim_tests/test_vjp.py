"""Gradients of every operator, against differences in float64."""
import numpy as np
import pytest

from meadowlark.models import graph as operators
from meadowlark.models.checkpoint import Model
from meadowlark.models.float_model import FORWARD, FloatModel, capped, matrix
from meadowlark.models.graph import Builder, Graph, Head, Operator, Rates, rates
from meadowlark.models.vjp import VJP, gradients
from meadowlark_hdl.isa import Fn

HIDDEN, VOCAB, TOKENS = 12, 20, 7


def every_operator() -> Graph:
    """One of each kind, with every field that changes what it computes, and edges read twice."""
    b = Builder()
    r = b.embed(VOCAB, HIDDEN, scale=1.5)
    x = b.norm(r, "norm1", 1e-5)
    q = b.rope(b.linear(x, "q", 4 * 6, bias=True), 6, Rates(rates(2, 50.0)), "partial")
    k = b.norm(b.linear(x, "k", 2 * 6), "k_norm", 1e-3, head_dim=6)
    k = b.rope(k, 6, Rates(rates(2, 50.0)), "partial")
    v = b.linear(x, "v", 2 * 6, bias=True)
    a = b.attend(q, k, v, "attention", heads=4, kv_heads=2, head_dim=6, divisor=1.7, window=4,
                 cap=1.5)
    r = b.add(r, b.linear(a, "o", HIDDEN), scale=0.3)
    x = b.norm(r, "norm2", 1e-3, beta=True, centred=True)
    y = b.linear(b.gate(b.linear(x, "gate", 10), b.linear(x, "up", 10), "h"), "down", HIDDEN)
    r = b.add(r, b.norm(y, "behind", 1e-3))
    y = b.gate(b.linear(x, "alone", 9), None, "alone.h", fn=Fn.GELU)
    r = b.add(r, b.linear(y, "last", HIDDEN))
    x = b.read(r, "read")
    c = b.norm(b.linear(x, "c", 2 * 5), "c_norm", 1e-3)
    a = b.attend(b.linear(x, "q2", 4 * 8), b.linear(x, "k2", 2 * 3), c, "latent", heads=4,
                 kv_heads=2, head_dim=8, latent=5)
    r = b.add(r, b.linear(a, "o2", HIDDEN))
    b.head(b.norm(r, "final_norm", 1e-5), VOCAB, scale=0.5, cap=0.8)
    return b.graph()


def an_encoder() -> Graph:
    """Of images: what a token is given of one, positions alone, attention to all."""
    b = Builder()
    r = b.add(b.embed(None, HIDDEN, positions=TOKENS), b.linear(b.patches(5), "patches.in", HIDDEN))
    x = b.norm(r, "norm1", 1e-5)
    q, k, v = (b.linear(x, name, 4 * 3) for name in "qkv")
    a = b.attend(q, k, v, "attention", heads=4, kv_heads=4, head_dim=3, ahead=True)
    b.head(b.norm(b.add(r, b.linear(a, "o", HIDDEN)), "final_norm", 1e-5), VOCAB)
    return b.graph()


@pytest.fixture(params=[every_operator, an_encoder])
def model(seed, request):
    """In float64, so that differences are exact to many digits."""
    rng, graph = np.random.default_rng(seed), request.param()
    weights = {name: rng.normal(size=shape) / np.sqrt(shape[-1]) + (len(shape) == 1)
               for name, shape in graph.shapes.items()}
    context = TOKENS if graph.encoder else 16
    return Model(name="m", family="", graph=graph, weights=weights, context=context, tokenizer=None,
                 bos_id=None, stop_ids=(), parameters=0)


def test_every_operator_has_every_pass():
    kinds = {value for value in vars(operators).values()
             if isinstance(value, type) and issubclass(value, Operator) and value is not Operator}
    assert kinds == set(FORWARD) == set(VJP) == {
        type(op) for make in (every_operator, an_encoder) for op in make().operators}


def test_gradients(model, seed, monkeypatch):
    """Along a random direction of every matrix: the loss changes by what the gradient says."""
    rng = np.random.default_rng(seed)
    tokens, weights = rng.integers(0, VOCAB, TOKENS), rng.normal(size=(TOKENS, VOCAB))
    if model.graph.encoder:
        tokens = rng.normal(size=(TOKENS, 5))
    values, given = {}, {}
    loss = (weights * FloatModel(model).forward(tokens, values.__setitem__)).sum()
    first = gradients(model, values, weights, lambda op, x, d: given.__setitem__(op.out, d))
    given["residual"] = first
    assert {op.out for op in model.graph.of(operators.Linear, Head)} | {"residual"} == set(given)
    for name, gradient in given.items():
        op, ends = model.graph.maker[name], []
        direction, plain = rng.normal(size=gradient.shape), FORWARD[type(op)]
        for step in (1e-6, -1e-6):
            def moved(run, by, *inputs, plain=plain, op=op, move=step * direction):
                if by is not op:
                    return plain(run, by, *inputs)
                if not isinstance(op, Head):
                    return plain(run, by, *inputs) + move
                # Of the head, the gradient is that of the matrix' own output, before scale and cap.
                return capped(op.scale * (matrix(run.weights, op, *inputs) + move), op.cap)
            with monkeypatch.context() as patch:
                patch.setitem(FORWARD, type(op), moved)
                ends.append((weights * FloatModel(model).forward(tokens)).sum())
        got = (ends[0] - ends[1]) / 2e-6
        assert got == pytest.approx((gradient * direction).sum(), rel=1e-5,
                                    abs=1e-6 * abs(loss)), name
