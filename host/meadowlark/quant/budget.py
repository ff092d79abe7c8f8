"""How coarse int8 weights may be: a budget of bits, or of perplexity -> codes of all matrices.

A row's step is its root mean square over ``grid`` times the row's *share*; values that are rarer
cost more bits once they are coded by entropy, so a coarse grid costs little and needs no other
format (docs/packing.md). Shares come from what errors cost: steps of equal cost a weight are the
best there are for a size. The codes themselves are rounded with feedback.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import exp, log2

import numpy as np

from meadowlark_hdl.weights.entropy_golden import coded_bits, prefix_code

from ..errors import UserError
from ..models.checkpoint import Model
from ..models.float_model import FloatModel
from ..models.graph import Head, Linear
from ..progress import Progress
from .feedback import Moments, feedback, round_rows
from .own_text import first
from .plan import plan
from .quantise import Ranges, Rounded, int8_codes, int8_scale, observe
from .sensitivity import Sensitivity

#: Weight -> float64[rows]; without one: 1.
Shares = Mapping[str, np.ndarray]

#: Grids that are tried: below, weights are little more than signs; above, int8 holds no finer one.
COARSEST, FINEST = 0.5, 64.0
#: What is left of a budget of bits at most.
SLACK = 0.01
#: Halvings of the search for a perplexity: the grid is found to some per cent.
HALVINGS = 6
#: Tokens that gradients are taken of; that feedback and ranges are measured on, from the beginning
#: of the text; and the cost of a grid, from its end.
COST_TOKENS, TOKENS, DIVERGENCE_TOKENS = 1024, 4096, 2048
#: How far shares within a tensor follow what an error of a row costs: rows of different grids share
#: one code, which costs bits, so not all the way.
FOLLOW = 0.7
#: Costs of rows count as at least this share of their tensor's mean: the text was short.
LEAST = 0.01
#: Shares are powers of two in steps of this: sums differ in their last bits from one BLAS to the
#: next.
STEP = 1 / 16


def _tensors(model: Model) -> Iterator[tuple[str, ...]]:
    """Names of the weights that a token reads, those with one table together.

    ValueError: the head has no codes of its own.
    """
    if model.tied:
        raise ValueError("the head is the embedding; take them apart first")
    of = {name: matrix.weights for matrix in plan(model.graph).matrices for name in matrix.weights}
    yield from dict.fromkeys(of[op.weight] for op in model.graph.of(Linear, Head))


def shares(model: Model, sensitivity: Sensitivity) -> Shares:
    """How much finer than others the grid of each row is, from what an error in it costs.

    An error of mean square ``e`` of the weights of a row costs ``e`` times its sensitivity, a step
    half as large one bit per weight: least is lost where each tensor loses the same a weight. The
    mean of their logarithms over all weights is 0.
    """
    found, total, weights = {}, 0.0, 0
    head = {op.weight for op in model.graph.of(Head)}
    for tensor in _tensors(model):
        matrices = [model.weights[name] for name in tensor]
        rms = np.concatenate([np.sqrt(np.square(matrix, dtype=np.float32).mean(
            axis=1, dtype=np.float64)) for matrix in matrices])
        cost = np.concatenate([sensitivity.rows[key] for key in tensor]) / sensitivity.tokens
        cost = np.maximum(cost, max(LEAST * cost.mean(), 1e-30))
        rms = np.maximum(rms, max(1e-3 * rms.mean(), 1e-30))
        # A step is base times one number for the tensor. The head's rows do not differ: likely
        # tokens stand together, and jobs of equal size would bring their tiles too late
        # (:func:`meadowlark.compile.layout.packed_jobs`), so that it could not be coded at all.
        follow = 0.0 if head.issuperset(tensor) else FOLLOW
        base = rms ** (1 - follow) * cost ** (-follow / 2)
        base /= np.sqrt((cost * base ** 2).mean())
        share = np.log2(rms / base)
        for key, part in zip(tensor, np.split(share, np.cumsum([len(m) for m in matrices])[:-1]),
                             strict=True):
            found[key] = part
            total += part.sum() * matrices[0].shape[1]
            weights += part.size * matrices[0].shape[1]
    mean = total / max(weights, 1)
    return {key: np.exp2(np.rint((share - mean) / STEP) * STEP) for key, share in found.items()}


def coded_size(model: Model, grid: float, shares: Shares | None = None,
               rounded: Rounded | None = None) -> float:
    """Bits a weight of the matrices that a token reads, entropy-coded, tables included.

    rounded: their codes, where these are made already.
    """
    bits = weights = 0
    for tensor in _tensors(model):
        histogram = np.zeros(256, np.int64)
        for key in tensor:
            codes = rounded[key][0] if rounded else int8_codes(
                model.weights[key], grid * (shares or {}).get(key, 1.0))[0]
            histogram += np.bincount(codes.view(np.uint8).ravel(), minlength=256)
        code = prefix_code(histogram)
        bits += coded_bits(code, histogram) + 8 * len(code.table)
        weights += int(histogram.sum())
    return bits / weights


def _finest(shares: Shares | None) -> float:
    """On this grid int8 holds no row finer."""
    return FINEST / min((float(share.min()) for share in (shares or {}).values()), default=1.0)


def grid_for_bits(model: Model, bits: float, progress: Progress | None = None,
                  shares: Shares | None = None) -> float:
    """The finest grid with at most ``bits`` a weight, entropy-coded.

    Raises
    ------
    UserError
        No grid has so few bits.
    """
    finest = _finest(shares)
    low, high, grid = COARSEST, finest, 2.0 ** (bits - 2.05)        # of a normal distribution
    for step in range(20):
        grid = min(max(grid, low), high)
        if progress:
            progress("choosing the grid of the weights, steps:", step + 1, 0)
        size = coded_size(model, grid, shares)
        if size > bits:
            if grid == COARSEST:
                raise UserError(f"no grid brings the weights of {model.name} to {bits:g} bits; the "
                                f"coarsest takes {size:.2f}")
            high = grid
        elif size > bits - SLACK or grid == finest:
            return grid
        else:
            low = grid
        grid *= 2.0 ** (bits - SLACK / 2 - size)
        if not low < grid < high:
            grid = (low * high) ** 0.5 if size > bits or high < finest else finest
    return low


def rounded_codes(model: Model, grid: float, shares: Shares | None = None,
                  moments: Moments | None = None, progress: Progress | None = None) -> Rounded:
    """Codes and scales of all matrices that a token reads.

    With moments, rounded with feedback where these are known.
    """
    out: Rounded = {}
    inputs = {op.weight: op.x for op in model.graph.of(Linear, Head)}
    last, how = None, ()
    for name in (name for tensor in _tensors(model) for name in tensor):
        weight, edge = model.weights[name], inputs[name]
        own = grid * (shares or {}).get(name, 1.0)
        known = None if moments is None else moments.of.get(edge)
        if known is None:
            out[name] = int8_codes(weight, own)
        else:
            if last != edge:
                last, how = edge, feedback(known)
            scale = int8_scale(weight, own)
            out[name] = round_rows(weight, scale, *how), scale
        if progress:
            progress("rounding the weights, matrices:", len(out), len(inputs))
    return out


def rounded(model: Model, grid: float, shares: Shares | None = None,
            codes: Rounded | None = None) -> Model:
    """The float model with all its matrices on the grid, or of these codes; not the embedding."""
    codes = codes or rounded_codes(model, grid, shares)
    return replace(model, weights={**model.weights, **{
        name: code * scale.astype(np.float32)[:, None] for name, (code, scale) in codes.items()}})


def grid_for_perplexity(model: Model, percent: float, texts: list[list[int]],
                        progress: Progress | None = None, shares: Shares | None = None) -> float:
    """The coarsest grid whose rounding of the weights costs at most ``percent`` of perplexity.

    Measured in float32 on the last of the model's own texts, where the cost is the divergence of
    the distributions, so that no choice of labels adds noise to it. Rounded to the nearest:
    feedback gains something on that, the integer arithmetic comes on top.
    """
    texts = first(texts[::-1], DIVERGENCE_TOKENS)
    exact, total = FloatModel(model), sum(map(len, texts))

    def lost(of: Model, what: str) -> float:
        """Mean of the divergence, in nats a token."""
        runner, found, done = FloatModel(of), [], 0
        for tokens in texts:
            if progress:
                progress(what, done, total)
            found.append(divergence(exact.forward(tokens), runner.forward(tokens)))
            done += len(tokens)
        return float(np.concatenate(found).mean())

    low, high = log2(COARSEST), log2(_finest(shares))
    for step in range(HALVINGS):
        middle = (low + high) / 2
        cost = lost(rounded(model, 2.0 ** middle, shares),
                    f"perplexity on grid {step + 1} of {HALVINGS}, tokens:")
        if 100 * (exp(min(cost, 100)) - 1) <= percent:
            high = middle
        else:
            low = middle
    return 2.0 ** high


def divergence(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Logits float[n, vocab] twice -> Kullback-Leibler divergence float64[n], in nats."""
    def log_p(logits: np.ndarray) -> np.ndarray:
        z = logits - logits.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    p, q = log_p(exact), log_p(other)
    return (np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64)


def choose(model: Model, texts: list[list[int]], *, bits: float | None, target_ppl: float | None,
           progress: Progress | None = None) -> tuple[Rounded, Ranges]:
    """What ``--bits`` or ``--target-ppl`` asks for.

    Parameters
    ----------
    model : Model
        With its columns evened out, see :mod:`meadowlark.quant.equalise`.
    texts : list of sequences of token ids
        What gradients, moments and ranges are measured on.
    bits, target_ppl : float, optional
        Exactly one.

    Returns
    -------
    codes, and the ranges of the model
    """
    def tell(what: str) -> Callable[[int], None]:
        return lambda n: progress(what, n, 0) if progress else None
    cost = Sensitivity(model)
    for tokens in first(texts, COST_TOKENS):
        cost.observe(tokens)
        tell("weighing errors, tokens:")(cost.tokens)
    share = shares(model, cost)
    if bits is None:
        assert target_ppl is not None
        grid = grid_for_perplexity(model, target_ppl, texts, progress, share)
    else:
        grid = grid_for_bits(model, bits, progress, share)
    moments, ranges = Moments(model.graph), Ranges(model.graph)

    def both(edge: str, value: np.ndarray) -> None:
        moments.observe(edge, value)
        ranges.observe(edge, value)
    ranges.tokens = observe(model, first(texts, TOKENS), both,
                            tell("calibrating, tokens:"))
    while True:
        codes = rounded_codes(model, grid, share, moments, progress)
        # Feedback makes codes larger by a trifle.
        over = 0.0 if bits is None else coded_size(model, grid, rounded=codes) - bits
        if over <= 0 or grid <= COARSEST:
            return codes, ranges
        grid *= 2.0 ** -(over + SLACK / 4)


def check_budget(bits: float | None, target_ppl: float | None) -> None:
    """Raise a :class:`UserError` unless at most one is given, and it is possible."""
    if bits is not None and target_ppl is not None:
        raise UserError("--bits and --target-ppl are two ways to say how coarse weights may be; "
                        "give one")
    if bits is not None and not 1 <= bits <= 8:
        raise UserError(f"--bits must be in 1..8 bits per weight, not {bits:g}")
    if target_ppl is not None and not target_ppl > 0:
        raise UserError(f"--target-ppl must be above 0 per cent, not {target_ppl:g}")
