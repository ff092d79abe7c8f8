"""Golden model of the softmax unit: base 2, exact maximum, unnormalised, one division a row."""
import numpy as np

from ..config import Config
from ..fixed import exp2_neg, recip, rshift, saturate

#: What a key that is not seen has for a score; a visible one is always above it.
MASKED = -(1 << Config.SCORE_BITS - 1)


def scores(acc, shift):
    """Dot products -> scores: ``round(acc / 2**shift)``, 10 fractional bits, log2 units.

    Saturated to 18 bits without the lowest value, which is MASKED: -131071..131071, +-128 log2
    units. log2(e)/sqrt(d) and the key scale are folded into the requantisation of the queries.
    """
    return np.maximum(saturate(rshift(acc, shift), Config.SCORE_BITS), MASKED + 1)


def saturated(acc, shift):
    """Which of :func:`scores` are not what was computed: bool, the shape of acc."""
    return scores(acc, shift) != rshift(acc, shift)


def probabilities(s, peak=None):
    """s[..., keys] with MASKED where hidden -> (p u1.15 [..., keys], sum of p [...]).

    The maximum of a row is exact (taken while the scores are written), so no p exceeds 1 and the
    largest is exactly 32768. A masked score gives p = 0. peak: the maximum [..., 1], where scores
    have been in memory since, see :func:`spilled`.
    """
    s = np.asarray(s, np.int64)
    peak = s.max(axis=-1, keepdims=True) if peak is None else peak
    p = np.where(s == MASKED, 0, exp2_neg(peak - s))
    return p, p.sum(axis=-1)


def spilled(s):
    """What memory has of scores between QK and the softmax: their upper 16 bits, 8 of them
    fractional. Come back they are that times 4, so a masked one stays that."""
    return np.asarray(s, np.int64) >> 2


def output_scale(total, mant, shift):
    """Sum of p -> (mantissa u16, shift) that requantises sum(p * v) to int16 out.

    mant * 2**-shift = value scale / output scale; mant in 2**15..2**16-1.
    Source of the deferred division: FlashDecoding++, arXiv:2311.01282, section 3.
    """
    t, k = recip(total)
    return np.minimum(rshift(t * mant, 16), 65535), k + shift
