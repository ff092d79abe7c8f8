"""MEADOW's packing: chunks of C weights -> ids by frequency -> packets that name their width.

Source: MEADOW, arXiv:2503.11663. Here a packet is N consecutive ids of a lane.
"""
from collections.abc import Sequence

import numpy as np

from .packing_golden import CLASSES, MODE_BITS, REVERSED, TABLE_BYTES, Code, pack

#: Ids that a packet can have.
PACKETS: tuple[int, ...] = (4, 8, 16, 32)
#: Entries of the table of uniques by C: what a block RAM holds, 256 bytes for C = 1.
ENTRIES = {1: 256, 2: TABLE_BYTES // 2, 4: TABLE_BYTES // 4}


def reindexed(plain: np.ndarray, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Unique chunks by falling frequency, uint8[U, C], and the id of each chunk, int64[chunks].

    plain: uint8[...], cut into C consecutive ones.
    """
    rows = np.ascontiguousarray(plain).reshape(-1, C)
    keys = rows.view(f"<u{C}").ravel()
    # Counting is quicker than sorting for what fits in 16 bits.
    if C <= 2:
        counts = np.bincount(keys, minlength=1 << 8 * C)
        unique = np.nonzero(counts)[0]
        order = unique[np.argsort(-counts[unique], kind="stable")]
        rank = np.zeros(1 << 8 * C, np.int64)
        rank[order] = np.arange(len(order))
        ids = rank[keys]
    else:
        unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        by_count = np.argsort(-counts, kind="stable")
        rank = np.empty(len(unique), np.int64)
        rank[by_count] = np.arange(len(unique))
        order, ids = unique[by_count], rank[inverse]
    return order.astype(f"<u{C}").view(np.uint8).reshape(-1, C), ids


def packet_widths(ids: np.ndarray, N: int) -> np.ndarray:
    """Bits that the largest id of each packet needs: int64[ceil(steps / N), lanes].

    ids: int64[steps, lanes]; the last packet of a lane may have fewer than N.
    """
    steps, lanes = ids.shape
    padded = np.zeros((-(-steps // N) * N, lanes), np.int64)
    padded[:steps] = ids
    most = padded.reshape(-1, N, lanes).max(axis=1)
    return np.frexp(most.astype(np.float64))[1].astype(np.int64)


def choose_widths(need: np.ndarray) -> np.ndarray:
    """The at most 8 widths with the fewest bits in all, rising.

    need: int64[12], number of packets that need each width. Dynamic programming: a width serves
    all packets that need at most it and more than the next smaller one.
    """
    top = int(np.nonzero(need)[0].max(initial=0))
    total = np.concatenate([[0], np.cumsum(need[:top + 1])])
    best: dict[int, tuple[int, tuple[int, ...]]] = {-1: (0, ())}
    found: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(1 << MODE_BITS):
        best = {w: min((cost + w * int(total[w + 1] - total[v + 1]), (*chosen, w))
                       for v, (cost, chosen) in best.items() if v < w)
                for w in range(top + 1) if any(v < w for v in best)}
        if top in best:
            found.append(best[top])
        if not best:
            break
    return np.array(min(found)[1])


def meadow_bits(ids: np.ndarray, N: int) -> int:
    """Bits of ids int64[steps, lanes] in packets of N: mode bits and ids, no tables, no padding."""
    widths = packet_widths(ids, N)
    chosen = choose_widths(np.bincount(widths.ravel(), minlength=12))
    served = chosen[np.searchsorted(chosen, widths)]
    lengths = np.full(len(widths), N)
    lengths[-1] = len(ids) - N * (len(widths) - 1)
    return int((lengths[:, None] * served).sum()) + MODE_BITS * widths.size


def meadow_code(ids: np.ndarray, symbols: np.ndarray, N: int) -> tuple[Code, np.ndarray]:
    """The code for ids int64[steps, lanes] in packets of N, and the mode of each packet."""
    widths = packet_widths(ids, N)
    chosen = choose_widths(np.bincount(widths.ravel(), minlength=12))
    by_mode = np.full(1 << MODE_BITS, chosen[-1])
    by_mode[:len(chosen)] = chosen
    lengths = MODE_BITS + by_mode[REVERSED[:CLASSES] & (1 << MODE_BITS) - 1]
    code = Code(meadow=True, lengths=lengths.astype(np.uint8), symbols=symbols, packet=N)
    return code, np.searchsorted(chosen, widths)


def pack_meadow(plain: np.ndarray, tiles: Sequence[int], C: int, N: int, *,
                spare: int = 0, lanes: int | None = None) -> tuple[Code, list[bytes]]:
    """A segment of chunks in MEADOW's packing.

    Parameters
    ----------
    plain : uint8[chunks, W]
    tiles : sequence of int
        Chunks of each tile; W / lanes times that is a multiple of C.
    C : int
        1, 2 or 4.
    N : int
        One of :data:`PACKETS`.
    spare : int
        See :func:`.packing_golden.pack`.
    lanes : int, optional
        Of the unpacker, W or W / 2; by default W.

    Raises
    ------
    ValueError
        More unique chunks than the table has room for, or a tile that is no multiple of C.
    """
    W = plain.shape[1]
    lanes = lanes or W
    steps = [n * W // lanes for n in tiles]
    symbols, ids = reindexed(plain, C)
    if len(symbols) > ENTRIES[C]:
        raise ValueError(f"{len(symbols)} unique chunks of {C}, room for {ENTRIES[C]}")
    if any(n % C for n in steps):
        raise ValueError(f"tiles of {tiles!r} chunks cannot be cut into {C} each")
    ids = ids.reshape(-1, lanes)
    code, modes = meadow_code(ids, symbols, N)
    mode = np.repeat(modes, N, axis=0)[:len(ids)]
    first = (np.arange(len(ids)) % N == 0)[:, None]
    by_mode = code.lengths[REVERSED[np.arange(1 << MODE_BITS)]].astype(np.int64) - MODE_BITS
    lengths = by_mode[mode] + MODE_BITS * first
    values = np.where(first, ids << MODE_BITS | mode, ids)
    return code, pack(np.ascontiguousarray(values.T, np.int32),
                      np.ascontiguousarray(lengths.T, np.uint8), code,
                      tiles=[n // C for n in steps], chunk=W, spare=spare)
