"""Prefix codes whose lengths are known from 6 bits: the best one for a histogram."""
from collections.abc import Sequence

import numpy as np

from .packing_golden import CLASSES, MAX_LENGTH, PREFIX, REVERSED, Code, pack


def entropy(histogram) -> float:
    """Zeroth-order entropy of a histogram in bits a symbol; 0 for an empty one."""
    counts = np.asarray(histogram, np.float64)
    counts = counts[counts > 0]
    return float(counts @ np.log2(counts.sum() / counts) / max(counts.sum(), 1))


def prefix_code(histogram) -> Code:
    """The shortest code of its kind for ``histogram``: int[256], counts of the plain bytes.

    Dynamic programming: symbols by falling count, classes in canonical order. With u classes and s
    symbols given away, either one symbol takes 2**(6-n) classes (n <= 6) or the next 2**(n-6)
    symbols share one.
    """
    histogram = np.asarray(histogram, np.int64)
    order = np.argsort(-histogram, kind="stable")
    symbols = order[histogram[order] > 0]
    count = len(symbols)
    if count <= 1:
        return Code(meadow=False, lengths=np.zeros(CLASSES, np.uint8),
                    symbols=symbols.astype(np.uint8).reshape(-1, 1))
    # The last class may be larger than need be: then its last symbols never occur.
    reach = count + 255
    some = 1 << np.arange(MAX_LENGTH - PREFIX + 1)              # symbols of a class, by n - 6
    total = np.concatenate([[0], np.cumsum(histogram[symbols]), np.zeros(255, np.int64)])
    total[count + 1:] = total[count]
    before = np.maximum(np.arange(reach + 1) - some[:, None], 0)
    step = (PREFIX + np.arange(len(some)))[:, None] * (total - total[before]).astype(np.float64)
    step[np.arange(reach + 1) < some[:, None]] = np.inf
    cost = np.full((CLASSES + 1, reach + 1), np.inf)            # of u classes, s symbols
    came = np.zeros((CLASSES + 1, reach + 1), np.int64)         # length that led there
    cost[0, 0] = 0
    for u in range(1, CLASSES + 1):
        price = cost[u - 1][before] + step
        best = price.argmin(axis=0)
        came[u], cost[u] = PREFIX + best, price[best, np.arange(reach + 1)]
        for n in range(1, PREFIX):
            taken = 1 << PREFIX - n
            if u % taken == 0:
                alone = cost[u - taken, :-1] + n * np.diff(total)
                better = np.nonzero(alone < cost[u, 1:])[0] + 1
                cost[u, better], came[u, better] = alone[better - 1], n
    u, at = CLASSES, count + int(cost[CLASSES, count:].argmin())
    lengths: list[int] = []
    while u:
        n = int(came[u, at])
        lengths += [n] * (1 << max(PREFIX - n, 0))
        u, at = CLASSES - len(lengths), at - (1 << max(n - PREFIX, 0))
    return Code(meadow=False, lengths=np.array(lengths[::-1], np.uint8),
                symbols=symbols.astype(np.uint8).reshape(-1, 1))


def code_words(code: Code) -> tuple[np.ndarray, np.ndarray]:
    """(values, lengths): int64[256] each, by plain byte; length -1: there is no code word."""
    values, lengths = np.zeros(256, np.int64), np.full(256, -1, np.int64)
    symbols, bases = code.symbols[:, 0].astype(np.int64), code.bases()
    for u in range(CLASSES)[::-1]:          # of a symbol's several classes the first one counts
        n = int(code.lengths[u])
        ranks = np.arange(1 << max(n - PREFIX, 0)) + bases[u]
        ranks = ranks[ranks < len(symbols)]
        lengths[symbols[ranks]] = n
        values[symbols[ranks]] = int(REVERSED[u]) & (1 << min(n, PREFIX)) - 1 \
            | (ranks - bases[u]) << PREFIX
    return values, lengths


def coded_bits(code: Code, histogram) -> float:
    """Bits of the code words of a histogram; infinite if one is missing."""
    histogram = np.asarray(histogram)
    lengths = code_words(code)[1]
    return float("inf") if (histogram[lengths < 0] > 0).any() else float(
        histogram @ np.maximum(lengths, 0))


def pack_entropy(plain: np.ndarray, tiles: Sequence[int], code: Code | None = None, *,
                 keep: bool = False, spare: int = 0, lanes: int | None = None,
                 ) -> tuple[Code, list[bytes]]:
    """A segment of entropy-coded chunks.

    Parameters
    ----------
    plain : uint8[chunks, W]
    tiles : sequence of int
        Chunks of each tile.
    code : Code, optional
        By default the best one.
    keep : bool
        The decoder has the code's tables already.
    spare : int
        See :func:`.packing_golden.pack`.
    lanes : int, optional
        Of the unpacker, W or W / 2; by default W.

    Returns
    -------
    Code, list of bytes
        The coded chunks of each tile.
    """
    if code is None:
        code = prefix_code(np.bincount(plain.ravel(), minlength=256))
    values, lengths = code_words(code)
    W = plain.shape[1]
    lanes = lanes or W
    by_lane = np.ascontiguousarray(plain.reshape(-1, lanes).T)
    if (np.bincount(by_lane.ravel(), minlength=256)[lengths < 0] > 0).any():
        raise ValueError("the code has no word for some of the bytes")
    return code, pack(values.astype(np.int32)[by_lane], lengths.astype(np.uint8)[by_lane], code,
                      tiles=[n * W // lanes for n in tiles], chunk=W, keep=keep, spare=spare)
