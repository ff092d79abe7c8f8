"""Golden model of the residual with its sum of squares, and of RMSNorm."""
import numpy as np

from ..config import Config
from ..fixed import rshift, rsqrt, saturate


def square(r):
    """Square of a residual value from its leading 18 bits.

    r: signed 27 bits. The low 0, 5 or 10 bits are dropped (floor), the fewest that leave 18
    signed bits; the square is shifted back. Relative error < 2**-11; exact below 2**17.
    """
    r = np.asarray(r, np.int64)
    fits = [(-(1 << 17 + s) <= r) & (r < 1 << 17 + s) for s in (0, 5)]
    s = np.where(fits[0], 0, np.where(fits[1], 5, 10))
    return (r >> s) ** 2 << 2 * s


def add_residual(residual, y):
    """``sat27(residual + y)``; y: requantised int32."""
    return saturate(np.asarray(residual, np.int64) + y, Config.RESID_BITS)


def sum_of_squares(residual):
    """residual[..., hidden] -> uint64[...]; at most 4096 * 2**52."""
    return square(residual).astype(np.uint64).sum(axis=-1)


def rmsnorm(residual, sumsq, eps, gamma, shift, bits=16):
    """int[..., hidden], uint64[...] -> signed range of ``bits`` [..., hidden].

    eps: hidden * epsilon in squared residual units, >= 1 so that the root is defined.
    gamma: int16[hidden], holds gamma * sqrt(hidden) / output scale * 2**(shift - 16).
    n = r / sqrt(sumsq + eps) has 16 fractional bits and |n| <= 1 by construction.
    bits: 16 in the chip; with 34 nothing is saturated at the end.
    Source: RMSNorm, arXiv:1910.07467.
    """
    r = np.asarray(residual, np.int64)
    t, j = rsqrt(np.asarray(sumsq, np.uint64) + np.uint64(eps))
    r18 = saturate(rshift(r, j[..., None] - 16), 18)
    n = rshift(r18 * t[..., None], 16)          # 18 bits: |n| <= 2**16 + 1
    return saturate(rshift(n * np.asarray(gamma, np.int64), shift), bits)
