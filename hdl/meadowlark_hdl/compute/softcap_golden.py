"""Golden model of soft caps: ``cap * tanh(x / cap)`` of scores and of logits, 18 bits each."""
import numpy as np

from ..config import Config
from ..fixed import interpolate, rshift, saturate

#: Fractional bits of the argument, in caps: 18 bits are +-4 of them.
ARGUMENT_FRACTION = 15
ARGUMENT_BITS = 18
#: Fractional bits of the table's entries.
TANH_FRACTION = 17
#: Bits of the argument between two entries.
REST_BITS = 8
#: tanh(i / 128), i = 0..512.
TANH_TABLE = np.round(2.0**TANH_FRACTION * np.tanh(np.arange(513) / 128)).astype(np.int64)
#: The largest cap, in units of what is given.
LARGEST = (1 << Config.CAP_BITS) - 1 << 1


def factor(cap: float) -> int:
    """What :func:`softcap` multiplies by for a cap in units of what it gives. Raises ValueError: it
    is not in 1..LARGEST."""
    found = round(cap / 2)
    if not 1 <= found < 1 << Config.CAP_BITS:
        raise ValueError(f"a soft cap is from 1 to {LARGEST} units, not {cap!r}")
    return found


def softcap(x, factor):
    """Integers x, 15 fractional bits, of caps -> ``2 * factor * tanh(x)``, 18 bits.

    x saturates to -131071..131071, so nothing reaches -131072. Error, beside that: below 2**-16 of
    the cap, and half a unit.
    """
    top = (1 << ARGUMENT_BITS - 1) - 1
    x = np.maximum(saturate(x, ARGUMENT_BITS), -top)
    a = np.abs(x)
    t = interpolate(TANH_TABLE, a >> REST_BITS, a & (1 << REST_BITS) - 1, REST_BITS)
    return rshift(np.where(x < 0, -t, t) * factor, Config.CAP_BITS)
