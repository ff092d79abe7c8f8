"""Where everything goes: tiles and activation memory. Pure arithmetic."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import FIELDS, Header, Mode
from meadowlark_hdl.weights.decoder_golden import HEADER_BYTES, tile_chunks

from ..quant.shapes import Shape

#: Start of a section of external memory, in bytes: at least a chunk, and a DRAM burst.
ALIGN = 64
#: Most rows of a tile. Larger ones gain nothing (2 cycles a hand-over) and are longer awaited: by
#: the cycle model 64 rows cost the virtual board 3 % in decode; 16 would gain the ULX3S 0.1 %.
MAX_ROWS = 32


def round_up(n: int, step: int) -> int:
    """Smallest multiple of ``step`` that is at least ``n``."""
    return -(-n // step) * step


class Tiling(NamedTuple):
    """How an instruction's rows are cut into tiles; the names are instruction fields."""
    tiles: int
    rows: int
    last_rows: int
    row_beats: int
    chunks: int
    last_chunks: int


def tile_linear(rows: int, row_beats: int, config: Config, *, header: Header,
                mode: Mode = Mode.INT8, divides: int | None = None) -> Tiling:
    """Cut the rows of a linear layer into tiles.

    A tile is used only when all of it has arrived, and a half of the tile buffer is filled only
    when all of the tile before the last has been used: large tiles have few hand-overs, small ones
    arrive early, and tiles of equal size leave no short one that the next cannot hide behind.

    Parameters
    ----------
    rows : int
        Rows, even.
    row_beats : int
        Beats a row; in block modes whole blocks of 32 weights.
    mode : Mode
        How the weights lie in memory.
    divides : int, power of two, optional
        The rows of a tile divide this (query heads: a tile holds rows of one head).

    Returns
    -------
    Tiling
        All tiles but the last hold ``rows`` rows; ``last_rows`` <= ``rows``.
    """
    # A pair at least: whether the buffer holds one is for :mod:`meadowlark.compile.limits` to say.
    most = max(2, min(config.tile_rows, MAX_ROWS, config.tile_beats // row_beats) & ~1)
    if divides is not None:
        size = min(1 << most.bit_length() - 1, divides)
    else:
        # Equal tiles, in steps for which the row headers fill whole chunks where they can.
        step = max(2, config.W // max(HEADER_BYTES[header], 1))
        size = round_up(-(-rows // -(-rows // most)), step)
        if size > most:
            size = most // step * step or most
    tiles = -(-rows // size)
    size = min(size, rows)
    last = rows - (tiles - 1) * size

    def chunks(n: int) -> int:
        return tile_chunks(mode, header, n, row_beats, config.W)
    return Tiling(tiles, size, last, row_beats, chunks(size), chunks(last))


#: Tiles whose jobs the Reader can have issued before a tile is complete, and some to spare.
LEAD = 12


def packed_jobs(sizes: list[int]) -> dict[str, int] | None:
    """Fields chunks and last_chunks for packed tiles of these sizes, or None if there are none.

    All jobs but the last are equal; they cover the tiles together, not each its own. But no tile
    may need chunks of a job that waits for it: at most LEAD tiles ahead.
    """
    most = (1 << next(f.bits for f in FIELDS if f.name == "chunks")) - 1
    total, n = sum(sizes), len(sizes)
    # The last job may be smaller than the others by much: see :func:`spare_chunks`.
    for chunks in (total // n, -(-total // n), (total - 1) // max(n - 1, 1)):
        last = total - (n - 1) * chunks
        needed, ahead = 0, True
        for k in range(n - LEAD):
            needed += sizes[k]
            ahead &= needed <= (k + LEAD) * chunks
        if ahead and 1 <= chunks <= most and 1 <= last <= most:
            return dict(chunks=chunks, last_chunks=last)
    return None


def spare_chunks(sizes: list[int]) -> int:
    """Chunks to add to the last tile, so that :func:`packed_jobs` has an answer: jobs as large as
    the first tiles want them, for all."""
    n, total, needed, chunks = len(sizes), sum(sizes), 0, -(-sum(sizes) // len(sizes))
    for k in range(n - LEAD):
        needed += sizes[k]
        chunks = max(chunks, -(-needed // (k + LEAD)))
    # The last job has a chunk at least; and the jobs are then the larger of two sizes.
    return max((n - 1) * chunks + 1 - total, 0)


@dataclass(frozen=True)
class ActMap:
    """Activation memory of a block, in words of W int16.

    ``x`` is the input of a group of linear layers; ``q`` the queries of one head (decode: of the
    lane's head); ``k``, ``v`` the block's new keys and values, one region a KV head; ``out`` the
    attention's output, over k and v: the first one is written after a QK, which waits for all
    stores; ``ffn`` the hidden values of the FFN, over everything of the attention.
    """
    x: int
    q: int
    k: int
    v: int
    out: int
    ffn: int
    block_words: int


def act_map(shape: Shape, W: int) -> ActMap:
    """Smallest map of a block for which nothing live is overwritten."""
    head, hidden = shape.head_pad // W, -(-shape.hidden // W)
    kv = shape.kv_heads * head
    q = hidden
    k = q + head
    end = max(k + max(2 * kv, shape.heads * head), hidden + -(-shape.ffn // W))
    return ActMap(x=0, q=q, k=k, v=k + kv, out=k, ffn=hidden, block_words=end)
