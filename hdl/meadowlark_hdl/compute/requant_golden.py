"""Golden model of the requantiser."""
import numpy as np

from ..fixed import rshift, saturate


def requant(acc, mant, shift, bias: int | np.ndarray = 0):
    """``sat32(round(acc * mant / 2**shift) + bias)``.

    acc: signed 45 bits; mant: u16; shift: 0..63; bias: int32. Broadcasts. int64 out.
    ``|acc * mant| < 2**60``, so int64 holds every intermediate.
    """
    return saturate(rshift(np.asarray(acc, np.int64) * np.asarray(mant, np.int64), shift)
                    + np.asarray(bias, np.int64), 32)
