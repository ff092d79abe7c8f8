"""Functions of a row, each an entry of a table: for gateware, golden models and the host.

A function is made of a share ``s`` of its argument, which a table has for what is not negative:
``f(x) = x * s(x)``, or centred ``f(x) = 2 * s(x) - 1``, with ``s(-x) = 1 - s(x)``.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf

import numpy as np

from .fixed import interpolate, rshift
from .isa import Fn

#: Fractional bits of the argument, of 18 bits, and of what a function gives unless it is centred.
ARGUMENT_FRACTION = 11
#: Fractional bits of shares, and of a centred function's values.
SHARE_FRACTION = 15


#: Places a unit at which the normal distribution is computed, from -8 to 8.
_PLACES = 256
_AT = np.arange(-8 * _PLACES, 8 * _PLACES + 1) / _PLACES
_BELOW = np.array([(1 + erf(x / 2**0.5)) / 2 for x in _AT])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # exp(-88) is the smallest that float32 holds; the share is 0 to its precision long before
    return 1 / (1 + np.exp(-np.maximum(x, -80)))


def _density(x: np.ndarray) -> np.ndarray:
    """Of a normal distribution."""
    return np.exp(-x * x / 2) / (2 * np.pi)**0.5


def _normal(x: np.ndarray) -> np.ndarray:
    """The share of a normal distribution below x, to 2**-40: cubic between places."""
    inside = np.clip(x, -7.99, 7.99).astype(np.float64) * _PLACES
    left = np.floor(inside)
    t, k = inside - left, left.astype(np.int64) + 8 * _PLACES
    y0, y1, d0, d1 = _BELOW[k], _BELOW[k + 1], *(
        _density(_AT[k + n]) / _PLACES for n in (0, 1))
    found = y0 + t * (d0 + t * (3 * (y1 - y0) - 2 * d0 - d1 + t * (2 * (y0 - y1) + d0 + d1)))
    return found.astype(np.result_type(x, np.float32))


#: Of GELU by a hyperbolic tangent: ``sigmoid(_A * (x + _B * x**3))``.
_A, _B = 2 * (2 / np.pi)**0.5, 0.044715


def _about_normal(x: np.ndarray) -> np.ndarray:
    return _sigmoid(_A * (x + _B * x**3))


def _slope_of_silu(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(x)
    return s * (1 + x * (1 - s))


def _slope_of_gelu_tanh(x: np.ndarray) -> np.ndarray:
    s = _about_normal(x)
    return s + x * _A * (1 + 3 * _B * x * x) * (s * (1 - s))


def _table(share: Callable[[np.ndarray], np.ndarray], segments: int, step: float) -> np.ndarray:
    return np.round(share(step * np.arange(segments + 1)) * (1 << SHARE_FRACTION)).astype(np.int64)


#: Entries of shares, a power of two and one. That of no segments is 1 for all that is not negative.
SIGMOID, NORMAL, ABOUT_NORMAL, STEP = (
    _table(_sigmoid, 256, 1 / 16), _table(_normal, 128, 1 / 32), _table(_about_normal, 128, 1 / 32),
    _table(lambda x: x + 1, 0, 1))


@dataclass(frozen=True)
class Function:
    """A function of a row.

    exact: of floats. slope: its derivative. error: largest distance from it, for all arguments.
    table: its shares, at multiples of 1/16; beyond the last one 1. fine: at multiples of 1/32.
    centred: see above.
    """
    exact: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    error: float
    table: np.ndarray
    fine: bool = False
    centred: bool = False

    @property
    def segments(self) -> int:
        """Of the table; a power of two, or 0."""
        return len(self.table) - 1

    @property
    def homogeneous(self) -> bool:
        """f(a * x) = a * f(x) for positive a: the share is the same for all that is positive."""
        return not self.segments and not self.centred

    @property
    def fraction(self) -> int:
        """Fractional bits of its values."""
        return SHARE_FRACTION if self.centred else ARGUMENT_FRACTION


#: Of each :class:`.Fn` but NONE. Sources: SiLU, arXiv:1702.03118; GELU, arXiv:1606.08415.
FUNCTIONS = {
    Fn.SILU: Function(
        lambda x: x / (1 + np.exp(-np.maximum(x, -80))), _slope_of_silu, 2**-11, SIGMOID),
    Fn.RELU: Function(
        lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype), 0, STEP),
    Fn.GELU: Function(
        lambda x: x * _normal(x), lambda x: _normal(x) + x * _density(x), 2**-11, NORMAL,
        fine=True),
    Fn.GELU_TANH: Function(
        lambda x: x * _about_normal(x), _slope_of_gelu_tanh, 2**-11, ABOUT_NORMAL, fine=True),
    Fn.TANH: Function(np.tanh, lambda x: 1 - np.tanh(x)**2, 2**-12, SIGMOID, fine=True,
                      centred=True),
}


def share(fn: Fn, g) -> np.ndarray:
    """Share of an 18-bit integer with 11 fractional bits: u1.15, 0..32768."""
    function, g = FUNCTIONS[fn], np.asarray(g, np.int64)
    a, one = np.abs(g) << function.fine, 1 << SHARE_FRACTION
    table = np.append(function.table, one)
    positive = np.where(a < function.segments << 7, interpolate(
        table, np.minimum(a >> 7, function.segments), a & 127, 7), one)
    return np.where(g < 0, one - positive, positive)


def apply(fn: Fn, g) -> np.ndarray:
    """f(g) of an 18-bit integer with 11 fractional bits; 18 bits, ``fraction`` of them behind the
    point."""
    s = share(fn, g)
    if FUNCTIONS[fn].centred:
        return 2 * s - (1 << SHARE_FRACTION)
    return rshift(np.asarray(g, np.int64) * s, SHARE_FRACTION)
