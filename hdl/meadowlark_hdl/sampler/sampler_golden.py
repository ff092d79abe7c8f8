"""Golden model of arg-max and seeded sampling."""
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ..fixed import EXP2_TABLE, floor_log2, rshift, saturate

#: -log2(1 + i/256), 12 fractional bits, of v's mantissa; exponent handled apart.
LOG2_TABLE = np.round(4096 * np.log2(1 + (np.arange(256) + 0.5) / 256)).astype(np.int64)
#: log2(-ln(1 - v) / v) for v = (i + 0.5)/256, 12 fractional bits.
_V = (np.arange(256) + 0.5) / 256
TAIL_TABLE = np.round(4096 * np.log2(-np.log1p(-_V) / _V)).astype(np.int64)


@dataclass(frozen=True)
class Sampling:
    """What the sampler is told for a run.

    inv_t_mant, inv_t_shift: log2(e)/temperature = mant * 2**-shift, mant u16, shift 0..31;
    mant 0 means greedy. top_k: 0 (off) or 1..32. top_p: u16 fraction of 65536; 0 means off
    (needs top_k). seed: u32.
    """
    inv_t_mant: int = 0
    inv_t_shift: int = 0
    top_k: int = 0
    top_p: int = 0
    seed: int = 0


def hash32(x):
    """Bijective 32-bit mix of adds, shifts and xors (Thomas Wang's 32-bit integer hash,
    multiplication-free form)."""
    x = np.asarray(x, np.uint64)
    mask = np.uint64(0xFFFFFFFF)

    def u(n):
        return np.uint64(n)
    x = ((x ^ mask) + (x << u(15))) & mask
    x ^= x >> u(12)
    x = (x + (x << u(2))) & mask
    x ^= x >> u(4)
    x = (x + (x << u(3)) + (x << u(11))) & mask
    x ^= x >> u(16)
    return x


def noise_key(seed: int, position: int):
    """Key of a draw: one hash of the seed, xor the position, hashed again (u32)."""
    return int(hash32(int(hash32(seed & 0xFFFFFFFF)) ^ position))


def lane_seed(run: int, seed: int) -> int:
    """What draws of a run with the seed ``run`` are xored with (u32), so that they are those of
    ``seed``."""
    return int(hash32(run & 0xFFFFFFFF) ^ hash32(seed & 0xFFFFFFFF))


def gumbel(key: int, token):
    """Gumbel noise in log2 units, 12 fractional bits: -log2(-ln(1 - v)), v = hash / 2**32.

    The token, xor the key, is hashed twice: after one hash the noise of neighbouring ids is
    correlated by up to 0.13 (a low bit of the id reaches too few bits), after two by no more than
    that of ideal numbers.
    """
    v = hash32(hash32(np.asarray(token, np.uint64) ^ np.uint64(key)))
    v = np.maximum(v, np.uint64(1))
    k = floor_log2(v)
    mantissa = ((v << (np.uint64(32) - k.astype(np.uint64))) >> np.uint64(24)) & np.uint64(255)
    return ((32 - k) * 4096 - LOG2_TABLE[mantissa.astype(np.int64)]
            - TAIL_TABLE[(v >> np.uint64(24)).astype(np.int64)])


def scaled(logits, s: Sampling):
    """logits / temperature in log2 units, 12 fractional bits, saturated to 30 bits signed."""
    return saturate(rshift(np.asarray(logits, np.int64) * s.inv_t_mant, s.inv_t_shift), 30)


def weights(z):
    """Scaled logits, the largest first -> 2**-(distance to it), 15 fractional bits."""
    x = z[0] - z                                    # 12 fractional bits; 8 index the table
    return np.where(x >> 12 > 15, 0, EXP2_TABLE[x >> 4 & 255] >> np.minimum(x >> 12, 15))


def nucleus(weight, top_p: int):
    """Weights in falling order -> which of them begin below ``top_p / 65536`` of their sum."""
    return (np.cumsum(weight) - weight << 16) < top_p * weight.sum()


def sample(logits, s: Sampling, position: int) -> int:
    """int32[vocab] (12 fractional bits), position of the token to come -> token id.

    Greedy: first largest logit. Temperature: arg-max of scaled + Gumbel noise (Gumbel-max), first
    largest. With top_k, only the k largest logits (ties: lower id first); with top_p, of those in
    falling order each whose predecessors' summed weight is below top_p of the k weights' sum.
    """
    logits = np.asarray(logits, np.int64)
    if s.inv_t_mant == 0:
        return int(np.argmax(logits))
    key = noise_key(s.seed, position)
    if not s.top_k:
        return int(np.argmax(scaled(logits, s) + gumbel(key, np.arange(len(logits)))))
    ids = np.argsort(-logits, kind="stable")[: s.top_k]
    z = scaled(logits[ids], s)
    kept = nucleus(weights(z), s.top_p) if s.top_p else np.ones(len(ids), bool)
    drawn = np.where(kept, z + gumbel(key, ids), -(1 << 40))
    return int(ids[np.argmax(drawn)])


def logits_crc(logits) -> int:
    """CRC-32 (ISO-HDLC, as zlib) over the logits as little-endian int32, in row order."""
    return crc32(np.asarray(logits, "<i4").tobytes())
