"""Golden model of the block modes: 32 codes with a scale, and a minimum, -> weights on a grid.

Blocks are those of GGUF files (Q8_0, Q4_0, Q4_1), with the bits they have there; only a row's
exponents are moved together, see :func:`normalise`.
"""
import numpy as np

from .modes import BLOCK

GRID = 2                #: a weight of 1 in units of half precision is 2**GRID on the grid
FRAC = 6                #: bits below the grid that products and sums keep
SUM_BITS = 24           #: of a sum: 18 bits of the grid and FRAC below it


def fixed(half) -> np.ndarray:
    """float16[...] -> int64[...], in units of 2**-(GRID + FRAC), magnitude rounded half up.

    Infinities and NaN count as the power of two above the largest number.
    """
    raw = np.asarray(half, np.float16).view(np.uint16).astype(np.int64)
    exponent, mantissa = raw >> 10 & 31, raw & 1023
    mantissa = np.where(exponent == 0, mantissa, mantissa + 1024)
    up = np.maximum(exponent, 1) - 25 + GRID + FRAC
    size = np.where(up >= 0, mantissa << np.maximum(up, 0),
                    ((mantissa << 1 >> np.maximum(-up, 0)) + 1) >> 1)
    return np.where(raw >> 15 == 1, -size, size)


def block_weights(codes, scale, minimum=None) -> np.ndarray:
    """Weights of the grid: ``round(codes * scale + minimum)``.

    Parameters
    ----------
    codes : int8[..., columns]
        Less the mode's offset: Q8_0: -128..127, Q4_0: -8..7, Q4_1: 0..15.
    scale, minimum : float16[..., columns / 32]
        minimum: None where the mode has none.

    Returns
    -------
    int32[..., columns]
        18 bits signed; sums wrap around at 24 bits, which :func:`normalise` keeps them from.
    """
    codes = np.asarray(codes)
    shape = (*codes.shape[:-1], codes.shape[-1] // BLOCK, BLOCK)
    total = fixed(scale).astype(np.int32)[..., None] * codes.reshape(shape).astype(np.int32)
    if minimum is not None:
        total += fixed(minimum).astype(np.int32)[..., None]
    total = total + (1 << FRAC - 1)
    wrapped = (total << 32 - SUM_BITS) >> 32 - SUM_BITS
    return (wrapped >> FRAC).reshape(codes.shape)


def normalise(codes, scale, minimum=None):
    """Move each row's exponents so that its largest weight nearly fills the grid.

    Parameters
    ----------
    codes, scale, minimum
        As for :func:`block_weights`, two dimensions.

    Returns
    -------
    scale, minimum : float16, or None for minimum
        Times 2**up, exact but for numbers that become smaller than half of a grid step.
    up : int64[rows]
        0 for a row of zeros.

    Raises
    ------
    ValueError
        A scale or minimum is not finite.
    """
    codes = np.asarray(codes)
    rows, columns = codes.shape
    d = np.asarray(scale, np.float64)
    m = np.zeros_like(d) if minimum is None else np.asarray(minimum, np.float64)
    if not (np.isfinite(d).all() and np.isfinite(m).all()):
        raise ValueError("a scale or minimum of a block is not finite")
    blocks = codes.reshape(rows, -1, BLOCK)
    ends = np.stack([d * blocks.min(axis=2) + m, d * blocks.max(axis=2) + m])
    # A minimum no weight takes must still be a number of half precision, below 2**15; a scale too.
    most = np.maximum(np.abs(ends).max(axis=(0, 2)),
                      np.maximum(np.abs(m), np.abs(d)).max(axis=1))
    # Below 2**15, which is 2**17 on the grid, less what rounding may add.
    _, exponent = np.frexp(most * (1 + 2.0 ** -15))
    up = np.where(most > 0, 15 - exponent, 0).astype(np.int64)
    scaled = np.ldexp(d, up[:, None]).astype(np.float16)
    low = None if minimum is None else np.ldexp(m, up[:, None]).astype(np.float16)
    return scaled, low, up
