"""Which packing a tensor gets: the smallest of raw, MEADOW and entropy-coded, by size as packed."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from meadowlark_hdl.weights.entropy_golden import (coded_bits, entropy, pack_entropy, prefix_code)
from meadowlark_hdl.weights.meadow_golden import (ENTRIES, PACKETS, meadow_bits, pack_meadow,
                                                  reindexed)
from meadowlark_hdl.weights.modes import Packing
from meadowlark_hdl.weights.packing_golden import Code

#: What ``--packing`` can be. auto: the smallest of the others.
PACKINGS = ("auto", "raw", Packing.MEADOW.label, Packing.ENTROPY.label)


class Segment(NamedTuple):
    """Consecutive tiles that are packed together: what follows their row headers.

    plain: uint8[chunks, W]. tiles: chunks of each tile. spare: coded chunks at the end that nobody
    needs.
    """
    plain: np.ndarray
    tiles: Sequence[int]
    spare: int = 0


class Packed(NamedTuple):
    """A tensor as it lies in the stream.

    mode: "raw", "meadow" or "entropy". how: for people, such as "C=2 N=8". parts: for each segment
    the coded chunks of each tile; None for raw. bytes: of the parts, or of the plain chunks.
    entropy: zeroth-order entropy in bits a byte.
    """
    mode: str
    how: str
    parts: list[list[bytes]] | None
    bytes: int
    entropy: float


class Packer:
    """Packs the tensors of a model in stream order.

    It knows which tables the decoder has: a segment whose predecessor's code serves nearly as well
    does without its own.

    Parameters
    ----------
    packing : str
        One of :data:`PACKINGS`. A forced packing falls back to raw where it is impossible.
    able : int, 0..3
        What the core can read, see ``Config.packing``.
    lanes : int, optional
        Of the core's unpacker, see ``Config.unpack_lanes``; by default one for each byte of a
        chunk.
    """

    def __init__(self, packing: str = "auto", able: int = 3, lanes: int | None = None) -> None:
        if packing not in PACKINGS:
            raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, not {packing!r}")
        self._tried = [one.label for one in Packing(able) if packing in ("auto", one.label)]
        self.packing, self.lanes = packing, lanes
        self._code: Code | None = None          # of the last segment

    def pack(self, segments: Sequence[Segment],
             fits: Callable[[list[list[bytes]]], bool] = lambda _: True) -> Packed:
        """Pack a tensor; all of it in the same way, or raw if the result does not fit."""
        plain = sum(s.plain.size for s in segments)
        histogram = np.sum([np.bincount(s.plain.ravel(), minlength=256) for s in segments], axis=0)
        bound = entropy(histogram)
        best = Packed("raw", "", None, plain, bound)
        if "meadow" in self._tried:
            # Its bits, tables apart, are known before it is packed.
            options = [(bits, C, N) for C in ENTRIES
                       for N, bits in self._meadow_sizes(segments, C).items()]
            if options:
                bits, C, N = min(options)
                if self.packing == "meadow" or bits < 8 * best.bytes:
                    made = [pack_meadow(s.plain, s.tiles, C, N, spare=s.spare, lanes=self.lanes)
                            for s in segments]
                    best = self._better(best, "meadow", f"C={C} N={N}", made, bound)
        if "entropy" in self._tried:
            code, keep = self._entropy_code(histogram)
            if self.packing == "entropy" or coded_bits(code, histogram) < 8 * best.bytes:
                made = [pack_entropy(s.plain, s.tiles, code, keep=keep or k > 0, spare=s.spare,
                                     lanes=self.lanes) for k, s in enumerate(segments)]
                best = self._better(best, "entropy", "same table" if keep else "", made, bound)
        if best.parts is None or not fits(best.parts):
            return Packed("raw", "", None, plain, bound)
        self._code = self._last
        return best

    def _better(self, best: Packed, mode: str, how: str, made: list, bound: float) -> Packed:
        parts = [parts for _, parts in made]
        size = sum(len(part) for tiles in parts for part in tiles)
        if self.packing == mode or size < best.bytes:
            self._last = made[-1][0]
            return Packed(mode, how, parts, size, bound)
        return best

    def _entropy_code(self, histogram: np.ndarray) -> tuple[Code, bool]:
        """The best code, or the decoder's own if that costs less than a table."""
        code = prefix_code(histogram)
        if self._code is not None and not self._code.meadow and (
                coded_bits(self._code, histogram)
                <= coded_bits(code, histogram) + 8 * len(code.table)):
            return self._code, True
        return code, False

    def _meadow_sizes(self, segments: Sequence[Segment], C: int) -> dict[int, int]:
        """Bits by packet length; empty if the table has no room or tiles cannot be cut."""
        W = segments[0].plain.shape[1]
        lanes = self.lanes or W
        if any(n * W // lanes % C for s in segments for n in s.tiles):
            return {}
        # Each half of a chunk of 4 is a chunk of 2: too many of those are too many of these.
        if C == 4 and any(len(reindexed(s.plain, 2)[0]) > 2 * ENTRIES[4] for s in segments):
            return {}
        sizes = dict.fromkeys(PACKETS, 0)
        for segment in segments:
            symbols, ids = reindexed(segment.plain, C)
            if len(symbols) > ENTRIES[C]:
                return {}
            for N in PACKETS:
                sizes[N] += meadow_bits(ids.reshape(-1, lanes), N)
        return sizes
