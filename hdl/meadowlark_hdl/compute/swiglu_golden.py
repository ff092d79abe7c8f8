"""Golden model of the SwiGLU gate."""
import numpy as np

from ..fixed import rshift, saturate, sigmoid


def swiglu(gate, up, shift, bits=16):
    """``saturate(round(silu(gate) * up / 2**shift), bits)``.

    gate: requantised row 2i, 11 fractional bits, saturated to 18 bits first (+-64); up:
    requantised row 2i+1, saturated to int16. silu is rounded to 18 bits, 11 fractional.
    bits: 16 in the chip; with 34 nothing is saturated at the end.
    Source: GLU Variants, arXiv:2002.05202.
    """
    g = saturate(np.asarray(gate, np.int64), 18)
    u = saturate(np.asarray(up, np.int64), 16)
    return saturate(rshift(rshift(g * sigmoid(g), 15) * u, shift), bits)
