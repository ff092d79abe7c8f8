"""Golden model of the array's two modes: products of integers, exact by way of float64."""
import numpy as np

#: Weights up to which float64 copies are worth their memory (512 MB); models with more keep their
#: integers, and convert them at each use.
FLOATS_KEPT = 1 << 26
#: Weights converted at once: what a processor's cache holds in float64.
AT_ONCE = 1 << 16


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int[..., n, K] x int[..., K, m] -> int64[..., n, m]; a: 16 bits at most, b: 18.

    Either may be in float64 already.
    """
    # |a| <= 2**15 (int16, or a probability), |b| <= 2**17: no partial sum needs 54 bits
    assert a.shape[-1] << 32 < 1 << 53
    return (np.asarray(a, np.float64) @ np.asarray(b, np.float64)).astype(np.int64)


def dot(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Dot mode: int[rows, K] x int[..., K] -> int64[..., rows]; converts integers in pieces."""
    step = len(weights)
    if weights.dtype != np.float64:
        step = max(1, AT_ONCE // weights.shape[1])
    return np.concatenate([product(x, weights[at:at + step].T)
                           for at in range(0, len(weights), step)], axis=-1)


def diagonal(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Dot mode, rows of a beat: int[rows, W] x int[n, words * W] -> int64[n, rows]; row r is of
    word r / W alone."""
    W = weights.shape[1]
    return np.concatenate([product(x[:, at:at + W], weights[at:at + W].T)
                           for at in range(0, len(weights), W)], axis=1)


def broadcast(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Broadcast mode: p[..., keys] x values[keys, dim] -> int64[..., dim]: sum over keys p * v."""
    return product(p, values)
