"""Which models a board runs, from their shapes alone: one table of limits, and what it says.

A core has an envelope (:class:`meadowlark_hdl.config.Config`) and a board a memory. Everything that
bounds a model is a row of :data:`LIMITS`: what the model needs, what the board has, and where. So a
model is refused before anything is computed, the compiler has no refusals of its own, and
docs/limits.md is this table.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import FIELDS, Mode
from meadowlark_hdl.weights.decoder_golden import header_chunks
from meadowlark_hdl.weights.entropy_golden import entropy
from meadowlark_hdl.weights.modes import Packing

from ..errors import UserError
from ..models.checkpoint import Model
from ..quant.plan import WORD, AttendStep, Matrix, NormStep, Order, Plan, ReadStep, Step
from ..quant.quantise import int8_codes
from ..quant.shapes import Shapes
from . import spill
from .layout import (ALIGN, Shape, Tables, Tiling, act_map, round_up, stride, tile_linear,
                     token_words, values_beside)

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: Fewest bits of a weight: the shortest word of a prefix code.
LEAST_BITS = 1.0
#: Fewest that are worth advice: what is left of a model with less says little.
USEFUL_BITS = 3
#: A budget of bits is met to some per cent, and lanes are filled up.
SPARE = 1.02
_BITS = {f.name: f.bits for f in FIELDS}


# ---- What a board lets a model be

def _row_weights(board: Board) -> int:
    """Most columns of a matrix."""
    config = board.config
    return min(config.tile_beats // 2, (1 << _BITS["row_beats"]) - 1) * config.W


def _act_words(board: Board) -> int:
    """Most words of a block of activations."""
    config = board.config
    return min(config.act_words, 1 << _BITS["x"], (1 << _BITS["y"]) // config.W)


def memory_bytes(board: Board) -> int:
    """Most bytes of external memory: what there is of it, as far as addresses reach."""
    return min(board.memory.size_bytes, board.config.W << _BITS["addr"])


def most_ffn(hidden: int, board: Board) -> int:
    """Widest FFN, or slice of one: its values lie beside its input in the activation memory, and a
    row of its second matrix fits the tile buffer."""
    beside = _act_words(board) - -(-hidden // board.config.W)
    return max(0, min(_row_weights(board), beside * board.config.W))


def suited(shapes: Shapes, board: Board) -> Shapes:
    """Shapes of a checkpoint as it is rewritten for a board."""
    return shapes.suited(board.config.W, most_ffn(shapes.plan.graph.hidden, board))


@dataclass(frozen=True)
class Need:
    """A model as it would be on a board: what a row of the table looks at.

    bits: what a byte of the stream's codes takes once it is packed, 1..8.
    """
    shapes: Shapes
    config: Config
    context: int
    bits: float = 8.0

    @property
    def plan(self) -> Plan:
        """The steps."""
        return self.shapes.plan

    @cached_property
    def shape(self) -> Shape:
        """Dimensions."""
        return Shape.of(self.plan, self.context)

    @cached_property
    def instructions(self) -> int:
        """Length of the program, both lists."""
        at_once = heads_at_once(self.plan, self.config, self.context)
        if self.plan.spill is not None:
            return _visited(self.plan, self.config, at_once)
        lists = sum(sum(_instructions(step, self.plan.value_pad, self.config, at_once))
                    for step in self.plan.steps)
        # Each list has an end that is passed by and a last one, and begins with rows of tables.
        return lists + 2 * (1 + len(self.plan.embedding.tables) + len(self.plan.loads))

    @cached_property
    def tilings(self) -> list[tuple[Matrix, Tiling]]:
        """How each matrix of the stream is cut, a part of its own for each head that is normed
        alone; see :func:`meadowlark.compile.layout.tile_linear`."""
        steps, head, pad, found = self.plan, self.plan.head.matrix, self.plan.key_pad, []
        queries = {step.matrices[-1].name for step in steps.attends}    # in whole heads
        alone = {matrix.name for step in steps.attends for matrix, norm in (
            (step.k, step.k_norm), (step.q, step.q_norm)) if norm is not None and norm.each}
        for m in steps.matrices:
            parts = m.rows // pad if m.name in alone else 1
            found += parts * [(m, tile_linear(
                m.rows // parts + (m is not head and m.rows // parts % 2),
                -(-m.columns // self.config.W), self.config,
                header=self.shapes.header(m), mode=self.shapes.mode(m),
                divides=pad if m.name in queries else None,
                whole=self.config.W if m.order is Order.DIAGONAL else 2))]
        return found

    @cached_property
    def stream_bytes(self) -> tuple[int, int]:
        """The weight stream: bytes of gammas and row headers, and of codes (with the scales of
        blocks) before they are packed."""
        W, hidden = self.config.W, round_up(self.plan.graph.hidden, self.config.W)
        rest = sum(2 * hidden for step in self.plan.of(NormStep, ReadStep) if not step.norms)
        codes = 0
        for norm in self.plan.norms:    # a tile for each that is normed
            rest += 2 * round_up(norm.width, W) * norm.count
        if self.plan.spill is not None:     # of planes, and of the norm that is made again
            rest += 2 * hidden * (self.plan.spill.planes + 1) * len(self.plan.attends)
        for matrix, t in self.tilings:
            full, last = (header_chunks(self.shapes.header(matrix), n, W)
                          for n in (t.rows, t.last_rows))
            head = (t.tiles - 1) * full + last
            rest += head * W
            codes += ((t.tiles - 1) * t.chunks + t.last_chunks - head) * W
        return rest, codes

    @property
    def memory_bytes(self) -> int:
        """External memory in bytes, the cache with it."""
        rest, codes = self.stream_bytes
        return (round_up(rest + round(codes * self.bits / 8), ALIGN)
                + Tables(self.shapes, self.config, self.context).size)


def _instructions(step: Step, value_pad: int, config: Config, at_once: int) -> tuple[int, ...]:
    """How many a step has in the prefill list, and in the decode list."""
    match step:
        case AttendStep(op=op):
            # K, V and their stores; then queries, QK and SVs of the heads that attend at once.
            group, svs = op.heads // op.kv_heads, -(-value_pad // config.sv_values)
            both = 2 + (1 + svs) * op.kv_heads + sum(2 * norm.count for norm in step.norms)
            return tuple(both + (2 + svs) * op.kv_heads * -(-group // n)
                         for n in (at_once, config.P))
        case NormStep() | ReadStep():
            return (1 + len(step.matrices),) * 2
        case _:
            return (1 + 2 * len(step.norms),) * 2


def _visited(steps: Plan, config: Config, at_once: int) -> int:
    """Length of the program of a spilled model: a list a visit, of which the last is a decode."""
    way, last, total = steps.spill, steps.attends[-1], 0
    assert way is not None
    # Headers, roots; of a plane its norm, its pieces and their STOREs, and what takes it away; END.
    leave = way.pieces * (1 + 2 * way.planes) + len(way.roots) + 2 * way.planes + 1
    enter = way.planes * (way.pieces + 1) + 1           # with the norm that is made again
    for step in steps.steps:
        prefill, decode = _instructions(step, steps.value_pad, config, at_once)
        total += decode if step is last else prefill
        if isinstance(step, AttendStep):                # and the second copy of its cache
            total += leave + enter + 2 * step.op.kv_heads
    return total + len(steps.embedding.tables)          # the first is a step's; the last END


def need(shapes: Shapes, board: Board, context: int | None = None, bits: float = 8.0) -> Need:
    """What a model needs on a board.

    context: tokens the KV cache holds; by default as many as model and core allow. bits: see
    :class:`Need`. Weights are int8 where the board reads no blocks. An encoder with more tokens
    than a pass takes is spilled, if it can be, see :mod:`.spill`.
    """
    config, on = board.config, suited(shapes, board)
    if on.plan.graph.encoder:           # all tokens of an image, or none
        context = on.context
        if on.plan.spill is None and context > residents(on.plan, config) * config.P and \
                spill.can(on.plan, config):
            on = spill.shapes_of(on, config.W)
    if context is None:
        context = min(on.context, config.context, config.score_depth)
    return Need(on if config.block_modes else on.int8(), config, context, bits)


def least_bits(board: Board, packing: str) -> float:
    """Fewest that a byte of codes can take on a board, whatever the weights are. packing: see
    :data:`meadowlark.compile.packing.PACKINGS`."""
    return LEAST_BITS if board.config.packing and packing != "raw" else 8.0


def entropy_bits(model: Model, needs: Need) -> float:
    """Fewest that a byte of codes can take with the weights of a model, if all are int8 on the
    finest grid: their entropy, a matrix at a time.

    model: as it is rewritten for the board of ``needs``.
    """
    modes = {needs.shapes.mode(m) for m in needs.plan.matrices}
    if needs.config.packing & Packing.MEADOW or modes != {Mode.INT8}:
        return LEAST_BITS           # pairs of codes, or blocks: their entropy is another
    total = 0.0
    for matrix in needs.plan.matrices:
        for name in matrix.weights:
            codes, _ = int8_codes(model.weights[name])
            total += entropy(np.bincount(codes.view(np.uint8).ravel(), minlength=256)) * codes.size
    return total / needs.stream_bytes[1]


# ---- Limits

class Limit(NamedTuple):
    """A row of the table.

    name: what is bounded. unit: of its values, or "". doc: what of a model that is. of: a model on
    the board. has: the board's bound, which that may reach. where: what of the board sets it.
    """
    name: str
    unit: str
    doc: str
    of: Callable[[Need], int]
    has: Callable[[Board], int]
    where: str


LIMITS = (
    Limit("hidden size", "", "values of a token",
          lambda n: n.shape.hidden,
          lambda b: min(4096, b.config.residual_values // b.config.P // b.config.W * b.config.W),
          "residual_values / P, and the sum of squares"),
    Limit("residual", "values",
          "of a token: hidden size, and the most that is normed beside it at once; only models "
          "with norms of queries, of keys or behind a block have that",
          lambda n: stride(n.plan, n.config.W) if values_beside(n.plan, n.config.W) else 0,
          lambda b: min((1 << 13) - 1, b.config.residual_values // b.config.P),
          "residual_values / P"),
    Limit("words of a diagonal", "rows", "likewise: W, as many as a tile has",
          lambda n: n.config.W * (n.plan.spill is not None or any(
              norm.diagonal is not None for norm in n.plan.norms)),
          lambda b: b.config.tile_rows, "tile_rows"),
    Limit("word", "values", "of a core that takes keys with latents, whose parts are whole words",
          lambda n: n.config.W if n.plan.latent else 0, lambda b: WORD, "W"),
    Limit("soft caps", "kinds", "of scores, of logits", lambda n: n.plan.caps,
          lambda b: 2 * b.config.softcap, "softcap"),
    Limit("widest matrix row", "weights",
          "the larger of hidden size, and of query heads times padded head dimension; an FFN that "
          "is wider is cut into slices",
          lambda n: max(m.columns for m in n.plan.matrices), _row_weights, "tile_beats / 2 * W"),
    Limit("padded head dimension", "",
          "the power of two from the head dimension on, W at least",
          lambda n: n.plan.head_pad,
          lambda b: 1 << (min(1 << Config.MAX_HEAD_LOG2, b.config.tile_beats * b.config.W,
                              2 * b.config.rope_pairs // b.config.P).bit_length() - 1),
          "2 * rope_pairs / P, tile_beats * W, and 256"),
    Limit("activations", "words",
          "of W values, in a block of tokens: hidden size, and what all query heads give; an FFN "
          "that is larger is cut into slices",
          lambda n: act_map(n.plan, n.config.W).block_words, _act_words, "act_words"),
    Limit("new keys", "bytes", "of a token in a layer: all KV heads, padded",
          lambda n: token_words(n.plan, n.config.W) * n.config.W,
          lambda b: min(b.config.scratch_bytes // b.config.P,
                        ((1 << _BITS["x"]) - 1) * b.config.W), "scratch_bytes / P"),
    Limit("context", "tokens", "what the KV cache holds; `--ctx` asks for fewer",
          lambda n: n.context,
          lambda b: min(b.config.context, b.config.score_depth), "context, score_depth"),
    Limit("vocabulary", "tokens", "rows of the head",
          lambda n: n.shape.vocab,
          lambda b: (1 << Config.TOKEN_BITS) - 1, "the bits of a token id"),
    Limit("program", "instructions", "they grow with layers, query heads and KV heads",
          lambda n: n.instructions, lambda b: b.config.prog_depth, "prog_depth"),
    Limit("memory", "bytes",
          "weights, embedding, RoPE tables and KV cache; `--ctx` and, where the board reads "
          "entropy-coded weights, `--bits` ask for less",
          lambda n: n.memory_bytes, lambda b: memory_bytes(b), "the board's memory"),
)


#: Of an encoder that cannot be spilled: keys of a layer are those of all tokens, so all are there
#: before the first query is. What a board has depends on the model, see :func:`residents`.
IMAGE = Limit("tokens of an image", "", "all of them in one pass", lambda n: n.context,
              lambda b: Config.PASS_BLOCKS * b.config.P,
              "a pass: residual_values, act_words, scratch_bytes, rope_pairs and 32 blocks of P")


class Reason(NamedTuple):
    """Why a model does not fit a board: what of it, what it needs, what the board has."""
    limit: Limit
    need: int
    has: int

    def __str__(self) -> str:
        """Part of a sentence."""
        unit = f" {self.limit.unit}" if self.limit.unit else ""
        return (f"{self.limit.name} {self.need:,}{unit}, at most {self.has:,} "
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
        See :class:`Need`.
    """
    on = need(shapes, board, context, bits)
    found = [Reason(limit, of, has) for limit in LIMITS
             if (of := limit.of(on)) > (has := limit.has(board))]
    most = residents(on.plan, on.config) * on.config.P
    if on.plan.graph.encoder and on.plan.spill is None and on.context > most and not found:
        found.append(Reason(IMAGE, on.context, most))
    return found


# ---- What could be done

def _longest(shapes: Shapes, board: Board, bits: float) -> int | None:
    """The longest context with which it fits; None if there is none."""
    low, high = 0, need(shapes, board).context
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
    if not board.config.packing & Packing.ENTROPY:
        return None
    small = shapes.int8()           # a budget of bits is for those
    wanted = held = need(small, board, context).context
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
    if shapes.plan.graph.encoder and context not in (None, shapes.context):
        raise UserError(f"an image has {shapes.context} tokens, which are the context; leave --ctx "
                        "out")
    if context is not None and not 1 <= context <= shapes.context:
        raise UserError(f"the context must be in 1..{shapes.context} for this model, not {context}")
    if fits(shapes, board, context=context, bits=bits if least is None else least):
        reasons = fits(shapes, board, context=context, bits=bits)
        raise UserError(f"the model does not fit the board {board.name}: "
                        f"{'; '.join(map(str, reasons))}; "
                        f"{advice(shapes, board, context=context, bits=bits)}")


def residents(steps: Plan, config: Config, at_once: int = 1, context: int | None = None) -> int:
    """Number of resident blocks of P tokens, at least 1 where a model fits. at_once: see
    :func:`meadowlark.compile.layout.act_map`. context: no pass has more tokens; what blocks beyond
    those would take is then free for others."""
    W, P = config.W, config.P
    most = config.PASS_BLOCKS if context is None else -(-context // P)
    return min(most, config.act_words // act_map(steps, W, at_once).block_words,
               config.scratch_bytes // (P * token_words(steps, W) * W),
               config.residual_values // (P * stride(steps, W)),
               config.rope_pairs // (P * steps.head_pad // 2), Config.PASS_BLOCKS)


def values_beside_keys(steps: Plan, config: Config, blocks: int) -> bool:
    """Scratch memory has room for a pass's values beside its keys, so that they need not wait until
    the keys are stored. Latents lie in them. blocks: resident ones."""
    return not steps.latent and 2 * token_words(
        steps, config.W) * config.W * config.P * blocks <= config.scratch_bytes


def heads_at_once(steps: Plan, config: Config, context: int) -> int:
    """Query heads of a KV head that attend at once: as many as leave the resident blocks as they
    are. Keys and values are then read less often. context: see :func:`residents`."""
    op = steps.attends[0].op
    most = min(op.heads // op.kv_heads, (1 << _BITS["group"]) - 1)
    blocks = residents(steps, config, context=context)
    return next((n for n in range(most, 1, -1)
                 if residents(steps, config, n, context) == blocks), 1)
