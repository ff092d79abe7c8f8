"""Golden model of rotary position embedding on adjacent pairs."""
import numpy as np

from ..fixed import rshift, saturate


def rope(a, b, cos, sin, shift, bits):
    """Rotate (a, b) by an angle, shift, saturate.

    a, b: requantised rows 2i and 2i+1, saturated to int16 first. cos, sin: int16, 14 fractional
    bits. shift: 14 for int16 results, more to drop bits. bits: 16 or 8.
    Source: RoFormer, arXiv:2104.09864, section 3.2; the compiler makes rotated rows adjacent.
    """
    a, b = (saturate(np.asarray(v, np.int64), 16) for v in (a, b))
    return (saturate(rshift(a * cos - b * sin, shift), bits),
            saturate(rshift(a * sin + b * cos, shift), bits))
