"""How weights of each mode lie in memory: pure data for gateware, golden models and compiler.

A quantisation is a row of :data:`MODES`. A tile is its row headers, its scales, then its codes;
each of the three is padded with zeros to whole chunks.
"""
from enum import IntFlag
from typing import NamedTuple

from ..isa import Mode

#: Weights of a row that share a scale, in all modes that have scales.
BLOCK = 32


class Packing(IntFlag):
    """How chunks behind the row headers may be packed (docs/packing.md): which a core reads."""
    ENTROPY = 1     #: a prefix code
    MEADOW = 2      #: packets of ids

    @property
    def label(self) -> str:
        """Of one of them, for people and in images."""
        return str(self.name).lower()


class ModeInfo(NamedTuple):
    """A row of the table.

    bits: of a code: 16, little endian, or 8, or 4: low halves of a chunk's bytes are a beat, high
    halves the next. offset: what is taken from a code; None: codes are signed. group: weights that
    share a scale; 0: a code is a weight. halves: what a group has, numbers of half precision in
    this order; a weight is ``scale * code``, plus ``minimum``.
    """
    bits: int
    offset: int | None = None
    group: int = 0
    halves: tuple[str, ...] = ()

    @property
    def has_minimum(self) -> bool:
        return "minimum" in self.halves

    @property
    def group_bytes(self) -> int:
        """Scales and codes of a group."""
        return 2 * len(self.halves) + self.group * self.bits // 8

    # Counts of chunks are for integers and for values of Amaranth. W is not in them: it makes
    # beats and chunks longer alike.

    def code_chunks(self, beats):
        """Chunks of the codes of so many beats."""
        if self.bits < 8:
            return _wholes(beats, 8 // self.bits)
        return beats if self.bits == 8 else beats << 1

    def scale_chunks(self, beats):
        """Chunks of the scales, and minima, of so many beats; they are whole groups."""
        return _wholes(beats, self.group // (2 * len(self.halves))) if self.group else 0

    def chunks(self, beats):
        """Chunks behind the row headers of a tile."""
        codes = self.code_chunks(beats)
        return codes + self.scale_chunks(beats) if self.group else codes


def _wholes(parts, n: int):
    """How many it takes if each holds ``n`` parts, a power of two."""
    return (parts + (n - 1)) >> (n.bit_length() - 1)


MODES = {
    Mode.INT8: ModeInfo(8),
    Mode.INT16: ModeInfo(16),
    Mode.Q8_0: ModeInfo(8, group=BLOCK, halves=("scale",)),
    Mode.Q4_0: ModeInfo(4, offset=8, group=BLOCK, halves=("scale",)),
    Mode.Q4_1: ModeInfo(4, offset=0, group=BLOCK, halves=("scale", "minimum")),
}
#: The modes whose groups have a scale: blocks of GGUF files.
BLOCK_MODES = {mode: info for mode, info in MODES.items() if info.group}
