"""Matrices in blocks of 32 codes, as GGUF files store them."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from meadowlark_hdl.isa import Mode
from meadowlark_hdl.weights.modes import BLOCK, BLOCK_MODES

#: Kinds that :class:`BlockTensor` holds; how many bytes a block has in a file.
KINDS = {mode.name: info.group_bytes for mode, info in BLOCK_MODES.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTensor:
    """A matrix of blocks: 32 neighbours of a row share a scale and, in some kinds, a minimum.

    ``weight[r, c] = codes[r, c] * scale[r, c // 32] + minimum[r, c // 32]``; llama.cpp rounds the
    product and the sum to float32, and so does :meth:`dequantised`.

    kind: one of :data:`KINDS`. codes: int8[rows, columns]; Q8_0: -128..127, Q4_0: -8..7,
    Q4_1: 0..15. scale: float16[rows, columns/32]; may be negative. minimum: the same shape where
    the kind has one, as Q4_1; else None.
    """
    kind: str
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None

    @classmethod
    def from_bytes(cls, kind: str, raw: np.ndarray) -> BlockTensor:
        """Take apart rows of a file.

        Parameters
        ----------
        kind : str
            One of :data:`KINDS`.
        raw : uint8[rows, columns/32 * bytes of a block]
            A block is the scale, in Q4_1 the minimum, then the codes: bytes, or 16 bytes with the
            first half of the block in their low and the second half in their high bits.
        """
        blocks = raw.reshape(len(raw), -1, KINDS[kind])

        def half(at: int) -> np.ndarray:
            return np.ascontiguousarray(blocks[..., at:at + 2]).view("<f2")[..., 0]

        info = BLOCK_MODES[Mode[kind]]
        codes = blocks[..., 2 * len(info.halves):]
        if info.offset is None:
            codes = codes.view(np.int8)
        else:
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1).view(np.int8) \
                - np.int8(info.offset)
        return cls(kind=kind, codes=codes.reshape(len(raw), -1),
                   **{name: half(2 * k) for k, name in enumerate(info.halves)})

    @classmethod
    def outline(cls, kind: str, rows: int, columns: int) -> BlockTensor:
        """Blocks of zeros that take no memory."""
        halves = np.broadcast_to(np.float16(0), (rows, columns // BLOCK))
        return cls(kind=kind, codes=np.broadcast_to(np.int8(0), (rows, columns)),
                   **dict.fromkeys(BLOCK_MODES[Mode[kind]].halves, halves))

    def slice(self, start: int, stop: int) -> BlockTensor:
        """Rows start..stop."""
        return replace(self, codes=self.codes[start:stop], scale=self.scale[start:stop],
                       minimum=None if self.minimum is None else self.minimum[start:stop])

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        """Number of inputs, a multiple of 32."""
        return self.codes.shape[1]

    def dequantised(self) -> np.ndarray:
        """float32[rows, columns], bit for bit what llama.cpp computes with."""
        shape = self.scale.shape
        out = self.codes.astype(np.float32).reshape(*shape, BLOCK)
        out *= self.scale[..., None].astype(np.float32)
        if self.minimum is not None:
            out += self.minimum[..., None].astype(np.float32)
        return out.reshape(self.codes.shape)
