"""Packing: lossless, as small as it says, and never larger than raw."""
import collections
import heapq
import itertools

import numpy as np
import pytest

from meadowlark.compile.packing import Packer, Segment
from meadowlark_hdl.weights.entropy_golden import (code_words, coded_bits, entropy, pack_entropy,
                                                   prefix_code)
from meadowlark_hdl.weights.meadow_golden import (ENTRIES, PACKETS, choose_widths, meadow_bits,
                                                  pack_meadow, reindexed)
from meadowlark_hdl.weights.packing_golden import (CLASSES, PackingError, Unpacker, ahead)


def random_plain(rng, chunks, W):
    """Bytes of every kind of statistics, one level to all of them."""
    kind = rng.integers(5)
    if kind == 0:
        return rng.integers(0, 256, (chunks, W)).astype(np.uint8)
    if kind == 1:
        return rng.choice(rng.integers(0, 256, rng.integers(1, 5)), (chunks, W)).astype(np.uint8)
    if kind == 2:           # heavy tails
        return (rng.standard_cauchy((chunks, W)) * 3).clip(-127, 127).astype(np.int8).view(np.uint8)
    if kind == 3:           # pairs of 4-bit codes
        codes = rng.normal(8, 2.5, (2, chunks, W)).clip(0, 15).astype(np.uint8)
        return codes[0] | codes[1] << 4
    spread = 2.0 ** rng.uniform(-2, 6)
    return np.rint(rng.normal(size=(chunks, W)) * spread).clip(-127, 127).astype(np.int8) \
        .view(np.uint8)


def unpacked(W, segments, lanes=None):
    """Segments (coded chunks of each tile, plain chunks of each tile) through the golden model."""
    raw, at, out = b"".join(p for parts, _ in segments for p in parts), 0, []
    golden = Unpacker(lanes or W, W)
    for parts, tiles in segments:
        for part, chunks in zip(parts, tiles, strict=True):
            plain, end = golden.tile(raw, at, chunks)
            assert end == at + len(part)
            at = end
            out.append(plain)
    return np.concatenate(out)


def test_lossless(seed):
    """1,000 random tensors, each in one of the ways that it can be packed."""
    rng, ways = np.random.default_rng(seed), collections.Counter()
    for _ in range(1000):
        W = int(rng.choice([4, 8, 16, 32]))
        lanes = int(rng.choice([W, max(4, W // 2)]))
        tiles = rng.integers(1, 12, rng.integers(1, 4)).tolist()
        plain = random_plain(rng, sum(tiles), W)
        way = [0, *ENTRIES][rng.integers(4)]
        try:
            parts = pack_meadow(plain, tiles, way, int(rng.choice(PACKETS)), lanes=lanes)[1] \
                if way else pack_entropy(plain, tiles, lanes=lanes)[1]
        except ValueError as error:
            assert "unique" in str(error) or "cannot be cut" in str(error)
            way, parts = 0, pack_entropy(plain, tiles, lanes=lanes)[1]
        ways[way] += 1
        np.testing.assert_array_equal(unpacked(W, [(parts, tiles)], lanes), plain)
    assert len(ways) == 4


def test_code_words_are_a_prefix_code(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        histogram = np.bincount(random_plain(rng, 50, 16).ravel(), minlength=256)
        values, lengths = code_words(prefix_code(histogram))
        used = histogram > 0
        assert (lengths[used] >= 0).all()
        words = [format(v, f"0{n}b")[::-1][:n] if n else ""
                 for v, n in zip(values[used].tolist(), lengths[used].tolist())]
        assert not any(a != b and b.startswith(a) for a, b in itertools.pairwise(sorted(words)))


def huffman_bits(histogram):
    heap = [int(n) for n in histogram if n]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def test_close_to_huffman(seed):
    """At most 1 % above Huffman's code, never below it; on weights as models have them."""
    rng = np.random.default_rng(seed)
    for spread in (0.5, 2, 8, 16, 36):
        weights = np.rint(rng.normal(size=200_000) * spread).clip(-127, 127).astype(np.int8)
        histogram = np.bincount(weights.view(np.uint8), minlength=256)
        ours, best = coded_bits(prefix_code(histogram), histogram), huffman_bits(histogram)
        assert best <= ours <= 1.01 * best


@pytest.mark.parametrize("W", [8, 16])
def test_close_to_entropy(W, seed):
    """110,592 weights (the smallest matrix of SmolLM2), tables and padding included."""
    rng = np.random.default_rng(seed)
    weights = np.rint(rng.normal(size=(110592 // W, W)) * 36).clip(-127, 127).astype(np.int8)
    plain = weights.view(np.uint8)
    parts = pack_entropy(plain, [len(plain)])[1]
    bound = entropy(np.bincount(plain.ravel()))
    assert bound <= 8 * sum(map(len, parts)) / plain.size <= 1.015 * bound


def count_meadow(plain, C, N, W):
    """Bits of the published scheme, packets along a lane, counted the plain way."""
    chunks = [bytes(row) for row in plain.reshape(-1, C)]
    by_count = collections.Counter(chunks)
    order = sorted(by_count, key=lambda c: (-by_count[c], int.from_bytes(c, "little")))
    number = {chunk: k for k, chunk in enumerate(order)}
    need, packets = collections.Counter(), []
    for lane in range(W):
        ids = [number[c] for c in chunks[lane::W]]
        for at in range(0, len(ids), N):
            packet = ids[at:at + N]
            packets.append((max(packet).bit_length(), len(packet)))
            need[packets[-1][0]] += 1
    widths = sorted(need)
    if len(widths) > 8:         # which ones to leave out: all ways to do it
        def bits(chosen):
            return sum(n * min(w for w in chosen if w >= v) for v, n in need.items())
        top = widths.pop()
        widths = [*min((c for c in itertools.combinations(widths, 7)),
                       key=lambda c: bits((*c, top))), top]
    return sum(3 + n * min(w for w in widths if w >= v) for v, n in packets), len(order)


@pytest.mark.parametrize("C", list(ENTRIES))
def test_meadow_size(C, seed):
    rng = np.random.default_rng(seed)
    for spread in (0.4, 1, 3, 36):
        W, steps = int(rng.choice([8, 16])), 32 * int(rng.integers(3, 12))
        plain = np.rint(rng.normal(size=(steps * C, W)) * spread).astype(np.int8).view(np.uint8)
        symbols, ids = reindexed(plain, C)
        if len(symbols) > ENTRIES[C]:
            continue
        for N in PACKETS:
            bits, entries = count_meadow(plain, C, N, W)
            assert meadow_bits(ids.reshape(-1, W), N) == bits and entries == len(symbols)
            # Packed: preamble, tables, words as far as lanes ask for them, checksum.
            size = sum(map(len, pack_meadow(plain, [len(plain)], C, N)[1]))
            table = 16 + CLASSES // 2 + -(-entries * C // 4) * 4
            least = -(-table // W) * W + W
            assert least + bits / 8 <= size <= least + bits / 8 + (ahead(W) + 1) * W * W


def test_choose_widths(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        need = rng.integers(0, 50, 12) * (rng.random(12) < 0.9)
        chosen = choose_widths(need)

        def cost(widths):
            return sum(n * min(w for w in widths if w >= v) for v, n in enumerate(need) if n)
        top = max(np.nonzero(need)[0], default=0)
        rest = [w for w in range(top)]
        assert len(chosen) <= 8 and cost(chosen) == min(
            cost((*c, top)) for c in itertools.combinations(rest, min(7, len(rest))))


@pytest.mark.parametrize("packing", ["auto", "raw", "meadow", "entropy"])
@pytest.mark.parametrize("lanes", [None, 8])
def test_packer(packing, lanes, seed):
    """A model's worth of tensors: lossless with the tables that are kept; auto never grows."""
    rng, stream, plains, modes = np.random.default_rng(seed), [], [], set()
    packer, W = Packer(packing, lanes=lanes), 16
    for k in range(24):
        segments = []
        if k % 3:                               # tensors that are alike: entropy
            plain = np.rint(rng.normal(size=(120, W)) * 6).astype(np.int8).view(np.uint8)
        elif k == 0:                            # no order at all: raw
            plain = rng.integers(0, 256, (120, W)).astype(np.uint8)
        elif k % 2:                             # few chunks, often: meadow
            plain = np.repeat(rng.integers(0, 256, (120, 1)).astype(np.uint8), W, 1)
        else:
            plain = random_plain(rng, 120, W)
        for part in np.split(plain, [60] if k % 2 else [40, 80]):
            segments.append(Segment(part, [8, len(part) - 8]))
        packed = packer.pack(segments)
        modes.add(packed.mode)
        assert packing in ("auto", packed.mode)
        assert packing != "auto" or packed.bytes <= plain.size
        if packed.parts is not None:
            assert packed.bytes == sum(len(p) for parts in packed.parts for p in parts)
            stream += [(parts, s.tiles) for parts, s in zip(packed.parts, segments, strict=True)]
            plains.append(plain)
    if plains:
        np.testing.assert_array_equal(unpacked(W, stream, lanes), np.concatenate(plains))
    assert len(modes) == (3 if packing == "auto" else 1)


def test_damage_is_noticed(seed):
    rng = np.random.default_rng(seed)
    tiles = [20, 30, 14]
    plain = random_plain(rng, sum(tiles), 8)
    parts = pack_entropy(plain, tiles)[1]
    raw = b"".join(parts)
    for _ in range(200):
        bad = bytearray(raw)
        bad[rng.integers(len(raw) - 4)] ^= 1 << rng.integers(8)     # the last 4 are padding
        golden, at = Unpacker(8), 0
        with pytest.raises(PackingError):
            for n in tiles:
                at = golden.tile(bytes(bad), at, n)[1]
