"""Golden model of functions of rows, alone and as gates."""
import numpy as np

from ..fixed import rshift, saturate
from ..functions import apply
from ..isa import Fn


def glu(fn: Fn, gate, up, shift, bits=16):
    """``saturate(round(fn(gate) * up / 2**shift), bits)``.

    gate: requantised row 2i, 11 fractional bits, saturated to 18 bits first (+-64); up:
    requantised row 2i+1, saturated to int16. fn(gate) has 18 bits, see :mod:`..functions`.
    bits: 16 or 8 in the chip; with 34 nothing is saturated at the end.
    Source: GLU Variants, arXiv:2002.05202.
    """
    u = saturate(np.asarray(up, np.int64), 16)
    return saturate(rshift(apply(fn, saturate(np.asarray(gate, np.int64), 18)) * u, shift), bits)


def alone(fn: Fn, value, shift, bits=16):
    """``saturate(round(fn(value) / 2**shift), bits)``; value: as ``gate`` of :func:`glu`."""
    return glu(fn, value, 1, shift, bits)
