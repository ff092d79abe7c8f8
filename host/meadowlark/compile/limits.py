"""Which models a board runs, from their shapes alone: one table of limits, and what it says.

A core has an envelope (:class:`meadowlark_hdl.config.Config`) and a board a memory. Everything that
bounds a model is a row of :data:`LIMITS`: what the model needs, what the board has, and where. So a
model is refused before anything is computed, the compiler has no refusals of its own, and
docs/limits.md is this table.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import FIELDS, Mode
from meadowlark_hdl.weights.decoder_golden import header_chunks, tile_chunks
from meadowlark_hdl.weights.entropy_golden import entropy

from ..errors import UserError
from ..models.checkpoint import Model
from ..quant.quantise import int8_codes
from ..quant.shapes import Matrix, Shape, Shapes
from .layout import ALIGN, act_map, round_up, tile_linear

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: Fewest bits of a weight: the shortest word of a prefix code.
LEAST_BITS = 1.0
#: Fewest that are worth advice: what is left of a model with less says little.
USEFUL_BITS = 3
#: A budget of bits is met to some per cent, and lanes are filled up.
SPARE = 1.02
_BITS = {f.name: f.bits for f in FIELDS}


# ---- What a model needs

def instructions(shape: Shape, config: Config) -> int:
    """Length of the program, both lists."""
    s, group = shape, shape.heads // shape.kv_heads
    # Of a layer: two norms, K, V and their stores, O, gate and up, down. RoPE, embedding, an end,
    # the last norm, the head, an end.
    each = s.layers * (7 + 2 * s.kv_heads) + 6
    passes = s.heads + s.kv_heads * -(-group // config.P)   # heads in prefill, groups in decode
    return 2 * each + s.layers * 3 * passes


def tiles(matrix: Matrix, shape: Shape, config: Config):
    """How a matrix is cut, see :func:`meadowlark.compile.layout.tile_linear`."""
    rows = matrix.rows + (matrix.part != "head" and matrix.rows % 2)
    return tile_linear(rows, -(-matrix.columns // config.W), config, header=matrix.header,
                       mode=matrix.mode, divides=shape.head_pad if matrix.part == "q" else None)


def stream_bytes(shapes: Shapes, config: Config) -> tuple[int, int]:
    """The weight stream: bytes of gammas and row headers, and of codes (with the scales of blocks)
    before they are packed."""
    s, W = shapes.shape, config.W
    rest, codes = (2 * s.layers + 1) * 2 * round_up(s.hidden, W), 0
    for matrix in shapes.matrices():
        t = tiles(matrix, s, config)
        full, last = (header_chunks(matrix.header, n, W) for n in (t.rows, t.last_rows))
        head = (t.tiles - 1) * full + last
        rest += head * W
        codes += ((t.tiles - 1) * t.chunks + t.last_chunks - head) * W
    return rest, codes


def memory_bytes(shapes: Shapes, config: Config, bits: float = 8.0) -> int:
    """External memory in bytes, the cache with it.

    bits : float, 1..8
        What a byte of the stream's codes takes once it is packed.
    """
    s, W = shapes.shape, config.W
    hidden = round_up(s.hidden, W)
    rest, codes = stream_bytes(shapes, config)
    row = tile_chunks(shapes.embedding.mode, shapes.embedding.header, 1, hidden // W, W) * W
    return (round_up(rest + round(codes * bits / 8), ALIGN)
            + round_up(s.context * 2 * s.head_pad, ALIGN) + round_up(s.vocab * row, ALIGN)
            + round_up(s.context * s.head_pad, ALIGN) * 2 * s.layers * s.kv_heads)


def least_bits(board: Board, packing: str) -> float:
    """Fewest that a byte of codes can take on a board, whatever the weights are. packing: see
    :data:`meadowlark.compile.packing.PACKINGS`."""
    return LEAST_BITS if board.config.packing and packing != "raw" else 8.0


def entropy_bits(model: Model, shapes: Shapes, board: Board) -> float:
    """Fewest that a byte of codes can take with the weights of a model, if all are int8 on the
    finest grid: their entropy, a matrix at a time. shapes: of the model."""
    config, on = board.config, shapes.on(board, None)
    if config.packing & 2 or any(m.mode != Mode.INT8 for m in on.matrices()):
        return LEAST_BITS           # pairs of codes, or blocks: their entropy is another
    total = 0.0
    for weight in (model.head, *(getattr(layer, name) for layer in model.layers
                                 for name in ("q", "k", "v", "o", "gate", "up", "down"))):
        codes, _ = int8_codes(weight)
        total += entropy(np.bincount(codes.view(np.uint8).ravel(), minlength=256)) * codes.size
    return total / stream_bytes(on, config)[1]


# ---- Limits

class Limit(NamedTuple):
    """A row of the table.

    name: what is bounded. unit: of its values, or "". doc: what of a model that is. need: from the
    shapes, as they are on the board; bits: see :func:`memory_bytes`. has: the board's bound, which
    need may reach. where: what of the board sets it. least: the bound is a lower one.
    """
    name: str
    unit: str
    doc: str
    need: Callable[[Shapes, Config, float], int]
    has: Callable[[Board], int]
    where: str
    least: bool = False


LIMITS = (
    Limit("hidden size", "", "values of a token",
          lambda s, c, _: s.shape.hidden,
          lambda b: min(4096, b.config.residual_values // b.config.P // b.config.W * b.config.W),
          "residual_values / P, and the sum of squares"),
    Limit("widest matrix row", "weights",
          "the largest of hidden size, FFN size, and query heads times padded head dimension",
          lambda s, c, _: max(s.shape.hidden, s.shape.ffn, s.shape.heads * s.shape.head_pad),
          lambda b: min(b.config.tile_beats // 2, (1 << _BITS["row_beats"]) - 1) * b.config.W,
          "tile_beats / 2 * W"),
    Limit("padded head dimension", "", "the power of two from the head dimension on",
          lambda s, c, _: s.shape.head_pad,
          lambda b: 1 << (min(128, b.config.acc_slots * b.config.sv_columns,
                              2 * b.config.rope_pairs // b.config.P).bit_length() - 1),
          "2 * rope_pairs / P, and the accumulators"),
    Limit("padded head dimension", "", "the same",
          lambda s, c, _: s.shape.head_pad, lambda b: b.config.W, "W", least=True),
    Limit("activations", "words",
          "of W values, in a block of tokens: hidden size, and the larger of FFN size and of a "
          "query head with the keys and values of all KV heads",
          lambda s, c, _: act_map(s.shape, c.W).block_words,
          lambda b: min(b.config.act_words, 1 << _BITS["x"], (1 << _BITS["y"]) // b.config.W),
          "act_words"),
    Limit("context", "tokens", "what the KV cache holds; `--ctx` asks for fewer",
          lambda s, c, _: s.shape.context,
          lambda b: min(b.config.context, b.config.score_depth), "context, score_depth"),
    Limit("vocabulary", "tokens", "rows of the head",
          lambda s, c, _: s.shape.vocab,
          lambda b: (1 << Config.TOKEN_BITS) - 1, "the bits of a token id"),
    Limit("tiles of a matrix", "", "pieces in which a matrix is read; the head has most",
          lambda s, c, _: max(tiles(m, s.shape, c).tiles for m in s.matrices()),
          lambda b: (1 << _BITS["tiles"]) - 1, "the bits of an instruction"),
    Limit("program", "instructions", "they grow with layers, query heads and KV heads",
          lambda s, c, _: instructions(s.shape, c), lambda b: b.config.prog_depth, "prog_depth"),
    Limit("memory", "bytes",
          "weights, embedding, RoPE table and KV cache; `--ctx` and, where the board reads "
          "entropy-coded weights, `--bits` ask for less",
          memory_bytes, lambda b: min(b.memory.size_bytes, b.config.W << _BITS["addr"]),
          "the board's memory"),
)


class Reason(NamedTuple):
    """Why a model does not fit a board: what of it, what it needs, what the board has."""
    limit: Limit
    need: int
    has: int

    def __str__(self) -> str:
        """Part of a sentence."""
        unit = f" {self.limit.unit}" if self.limit.unit else ""
        bound = "least" if self.limit.least else "most"
        return (f"{self.limit.name} {self.need:,}{unit}, at {bound} {self.has:,} "
                f"({self.limit.where})")


def fits(shapes: Shapes, board: Board, *, context: int | None = None, bits: float = 8.0,
         ) -> list[Reason]:
    """Why a model does not fit a board; empty where it does.

    Parameters
    ----------
    shapes : Shapes
    board : Board
    context : int, optional
        Tokens the KV cache holds; by default as many as model and core allow.
    bits : float, 1..8
        See :func:`memory_bytes`.
    """
    on, config = shapes.on(board, context), board.config
    out = []
    for limit in LIMITS:
        need, has = limit.need(on, config, bits), limit.has(board)
        if need < has if limit.least else need > has:
            out.append(Reason(limit, need, has))
    return out


# ---- What could be done

def _longest(shapes: Shapes, board: Board, bits: float) -> int | None:
    """The longest context with which it fits; None if there is none."""
    low, high = 0, shapes.on(board, None).shape.context
    while low < high:
        middle = (low + high + 1) // 2
        if fits(shapes, board, context=middle, bits=bits):
            high = middle - 1
        else:
            low = middle
    return low or None


def options_for(shapes: Shapes, board: Board, context: int | None, bits: float) -> str | None:
    """Options with which it fits this board: some, "" if it does without, or None.

    See :func:`fits` for the parameters; without ``--bits``, int8 weights may still fit a board that
    reads entropy-coded ones.
    """
    if not fits(shapes, board, context=context, bits=bits):
        return ""
    longest = _longest(shapes, board, bits)
    if longest is not None:
        return f"--ctx {longest}"
    if not board.config.packing & 1:
        return None
    small = shapes.int8()           # a budget of bits is for those
    wanted = held = small.on(board, context).shape.context
    while held >= min(wanted, 64):  # a shorter cache rather than weights of too few bits
        for tenths in range(int(10 * bits), 10 * USEFUL_BITS - 1, -1):
            if not fits(small, board, context=held, bits=tenths / 10 * SPARE):
                return f"--bits {tenths / 10:g}" + ("" if held == wanted else f" --ctx {held}")
        held //= 2
    return None


def advice(shapes: Shapes, board: Board, *, context: int | None = None, bits: float = 8.0) -> str:
    """With which options of this board, or with which other boards, a model goes: part of a
    sentence."""
    from meadowlark_boards import BOARDS
    here = options_for(shapes, board, context, bits)
    others = {other.name: options for other in BOARDS.values() if other.name != board.name
              and (options := options_for(shapes, other, context, bits)) is not None}
    boards = [name for name, options in others.items() if not options]
    ways = [f"{board.name} with {here}"] if here else []
    ways += boards or [f"{name} with {options}" for name, options in others.items()]
    if not ways:
        return "it fits none of the boards, so use a smaller model"
    return f"it fits {', '.join(ways[:-1])} or {ways[-1]}" if ways[1:] else f"it fits {ways[0]}"


def check(shapes: Shapes, board: Board, *, context: int | None = None, bits: float = 8.0,
          least: float | None = None) -> None:
    """Raise unless a model fits a board.

    Parameters
    ----------
    shapes, board, context, bits : see :func:`fits`
    least : float, optional
        What ``bits`` may turn out to be at least: no more than that is a reason to refuse.

    Raises
    ------
    UserError
        Names each limit that is exceeded, both values, and what could be done.
    """
    if context is not None and not 1 <= context <= shapes.shape.context:
        raise UserError(f"the context must be in 1..{shapes.shape.context} for this model, not "
                        f"{context}")
    if fits(shapes, board, context=context, bits=bits if least is None else least):
        reasons = fits(shapes, board, context=context, bits=bits)
        raise UserError(f"the model does not fit the board {board.name}: "
                        f"{'; '.join(map(str, reasons))}; "
                        f"{advice(shapes, board, context=context, bits=bits)}")


def residents(shape: Shape, config: Config) -> int:
    """Number of resident blocks of P tokens, at least 1 where a model fits."""
    W, P = config.W, config.P
    return min(config.act_words // act_map(shape, W).block_words,
               config.residual_values // (P * round_up(shape.hidden, W)),
               config.rope_pairs // (P * shape.head_pad // 2),
               Config.SUM_BLOCKS)      # a lane keeps the maximum and sum of each block
