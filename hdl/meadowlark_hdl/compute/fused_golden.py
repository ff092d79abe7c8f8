"""Golden model of a fused tile of QK and SV: attention tile by tile, exact by lazy rescaling.

No gateware has it yet: docs/next-program.md, part I, says what that is to be.
"""
import numpy as np

from ..fixed import exp2_neg
from .softmax_golden import MASKED, SCORE_FRACTION
from .tiling_engine_golden import broadcast

#: Most bits that a tile shifts by: more leave nothing of a sum, or -1.
MOST_SHIFT = 63


def references(s, rows):
    """Scores s[..., keys] -> what stands for the maximum in each tile, int64[tiles, ..., 1]: the
    running maximum, rounded up to whole log2 units.

    rows: keys of a full tile, 1..; tiles begin at key 0.
    """
    s = np.asarray(s, np.int64)
    tops = np.stack([s[..., at:at + rows].max(axis=-1, keepdims=True)
                     for at in range(0, s.shape[-1], rows)])
    return -(-np.maximum.accumulate(tops) >> SCORE_FRACTION) << SCORE_FRACTION


def fused(s, values, rows):
    """s[..., n, keys] with MASKED where hidden, values[..., keys, dim] -> (sum of p * v
    [..., n, dim], sum of p [..., n]), by tiles of ``rows`` keys.

    p is u1.15, ``2**(score - reference)``, 0 where masked; the largest of a tile that raises the
    reference is above 2**14. Where a tile raises it by d units, both sums are shifted right by d
    bits, at most MOST_SHIFT and rounded down, before the tile's first product is added. A tile of
    masked scores changes nothing, so neither do keys behind those that a row sees. With one tile,
    and a maximum in whole units, sums are those of :func:`.softmax_golden.probabilities`.

    Source: online softmax and what FlashDecoding++ has in its place, arXiv:2311.01282, section 3.
    """
    s, values = np.asarray(s, np.int64), np.asarray(values, np.int64)
    products = np.zeros((*s.shape[:-1], values.shape[-1]), np.int64)
    total, before = np.zeros((*s.shape[:-1], 1), np.int64), None
    for at, peak in zip(range(0, s.shape[-1], rows), references(s, rows), strict=True):
        if before is not None:
            down = np.minimum(peak - before >> SCORE_FRACTION, MOST_SHIFT)
            products, total = products >> down, total >> down
        part = s[..., at:at + rows]
        p = np.where(part == MASKED, 0, exp2_neg(peak - part))
        products = products + broadcast(p, values[..., at:at + rows, :])
        total, before = total + p.sum(axis=-1, keepdims=True), peak
    return products, total[..., 0]
