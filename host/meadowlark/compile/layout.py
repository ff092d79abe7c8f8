"""Where everything goes: tiles and activation memory. Pure arithmetic."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import FIELDS, Header, Mode
from meadowlark_hdl.weights.decoder_golden import HEADER_BYTES, tile_chunks

from ..quant.plan import AttendStep, GateStep, NormStep, PatchStep, Plan, ReadStep
from ..quant.shapes import Shapes

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


@lru_cache(maxsize=1024)            # the layers of a model are alike
def tile_linear(rows: int, row_beats: int, config: Config, *, header: Header,
                mode: Mode = Mode.INT8, divides: int | None = None, whole: int = 2) -> Tiling:
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
    whole : int, power of two
        All tiles but the last hold a multiple of so many rows (a diagonal: whole words).

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
        step = max(whole, config.W // max(HEADER_BYTES[header], 1))
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
class Shape:
    """Dimensions of a model for statistics and people, unpadded unless named ``_pad``. layers:
    those with a cache. head_dim: of a query and a key. ffn: the widest gate."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    head_pad: int
    ffn: int
    vocab: int
    context: int

    @classmethod
    def of(cls, plan: Plan, context: int) -> Shape:
        """Of a plan; context: tokens the KV cache holds."""
        graph, op = plan.graph, plan.attends[0].op
        return cls(hidden=graph.hidden, layers=len(plan.attends), heads=op.heads,
                   kv_heads=op.kv_heads, head_dim=op.head_dim, value_dim=op.value_dim,
                   head_pad=plan.head_pad,
                   ffn=max(graph.edges[step.name].width for step in plan.of(GateStep)),
                   vocab=graph.vocab, context=context)


def cuts(tokens: int, slots: int) -> list[int]:
    """Tokens of each visit's blocks, where a pass takes ``slots`` of them, at least 3: as few
    blocks as there can be. None has one token, which would be a decode."""
    whole, rest = divmod(tokens, slots)
    if rest == 1:
        return [slots] * (whole - 1) + [slots - 1, 2]
    return [slots] * whole + [rest] * (rest > 0)


class RowTable(NamedTuple):
    """A table with a tile a row. at: from the end of the stream on, in bytes. chunks: of a row."""
    at: int
    chunks: int
    rows: int


class Tables:
    """External memory behind the weight stream: RoPE tables, embedding table, that of learned
    positions, that of an image's patches, KV cache.

    rope: table of each name. tables: of the embedding, and of the positions of the context where
    there are some. patches: int16 behind a scale of 1, or None. kv_at: where the cache starts, from
    the end of the stream on, in bytes; the first table starts there. kv_steps: bytes of the keys,
    and of the values, of a KV head. size: of all, in bytes. Where the residual is spilled the
    cache has two rows a position, and what is spilled lies behind it.
    """

    def __init__(self, shapes: Shapes, config: Config, context: int) -> None:
        W, plan = config.W, shapes.plan
        head = plan.head_pad // W
        self.context, self.kv_heads = context, plan.attends[0].op.kv_heads
        at, self.rope, self.tables = 0, dict[str, RowTable](), list[RowTable]()
        for name in plan.tables:
            self.rope[name] = RowTable(at, 2 * head, context)
            at += round_up(context * 2 * head * W, ALIGN)
        for matrix in plan.embedding.tables:
            rows = matrix.rows if matrix is plan.embedding.matrix else context
            chunks = tile_chunks(shapes.mode(matrix), shapes.header(matrix), 1,
                                 -(-matrix.columns // W), W)
            self.tables.append(RowTable(at, chunks, rows))
            at += round_up(rows * chunks * W, ALIGN)
        self.patches: RowTable | None = None
        if plan.patches is not None:
            chunks = tile_chunks(Mode.INT16, Header.SCALE, 1, -(-plan.patches.op.width // W), W)
            self.patches = RowTable(at, chunks, context)
            at += round_up(context * chunks * W, ALIGN)
        self.kv_at, self.kv_rows = at, context if plan.spill is None else 2 * context
        self.kv_steps = tuple(round_up(self.kv_rows * width, ALIGN)
                              for width in (plan.key_row(config), plan.value_pad))
        self.size = self.spill_at = self.kv(len(plan.attends), 0, 0)
        self.spill_step = round_up(context * plan.key_pad, ALIGN)
        if plan.spill is not None:
            self.size += plan.spill.planes * plan.spill.pieces * self.spill_step

    def kv(self, cache: int, which: int, kv_head: int, column: int = 0) -> int:
        """Where the keys (which: 0) or values (1) of a KV head start; cache: see
        :class:`meadowlark.quant.plan.AttendStep`. column: the first of those that an SV takes;
        they lie one behind the other, as heads do."""
        keys, values = self.kv_steps
        layer = self.kv_at + (keys + values) * self.kv_heads * cache
        return layer + (keys * self.kv_heads + values * kv_head if which else keys * kv_head) + \
            self.kv_rows * column

    def spilled(self, number: int) -> int:
        """Where the rows of a piece of a plane start, a token a row; numbered plane by plane."""
        return self.spill_at + number * self.spill_step


@dataclass(frozen=True)
class ActMap:
    """Activation memory of a block, in words of W int16.

    at: where each lies: what a norm, a gate or an attention makes, by edge; and for an attention
    the queries of heads that attend at once (decode: of the lane's head), by the name of their
    matrix. What norms of matrices' outputs make within a step, one after the other, is at the edge
    of each of them: of keys all, of queries those of a KV head if heads are normed one by one.
    """
    at: Mapping[str, int]
    block_words: int


class _Region(NamedTuple):
    """From its first write, in step ``born``, to its last reader in step ``dead``, inclusive."""
    name: str
    words: int
    born: int
    dead: int


def act_map(plan: Plan, W: int, at_once: int = 1) -> ActMap:
    """Map of a block for which nothing live is overwritten: each region at the first place that
    is free as long as it lives.

    at_once: query heads of a KV head whose queries lie side by side."""
    at: dict[str, int] = {}
    alive: list[_Region] = []       # those that may overlap what comes
    block_words = 0
    same: dict[str, str] = {}       # edges of norms within a step -> the one they share
    for step in plan.steps:
        same |= {norm.op.out: step.norms[0].op.out for norm in step.norms[1:]}
    for region in _regions(plan, W, at_once):
        others = [other for other in alive if other.dead >= region.born]
        place = 0
        for other in sorted(others, key=lambda other: at[other.name]):
            if other.born <= region.dead and at[other.name] < place + region.words:
                place = max(place, at[other.name] + other.words)
        at[region.name] = place
        block_words = max(block_words, place + region.words)
        alive = [*others, region]
    return ActMap(at | {name: at[other] for name, other in same.items()}, block_words)


def _regions(plan: Plan, W: int, at_once: int) -> Iterator[_Region]:
    """In the order in which they find their places, each step's together.

    Queries are made some heads at a time, so they and what they are made from live until the last
    output of the attention is written.
    """
    last = {name: i for i, step in enumerate(plan.steps) for name in step.reads}

    def words(values: int) -> int:
        return -(-values // W)
    for i, step in enumerate(plan.steps):
        rows = [norm.diagonal.rows for norm in step.norms if norm.diagonal is not None]
        if rows:
            if isinstance(step, AttendStep) and step.q_norm is not None and step.q_norm.each:
                rows[-1] //= step.op.kv_heads
            yield _Region(step.norms[0].op.out, words(max(rows)), i, i)
        match step:
            case PatchStep() | NormStep() | ReadStep() | GateStep():
                yield _Region(step.name, words(plan.graph.edges[step.name].width), i,
                              last[step.name])
            case AttendStep(op=op):
                head = words(plan.key_pad)
                if step.spill is not None:      # a plane of the residual
                    yield _Region(step.spill.header.x, step.spill.pieces * (head - 1), i, i)
                yield _Region(step.q.name, at_once * head, i, i)
                yield _Region(step.name, op.heads * head, i, last[step.name])


def values_beside(plan: Plan, W: int) -> int:
    """Values of a token beside its residual, padded to words: the most that are normed at once, or
    the constant of a :class:`meadowlark.quant.plan.ReadStep` or of a spill."""
    widths = [norm.width for norm in plan.norms] + [step.matrix.rows for step in plan.of(ReadStep)]
    widths += [] if plan.spill is None else [root.rows for root in plan.spill.roots]
    return round_up(max(widths, default=0), W)


def stride(plan: Plan, W: int) -> int:
    """Values of a token in the memory of the residual, those beside it included."""
    return round_up(plan.graph.hidden, W) + values_beside(plan, W)


def token_words(plan: Plan, W: int) -> int:
    """Words of W values that the keys, or the values, of a token take: all KV heads of a layer, or
    as many rows of the same length, where they hold a plane of the residual."""
    rows = [step.op.kv_heads for step in plan.attends]
    rows += [] if plan.spill is None else [plan.spill.pieces]
    return max(rows) * -(-plan.key_pad // W)
