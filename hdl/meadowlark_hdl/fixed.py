"""Fixed-point helpers of the golden models: one rounding mode (half up), saturation, tables."""
import numpy as np


def rshift(x, s):
    """``floor(x / 2**s + 1/2)`` for s >= 0; ``x << -s`` for s < 0. int64 in, int64 out."""
    x, s = np.asarray(x, np.int64), np.asarray(s, np.int64)
    y = x >> np.minimum(np.maximum(s, 1), 63) - 1
    y = (y >> 1) + (y & 1)      # the last bit rounds; x + half could overflow
    return y if (s > 0).all() else np.where(s > 0, y, x << np.maximum(-s, 0))


def saturate(x, bits: int):
    """Clamp to a signed range."""
    # np.clip takes three times as long for a few values
    return np.minimum(np.maximum(x, -(1 << bits - 1)), (1 << bits - 1) - 1)


def floor_log2(x) -> np.ndarray:
    """floor(log2(x)) of positive integers up to 2**64 - 1, exactly."""
    x = np.asarray(x, np.uint64)
    # Without a bit below the leading one, rounding to 53 bits cannot reach the next power of two.
    return np.frexp((x & ~(x >> np.uint64(1))).astype(np.float64))[1].astype(np.int64) - 1


#: 2**-(i/256), 15 fractional bits.
EXP2_TABLE = np.round(2.0**15 * 2.0 ** (-np.arange(256) / 256)).astype(np.int64)
#: 65536/(1 + i/256), i = 0..256.
RECIP_TABLE = np.round(65536 / (1 + np.arange(257) / 256)).astype(np.int64)
#: 65536/sqrt(m): i < 128: m = 1 + i/128; i >= 128: m = 2 + (i - 128)/64; entry 256 is m = 4.
RSQRT_TABLE = np.round(65536 / np.sqrt(np.concatenate(
    [1 + np.arange(128) / 128, 2 + np.arange(129) / 64]))).astype(np.int64)


def interpolate(table, i, rem, bits):
    """table[i] + (table[i+1] - table[i]) * rem / 2**bits, rounded half up."""
    return table[i] + rshift((table[i + 1] - table[i]) * rem, bits)


def recip(d):
    """1/d for integers 1..2**32-1.

    Returns (t, k), ``1/d = t * 2**-(16 + k)``, t in 2**15..2**16, relative error < 2**-14.
    k is floor(log2 d); the 8 bits below the leading one index the table, the next 10 interpolate
    (zeros shifted in where d has fewer).
    """
    d = np.asarray(d, np.int64)
    k = floor_log2(d)
    f = (d << (32 - k)) & ((1 << 32) - 1)          # fraction, 32 bits
    return interpolate(RECIP_TABLE, f >> 24, (f >> 14) & 1023, 10), k


def rsqrt(s):
    """1/sqrt(s) for integers 1..2**64-1 (uint64).

    Returns (t, j), ``1/sqrt(s) = t * 2**-(16 + j)``, t in 2**15..2**16, relative error < 2**-14.
    k = floor(log2 s) = 2*j + odd; 7 bits below the leading one index the half table, the next 10
    interpolate.
    """
    s = np.asarray(s, np.uint64)
    k = floor_log2(s)
    m = s << (63 - k).astype(np.uint64)            # leading one at bit 63
    i = ((m >> np.uint64(56)) & np.uint64(127)).astype(np.int64) + 128 * (k & 1)
    rem = ((m >> np.uint64(46)) & np.uint64(1023)).astype(np.int64)
    return interpolate(RSQRT_TABLE, i, rem, 10), k >> 1


def exp2_neg(x):
    """2**-(x/1024) for integers 0..2**18: u1.15, 0..32768; error < 0.14 % + half an LSB."""
    x8 = (np.asarray(x, np.int64) + 2) >> 2
    return rshift(EXP2_TABLE[x8 & 255], np.minimum(x8 >> 8, 40))
