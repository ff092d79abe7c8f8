"""Text that a model writes itself: what its weights are weighed and its scales measured on.

It fits any model, whatever it was trained on, and no text of others is needed. Source: LLM-QAT,
arXiv:2305.17888, section 3.1.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import UserError
from ..models.checkpoint import Model
from ..models.float_model import FloatModel

#: Sequences written at once, and the tokens of each at most.
SEQUENCES, LENGTH = 64, 128


def own_text(model: Model, *, sequences: int = SEQUENCES, length: int = LENGTH, seed: int = 1,
             progress: Callable[[int], None] | None = None) -> list[list[int]]:
    """Sequences drawn from a model's own distribution, at temperature 1.

    Parameters
    ----------
    model : Model
    sequences, length : int
        How many, and their tokens at most; fewer if the context is shorter.
    seed : int
    progress : callable, optional
        Gets the number of tokens drawn.

    Returns
    -------
    list of lists of 2..length ids
        Each begins with the model's bos, or a token by chance if it has none, and ends behind its
        first stop id.

    Raises
    ------
    UserError
        The model is an encoder of images.
    """
    if model.graph.encoder:
        raise UserError(f"{model.name} reads images and writes no text, which --bits, --target-ppl "
                        "and --fuse-ffn auto need; leave them out")
    rng = np.random.default_rng(seed)
    length = min(length, model.context)
    stepper = FloatModel(model).stepper(sequences, length)
    tokens = np.zeros((sequences, length), np.int64)
    tokens[:, 0] = rng.integers(0, model.vocab, sequences) if model.bos_id is None \
        else model.bos_id
    for t in range(length - 1):
        logits = stepper.step(tokens[:, t])
        up_to = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        drawn = (up_to < rng.random((sequences, 1)) * up_to[:, -1:]).sum(axis=-1)
        tokens[:, t + 1] = np.minimum(drawn, model.vocab - 1)
        if progress:
            progress((t + 1) * sequences)
    out = []
    for line in tokens.tolist():
        stops = (at + 1 for at, token in enumerate(line) if at and token in model.stop_ids)
        out.append(line[:next(stops, length)])
    return out


def first(texts: list[list[int]], tokens: int) -> list[list[int]]:
    """The first sequences, until they have so many tokens together."""
    out: list[list[int]] = []
    for text in texts:
        if sum(map(len, out)) >= tokens:
            break
        out.append(text)
    return out
