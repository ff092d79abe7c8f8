"""Sampling options as people give them -> what the sampler is told."""
from __future__ import annotations

from math import floor, isfinite, log2

from meadowlark_hdl.sampler.sampler_golden import Sampling

from ..errors import UserError

#: Longest sorted list of the sampler (``Config.topk`` may be shorter).
MAX_TOP_K = 32
LOG2_E = 1.4426950408889634


def mantissa_shift(factor: float) -> tuple[int, int]:
    """A positive factor as ``mant * 2**-shift``, mant in 2**15..2**16-1; shift may be any integer.

    The relative error is at most 2**-16.
    """
    shift = 15 - floor(log2(factor))
    mant = round(factor * 2.0 ** shift)
    return (mant, shift) if mant < 1 << 16 else (mant >> 1, shift - 1)


def sampling(*, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
             max_top_k: int = MAX_TOP_K) -> Sampling:
    """Check the options and scale them.

    Parameters
    ----------
    temperature : float, 0 or 0.01..100
        0 takes the likeliest token; the other options then change nothing.
    top_k : int, 0..max_top_k
        Draw from the k likeliest tokens; 0 from all.
    top_p : float, above 0, at most 1
        Draw from the fewest likeliest tokens that hold this share of the weight; 1 from all. The
        sampler finds them in its sorted list, so without top_k it means top_k = max_top_k.
    seed : int, 0..2**32-1
        The same seed and prompt give the same text.
    max_top_k : int
        Length of the sorted list of the core (``Config.topk``).

    Raises
    ------
    UserError
        An option out of its range.
    """
    if not isfinite(temperature) or temperature != 0 and not 0.01 <= temperature <= 100:
        raise UserError(f"temperature {temperature!r} is out of range; give 0 (the likeliest "
                        "token) or 0.01 to 100.")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 0 <= top_k <= max_top_k:
        raise UserError(f"top_k {top_k!r} is out of range; give 0 (off) to {max_top_k}, the "
                        "length of the sampler's sorted list.")
    if not isfinite(top_p) or not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p!r} is out of range; give more than 0 and at most 1 (off).")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise UserError(f"seed {seed!r} is out of range; give a whole number from 0 to 4294967295.")
    if temperature == 0:
        return Sampling(seed=seed)
    share = 0 if top_p == 1 else min(65535, max(1, round(top_p * 65536)))
    if share and not top_k:
        top_k = max_top_k
    # log2(e)/0.01 < 2**8 and log2(e)/100 > 2**-7: the shift is 8..22 and fits its 5 bits
    mant, shift = mantissa_shift(LOG2_E / temperature)
    return Sampling(inv_t_mant=mant, inv_t_shift=shift, top_k=top_k, top_p=share, seed=seed)
