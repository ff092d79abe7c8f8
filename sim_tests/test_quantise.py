"""Codes, scales and shifts of the integer model, and what is refused."""
from dataclasses import replace
from fractions import Fraction
from math import floor, log2

import numpy as np
import pytest
from random_model import random_model, random_texts

from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import _coarse, calibration_tokens, measure, quantise
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


def linears(qm):
    yield "embedding", qm.embedding
    yield "head", qm.head
    for layer in qm.layers:
        for name in ("q", "k", "v", "o", "gate_up", "down"):
            yield name, getattr(layer, name)


def test_formats(models):
    """Types, shapes and ranges that the gateware and the compiler rely on."""
    model, _, qm = models
    d, wide, narrow = qm.head_pad, qm.heads * qm.head_pad, qm.kv_heads * qm.head_pad
    assert d & (d - 1) == 0 and d // 2 < qm.head_dim <= d
    shapes = {"embedding": (qm.vocab, qm.hidden), "head": (qm.vocab, qm.hidden),
              "q": (wide, qm.hidden), "k": (narrow, qm.hidden), "v": (narrow, qm.hidden),
              "o": (qm.hidden, wide), "gate_up": (2 * qm.ffn, qm.hidden),
              "down": (qm.hidden, qm.ffn)}
    for name, w in linears(qm):
        assert w.codes.dtype == np.int8 and w.codes.shape == shapes[name]
        assert w.mant.dtype == np.uint16 and w.mant.min() >= 1 << 15
        assert w.shift.dtype == np.uint8 and w.shift.max() <= 63
        assert len(w.mant) == len(w.shift) == len(w.codes)
        assert (w.codes != -128).all()
        biased = model.layers[0].q_bias is not None and name not in ("embedding", "head")
        assert (w.bias is not None) == biased
        if biased:
            assert w.bias.dtype == np.int32 and w.bias.shape == (len(w.codes),)
        # each row that is not zero uses the whole range of its codes
        most = np.abs(w.codes.astype(int)).max(axis=1)
        assert set(most) <= {0, 127}
    for layer in qm.layers:
        for norm in (layer.norm1, layer.norm2, qm.final_norm):
            assert norm.gamma.dtype == np.int16 and norm.gamma.shape == (qm.hidden,)
            assert 0 <= norm.shift <= 63 and np.abs(norm.gamma.astype(int)).max() > 16000
        assert layer.v_mant.shape == layer.v_shift.shape == (qm.kv_heads,)
        assert layer.v_mant.min() >= 1 << 15
        # SV adds floor(log2(sum of p)), at most 15 + 12, to this shift: a RowScale has 6 bits
        assert layer.v_shift.max() + 27 <= 63
        assert layer.q_rope_shift == 14 and 14 <= layer.k_rope_shift <= 21
        assert 0 <= layer.score_shift <= 63 and 0 <= layer.swiglu_shift <= 63
    assert qm.tied == model.tied == (qm.head.codes is qm.embedding.codes)
    assert 8 <= qm.residual_frac <= 16 and 1 <= qm.eps < 1 << 48


def test_rows_are_where_the_chip_wants_them(models):
    """Each row, dequantised, is the model's row that belongs there."""
    model, ranges, qm = models
    d, pad = qm.head_dim, qm.head_pad
    pairs = [i // 2 + (i % 2) * d // 2 for i in range(d)]
    for layer, w in zip(qm.layers, model.layers, strict=True):
        for name, order in (("q", pairs), ("k", pairs), ("v", range(d))):
            codes, real = getattr(layer, name).codes, getattr(w, name)
            for h in range(len(codes) // pad):
                for row in range(d):
                    want = real[h * d + order[row]]
                    np.testing.assert_array_equal(
                        codes[h * pad + row], np.rint(want / np.float32(
                            max(np.abs(want).max() / 127, 1e-30))))
                assert not codes[h * pad + d:(h + 1) * pad].any()
        columns = layer.o.codes.reshape(qm.hidden, qm.heads, pad)
        assert not columns[:, :, d:].any()
        step = np.abs(w.o).max(axis=1)[:, None, None] / 127
        np.testing.assert_allclose(columns[:, :, :d] * step,
                                   w.o.reshape(qm.hidden, qm.heads, d), atol=step.max() * 0.501)
        for name, start in (("gate", 0), ("up", 1)):
            step = np.abs(getattr(w, name)).max(axis=1)[:, None] / 127
            np.testing.assert_allclose(layer.gate_up.codes[start::2] * step, getattr(w, name),
                                       atol=step.max() * 0.501)
            if w.gate_bias is not None:
                bias, unit = layer.gate_up.bias[start::2], getattr(w, f"{name}_bias")
                ratio = bias.astype(float) @ unit / (np.linalg.norm(bias) * np.linalg.norm(unit))
                assert ratio > 0.9999


def test_scales_fold_what_they_should(models):
    """Units of each node follow from the formats in docs/numerics.md, checked end to end: the
    product of the scales along a path is that of the real numbers."""
    model, ranges, qm = models
    rms = np.sqrt(qm.hidden)
    for i, (layer, w) in enumerate(zip(qm.layers, model.layers, strict=True)):
        def unit(norm, gamma):
            """Size of one unit of a norm's output, from its largest gamma."""
            j = np.abs(gamma).argmax()
            return gamma[j] * rms / (norm.gamma[j] * 2.0 ** (16 - norm.shift))
        x1, x2 = unit(layer.norm1, w.norm1), unit(layer.norm2, w.norm2)
        most = float(ranges.by_layer["x1"][i]) / x1
        assert 16000 < most < 16384                     # one bit of headroom, no more

        def row_unit(linear, row, real, x):
            """Size of one unit of a row's requantised output."""
            return np.abs(real).max() / 127 * x / (linear.mant[row] / 2.0 ** linear.shift[row])
        live = [next(r for r in range(qm.head_dim // 2) if w.k[g * qm.head_dim + r].any())
                for g in range(qm.kv_heads)]
        for g, r in enumerate(live):
            k_unit = row_unit(layer.k, g * qm.head_pad + 2 * r, w.k[g * qm.head_dim + r], x1)
            stored = k_unit * 2.0 ** (layer.k_rope_shift - 14)
            assert stored * 127 == pytest.approx(float(ranges.by_layer["k_rot"][i][g]), rel=0.01)
            group = qm.heads // qm.kv_heads
            for h in range(g * group, (g + 1) * group):
                row = next(n for n in range(qm.head_dim // 2) if w.q[h * qm.head_dim + n].any())
                q_unit = row_unit(layer.q, h * qm.head_pad + 2 * row,
                                  w.q[h * qm.head_dim + row], x1)
                # one unit of q times one of k, after the shift, is 2**-10 of log2(e)/sqrt(d)
                score = q_unit * stored * 2.0 ** layer.score_shift
                assert score * np.log2(np.e) / np.sqrt(qm.head_dim) == \
                    pytest.approx(2.0**-10, rel=1e-3)
        live = next(r for r in range(qm.ffn) if w.gate[r].any() and w.up[r].any())
        gate = row_unit(layer.gate_up, 2 * live, w.gate[live], x2)
        up = row_unit(layer.gate_up, 2 * live + 1, w.up[live], x2)
        assert gate == pytest.approx(2.0**-11, rel=1e-3)
        assert float(ranges.by_layer["up"][i]) / up < 16384
        h = 2.0 ** (layer.swiglu_shift - 11) * up
        assert 8000 < float(ranges.by_layer["h"][i]) / h < 16384
        live = next(r for r in range(qm.hidden) if w.down[r].any())
        assert row_unit(layer.down, live, w.down[live], h) == \
            pytest.approx(2.0**-qm.residual_frac, rel=1e-3)
    assert qm.eps == pytest.approx(qm.hidden * 1e-5 * 4.0**qm.residual_frac, abs=0.5)
    table = scale(qm.embedding)[:, None] * qm.embedding.codes * 2.0**-qm.residual_frac
    np.testing.assert_allclose(table, model.embedding,
                               atol=np.abs(model.embedding).max() / 127 * 0.501)


def test_rope_table(models):
    model, _, qm = models
    assert qm.rope.dtype == np.int16 and qm.rope.shape == (qm.context, qm.head_pad // 2, 2)
    padded = qm.rope[:, qm.head_dim // 2:]
    assert (padded[..., 0] == 1 << 14).all() and not padded[..., 1].any()
    for position, pair in ((0, 0), (1, 0), (5, 1), (127, qm.head_dim // 2 - 1)):
        angle = position * model.rope_theta ** (-2 * pair / qm.head_dim)
        np.testing.assert_allclose(qm.rope[position, pair] / 2**14,
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

    def with_layer(**changes):
        return replace(model, layers=(replace(model.layers[0], **changes), model.layers[1]))
    with pytest.raises(UserError, match="layer 0, attention output: a bias"):
        quantise(with_layer(o_bias=np.full(32, 1e9, np.float32)), ranges)
    with pytest.raises(UserError, match="layer 0, down: a scale of"):
        quantise(with_layer(down=model.layers[0].down * np.float32(1e9)), ranges)
    with pytest.raises(UserError, match="layer 0, first norm: gammas up to"):
        quantise(with_layer(norm1=model.layers[0].norm1 * np.float32(1e9)), ranges)
    queries = {**ranges.by_layer, "q": {i: v * 1e6 for i, v in ranges.by_layer["q"].items()}}
    with pytest.raises(UserError, match="layer 0, queries: scores up to"):
        quantise(model, replace(ranges, by_layer=queries))
    with pytest.raises(UserError, match="rms_norm_eps 1e.08 does not fit"):
        quantise(replace(model, rms_eps=1e8), ranges)


def test_empty_parts_of_a_model(tmp_path, seed):
    """Heads, norms and layers of zeros give scales in range instead of a division by zero."""
    model = load_model(random_model(tmp_path, seed=seed))
    w = model.layers[0]
    dead = {n: np.zeros_like(getattr(w, n)) for n in ("norm1", "q", "k", "v", "gate", "up", "down")}
    model = replace(model, layers=(replace(w, **dead), model.layers[1]))
    qm = quantise(model, random_texts(model, seed=seed))
    for _, linear in linears(qm):
        assert linear.mant.min() >= 1 << 15 and linear.shift.max() <= 63
    assert not qm.layers[0].norm1.gamma.any()
    half = w.v.copy()
    half[:8] = 0                                        # one KV head of two
    model = replace(model, layers=(replace(w, v=half), model.layers[1]))
    assert quantise(model, random_texts(model, seed=seed)).layers[0].v_shift.max() + 27 <= 63
