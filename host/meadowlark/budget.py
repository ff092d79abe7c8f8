"""How coarse int8 weights may be: a budget of bits, or of perplexity -> the grid of all rows.

A row's step is its root mean square over ``grid``; values that are rarer cost more bits once they
are coded by entropy, so a coarse grid costs little and needs no other format (docs/packing.md).
One grid for all matrices: the error of an output is then the same share of it everywhere.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import exp, log2

import numpy as np

from meadowlark_hdl.weights.entropy_golden import coded_bits, prefix_code

from .errors import UserError
from .evaluate import negative_log_likelihood
from .model import FloatModel, Layer, Model
from .quantise import calibration_tokens, int8_codes

#: Gets a sentence and, where it is known, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]

#: Grids that are tried: below, weights are little more than signs; above, int8 holds no finer one.
COARSEST, FINEST = 0.5, 64.0
#: What is left of a budget of bits at most.
SLACK = 0.01
#: Halvings of the search for a perplexity: the grid is found to some per cent.
HALVINGS = 6
#: Tokens that a perplexity is measured on.
TOKENS = 4096

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def _tensors(model: Model) -> Iterator[tuple[np.ndarray, ...]]:
    """Matrices as the stream has them, those with one table together."""
    for layer in model.layers:
        yield (layer.q,)
        yield (layer.k,)
        yield (layer.v,)
        yield (layer.o,)
        yield (layer.gate, layer.up)
        yield (layer.down,)
    yield (model.head,)


def coded_size(model: Model, grid: float) -> float:
    """Bits a weight of the matrices that a token reads, entropy-coded, tables included."""
    bits = weights = 0
    for tensor in _tensors(model):
        histogram = np.zeros(256, np.int64)
        for matrix in tensor:
            histogram += np.bincount(int8_codes(matrix, grid)[0].view(np.uint8).ravel(),
                                     minlength=256)
        code = prefix_code(histogram)
        bits += coded_bits(code, histogram) + 8 * len(code.table)
        weights += int(histogram.sum())
    return bits / weights


def grid_for_bits(model: Model, bits: float, progress: Progress | None = None) -> float:
    """The finest grid with at most ``bits`` a weight, entropy-coded.

    Raises
    ------
    UserError
        No grid has so few bits.
    """
    low, high, grid = COARSEST, FINEST, 2.0 ** (bits - 2.05)        # of a normal distribution
    for step in range(20):
        grid = min(max(grid, low), high)
        if progress:
            progress("choosing the grid of the weights, steps:", step + 1, 0)
        size = coded_size(model, grid)
        if size > bits:
            if grid == COARSEST:
                raise UserError(f"no grid brings the weights of {model.name} to {bits:g} bits; the "
                                f"coarsest takes {size:.2f}")
            high = grid
        elif size > bits - SLACK or grid == FINEST:
            return grid
        else:
            low = grid
        grid *= 2.0 ** (bits - SLACK / 2 - size)
        if not low < grid < high:
            grid = (low * high) ** 0.5 if size > bits or high < FINEST else FINEST
    return low


def rounded(model: Model, grid: float) -> Model:
    """The float model with all its matrices on the grid."""
    def on_grid(matrix: np.ndarray) -> np.ndarray:
        codes, scale = int8_codes(matrix, grid)
        return codes * scale.astype(np.float32)[:, None]

    def of(layer: Layer) -> Layer:
        return replace(layer, **{name: on_grid(getattr(layer, name)) for name in _MATRICES})

    embedding = on_grid(model.embedding)
    return replace(model, layers=tuple(map(of, model.layers)), embedding=embedding,
                   head=embedding if model.tied else on_grid(model.head))


def grid_for_perplexity(model: Model, percent: float, progress: Progress | None = None) -> float:
    """The coarsest grid whose rounding of the weights costs at most ``percent`` of perplexity.

    Measured in float32 on the packaged calibration text; the integer arithmetic comes on top.
    """
    texts = calibration_tokens(model, max_tokens=TOKENS)

    def losses(of: Model, what: str) -> np.ndarray:
        runner, found, done = FloatModel(of), [], 0
        for tokens in texts:
            if progress:
                progress(what, done, sum(map(len, texts)))
            found.append(negative_log_likelihood(runner.forward(tokens[:-1]),
                                                 np.array(tokens[1:])))
            done += len(tokens)
        return np.concatenate(found)

    exact = losses(model, "perplexity in float32, tokens:")
    low, high = log2(COARSEST), log2(FINEST)
    for step in range(HALVINGS):
        middle = (low + high) / 2
        lost = losses(rounded(model, 2.0 ** middle),
                      f"perplexity on grid {step + 1} of {HALVINGS}, tokens:") - exact
        if 100 * (exp(lost.mean()) - 1) <= percent:
            high = middle
        else:
            low = middle
    return 2.0 ** high


def choose_grid(model: Model, *, bits: float | None, target_ppl: float | None,
                progress: Progress | None = None) -> float | None:
    """What ``--bits`` or ``--target-ppl`` asks for; None without either."""
    if bits is not None:
        return grid_for_bits(model, bits, progress)
    if target_ppl is not None:
        return grid_for_perplexity(model, target_ppl, progress)
    return None


def check_budget(bits: float | None, target_ppl: float | None) -> None:
    """Raise a :class:`UserError` unless at most one is given, and it is possible."""
    if bits is not None and target_ppl is not None:
        raise UserError("--bits and --target-ppl are two ways to say how coarse weights may be; "
                        "give one")
    if bits is not None and not 1 <= bits <= 8:
        raise UserError(f"--bits must be in 1..8 bits a weight, not {bits:g}")
    if target_ppl is not None and not target_ppl > 0:
        raise UserError(f"--target-ppl must be above 0 per cent, not {target_ppl:g}")
