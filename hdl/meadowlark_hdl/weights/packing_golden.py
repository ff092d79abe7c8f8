"""Golden model of packed chunks: lanes, segments, preamble; docs/packing.md is the format.

A :class:`Code` says how bits become plain bytes; :mod:`.entropy_golden` and :mod:`.meadow_golden`
make codes, :func:`pack` lays a segment out and :class:`Unpacker` reads it as the gateware does.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

PIECE = 16              #: bits that a lane takes in at once
PREFIX = 6              #: bits that tell the length of a code word
CLASSES = 1 << PREFIX
MODE_BITS = 3           #: of a MEADOW packet
MAX_LENGTH = 14         #: bits of a code word: the window always holds 17
#: Bits of the longest code word that a table can name; damage can make it so.
WINDOW = 15
#: Steps for which a lane holds enough: at least 192 bits, see :func:`ahead`.
STEPS = 12
TABLE_BYTES = 2048      #: symbols a lane's table has room for
CLASS_WORDS = CLASSES // 8
#: Reversed bits of a class, or of a rank in canonical order: one is the other.
REVERSED = np.array([int(f"{u:0{PREFIX}b}"[::-1], 2) for u in range(CLASSES)])


class PackingError(ValueError):
    """A segment is not sound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Code:
    """How a lane turns bits into plain bytes.

    Parameters
    ----------
    meadow : bool
        Packets of ids; else a prefix code.
    lengths : uint8[64]
        Bits of the code words of each class, in canonical order, 0..14 (0: one symbol in all).
        MEADOW: 3 + width of the mode.
    symbols : uint8[entries, C]
        Plain bytes of a rank or id.
    packet : int, power of two
        Ids of a packet; 1 for a prefix code.
    """
    meadow: bool
    lengths: np.ndarray
    symbols: np.ndarray
    packet: int = 1

    @property
    def C(self) -> int:
        """Plain bytes of a symbol: 1, 2 or 4."""
        return self.symbols.shape[1]

    @property
    def table(self) -> bytes:
        """Lengths and symbols as they stand in the preamble."""
        n = self.lengths.astype(np.uint8)
        symbols = self.symbols.tobytes()
        return (n[0::2] | n[1::2] << 4).tobytes() + symbols + bytes(-len(symbols) % 4)

    def bases(self) -> np.ndarray:
        """int64[64]: rank of the first symbol of each class, in canonical order; MEADOW: 0."""
        n = self.lengths.astype(np.int64)
        if self.meadow:
            return np.zeros(CLASSES, np.int64)
        ends = (np.arange(CLASSES) + 1) % (1 << np.maximum(PREFIX - n, 0)) == 0
        grown = np.where(n > PREFIX, 1 << np.maximum(n - PREFIX, 0), ends)
        return np.concatenate([[0], np.cumsum(grown)[:-1]])


class Fields(NamedTuple):
    """What a preamble begins with. table_words: 32-bit words of the tables behind it, 0 if those
    already there are kept; steps: of the segment; words: of its lanes, W bytes each."""
    meadow: bool
    C: int
    packet: int
    table_words: int
    steps: int
    words: int

    @classmethod
    def of(cls, raw: bytes) -> Fields:
        """raw: 12 bytes or more."""
        first, steps, words = np.frombuffer(raw, "<u4", 3).tolist()
        return cls(bool(first & 1), 1 << (first >> 2 & 3), 1 << (first >> 4 & 15),
                   CLASS_WORDS + (first >> 16) if first & 2 else 0, steps, words)


def head_words(W: int) -> int:
    """32-bit words of a preamble's fields: whole chunks, the CRC-32 of the others last."""
    return max(4, W // 4)


def preamble(code: Code, *, steps: int, words: int, keep: bool, W: int) -> bytes:
    """What a segment starts with, in whole chunks. keep: the tables are those already there."""
    table = b"" if keep else code.table
    n_symbols = 0 if keep else len(table) // 4 - CLASS_WORDS
    first = (int(code.meadow) | (not keep) << 1 | (code.C.bit_length() - 1) << 2
             | (code.packet.bit_length() - 1) << 4 | n_symbols << 16)
    head = np.array([first, steps, words], "<u4").tobytes().ljust(4 * (head_words(W) - 1), b"\0")
    raw = head + crc32(head).to_bytes(4, "little") + table
    return raw + bytes(-len(raw) % W)


def ahead(W: int) -> int:
    """Words each lane gets before the first step: 16 pieces or more, and a lane is only ready with
    8; at least 3 words, so that requests may wait for each other."""
    return max(3, 32 // W)


def phases(W: int) -> np.ndarray:
    """int64[W]: pieces by which each lane asks early."""
    return np.arange(W, dtype=np.int64) // 2


def pack(values: np.ndarray, lengths: np.ndarray, code: Code, *, tiles: Sequence[int],
         chunk: int, keep: bool = False, spare: int = 0) -> list[bytes]:
    """Lay out a segment.

    Parameters
    ----------
    values, lengths : int32[W, steps], uint8[W, steps]
        Code words of each lane, first bit lowest, and their bits (0..14); W lanes: 4, 8, 16 or 32.
    code : Code
    tiles : sequence of int
        Steps of each tile; their sum is ``steps``.
    chunk : int
        Bytes of a chunk of memory, W or 2 * W. A tile has whole ones, and so has the segment: of a
        chunk of two words the first one's tile has both.
    keep : bool
        The tables of the segment before are the same.
    spare : int
        Chunks of zeros at the end, which nobody needs.

    Returns
    -------
    list of bytes
        Coded chunks of each tile.
    """
    W, steps = lengths.shape
    K = W * 8 // PIECE
    assert sum(tiles) == steps
    used = np.cumsum(lengths, axis=1, dtype=np.int32)                 # after each step
    total = used[:, -1].astype(np.int64) if steps else np.zeros(W, np.int64)
    have = -(-total // (8 * W))                                 # words of each lane
    # Bits: code words of different places never meet, at least one starts in each piece that is
    # full, and only the last one of those may reach into the next.
    most = int(have.max(initial=0)) * K + 2
    start = used - lengths
    shifted = values << (start & PIECE - 1)
    start >>= 4
    fresh = np.ones(start.shape, bool)
    fresh[:, 1:] = start[:, 1:] != start[:, :-1]
    first = np.nonzero(fresh.ravel())[0]
    lanes = np.zeros((W, most), np.int32)
    if len(first):
        at = start.ravel()[first] + first // steps * most
        lanes.ravel()[at] = np.add.reduceat(shifted.ravel(), first) & 0xffff
        end = np.append(first[1:], start.size) - 1
        lanes.ravel()[at + 1] |= shifted.ravel()[end] >> PIECE
    lanes = lanes.astype("<u2")[:, :-2].reshape(W, -1, K)
    # The order: some words each, then as the steps ask.
    used += PIECE * phases(W)[:, None].astype(np.int32)
    used >>= 4 + K.bit_length() - 1
    asks = np.empty((steps, W), bool)
    asks[:1], asks[1:] = used.T[:1] != 0, (used[:, 1:] != used[:, :-1]).T
    step, lane = np.nonzero(asks)
    lane_order = np.concatenate([np.tile(np.arange(W), ahead(W)), lane])
    word_order = np.concatenate([np.repeat(np.arange(ahead(W)), W),
                                 ahead(W) - 1 + used[lane, step]])
    needed = np.nonzero(word_order < have[lane_order])[0]
    each = chunk // W                                           # words of a chunk
    words = (int(needed[-1]) + 1 if len(needed) else 0) + spare * each
    head = len(preamble(code, steps=steps, words=words, keep=keep, W=W))
    words += -(head // W + words + 1) % each
    stream = np.zeros((words, K), "<u2")
    stream[needed] = lanes[lane_order[needed], word_order[needed]]

    ends = np.cumsum(tiles)
    cuts = np.minimum(words, ahead(W) * W + np.searchsorted(step, ends))
    cuts = [0, *cuts[:-1].tolist(), words]
    raw = preamble(code, steps=steps, words=words, keep=keep, W=W) + stream.tobytes()
    raw += crc32(raw).to_bytes(4, "little").ljust(W, b"\0")
    cuts = [-(-(head + cut * W) // chunk) * chunk for cut in cuts[1:-1]]
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)])]


class Unpacker:
    """Reads coded chunks step by step, as the gateware does.

    Parameters
    ----------
    W : int
        Lanes, bytes of a word.
    chunk : int
        Bytes of a chunk of memory, W (the default) or 2 * W.

    Raises
    ------
    PackingError
        From :meth:`tile`, where the gateware raises ``error``.
    """

    def __init__(self, W: int, chunk: int | None = None) -> None:
        self.W, self.K, self.chunk = W, W * 8 // PIECE, chunk or W
        self.steps = 0          # left of the segment
        self._rest = b""        # of the last chunk
        self._lengths = np.zeros(CLASSES, np.int64)
        self._bases = np.zeros(CLASSES, np.int64)
        self._symbols = b""

    def tile(self, raw: bytes, at: int, chunks: int) -> tuple[np.ndarray, int]:
        """Plain chunks of the next tile: (uint8[chunks, chunk], where the coded ones end in raw).

        at: where its coded chunks start.
        """
        self._raw, self._at = raw, at
        chunks *= self.chunk // self.W
        if not self.steps:
            self._preamble()
        if chunks % self.C or chunks // self.C > self.steps:
            raise PackingError(f"a tile of {chunks} chunks, and {self.steps} steps are left")
        out = np.zeros((chunks // self.C, self.W), np.int64)
        for at in range(0, len(out), STEPS):
            some = out[at:at + STEPS]
            some.T[:] = self._ranks(len(some))
        if not self.steps:
            while self._left:
                self._word()
            check = self._check
            if int.from_bytes(self._take(self.W)[:4], "little") != check:
                raise PackingError("the checksum is wrong")
        table = np.frombuffer(self._symbols.ljust(TABLE_BYTES, b"\0"), np.uint8)
        table = table.reshape(-1, self.C)
        return table[out % len(table)].reshape(-1, self.chunk), self._at

    def _take(self, n: int) -> bytes:
        while len(self._rest) < n:
            part = self._raw[self._at:self._at + self.chunk]
            if len(part) < self.chunk:
                raise PackingError("the stream ends")
            self._at += self.chunk
            self._rest += part
        part, self._rest = self._rest[:n], self._rest[n:]
        self._check = crc32(part, self._check)
        return part

    def _preamble(self) -> None:
        W, self._check = self.W, 0
        raw = self._take(4 * head_words(W))
        if crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise PackingError("the preamble is wrong")
        self._meadow, self.C, self._packet, table, self.steps, self._left = Fields.of(raw)
        if table:
            nibbles = np.frombuffer(self._take(4 * CLASS_WORDS), np.uint8)
            self._symbols = self._take(4 * (table - CLASS_WORDS))
            self._take(-(len(nibbles) + len(self._symbols)) % W)
            self._lengths = np.stack([nibbles & 15, nibbles >> 4], -1).ravel().astype(np.int64)
            code = Code(meadow=self._meadow, lengths=self._lengths,
                        symbols=np.zeros((1, 1), np.uint8))
            self._bases = code.bases()
        # Of each window, the first code word's bits and rank.
        window = np.arange(1 << WINDOW)
        u = REVERSED[window & CLASSES - 1]
        n, skip = self._lengths[u], MODE_BITS if self._meadow else PREFIX
        rank = self._bases[u] + (window >> skip & (1 << np.maximum(n - skip, 0)) - 1)
        self._words = n.tolist(), rank.tolist()
        self._count = 0
        self._buffer, self._bits = [0] * W, [0] * W         # not yet used
        self._used, self._widths = (phases(W) * PIECE).tolist(), [0] * W
        self._hand_out(list(range(W)) * ahead(W))

    def _word(self) -> bytes:
        self._left -= 1
        return self._take(self.W)

    def _hand_out(self, lanes: list[int]) -> None:
        """The next words, to these lanes in turn."""
        for lane in lanes[:self._left]:
            word = int.from_bytes(self._word(), "little")
            self._buffer[lane] |= word << self._bits[lane]
            self._bits[lane] += 8 * self.W

    def _ranks(self, steps: int) -> list[list[int]]:
        """Of a few steps, by lane. Words asked for come after all of them: each lane holds
        enough."""
        lengths, ranks = self._words
        coded = [not self._meadow or count % self._packet == 0      # no further id of a packet
                 for count in range(self._count, self._count + steps)]
        asks: list[list[int]] = [[] for _ in coded]                 # lanes, by step
        out, word = [], 8 * self.W
        for lane in range(self.W):
            bits, used, width, found = self._buffer[lane], self._used[lane], self._widths[lane], []
            full = (used // word + 1) * word
            for k, whole in enumerate(coded):
                if whole:
                    window = bits & (1 << WINDOW) - 1
                    n = lengths[window]
                    found.append(ranks[window])
                    width = n - MODE_BITS & 15
                else:
                    n = width
                    found.append(bits & (1 << n) - 1)
                bits >>= n
                used += n
                if used >= full:
                    full += word
                    asks[k].append(lane)
            self._bits[lane] = max(self._bits[lane] - (used - self._used[lane]), 0)
            self._buffer[lane], self._used[lane], self._widths[lane] = bits, used, width
            out.append(found)
        self._count += steps
        self.steps -= steps
        self._hand_out([lane for step in asks for lane in step])
        return out
