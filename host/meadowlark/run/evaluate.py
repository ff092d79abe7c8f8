"""Perplexity of the exact integer arithmetic beside that of float32, on the same tokens."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt

import numpy as np

from ..errors import UserError
from ..files import DATA
from ..models.checkpoint import Model
from ..models.float_model import FloatModel
from ..quant.golden import GoldenModel
from ..quant.quantise import LOGIT_FRAC, QuantModel


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Result of :func:`perplexity`.

    model: its name. ppl_float, ppl_fixed: exp of the mean negative log-likelihood a token, of
    float32 and of the integer arithmetic. delta_pct: 100 * (ppl_fixed/ppl_float - 1). delta_se: its
    standard error in the same unit, from the differences token by token (they are paired: the
    choice of text cancels). ppl_se: standard error of ppl_float, from the choice of text. tokens:
    predicted. saturated: share of the values of each node of the integer model that met their
    limit. redone: share of the rows of scores that have another maximum than the unified one; None
    where maxima are exact.
    """
    model: str
    ppl_float: float
    ppl_fixed: float
    delta_pct: float
    delta_se: float
    ppl_se: float
    tokens: int
    saturated: dict[str, float]
    redone: float | None = None

    def as_dict(self) -> dict:
        return asdict(self)


def validation_text() -> list[str]:
    """The packaged held-out text of the model "stories", a story a line."""
    return (DATA / "validation.txt").read_text(encoding="utf-8").splitlines()


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """logits: float[n, vocab] (natural units), targets: int[n] -> float64[n], in nats."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.log(np.exp(z).sum(axis=-1)) - z[np.arange(len(targets)), targets]


def windows(model: Model, lines: Iterable[str], context: int) -> Iterator[list[int]]:
    """Lines of text -> sequences of at most context + 1 tokens, of which each but the first is
    to be predicted.

    Each line alone from bos to eos. A longer one goes in windows, each with the bos (or, without
    one, the last token of the window before) in front, so that every token is predicted once.
    Empty lines are left out.
    """
    for line in lines:
        if not line.strip():
            continue
        tokens = model.text_tokens(line.rstrip("\n"))
        for at in range(1, len(tokens), context):
            first = tokens[at - 1] if model.bos_id is None else model.bos_id
            yield [first, *tokens[at:at + context]]


def perplexity(model: Model, qm: QuantModel, lines: Iterable[str], max_tokens: int | None = None,
               progress: Callable[[int], None] | None = None, *,
               context: int | None = None) -> Perplexity:
    """Measure both arithmetics on a text.

    Parameters
    ----------
    model, qm : Model, QuantModel
        The same model.
    lines : iterable of str
        A text a line; see :func:`windows`.
    max_tokens : int, optional
        Most tokens to predict (the last text is cut there); None: all.
    progress : callable, optional
        Gets the number of tokens predicted so far, after each window.
    context : int, optional
        Tokens of a window, by default as many as qm takes.

    Raises
    ------
    UserError
        There is nothing to predict, or the windows do not fit the model.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"the number of tokens to evaluate must be at least 1, not {max_tokens}; "
                        "give more.")
    context = qm.context if context is None else context
    if not 1 <= context <= qm.context:
        raise UserError(f"windows of {context} tokens are not possible with {qm.name}; give 1 to "
                        f"{qm.context}.")
    runner, golden = FloatModel(model), GoldenModel(qm)
    losses: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    for tokens in windows(model, lines, context):
        if max_tokens is not None:
            tokens = tokens[:max_tokens - done + 1]
        x: Sequence[int] = tokens[:-1]
        targets = np.array(tokens[1:])
        golden.forget()
        fixed = golden.forward(x, want="all") / 2.0**LOGIT_FRAC
        losses.append((negative_log_likelihood(runner.forward(x), targets),
                       negative_log_likelihood(fixed, targets)))
        done += len(targets)
        if progress:
            progress(done)
        if done == max_tokens:
            break
    if not done:
        raise UserError("the text has no tokens to predict; give a file with some lines of text.")
    exact, rounded = (np.concatenate(part) for part in zip(*losses, strict=True))
    ppl_float, ppl_fixed = exp(exact.mean()), exp(rounded.mean())
    root = sqrt(done)
    return Perplexity(
        model=model.name, ppl_float=ppl_float, ppl_fixed=ppl_fixed,
        delta_pct=100 * (ppl_fixed / ppl_float - 1),
        # d exp(x) = exp(x) dx turns errors of mean losses into errors of perplexities
        delta_se=100 * ppl_fixed / ppl_float * float((rounded - exact).std()) / root,
        ppl_se=ppl_float * float(exact.std()) / root, tokens=done,
        saturated={node: count / golden.counted[node]
                   for node, count in golden.saturations.items()},
        redone=golden.redone / golden.rows if golden.rows else None)
