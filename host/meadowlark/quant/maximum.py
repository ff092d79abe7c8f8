"""Attention with a unified maximum: a constant stands for the maximum of each row of scores.

Of each KV head, calibration takes the whole number of log2 units that most rows may take: their own
maximum is not above it, and less than a window below. The other rows are done again with their own.
Source: softmax with a unified maximum, FlashDecoding++, arXiv:2311.01282, section 3.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from meadowlark_hdl.compute.softmax_golden import SCORE_FRACTION, WINDOWS

from ..errors import UserError
from .golden import GoldenModel
from .quantise import QuantAttend, QuantModel

#: Names of unified maxima, and their windows in log2 units.
WINDOW_OF = {"unified": 8, "unified-16": 16, "unified-4": 4}
#: Ways to the maximum of a row of scores.
MAXIMA = ("exact", *WINDOW_OF)
#: Tokens of calibration at most, and products: the integer model is slower than float32.
TOKENS, PRODUCTS = 4096, 1 << 38


def unified(qm: QuantModel, calibration: Sequence[Sequence[int]], *, window: int,
            progress: Callable[[int], None] | None = None) -> QuantModel:
    """The same model with a unified maximum.

    Parameters
    ----------
    qm : QuantModel
    calibration : sequences of token ids
        One at least.
    window : int
        Of :data:`meadowlark_hdl.compute.softmax_golden.WINDOWS`, not 0.
    progress : callable, optional
        Gets the number of tokens done.

    Raises
    ------
    UserError
        The model reads images, or its scores have a soft cap.
    """
    if window not in WINDOWS[1:]:
        raise ValueError(f"window must be one of {WINDOWS[1:]}, not {window!r}")
    if qm.pictures is not None:
        raise UserError(f"{qm.name} reads images, and a unified maximum is of models of text; "
                        "leave --maximum out")
    if any(step.op.cap is not None for step in qm.plan.attends):
        raise UserError(f"scores of {qm.name} have a soft cap, and a unified maximum is of models "
                        "without; leave --maximum out")
    found: dict[tuple[str, int], list[np.ndarray]] = {}

    def observe(name: str, first: int, maxima: np.ndarray) -> None:
        for head, rows in enumerate(maxima, first):
            found.setdefault((name, head), []).append(rows.ravel())
    golden, done = GoldenModel(qm, maxima=observe), 0
    for tokens in calibration:
        golden.forget()
        golden.forward(tokens[:golden.context])
        done += len(tokens)
        if progress:
            progress(done)
    numbers = dict(qm.numbers)
    for step in qm.plan.attends:
        chosen = [best(np.concatenate(found[step.name, head]), window)
                  for head in range(step.op.kv_heads)]
        old: QuantAttend = numbers[step.name]
        numbers[step.name] = replace(
            old, phi=np.array([phi for phi, _ in chosen], np.int8), window=window,
            missed=round(1e6 * sum(missed for _, missed in chosen) / len(chosen)))
    return replace(qm, numbers=numbers)


def best(maxima: np.ndarray, window: int) -> tuple[int, float]:
    """Maxima of rows, as scores -> (the whole log2 units that most rows take, the smallest such
    ones; the share of rows that do not)."""
    units = -(-np.sort(maxima) >> SCORE_FRACTION)           # rounded up
    phis = np.unique(np.clip(units, -128, 127))
    good = np.searchsorted(units, phis, "right") - np.searchsorted(units, phis - window, "right")
    at = int(good.argmax())
    return int(phis[at]), 1 - int(good[at]) / len(units)
