"""Codes, scales and shifts of the integer model, and what is refused."""
from dataclasses import replace
from fractions import Fraction
from math import floor, log2

import numpy as np
import pytest
from random_model import random_model, random_texts

from meadowlark.errors import UserError
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Norm
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import AttendStep, GateStep, NormStep
from meadowlark.quant.quantise import (MAX_RESIDUAL_FRAC, MIN_RESIDUAL_FRAC, _coarse,
                                       calibration_tokens, measure, quantise)
from meadowlark.quant.sampling import mantissa_shift

SHAPES = {
    "plain": dict(),
    "padded": dict(hidden=48, heads=6, kv_heads=2, head_dim=24, ffn=80, tied=False,
                   attention_bias=True, mlp_bias=True),
}


@pytest.fixture(params=SHAPES)
def models(request, tmp_path, seed):
    """(float model, its ranges, its integer model)"""
    model = load_model(random_model(tmp_path, seed=seed, **SHAPES[request.param]))
    ranges = measure(model, random_texts(model, seed=seed))
    return model, ranges, quantise(model, ranges)


def scale(linear):
    return linear.mant / 2.0 ** linear.shift


def test_formats(models):
    """Types, shapes and ranges that the gateware and the compiler rely on."""
    model, _, qm = models
    steps, d = qm.plan, qm.head_pad
    head_dim = steps.attends[0].op.head_dim
    assert d & (d - 1) == 0 and d // 2 < head_dim <= d
    for matrix in (steps.embedding.matrix, *steps.matrices):
        w = qm.numbers[matrix.name]
        assert w.codes.dtype == np.int8 and w.codes.shape == (matrix.rows, matrix.columns)
        assert w.mant.dtype == np.uint16 and w.mant.min() >= 1 << 15
        assert w.shift.dtype == np.uint8 and w.shift.max() <= 63
        assert len(w.mant) == len(w.shift) == len(w.codes)
        assert (w.codes != -128).all()
        biased = "layers.0.q.bias" in model.weights and "layers" in matrix.name
        assert (w.bias is not None) == biased
        if biased:
            assert w.bias.dtype == np.int32 and w.bias.shape == (len(w.codes),)
        # each row that is not zero uses the whole range of its codes
        most = np.abs(w.codes.astype(int)).max(axis=1)
        assert set(most) <= {0, 127}
    for step in steps.of(NormStep):
        norm = qm.numbers[step.name]
        assert norm.gamma.dtype == np.int16 and norm.gamma.shape == (qm.hidden,)
        assert 0 <= norm.shift <= 63 and np.abs(norm.gamma.astype(int)).max() > 16000
    for step in steps.attends:
        attend = qm.numbers[step.name]
        assert attend.v_mant.shape == attend.v_shift.shape == (step.op.kv_heads,)
        assert attend.v_mant.min() >= 1 << 15
        # SV adds floor(log2(sum of p)), at most 15 + 12, to this shift: a RowScale has 6 bits
        assert attend.v_shift.max() + 27 <= 63
        assert attend.q_shift == 14 and 14 <= attend.k_shift <= 21
        assert 0 <= attend.score_shift <= 63
    assert all(0 <= qm.numbers[step.name].shift <= 63 for step in steps.of(GateStep))
    assert qm.numbers.keys() == {
        *(m.name for m in (steps.embedding.matrix, *steps.matrices)),
        *(step.name for step in steps.of(NormStep, AttendStep, GateStep))}
    assert qm.tied == model.tied == (
        qm.numbers["head"].codes is qm.numbers["embedding"].codes)
    assert 8 <= qm.residual_frac <= 16 and 1 <= qm.eps < 1 << 48


def test_rows_are_where_the_chip_wants_them(models):
    """Each row, dequantised, is the model's row that belongs there."""
    model, ranges, qm = models
    pad = qm.head_pad
    for i, step in enumerate(qm.plan.attends):
        d = step.op.head_dim
        pairs = [i // 2 + (i % 2) * d // 2 for i in range(d)]
        for name, order in (("q", pairs), ("k", pairs), ("v", range(d))):
            codes = qm.numbers[f"layers.{i}.{name}"].codes
            real = model.weights[f"layers.{i}.{name}"]
            for h in range(len(codes) // pad):
                for row in range(d):
                    want = real[h * d + order[row]]
                    np.testing.assert_array_equal(
                        codes[h * pad + row], np.rint(want / np.float32(
                            max(np.abs(want).max() / 127, 1e-30))))
                assert not codes[h * pad + d:(h + 1) * pad].any()
        columns = qm.numbers[f"layers.{i}.o"].codes.reshape(qm.hidden, step.op.heads, pad)
        assert not columns[:, :, d:].any()
        o = model.weights[f"layers.{i}.o"]
        unit = np.abs(o).max(axis=1)[:, None, None] / 127
        np.testing.assert_allclose(columns[:, :, :d] * unit,
                                   o.reshape(qm.hidden, step.op.heads, d), atol=unit.max() * 0.501)
        both = qm.numbers[f"layers.{i}.gate_up"]
        for name, start in (("gate", 0), ("up", 1)):
            w = model.weights[f"layers.{i}.{name}"]
            unit = np.abs(w).max(axis=1)[:, None] / 127
            np.testing.assert_allclose(both.codes[start::2] * unit, w, atol=unit.max() * 0.501)
            real = model.weights.get(f"layers.{i}.{name}.bias")
            if real is not None:
                bias = both.bias[start::2]
                ratio = bias.astype(float) @ real / (np.linalg.norm(bias) * np.linalg.norm(real))
                assert ratio > 0.9999


def test_scales_fold_what_they_should(models):
    """Units of each edge follow from the formats in docs/numerics.md, checked end to end: the
    product of the scales along a path is that of the real numbers."""
    model, ranges, qm = models
    rms, numbers, pad = np.sqrt(qm.hidden), qm.numbers, qm.head_pad
    for i, step in enumerate(qm.plan.attends):
        op, attend, at = step.op, numbers[step.name], f"layers.{i}."

        def unit(name):
            """Size of one unit of a norm's output, from its largest gamma."""
            norm, gamma = numbers[f"{at}{name}.x"], model.weights[at + name]
            j = np.abs(gamma).argmax()
            return gamma[j] * rms / (norm.gamma[j] * 2.0 ** (16 - norm.shift))
        x1, x2 = unit("norm1"), unit("norm2")
        most = float(ranges.edges[f"{at}norm1.x"]) / x1
        assert 16000 < most < 16384                     # one bit of headroom, no more
        q, k, gate, up, down = (model.weights[at + name]
                                for name in ("q", "k", "gate", "up", "down"))

        def row_unit(name, row, real, x):
            """Size of one unit of a row's requantised output."""
            linear = numbers[at + name]
            return np.abs(real).max() / 127 * x / (linear.mant[row] / 2.0 ** linear.shift[row])
        d, group = op.head_dim, op.heads // op.kv_heads
        live = [next(r for r in range(d // 2) if k[g * d + r].any()) for g in range(op.kv_heads)]
        for g, r in enumerate(live):
            k_unit = row_unit("k", g * pad + 2 * r, k[g * d + r], x1)
            stored = k_unit * 2.0 ** (attend.k_shift - 14)
            assert stored * 127 == pytest.approx(float(ranges.edges[f"{at}k.rope"][g]), rel=0.01)
            for h in range(g * group, (g + 1) * group):
                row = next(n for n in range(d // 2) if q[h * d + n].any())
                q_unit = row_unit("q", h * pad + 2 * row, q[h * d + row], x1)
                # one unit of q times one of k, after the shift, is 2**-10 of log2(e)/sqrt(d)
                score = q_unit * stored * 2.0 ** attend.score_shift
                assert score * np.log2(np.e) / np.sqrt(d) == pytest.approx(2.0**-10, rel=1e-3)
        live = next(r for r in range(len(gate)) if gate[r].any() and up[r].any())
        gate_unit = row_unit("gate_up", 2 * live, gate[live], x2)
        up_unit = row_unit("gate_up", 2 * live + 1, up[live], x2)
        assert gate_unit == pytest.approx(2.0**-11, rel=1e-3)
        assert float(ranges.edges[f"{at}up"]) / up_unit < 16384
        h = 2.0 ** (numbers[f"{at}h"].shift - 11) * up_unit
        assert 8000 < float(ranges.edges[f"{at}h"]) / h < 16384
        live = next(r for r in range(qm.hidden) if down[r].any())
        assert row_unit("down", live, down[live], h) == \
            pytest.approx(2.0**-qm.residual_frac, rel=1e-3)
    assert qm.eps == pytest.approx(qm.hidden * 1e-5 * 4.0**qm.residual_frac, abs=0.5)
    embedding, real = numbers["embedding"], model.weights["embedding"]
    table = scale(embedding)[:, None] * embedding.codes * 2.0**-qm.residual_frac
    np.testing.assert_allclose(table, real, atol=np.abs(real).max() / 127 * 0.501)


def test_rope_table(models):
    model, _, qm = models
    assert qm.rope.dtype == np.int16 and qm.rope.shape == (
        1, qm.context, qm.head_pad // 2, 2)
    head_dim = qm.plan.attends[0].op.head_dim
    padded = qm.rope[0, :, head_dim // 2:]
    assert (padded[..., 0] == 1 << 14).all() and not padded[..., 1].any()
    for position, pair in ((0, 0), (1, 0), (5, 1), (127, head_dim // 2 - 1)):
        angle = position * 10000.0 ** (-2 * pair / head_dim)
        np.testing.assert_allclose(qm.rope[0, position, pair] / 2**14,
                                   [np.cos(angle), np.sin(angle)], atol=2.0**-15 + 1e-12)


def test_mantissa_shift(seed):
    """Within half a unit of the mantissa, at the edges of a power of two as well."""
    rng = np.random.default_rng(seed)
    edges = [2.0**k * f for k in range(-40, 15) for f in (1, 1 - 2**-17, 1 + 2**-17, 1.5)]
    for factor in [*edges, *np.exp(rng.uniform(-25, 10, 200))]:
        mant, shift = mantissa_shift(factor)
        assert 1 << 15 <= mant < 1 << 16
        error = Fraction(mant) / Fraction(2) ** shift / Fraction(factor) - 1
        assert abs(error) <= Fraction(1, 1 << 16)


def test_same_model_on_any_machine(tmp_path, seed):
    """The last bits of float32 sums differ from one BLAS to another; the integers do not."""
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(-20, 20, 1000))
    grid = _coarse(x)
    assert (grid >= x * (1 - 1e-5)).all() and (grid <= x * (1 + 2.0**-7)).all()
    assert (grid == [np.ldexp(round(np.ldexp(g, 7 - floor(log2(g)))), floor(log2(g)) - 7)
                     for g in grid]).all()              # 8 significant bits
    np.testing.assert_array_equal(_coarse(grid * (1 + 1e-7)), grid)
    np.testing.assert_array_equal(_coarse(grid * (1 - 1e-7)), grid)


def test_calibration_text(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed, vocab=300, context=64))
    sequences = calibration_tokens(model, "one line\n\nanother\n" + "long " * 100)
    assert [s[0] for s in sequences] == [0, 0, 0] and sequences[0][-1] == sequences[1][-1] == 1
    assert len(sequences[2]) == 64
    assert sum(map(len, calibration_tokens(model, max_tokens=500))) == 500
    with pytest.raises(UserError, match="calibration text is empty"):
        calibration_tokens(model, "\n \n")
    with pytest.raises(UserError, match="at least one sequence"):
        quantise(model, [])
    seen = []
    measure(model, sequences, seen.append)
    assert seen == list(np.cumsum([len(s) for s in sequences]))


@pytest.mark.parametrize("context, ok", [(1, True), (64, True), (65, False), (-3, False)])
def test_context(tmp_path, seed, context, ok):
    model = load_model(random_model(tmp_path, seed=seed, context=64))
    texts = random_texts(model, seed=seed)
    if ok:
        assert quantise(model, texts, context=context).context == context
    else:
        with pytest.raises(UserError, match=f"context of {context} positions .* give 1 to 64"):
            quantise(model, texts, context=context)


def test_what_does_not_fit_is_refused(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed, attention_bias=True))
    ranges = measure(model, random_texts(model, seed=seed))
    assert quantise(model, replace(ranges, residual=131071.0)).residual_frac == 8
    with pytest.raises(UserError, match="residual reaches 200704, which leaves 7"):
        quantise(model, replace(ranges, residual=200000.0))

    def wrong(name, change):
        return replace(model, weights={**model.weights, name: change(model.weights[name])})
    with pytest.raises(UserError, match=r"layers\.0\.o: a bias"):
        quantise(wrong("layers.0.o.bias", lambda b: np.full_like(b, 1e9)), ranges)
    with pytest.raises(UserError, match=r"layers\.0\.down: a scale of"):
        quantise(wrong("layers.0.down", lambda w: w * np.float32(1e9)), ranges)
    with pytest.raises(UserError, match=r"layers\.0\.norm1: gammas up to"):
        quantise(wrong("layers.0.norm1", lambda w: w * np.float32(1e9)), ranges)
    queries = {edge: v * 1e6 if edge.startswith("layers.0.q") else v
               for edge, v in ranges.edges.items()}
    with pytest.raises(UserError, match=r"layers\.0\.q: scores up to"):
        quantise(model, replace(ranges, edges=queries))
    operators = tuple(replace(op, eps=1e8) if isinstance(op, Norm) else op
                      for op in model.graph.operators)
    with pytest.raises(UserError, match="an epsilon of 1e.08 in its norms does not fit"):
        quantise(replace(model, graph=replace(model.graph, operators=operators)), ranges)


def test_embedding_larger_than_what_is_added(tmp_path, seed):
    """A scaled embedding of large rows, which fit their multipliers; so do those of tokens that
    calibration has not met."""
    model = load_model(random_model(tmp_path, seed=seed, family="granite", embedding_multiplier=500,
                                    attention_multiplier=0.3))
    ranges = measure(model, random_texts(model, seed=seed))
    qm = quantise(model, ranges)
    assert MIN_RESIDUAL_FRAC < qm.residual_frac < MAX_RESIDUAL_FRAC
    *_, a, b, c = np.argsort(np.abs(model.weights["embedding"]).max(axis=1)).tolist()
    got, want = GoldenModel(qm).forward([a, b, c], want="all"), FloatModel(model).forward([a, b, c])
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.99
    weights = {**model.weights, "embedding": model.weights["embedding"].copy()}
    weights["embedding"][c] *= 16
    assert quantise(replace(model, weights=weights), ranges).residual_frac < qm.residual_frac


def test_empty_parts_of_a_model(tmp_path, seed):
    """Heads, norms and layers of zeros give scales in range instead of a division by zero."""
    model = load_model(random_model(tmp_path, seed=seed))

    def changed(**weights):
        return replace(model, weights={**model.weights, **{
            f"layers.0.{name}": value for name, value in weights.items()}})
    dead = changed(**{n: np.zeros_like(model.weights[f"layers.0.{n}"])
                      for n in ("norm1", "q", "k", "v", "gate", "up", "down")})
    qm = quantise(dead, random_texts(model, seed=seed))
    for linear in qm.linears.values():
        assert linear.mant.min() >= 1 << 15 and linear.shift.max() <= 63
    assert not qm.numbers["layers.0.norm1.x"].gamma.any()
    half = model.weights["layers.0.v"].copy()
    half[:8] = 0                                        # one KV head of two
    qm = quantise(changed(v=half), random_texts(model, seed=seed))
    assert qm.numbers["layers.0.attention"].v_shift.max() + 27 <= 63
