"""The integer decoder: close to float32, and the same however a prompt is cut."""
from dataclasses import replace

import numpy as np
import pytest
from random_model import random_model, random_texts

from meadowlark.errors import UserError
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Add, Attend, Gate, Linear, Rope
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import LOGIT_FRAC, measure, quantise
from meadowlark.quant.sampling import sampling
from meadowlark.run.evaluate import perplexity, validation_text, windows
from meadowlark_hdl.compute.tiling_engine_golden import FLOATS_KEPT
from meadowlark_hdl.sampler.sampler_golden import Sampling, sample

SHAPES = {
    "grouped": dict(),
    "one_kv_head": dict(hidden=64, heads=4, kv_heads=1, head_dim=8, layers=3),
    "padded_biased_untied": dict(hidden=48, heads=6, kv_heads=2, head_dim=24, ffn=80, tied=False,
                                 attention_bias=True, mlp_bias=True, vocab=300),
    "no_groups": dict(heads=4, kv_heads=4, layers=1, vocab=64),
}


@pytest.fixture(scope="module")
def stories():
    model = load_model("stories")
    return model, quantise(model)


@pytest.fixture(params=SHAPES)
def models(request, tmp_path, seed):
    """(float model, its integer model)"""
    model = load_model(random_model(tmp_path, seed=seed, **SHAPES[request.param]))
    return model, quantise(model, random_texts(model, seed=seed, sequences=16, length=100))


# ---- Close to float32

def test_packaged_perplexity(stories):
    """The bound that counts: within 1 % of float32 on held-out text, and next to no saturation."""
    result = perplexity(*stories, validation_text(), max_tokens=2000)
    assert result.tokens == 2000 and 1.6 < result.ppl_float < 2.1
    assert abs(result.delta_pct) < 1.0
    assert result.delta_se < 0.3
    assert set(result.saturated) == {"norm", "q", "k", "v", "scores", "attention", "residual",
                                     "gate", "up", "h"}
    assert max(result.saturated.values()) < 1e-4


def test_packaged_text(stories):
    """Greedy text follows the float model's until they meet a near tie, much further on."""
    model, qm = stories
    prompt = model.tokenizer.encode("Once upon a time")
    new = [t for t, _ in GoldenModel(qm).generate(prompt, max_new=40)]
    assert model.tokenizer.decode(prompt + new).startswith(
        "Once upon a time, there was a little boy named Sam. Sam was always very brave. One day, "
        "Sam was playing outside. He saw an old man")


def test_random_models(models, seed):
    """Little information is lost: divergence of the two distributions, in nats a token."""
    model, qm = models
    for tokens in random_texts(model, seed=seed + 1, sequences=3, length=60):
        a = FloatModel(model).forward(tokens).astype(np.float64)
        b = GoldenModel(qm).forward(tokens, want="all") / 2.0**LOGIT_FRAC
        a, b = (z - z.max(-1, keepdims=True) for z in (a, b))
        a, b = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (a, b))
        assert (np.exp(a) * (a - b)).sum(-1).mean() < 5e-3
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


# ---- Passes

def test_prefill_is_decode(models, seed):
    """One pass, one token at a time, and random cuts: equal bit for bit, cache included."""
    model, qm = models
    rng = np.random.default_rng(seed)
    tokens = random_texts(model, seed=seed + 2, sequences=1, length=40)[0]
    whole = GoldenModel(qm)
    want = whole.forward(tokens, want="all")
    assert want.dtype == np.int32 and want.shape == (40, qm.vocab)
    np.testing.assert_array_equal(GoldenModel(qm).forward(tokens), want[-1])
    small = GoldenModel(qm)
    small.PASS, small.SCORES = 7, 100
    np.testing.assert_array_equal(small.forward(tokens, want="all"), want)
    for cuts in (range(1, 40), sorted(rng.choice(np.arange(1, 40), 5, replace=False))):
        parts = GoldenModel(qm)
        got = []
        for start, stop in zip([0, *cuts], [*cuts, 40], strict=True):
            got.append(parts.forward(tokens[start:stop], start, want="all"))
        np.testing.assert_array_equal(np.concatenate(got), want)
        np.testing.assert_array_equal(parts.keys, whole.keys)
        np.testing.assert_array_equal(parts.values, whole.values)
        assert parts.length == 40
    # large models convert their weights at each use
    lean = GoldenModel(replace(qm, parameters=FLOATS_KEPT + 1))
    np.testing.assert_array_equal(lean.forward(tokens, want="all"), want)


def test_no_query_sees_what_comes_later(models, seed):
    """Other tokens afterwards, or stale ones in the cache, change nothing before or at a token."""
    model, qm = models
    a, b = random_texts(model, seed=seed + 3, sequences=2, length=30)
    b[20] = 2 + (a[20] - 1) % (model.vocab - 2)         # surely another one
    one = GoldenModel(qm).forward(a, want="all")
    two = GoldenModel(qm).forward([*a[:20], *b[20:]], want="all")
    np.testing.assert_array_equal(one[:20], two[:20])
    assert (one[20:] != two[20:]).any()
    used = GoldenModel(qm)
    used.forward(b)
    np.testing.assert_array_equal(used.forward(a[:10], want="all"), one[:10])
    assert used.length == 10                # what was above has been given up
    np.testing.assert_array_equal(used.forward(a[10:], 10, want="all"), one[10:])


def test_padded_rows_are_zero(models, seed):
    model, qm = models
    golden = GoldenModel(qm)
    golden.forward(random_texts(model, seed=seed, sequences=1, length=20)[0])
    op = qm.plan.attends[0].op
    assert golden.keys.shape == (len(qm.plan.attends), op.kv_heads, qm.context, qm.head_pad)
    for cache in (golden.keys, golden.values):
        assert cache[:, :, :20, :op.head_dim].any() and not cache[..., op.head_dim:].any()
        assert not cache[:, :, 20:].any()


def test_trace(models, seed):
    """Edges of a pass, in order, within their formats, and near the float model's."""
    model, qm = models
    tokens, seen, exact = random_texts(model, seed=seed, sequences=1, length=12)[0], [], {}
    GoldenModel(qm, trace=lambda *edge: seen.append(edge)).forward(tokens, want="all")
    FloatModel(model).forward(tokens, lambda edge, value: exact.update({edge: value}))
    inside = {op.x for op in model.graph.of(Rope)} | {
        op.out for op in model.graph.of(Linear) if not op.out.endswith(".v")}
    order = [edge for edge in exact if edge not in inside]
    places = [order.index(edge) for edge, _ in seen]
    assert sorted(places) == list(range(len(order)))
    # queries, keys and values are seen in this order, however the graph has them
    assert all(a < b for a, b in zip(places, places[1:], strict=False)
               if not {order[a], order[b]} & {e for op in model.graph.of(Attend)
                                              for e in op.inputs})
    for edge, value in seen:
        bits = {"residual": 27, "k": 8, "v": 8, "logits": 32}.get(
            edge.removesuffix(".rope").rpartition(".")[2], 16)
        assert -(1 << bits - 1) <= value.min() and value.max() < 1 << bits - 1
    got = dict(seen)
    for op in model.graph.of(Attend, Gate, Add):
        x = got[op.out]
        if isinstance(op, Attend):
            x = x.reshape(12, op.heads, qm.head_pad)[..., :op.head_dim]
        assert np.corrcoef(x.ravel(), exact[op.out].ravel())[0, 1] > 0.995


def test_saturations_are_counted(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed))
    ranges = measure(model, random_texts(model, seed=seed))
    tokens = random_texts(model, seed=seed + 1, sequences=1, length=20)[0]
    calm = GoldenModel(quantise(model, ranges))
    calm.forward(tokens)
    assert calm.saturations["norm"] == calm.saturations["h"] == 0
    # two layers, 20 tokens, two KV heads of 8; each layer has two norms, the last token a third
    assert calm.counted["k"] == 2 * 20 * 16 and calm.counted["norm"] == (4 * 20 + 1) * 32
    assert calm.counted["scores"] == 2 * 4 * sum(range(1, 21))
    for edge, what in (("norm1.x", "norm"), ("k.rope", "k"), ("v", "v"),
                       ("attention", "attention"), ("norm2.x", "norm"), ("up", "up"), ("h", "h")):
        small = {e: v / 16 if e == f"layers.1.{edge}" else v for e, v in ranges.edges.items()}
        golden = GoldenModel(quantise(model, replace(ranges, edges=small)))
        golden.forward(tokens)
        assert golden.saturations[what] > 0, edge


def test_scores_are_counted_once_each(models, seed):
    """Those that are seen and beyond their format; one at the limit by itself is not."""
    model, qm = models
    step = qm.plan.attends[-1]
    numbers = {**qm.numbers, step.name: replace(qm.numbers[step.name], score_shift=0)}
    tokens, seen = random_texts(model, seed=seed, sequences=1, length=12)[0], {}
    golden = GoldenModel(replace(qm, numbers=numbers),
                         trace=lambda edge, value: seen.setdefault(edge, value))
    golden.forward(tokens)
    q, k = (seen[edge].astype(int) for edge in step.op.inputs[:2])
    k = np.repeat(k, step.op.heads // step.op.kv_heads, axis=1)
    s = np.einsum("nhd,mhd->hnm", q, k)[:, *np.tril_indices(12)]
    others = GoldenModel(qm)
    others.forward(tokens)
    assert others.saturations["scores"] == 0
    assert golden.saturations["scores"] == (np.abs(s) > 131071).sum() > 0


# ---- Generation

def test_generate(stories):
    """Each token is drawn from the logits given with it, at its own position."""
    model, qm = stories
    prompt = model.tokenizer.encode("One day")
    options = sampling(temperature=0.8, top_k=20, top_p=0.9, seed=7)
    drawn = list(GoldenModel(qm).generate(prompt, options, max_new=12))
    ids = prompt + [t for t, _ in drawn]
    again = GoldenModel(qm).forward(ids[:-1], want="all")
    for i, (token, logits) in enumerate(drawn):
        position = len(prompt) + i
        np.testing.assert_array_equal(logits, again[position - 1])
        assert token == sample(logits, options, position)
    other = [t for t, _ in GoldenModel(qm).generate(prompt, sampling(temperature=0.8, seed=8),
                                                    max_new=12)]
    assert other != [t for t, _ in drawn]


def test_generate_ends(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed, context=16))
    qm = quantise(model, random_texts(model, seed=seed, length=16))
    options = Sampling(inv_t_mant=40000, inv_t_shift=16, seed=seed)     # lively: T about 2.4
    prompt = [0, 5, 6]

    def run(**rest):
        golden = GoldenModel(qm)
        return [t for t, _ in golden.generate(prompt, options, **rest)], golden
    free, golden = run(stop_ids=())
    # 13 places after the prompt, and one token that has none
    assert len(free) == 14 and golden.length == 16
    assert run(stop_ids=(), max_new=5)[0] == free[:5]
    stop = free[6]
    assert run(stop_ids=(stop,))[0] == free[:free.index(stop) + 1]
    got, golden = run(max_new=0)
    assert got == [] and golden.length == 3
    # going on from the cache is going on with the text
    golden = GoldenModel(qm)
    first = [t for t, _ in golden.generate(prompt, options, stop_ids=(), max_new=4)]
    more = golden.generate(first[-1:], options, stop_ids=(), start_pos=len(prompt) + 3)
    assert first + [t for t, _ in more] == free
    assert len(list(GoldenModel(qm, context=8).generate(prompt, options, stop_ids=()))) == 6


def test_errors(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed, context=16))
    qm = quantise(model, random_texts(model, seed=seed, length=16))
    golden = GoldenModel(qm)
    golden.forward([0, 1])
    for args, kind, message in (
            (([],), ValueError, "at least 1 id"),
            (([128],), ValueError, r"0\.\.127, not 128\.\.128"),
            (([-1],), ValueError, r"not -1\.\.-1"),
            (([1], 3), ValueError, r"start_pos must be in 0\.\.2 .*not 3"),
            (([1], -1), ValueError, "not -1"),
            (([1], 0, "first"), ValueError, "not 'first'"),
            (([1] * 15, 2), UserError, "17 tokens do not fit the context of 16; shorten")):
        with pytest.raises(kind, match=message):
            golden.forward(*args)
    assert golden.length == 2
    with pytest.raises(UserError, match="prompt has no tokens"):
        next(golden.generate([]))
    with pytest.raises(ValueError, match="max_new must be at least 0, not -1"):
        next(golden.generate([1], max_new=-1))
    for context in (0, 17):
        with pytest.raises(ValueError, match=rf"context must be in 1\.\.16, not {context}"):
            GoldenModel(qm, context=context)


# ---- Evaluation

def test_windows_predict_each_token_once(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed))
    lines = ["short one\n", "\n", "a much longer line that does not fit in one window"]
    for bos in (0, None):
        model = replace(model, bos_id=bos)
        found = list(windows(model, lines, 16))
        assert all(2 <= len(w) <= 17 for w in found)
        targets = [t for w in found for t in w[1:]]
        assert targets == [t for i in (0, 2) for t in model.text_tokens(lines[i].strip())[1:]]
        assert bos is None or all(w[0] == bos for w in found)


def test_perplexity_is_bounded_and_reports(tmp_path, seed):
    model = load_model(random_model(tmp_path, seed=seed))
    qm = quantise(model, random_texts(model, seed=seed))
    seen = []
    result = perplexity(model, qm, ["some words"] * 5, 25, seen.append)
    assert result.tokens == 25 and seen == [11, 22, 25]
    assert result.ppl_fixed == pytest.approx(result.ppl_float, rel=0.05)
    assert result.delta_pct == pytest.approx(100 * (result.ppl_fixed / result.ppl_float - 1))
    assert set(result.as_dict()) >= {"ppl_float", "ppl_fixed", "delta_pct", "tokens"}
    with pytest.raises(UserError, match="no tokens to predict"):
        perplexity(model, qm, ["", "\n"])
    with pytest.raises(UserError, match="at least 1, not 0"):
        perplexity(model, qm, ["words"], 0)
    for context in (0, 129):
        with pytest.raises(UserError, match=f"windows of {context} tokens .* give 1 to 128"):
            perplexity(model, qm, ["words"], context=context)
    short = perplexity(model, qm, ["some words"] * 5, 25, context=4)
    assert short.tokens == 25 and short.ppl_float != result.ppl_float


# ---- Sampling options

def test_sampling_options():
    assert sampling() == Sampling()
    assert sampling(temperature=0, top_k=5, top_p=0.5) == Sampling()
    for temperature in (0.01, 0.8, 1.0, 100):
        s = sampling(temperature=temperature)
        assert s.inv_t_mant / 2**s.inv_t_shift == pytest.approx(np.log2(np.e) / temperature,
                                                                rel=2.0**-15)
        assert 1 << 15 <= s.inv_t_mant < 1 << 16 and 0 <= s.inv_t_shift < 32
        assert s.top_k == s.top_p == 0
    s = sampling(temperature=1, top_p=0.9, seed=3)
    assert (s.top_k, s.top_p, s.seed) == (32, round(0.9 * 65536), 3)
    assert sampling(temperature=1, top_p=0.9, max_top_k=8).top_k == 8
    assert sampling(temperature=1, top_p=1e-9).top_p == 1
    assert sampling(temperature=1, top_p=1 - 1e-9).top_p == 65535


@pytest.mark.parametrize("option, value", [
    ("temperature", -1), ("temperature", 0.001), ("temperature", 101),
    ("temperature", float("nan")), ("top_k", 33), ("top_k", -1), ("top_k", 2.5), ("top_p", 0),
    ("top_p", 1.1), ("top_p", float("nan")), ("seed", -1), ("seed", 1 << 32), ("seed", True)])
def test_sampling_refuses(option, value):
    with pytest.raises(UserError, match=f"^{option} {value!r} is out of range; give "):
        sampling(**{option: value})
