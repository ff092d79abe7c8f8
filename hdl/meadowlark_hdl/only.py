"""What a core knows of its model when it is built for one model only."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from zlib import crc32

from .isa import FIELDS, INSTRUCTION_BITS, INSTRUCTION_BYTES, MODEL_REGS


@dataclass(frozen=True)
class Only:
    """Bits that are the same in all instructions of a model, and the model's registers.

    A core whose :class:`.config.Config` has one keeps neither: they are constants of its netlist,
    and what they would choose between is not built. It runs the images that :meth:`of` makes an
    equal one of, as they are; the driver refuses others.

    Source: a kernel for one model, FlashFormer, arXiv:2505.22758, section 3.

    Parameters
    ----------
    ones, zeros : int
        Bits that are 1, and that are 0, in every instruction; ``INSTRUCTION_BITS`` wide.
    registers : tuple of (str, int)
        Name and value of each of MODEL_REGS.
    """
    ones: int
    zeros: int
    registers: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if self.ones & self.zeros or (self.ones | self.zeros) >> INSTRUCTION_BITS:
            raise ValueError("a bit of an instruction is 0 or 1")
        if [name for name, _ in self.registers] != [f.name for f in MODEL_REGS]:
            raise ValueError("registers must be those of a model, in their order")

    @classmethod
    def of(cls, program: bytes, registers: Mapping[str, int]) -> Only:
        """program: an image's instructions, of 27 bytes each. A field counts in instructions that
        it is of."""
        everywhere, anywhere = (1 << INSTRUCTION_BITS) - 1, 0
        for at in range(0, len(program), INSTRUCTION_BYTES):
            word = int.from_bytes(program[at:at + INSTRUCTION_BYTES], "little")
            other = _others(*(word >> at & (1 << bits) - 1 for at, bits in _KINDS))
            everywhere, anywhere = everywhere & (word | other), anywhere | word & ~other
        return cls(everywhere & anywhere, (1 << INSTRUCTION_BITS) - 1 & ~anywhere,
                   tuple((f.name, registers[f.name]) for f in MODEL_REGS))

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Numbers of the bits that differ, lowest first: what the program memory holds."""
        fixed = self.ones | self.zeros
        return tuple(k for k in range(INSTRUCTION_BITS) if not fixed >> k & 1)

    @cached_property
    def crc(self) -> int:
        """Names it on the link: never 0, which a core for any model answers."""
        return crc32(repr((self.ones, self.zeros, self.registers)).encode()) or 1

    def whole(self, stored: Iterable) -> list:
        """All bits of an instruction, lowest first, from those that are stored: values of Amaranth
        between constants."""
        held = dict(zip(self.free, stored, strict=True))
        return [held.get(k, self.ones >> k & 1) for k in range(INSTRUCTION_BITS)]


#: First bit and bits of the operator, and of its function.
_KINDS = tuple((sum(f.bits for f in FIELDS[:k]), field.bits) for k, field in enumerate(FIELDS)
               if field.name in ("op", "fn"))


@lru_cache
def _others(op: int, fn: int) -> int:
    """Bits of fields that are not of an operator with a function."""
    mask = at = 0
    for f in FIELDS:
        mask |= ((1 << f.bits) - 1 << at) * (not f.of(op, fn))
        at += f.bits
    return mask
