"""Golden model of the softmax unit: base 2, exact or unified maximum, unnormalised, one division a
row."""
import numpy as np

from ..config import Config
from ..fixed import exp2_neg, recip, rshift, saturate
from .softcap_golden import softcap

#: What a key that is not seen has for a score; a visible one is always above it.
MASKED = -(1 << Config.SCORE_BITS - 1)
#: Fractional bits of a score, which is in log2 units.
SCORE_FRACTION = 10
#: Log2 units of the window of a unified maximum, by its code in an instruction; 0: there is none.
WINDOWS = (0, 4, 8, 16)


def scores(acc, shift, cap=0):
    """Dot products -> scores: ``round(acc / 2**shift)``, 10 fractional bits, log2 units.

    Saturated to 18 bits without the lowest value, which is MASKED: -131071..131071, +-128 log2
    units. log2(e)/sqrt(d) and the key scale are folded into the requantisation of the queries.
    cap: factor of a soft cap (:func:`.softcap_golden.softcap`), 0: there is none. With one, what is
    rounded and saturated has 15 fractional bits, of caps.
    """
    s = np.maximum(saturate(rshift(acc, shift), Config.SCORE_BITS), MASKED + 1)
    return softcap(s, cap) if cap else s


def saturated(acc, shift):
    """Which of :func:`scores`, before any cap, are not what was computed: bool, the shape of acc.
    """
    return scores(acc, shift) != rshift(acc, shift)


def probabilities(s, peak=None):
    """s[..., keys] with MASKED where hidden -> (p u1.15 [..., keys], sum of p [...]).

    The maximum of a row is exact (taken while the scores are written), so no p exceeds 1 and the
    largest is exactly 32768. A masked score gives p = 0. peak: what stands for the maximum
    [..., 1], where scores have been in memory since, see :func:`spilled`, or is unified, see
    :func:`peaks`.
    """
    s = np.asarray(s, np.int64)
    peak = s.max(axis=-1, keepdims=True) if peak is None else peak
    p = np.where(s == MASKED, 0, exp2_neg(peak - s))
    return p, p.sum(axis=-1)


def peaks(maxima, phi, window):
    """Exact maxima of rows -> (what stands for each, whether it is phi).

    A row whose maximum is at most phi, and less than ``window`` below it, takes phi; another one is
    done again with its own. phi: whole log2 units. window: of :data:`WINDOWS`; 0: none takes phi.
    Source: softmax with a unified maximum, FlashDecoding++, arXiv:2311.01282, section 3.
    """
    maxima, phi = np.asarray(maxima, np.int64), np.asarray(phi, np.int64) << SCORE_FRACTION
    good = (0 <= phi - maxima) & (phi - maxima < window << SCORE_FRACTION)
    return np.where(good, phi, maxima), good


def unified_field(phi, window):
    """Field ``mant`` of QK: phi, -128..127, and the window's code; 0 without one."""
    return WINDOWS.index(window) << 8 | phi & 255 if window else 0


def of_field(mant):
    """Inverse of :func:`unified_field`: (phi, window)."""
    return (mant & 255 ^ 128) - 128, WINDOWS[mant >> 8 & 3]


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
