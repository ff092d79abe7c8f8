"""Text that a model writes itself: what its weights are weighed and its scales measured on.

It fits any model, whatever it was trained on, and no text of others is needed. Source: LLM-QAT,
arXiv:2305.17888, section 3.1.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..models.checkpoint import Model
from ..models.float_model import FloatModel, rope_angles

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
    """
    rng, m = np.random.default_rng(seed), model
    length = min(length, m.context)
    group = m.heads // m.kv_heads
    shape = (len(m.layers), sequences, m.kv_heads, length, m.head_dim)
    keys, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    angles = rope_angles(m.head_dim, m.rope_theta, range(length))
    cos, sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    runner = FloatModel(m)
    linear, rotate, norm = runner._linear, runner._rotate, runner._norm
    tokens = np.zeros((sequences, length), np.int64)
    tokens[:, 0] = rng.integers(0, m.vocab, sequences) if m.bos_id is None else m.bos_id
    for t in range(length - 1):
        r = m.embedding[tokens[:, t]]
        for i, w in enumerate(m.layers):
            x = norm(r, w.norm1)
            q = linear(x, w.q, w.q_bias).reshape(sequences, m.kv_heads, group, m.head_dim)
            k, v = (linear(x, a, b).reshape(sequences, m.kv_heads, m.head_dim)
                    for a, b in ((w.k, w.k_bias), (w.v, w.v_bias)))
            keys[i, :, :, t], values[i, :, :, t] = rotate(k, cos[t], sin[t]), v
            s = rotate(q, cos[t], sin[t]) @ keys[i, :, :, :t + 1].swapaxes(-1, -2)
            s /= np.float32(np.sqrt(m.head_dim))
            p = np.exp(s - s.max(axis=-1, keepdims=True))
            a = p / p.sum(axis=-1, keepdims=True) @ values[i, :, :, :t + 1]
            r = r + linear(a.reshape(sequences, -1), w.o, w.o_bias)
            x = norm(r, w.norm2)
            gate, up = linear(x, w.gate, w.gate_bias), linear(x, w.up, w.up_bias)
            r = r + linear(gate / (1 + np.exp(-np.maximum(gate, -80))) * up, w.down, w.down_bias)
        logits = norm(r, m.final_norm) @ m.head.T
        up_to = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        drawn = (up_to < rng.random((sequences, 1)) * up_to[:, -1:]).sum(axis=-1)
        tokens[:, t + 1] = np.minimum(drawn, m.vocab - 1)
        if progress:
            progress((t + 1) * sequences)
    out = []
    for line in tokens.tolist():
        stops = (at + 1 for at, token in enumerate(line) if at and token in m.stop_ids)
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
