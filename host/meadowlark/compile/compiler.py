"""Compiler: a quantised model and a board -> program, packed memory, registers, statistics."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.compute.softmax_golden import unified_field
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import sv_log2, tile_rows
from meadowlark_hdl.draft.context_match_golden import SHORTEST
from meadowlark_hdl.isa import (FIELDS, MODEL_REGS, NO_WINDOW, Field, Fn, Header,
                                Instruction, Mode, Op, Pair, Sink, Src, encode)
from meadowlark_hdl.weights.decoder_golden import (HEADER_BYTES, code_bytes, encode_tile,
                                                   row_headers, scale_bytes)
from meadowlark_hdl.weights.modes import BLOCK, BLOCK_MODES, MODES, Packing

from ..draft.table import DraftTable
from ..errors import UserError
from ..models.graph import Attend
from ..quant.plan import (AddStep, AttendStep, EmbedStep, GateStep, HeadStep, Matrix, Normed,
                          NormStep, Order, PatchStep, ReadStep, Spill, Step)
from ..quant.quantise import (QuantAttend, QuantGate, QuantLinear, QuantModel, QuantNorm,
                              logit_cap, score_cap)
from ..quant.shapes import Shapes
from . import limits
from .image import Image, Vision, Visit
from .layout import (ALIGN, Shape, Tables, act_map, cuts, packed_jobs, round_up, stride,
                     token_words)
from .pairs import Pairs, check_lanes
from .spill import digit_name, with_spill
from .stream import ROWS, Stream

if TYPE_CHECKING:
    from meadowlark_boards import Board


#: Results of 16 bits for activation memory; results for the residual, which NORM reads.
_TO_ACT, _TO_RESIDUAL = dict(sink=Sink.ACT, wide=1), dict(sink=Sink.RESIDUAL, stats=1)


class _Lists:
    """Both instruction lists under construction, with the stream they share.

    External memory holds the stream, the table of drafts, then the :class:`.layout.Tables`. The
    length of the first two is known last, so addresses of the rest are counted from their end and
    completed by ``finish``.
    """

    def __init__(self, qm: QuantModel, shapes: Shapes, config: Config, context: int, stream: Stream,
                 all_tokens: bool, lanes: str) -> None:
        self.qm, self.plan, self.config, W = qm, qm.plan, config, config.W
        self.at_once = limits.heads_at_once(qm.plan, config, context)
        self.act = act_map(qm.plan, W, self.at_once)
        self.head = qm.plan.key_pad // W               # words of a head
        self.key = qm.plan.key_row(config)              # values of a key in memory
        self.columns = 1 << sv_log2(config, qm.plan.value_pad.bit_length() - 1)     # of an SV
        self.blocks = limits.residents(qm.plan, config, self.at_once, context)
        self.token = token_words(qm.plan, W)        # of a token's keys, and of its values
        self.beside = limits.values_beside_keys(qm.plan, config, self.blocks)
        self.hidden = round_up(qm.hidden, W)
        self.stream = stream
        self.tables = Tables(shapes, config, context)
        self.all_tokens, self.last = all_tokens, 0
        self.pairs = Pairs(lanes, config, self.columns // W)
        self.batch = config.turns                       # tokens of a batch, at most
        self.spill = qm.plan.spill
        # How many rows behind its position a token's keys and values go. A spilled pass stands at
        # the last positions, whichever its tokens are, and reads as many rows from its base on: so
        # the rows of all tokens lie there twice, one behind the other.
        self.lags = (0,)
        if self.spill is not None:
            first = cuts(context, self.blocks * config.P)[0]
            self.lags = first - context, first
        # Where visits begin: in either list, and in the stream, in bytes.
        self.visits = [(0, 0, 0)]
        self.prefill: list[Instruction] = []
        self.decode: list[Instruction] = []
        self._fixups: list[Instruction] = []        # addr counts from the end of the table

    def make(self) -> None:
        """All of both lists. A token's keys and values are all that others see of it, so behind
        those of the last layer comes what only the last token needs; with ``all_tokens`` that is
        the last norm and the head."""
        for step in self.plan.steps:
            if step is (self.plan.end[0] if self.all_tokens else None):
                self._tail()
            _LOWER[type(step)](self, step)
        self._both(Op.END, last=0)

    def _tail(self) -> None:
        """A pass that is not final ends here; what follows is for the last token's block."""
        self._both(Op.END, last=1)
        self.last = 1

    def _both(self, op: Op, **fields: int) -> None:
        for code in (self.prefill, self.decode):
            self._put(code, op, **fields)

    def _put(self, code: list[Instruction], op: Op, **fields: int) -> None:
        code.append(Instruction(op, **dict(last=self.last) | fields))

    def _relative(self, code: list[Instruction], op: Op, at: int, **fields: int) -> None:
        self._put(code, op, addr=at // self.config.W, **fields)
        self._fixups.append(code[-1])

    def _row(self, op: Op, at: int, row_beats: int, chunks: int, **fields: int) -> None:
        """A row of a table for each token."""
        for code in (self.prefill, self.decode):
            self._relative(code, op, at, tiles=1, rows=1, last_rows=1, row_beats=row_beats,
                           chunks=chunks, last_chunks=chunks, **fields)

    def _linear(self, matrix: Matrix, even: bool = True, rows: slice = slice(None), /,
                **fields: int) -> None:
        """A matrix, or some of its rows."""
        q = _rows(self.qm.numbers[matrix.name], rows)
        _, found, sizes = self.stream.linear(q, matrix.name, even=even,
                                             diagonal=matrix.order is Order.DIAGONAL)
        self._both(Op.LINEAR, **dict(x=self.act.at[matrix.x]) | fields, **_of(found, sizes))

    def _norm_rows(self, matrix: Matrix, norm: Normed, heads: range | None = None) -> None:
        """What a matrix makes, normed in activations; of heads that are normed one by one, these.
        The first lies where what the norm makes does."""
        numbers: QuantNorm = self.qm.numbers[norm.op.out]
        parts = [slice(None)] if heads is None else [
            slice(h * norm.width, (h + 1) * norm.width) for h in heads]
        for k, rows in enumerate(parts):
            self._linear(matrix, True, rows, sink=Sink.BESIDE, stats=1)
            self._both(Op.NORM, y=(self.act.at[norm.op.out] + k * self.head) * self.config.W,
                       beside=1, shift=numbers.shift, **_TO_ACT, **self.stream.norm(numbers.gamma))

    @property
    def by_position(self) -> Src:
        """Where a row of a token's own position comes from: its id is that in a spilled pass."""
        return Src.TABLE if self.spill is None else Src.TOKEN

    # ---- A step as instructions

    def _embed(self, step: EmbedStep) -> None:
        """RoPE rows first: the position is known before the token is."""
        for name in self.plan.tables[:1]:
            self._angles(name)
        for k, (matrix, table) in enumerate(zip(step.tables, self.tables.tables)):
            q: QuantLinear = self.qm.numbers[matrix.name]
            self._row(Op.EMBED, table.at, self.hidden // self.config.W, table.chunks,
                      src=Src.TOKEN if matrix is step.matrix else self.by_position, mode=q.mode,
                      header=q.header, add=int(k > 0), **_TO_RESIDUAL)

    def _patches(self, step: PatchStep) -> None:
        """Rows that the host writes."""
        table, W = self.tables.patches, self.config.W
        assert table is not None
        self._row(Op.EMBED, table.at, -(-step.op.width // W), table.chunks, src=self.by_position,
                  mode=Mode.INT16, header=Header.SCALE, y=self.act.at[step.name] * W, **_TO_ACT)

    def _angles(self, name: str) -> None:
        """From here on heads rotate by this table."""
        table = self.tables.rope[name]
        self._row(Op.ROPE, table.at, self.qm.head_pad // self.config.W, table.chunks,
                  src=Src.TABLE, mode=Mode.INT16, header=Header.NONE)

    def _norm(self, step: NormStep) -> None:
        if step.inner is not None and step.matrix is not None:
            self._norm_rows(step.matrix, step.inner)
            return
        norm: QuantNorm = self.qm.numbers[step.name]
        self._both(Op.NORM, y=self.act.at[step.name] * self.config.W, shift=norm.shift, **_TO_ACT,
                   **self.stream.norm(norm.gamma))

    def _read(self, step: ReadStep) -> None:
        """NORM divides by the root of the latest sum of squares, whose it may be."""
        norm: QuantNorm = self.qm.numbers[step.name]
        self._linear(step.matrix, sink=Sink.BESIDE, stats=1)
        self._both(Op.NORM, y=self.act.at[step.name] * self.config.W, shift=norm.shift, **_TO_ACT,
                   **self.stream.norm(norm.gamma))

    def _add(self, step: AddStep) -> None:
        if step.norm is not None:
            self._norm_rows(step.matrix, step.norm)
        self._linear(_last(step.matrix, step.norm), **_TO_RESIDUAL)

    def _gate(self, step: GateStep) -> None:
        gate: QuantGate = self.qm.numbers[step.name]
        self._linear(step.matrix, y=self.act.at[step.name] * self.config.W, fn=step.op.fn,
                     pair=Pair.NONE if step.op.up is None else Pair.GLU, shift=gate.shift,
                     **_TO_ACT)

    def _head(self, step: HeadStep) -> None:
        # Nothing pairs its rows, and the sampler counts exactly ``vocab`` of them.
        self._linear(step.matrix, False, sink=Sink.LOGIT, **_capped(logit_cap(step.op)))

    def _attend(self, step: AttendStep) -> None:
        """Keys and values, then in prefill some query heads of a KV head at a time. In decode
        lanes are the heads of a KV head.

        Decode leaves all but the first block of the activation memory unused: if the queries of
        all groups fit there, they are computed before the first group attends, so that the memory
        side has those weights to read while it waits for the new keys to be stored. The queries of
        a batch lie there one behind the other, in each group.
        """
        config, op, pad = self.config, step.op, self.plan.key_pad
        if step.name in [*self.plan.loads][1:]:
            self._angles(self.plan.loads[step.name])
        numbers: QuantAttend = self.qm.numbers[step.name]
        rotated = [{} if step.table is None else dict(pair=Pair.ROPE, shift=shift)
                   for shift in (numbers.q_shift, numbers.k_shift)]
        for which, (matrix, norm, fields) in enumerate((
                (step.k, step.k_norm, rotated[1]), (step.v, step.v_norm, {}))):
            # Values lie behind the keys or, once these are stored, in their place. Latents are a
            # part of them.
            at = which * (step.k.rows // config.W if op.latent else self.token * self.beside)
            if norm is not None:
                self._norm_rows(matrix, norm, range(op.kv_heads) if norm.each else None)
            self._linear(_last(matrix, norm), y=at * config.W, sink=Sink.SCRATCH,
                         wait=int(which and not self.beside and not op.latent), **fields)
            if not op.latent:
                self._stores(step, which, at)
            elif which:
                self._stores(step, 0, 0)
                self._stores(step, 1, at)

        if step.spill is not None:
            self._leave(step.spill)
            self._enter(step.spill)
        elif step is self.plan.attends[-1] and not self.all_tokens:
            self._tail()
        group, norm = op.heads // op.kv_heads, step.q_norm
        source = _last(step.q, norm)
        # Heads that are normed one by one lie in activations until all of their KV head do.
        alone = norm is not None and norm.each

        def begin(begun: range) -> tuple[int, dict, list[int]]:
            """The stream has reached the queries of heads: the first, fields, chunks of tiles."""
            if norm is not None:
                self._norm_rows(step.q, norm, begun if alone else None)
            q = _rows(self.qm.numbers[source.name], slice(begun.start * pad, begun.stop * pad))
            return begun.start, *self.stream.linear(q, source.name, divides=pad,
                                                    diagonal=norm is not None)[1:]

        def queries(code: list[Instruction], at: int, first: int, count: int, **lanes: int) -> None:
            start, fields, sizes = stream
            a, b = ((n - start) * pad // fields["rows"] for n in (first, first + count))
            # Of a diagonal each head has words of its own.
            skipped = 0 if norm is None else (first - start) * self.head
            self._put(code, Op.LINEAR, **_of(fields, sizes[a:b]) | dict(
                tiles=b - a, x=self.act.at[source.x] + skipped, y=at * config.W, **_TO_ACT,
                **rotated[0], **lanes))

        back = NO_WINDOW if op.window is None else min(op.window - 1, NO_WINDOW)

        def attend(code: list[Instruction], at: int, first: int, count: int, **lanes: int) -> None:
            kv_head = first // group

            def kv(width: int) -> dict:
                beats = width // config.W
                keys = tile_rows(config, beats)
                return dict(src=Src.KV, mode=Mode.INT8, header=Header.NONE, rows=keys, group=count,
                            row_beats=beats, chunks=keys * beats, back=back,
                            ahead=int(op.ahead), **lanes)
            self._relative(code, Op.QK, self.tables.kv(step.cache, 0, kv_head), x=at,
                           shift=numbers.score_shift, **_of_scores(op, numbers, kv_head),
                           **kv(self.key))
            for column in range(0, self.plan.value_pad, self.columns):
                self._relative(code, Op.SV, self.tables.kv(step.cache, 1, kv_head, column),
                               y=self.act.at[step.name] * config.W + first * pad + column,
                               mant=int(numbers.v_mant[kv_head]),
                               shift=int(numbers.v_shift[kv_head]),
                               more=int(column + self.columns < self.plan.value_pad), **_TO_ACT,
                               **kv(self.columns))

        def groups_of(most: int) -> list[tuple[int, int]]:
            """(first head, heads) of those that attend at once."""
            return [(h, min(most, end - h)) for end in range(group, op.heads + 1, group)
                    for h in range(end - group, end, most)]

        one = self.act.at[step.q.name]
        groups = groups_of(config.P)        # at most a lane a head
        behind, room = self.act.block_words, (config.act_words - self.act.block_words) // self.head
        early = len(groups) <= room
        tokens = min(config.P, room // len(groups) if early else max(room, self.at_once))
        at = [behind + g * tokens * self.head if early else behind if tokens <= room else one
              for g in range(len(groups))]
        self.batch = min(self.batch, tokens)
        stream: tuple[int, dict, list[int]] = 0, {}, []
        for head in range(0, op.heads, group):
            if alone or not head:
                stream = begin(range(head, head + group) if alone else range(op.heads))
            for first, n in groups_of(self.at_once):
                if first in range(head, head + group):
                    queries(self.prefill, one, first, n)
                    attend(self.prefill, one, first, n)
            for g, (first, n) in enumerate(groups):
                if first in range(head, head + group):
                    queries(self.decode, at[g], first, n, **self.pairs.fields(n))
                    if not early:
                        attend(self.decode, at[g], first, 1, **self.pairs.fields(n))
        if early:
            for g, (first, n) in enumerate(groups):
                attend(self.decode, at[g], first, 1, **self.pairs.fields(n))

    def _stores(self, step: AttendStep, which: int, at: int) -> None:
        """Keys (which: 0) or values (1) of all KV heads, from a word of scratch memory on, to the
        cache."""
        W, width = self.config.W, self.columns if which else self.key
        for code in (self.prefill, self.decode):
            for h in range(step.op.kv_heads):
                for first in range(0, self.plan.value_pad if which else width, width):
                    for lag in self.lags:
                        to = self.tables.kv(step.cache, which, h, first) + lag * width
                        self._relative(code, Op.STORE, to, x=at + h * self.head + first // W,
                                       row_beats=width // W)

    def _leave(self, spill: Spill) -> None:
        """The residual to memory, see :mod:`.spill`; a visit ends."""
        W, at = self.config.W, self.act.at[spill.header.x]
        for piece in range(spill.pieces):
            self._linear(spill.header, y=piece * self.plan.key_pad, sink=Sink.SCRATCH,
                         wait=int(piece == 0))
        for plane in range(spill.planes):
            if (root := spill.root(plane)) is not None:
                self._linear(root, sink=Sink.BESIDE, stats=1)
            digit: QuantNorm = self.qm.numbers[digit_name(plane)]
            self._both(Op.NORM, y=at * W, shift=digit.shift, sink=Sink.ACT,
                       **self.stream.norm(digit.gamma))
            for piece, out in enumerate(spill.out):
                self._linear(out, x=at + piece * (self.head - 1), sink=Sink.SCRATCH,
                             y=piece * self.plan.key_pad + W, wait=int(plane and piece == 0))
            for code in (self.prefill, self.decode):
                for piece in range(spill.pieces):
                    to = self.tables.spilled(plane * spill.pieces + piece)
                    self._relative(code, Op.STORE, to + self.lags[0] * self.plan.key_pad,
                                   x=piece * self.head, row_beats=self.head)
            self._linear(spill.less[plane], sink=Sink.RESIDUAL)
        self._both(Op.END, last=0)
        self.visits.append((len(self.prefill), len(self.decode), sum(map(len, self.stream.parts))))

    def _enter(self, spill: Spill) -> None:
        """The residual from memory, which is 0 before. The last visit's token has the last
        position."""
        W, at = self.config.W, self.act.at[spill.header.x]
        for plane in range(spill.planes):
            for code, source in ((self.prefill, Src.TOKEN), (self.decode, Src.TABLE)):
                for piece in range(spill.pieces):
                    self._relative(
                        code, Op.EMBED, self.tables.spilled(plane * spill.pieces + piece),
                        src=source, mode=Mode.INT8, header=Header.SCALE, tiles=1, rows=1,
                        last_rows=1, row_beats=self.head - 1, chunks=self.head,
                        last_chunks=self.head, sink=Sink.ACT,
                        y=(at + piece * (self.head - 1)) * W)
            self._linear(spill.more[plane], sink=Sink.RESIDUAL,
                         stats=int(plane == spill.planes - 1))
        self._norm(spill.norm)

    def program(self) -> tuple[list[Instruction], int, tuple[Visit, ...]]:
        """The program, where its decode list begins, and the visits that a spilled model has:
        prefill lists, and a decode list for the last one."""
        if self.spill is None:
            return self.prefill + self.decode, len(self.prefill), ()
        *others, (end, begin, _) = self.visits
        pcs = [pc for pc, _, _ in others] + [end]
        return self.prefill[:end] + self.decode[begin:], end, tuple(
            Visit(pc, at // self.config.W) for pc, (_, _, at) in zip(pcs, self.visits))

    def finish(self, draft: DraftTable | None) -> tuple[bytes, int, int]:
        """Complete the addresses; returns the stream and the table of drafts, padded, where that
        begins, and all of the memory's size."""
        weights = b"".join(self.stream.parts)
        weights += bytes(-len(weights) % ALIGN)
        at = len(weights)
        if draft is not None:
            weights += draft.memory
            weights += bytes(-len(weights) % ALIGN)
        for instruction in self._fixups:
            addr = instruction["addr"] + len(weights) // self.config.W
            instruction["addr"] = _fit("addr", addr, FIELDS)
        return weights, at, len(weights) + self.tables.size


#: What makes instructions of a step; a new one is a row here.
_LOWER: dict[type[Step], Callable[..., None]] = {
    EmbedStep: _Lists._embed, PatchStep: _Lists._patches, NormStep: _Lists._norm,
    ReadStep: _Lists._read, AttendStep: _Lists._attend, GateStep: _Lists._gate,
    AddStep: _Lists._add, HeadStep: _Lists._head}


def compile_model(qm: QuantModel, board: Board, *, context: int | None = None,
                  packing: str = "auto", all_tokens: bool = False,
                  draft: DraftTable | None = None, lanes: str = "auto",
                  stream: Callable[[Config, str, int], Stream] = Stream) -> Image:
    """Lay a model out for a board.

    Both lists consume the weight stream in the same order: a step of the plan after the other, per
    attention K, V and the query heads.

    Parameters
    ----------
    qm : QuantModel
        Rows in the chip's order (see :mod:`meadowlark.quant.quantise`).
    board : Board
        Its Config is the envelope, its memory must hold image and KV cache.
    context : int, optional
        Tokens the KV cache holds, 1..; default: the smaller of the model's and the board's.
    packing : str
        One of :data:`meadowlark.compile.packing.PACKINGS`.
    all_tokens : bool
        Take all tokens of a prompt through all of the last layer, though nobody reads what most of
        them give: to measure what leaving that out brings.
    draft : DraftTable, optional
        Goes into the memory. It is left out where the board's memory has no room for it, or its
        core no drafts (:attr:`.Image.draft` is then None).
    lanes : str
        One of :data:`meadowlark.compile.pairs.LANES`.
    stream : callable
        Makes what packs the weights, of the same parameters as :class:`.stream.Stream`.

    Returns
    -------
    Image

    Raises
    ------
    UserError
        The board cannot run the model: see :mod:`meadowlark.compile.limits`. Only what packed
        weights take is not known before.
    """
    config = board.config
    W, P = config.W, config.P
    if any(packing == one.label and one not in Packing(config.packing) for one in Packing):
        raise UserError(f"the board {board.name} cannot read the packing {packing}")
    shapes = Shapes.of_integers(qm)
    if not config.block_modes and not BLOCK_MODES.keys().isdisjoint(shapes.modes.values()):
        raise UserError(f"the board {board.name} cannot read weights in blocks, as GGUF files have "
                        "them; quantise the model to int8 (--weights int8)")
    if qm.head_pad < W:
        raise ValueError(f"heads padded to {qm.head_pad}, but the core takes {W} values at a time")
    check_lanes(lanes, board, shapes.plan)
    limits.check(shapes, board, context=context, least=limits.least_bits(board, packing))
    needs = limits.need(shapes, board, context)
    context = needs.context
    if needs.plan.spill is not None:
        if all_tokens:
            raise UserError(f"only the last token of an image goes through all of {qm.name}'s last "
                            "layer, since its tokens are more than a pass takes; leave "
                            "--all-tokens out")
        qm, shapes = with_spill(qm, needs.plan), needs.shapes
    unified = any(qm.numbers[step.name].window for step in qm.plan.attends)
    if unified:
        check_unified(qm, board, lanes)
        lanes = "direct"
    lists = _Lists(qm, shapes, config, context, stream(
        config, packing, max(P, limits.heads_at_once(qm.plan, config, context))), all_tokens, lanes)
    act, tables, blocks = lists.act, lists.tables, lists.blocks
    lists.make()

    # What was left open: what the packed weights take.
    plain, packed = (sum(t[key] for t in lists.stream.tensors) for key in ("raw_bytes", "bytes"))
    bits = 8 * packed / plain
    limits.check(shapes, board, context=context, bits=bits)
    needs = limits.need(shapes, board, context, bits)
    extra = 0 if draft is None else round_up(draft.size, ALIGN)
    if not config.drafts or needs.memory_bytes + extra > limits.memory_bytes(board):
        draft, extra = None, 0
    weights, draft_at, memory_bytes = lists.finish(draft)
    program, decode_pc, visits = lists.program()
    assert len(program) == needs.instructions
    assert memory_bytes == needs.memory_bytes + extra
    memory = b""
    for table, rows in zip(tables.rope.values(), qm.rope, strict=True):
        memory = memory.ljust(table.at, b"\0") + encode_tile(
            rows[:context].reshape(context, -1), W=W, mode=Mode.INT16)
    for matrix, table in zip(qm.plan.embedding.tables, tables.tables):
        first = qm.plan.embedding.op.offset if matrix is qm.plan.embedding.positions else 0
        memory = memory.ljust(table.at, b"\0") + _table(
            qm.numbers[matrix.name], slice(first, first + table.rows), W)
    vision = _vision(qm, tables, len(weights), W)
    if vision is not None:
        memory = memory.ljust(vision.at - len(weights), b"\0") + vision.tiles(
            np.zeros((context, vision.pictures.width), np.int16), W)
    memory = weights + memory.ljust(tables.kv_at, b"\0")
    regs = dict(prefill_pc=0, decode_pc=decode_pc, stream_addr=0,
                block_words=act.block_words, token_words=lists.token << lists.beside,
                blocks=blocks, hidden=lists.hidden, stride=stride(qm.plan, W),
                head_log2=qm.head_pad.bit_length() - 1, group=lists.at_once, eps=int(qm.eps),
                vocab=qm.vocab, draft_addr=draft_at // W,
                draft_buckets=0 if draft is None else len(draft.entries),
                draft_least=SHORTEST if draft is None else draft.least)
    for name, value in regs.items():
        _fit(name, value, MODEL_REGS)
    return Image(
        name=qm.name, board=board.name, config=config.replace(
            **dict.fromkeys(Config.EXTRAS, False) | {
                "tight_keys": lists.key != qm.plan.key_pad, "unified": unified,
                "lane_pairs": any(i["add"] and i["heads"] for i in program),
                "softcap": qm.plan.caps > 0}).as_dict(),
        needs=dict(act_words=_act_words(program, blocks * act.block_words, lists),
                   scratch_bytes=blocks * P * regs["token_words"] * W,
                   residual_values=blocks * P * regs["stride"],
                   rope_pairs=blocks * P * qm.head_pad // 2, score_depth=context,
                   context=context, prog_depth=len(program), memory_bytes=memory_bytes,
                   tile_rows=max(i["rows"] for i in program if i["header"] != Header.NONE)),
        model_regs=regs, shape=asdict(Shape.of(qm.plan, context)),
        program=b"".join(map(encode, program)), memory=memory, tokenizer=qm.tokenizer_json,
        chat=qm.chat, bos_id=qm.bos_id, stop_ids=tuple(qm.stop_ids),
        facts=_facts(qm, lists.stream.tensors, all_tokens) | {"batch": lists.batch} | (
            {"missed": _missed(qm)} if unified else {}),
        tensors=tuple(lists.stream.tensors), vision=vision, visits=visits,
        draft=None if draft is None else dict(
            model=draft.model, made_of=draft.made_of, entries=draft.used))


def check_unified(qm: QuantModel, board: Board, lanes: str) -> None:
    """Raise :class:`UserError` unless a board can do with a unified maximum for the model."""
    config = board.config
    if lanes == "pairs":
        raise UserError("a unified maximum takes a lane for each query head; leave --maximum or "
                        "--lanes out")
    if not config.unified:
        raise UserError(f"the core of the board {board.name} has exact maxima alone; leave "
                        "--maximum out, or take the board virtual")
    columns = 1 << sv_log2(config, qm.plan.value_pad.bit_length() - 1)
    if qm.plan.key_row(config) > columns * config.sv_cycles:
        raise UserError(f"keys of {qm.name} take longer than their values, which a unified maximum "
                        "has no time for; leave --maximum out")


def _vision(qm: QuantModel, tables: Tables, before: int, W: int) -> Vision | None:
    """Where an image's patches go. before: bytes in front of the tables."""
    step, table = qm.plan.patches, tables.patches
    if step is None or table is None:
        return None
    assert qm.pictures is not None
    return Vision(at=before + table.at, stride=table.chunks * W,
                  fraction=qm.numbers[step.name].fraction, pictures=qm.pictures)


def _of_scores(op: Attend, numbers: QuantAttend, kv_head: int) -> dict[str, int]:
    """Fields of a QK: a soft cap, or a unified maximum."""
    if numbers.phi is None:
        return _capped(score_cap(op))
    return dict(mant=unified_field(int(numbers.phi[kv_head]), numbers.window))


def _missed(qm: QuantModel) -> int:
    """Of a million rows of scores those that have another maximum than the unified one, in
    calibration."""
    missed = [qm.numbers[step.name].missed for step in qm.plan.attends]
    return round(sum(missed) / len(missed))


def _last(matrix: Matrix, norm: Normed | None) -> Matrix:
    """The one that makes what a step takes."""
    return matrix if norm is None or norm.diagonal is None else norm.diagonal


def _act_words(program: list[Instruction], blocks: int, lists: _Lists) -> int:
    """Activation words in use: resident blocks, or decode's queries behind the first one."""
    return max(blocks, *(i["x"] + (lists.batch if i["heads"] else 1) * lists.head
                         for i in program if i["op"] == Op.QK))


def _capped(cap: int) -> dict[str, int]:
    """Fields of a soft cap, 0: there is none."""
    return dict(fn=Fn.TANH, mant=cap) if cap else {}


def _of(fields: dict, sizes: list[int]) -> dict:
    """Fields of an instruction that has the tiles of these chunks."""
    return fields | (packed_jobs(sizes) or {}) if fields.get("packed") else fields


def _fit(name: str, value: int, table: tuple[Field, ...]) -> int:
    """Value of an instruction field or register; that it has no more bits is due to the limits."""
    assert 0 <= value < 1 << next(f.bits for f in table if f.name == name), (name, value)
    return value


def _rows(q: QuantLinear, rows: slice) -> QuantLinear:
    """Some rows of a matrix."""
    return replace(q, **{name: part[rows] for name in ROWS
                         if (part := getattr(q, name)) is not None})


def _table(q: QuantLinear, rows: slice, W: int) -> bytes:
    """One tile for each of these rows: their parts side by side, as an encode_tile a row would take
    seconds."""
    def chunks(part: np.ndarray) -> np.ndarray:
        """Rows of bytes, filled with zeros to whole chunks."""
        raw = np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1)
        return np.pad(raw, ((0, 0), (0, -raw.shape[1] % W)))
    info = MODES[q.mode]
    q = _rows(q, rows)
    parts = [row_headers(q.header, q.mant, q.shift, q.bias)]
    if info.group:
        parts.append(scale_bytes(info, q.scale, q.minimum))
    parts.append(code_bytes(info, q.codes, W))
    return np.concatenate([chunks(part) for part in parts], axis=1).tobytes()


def _facts(qm: QuantModel, tensors: list[dict], all_tokens: bool) -> dict:
    """What of a pass is useful, without any padding; see :meth:`Image.useful_bytes`.

    layer_bytes, tail_bytes: codes, scales and minima of blocks, row scales, biases and gammas read
    once a pass; of what is for the last token only, see :meth:`_Lists.make`. embedding_bytes: those
    of a token's rows of embedding, positions and patches. layer_macs, tail_macs: products a token.
    tail_attends: attentions in the tail. parameters: weights of the float model. Of what is packed,
    the packed bytes.
    """
    packed: dict[str, int] = {}         # of parts that are raw what they have
    for name in {t["name"] for t in tensors if t["mode"] != "raw"}:
        packed[name] = sum(t["bytes"] for t in tensors if t["name"] == name)
    shapes, plan = qm.plan.graph.shapes, qm.plan

    def macs(matrix: Matrix) -> int:
        return sum(shapes[name][0] * shapes[name][1] for name in matrix.weights)

    def linear(matrix: Matrix) -> int:
        q = qm.numbers[matrix.name]
        if not matrix.weights:                  # the way of a board, no part of a model
            return 0
        rows, weights = sum(shapes[name][0] for name in matrix.weights), macs(matrix)
        codes = weights if q.scale is None else weights // BLOCK * MODES[q.mode].group_bytes
        return packed.get(matrix.name, codes) + rows * HEADER_BYTES[q.header]

    steps, last = plan.steps, plan.attends[-1]
    tail = {step.name for step in (plan.end if all_tokens else steps[steps.index(last) + 1:])}
    behind = {m.name for step in steps for m in step.matrices if step.name in tail
              or step is last and m in (last.q, *(
                  (last.q_norm.diagonal,) if last.q_norm else ())) and not all_tokens}
    gammas = [(2 * shapes[step.op.gamma][0], step.name in tail) for step in plan.of(NormStep)
              if not step.norms]
    gammas += [(2 * norm.values * norm.count,
                norm.diagonal is not None and norm.diagonal.name in behind) for norm in plan.norms]

    patches = 2 * plan.patches.op.width if plan.patches is not None else 0

    def total(of: Callable[[Matrix], int], where: bool) -> int:
        return sum(of(m) for m in plan.matrices if (m.name in behind) is where)

    def size(where: bool) -> int:
        return total(linear, where) + sum(bytes_ for bytes_, late in gammas if late is where)
    return dict(
        parameters=qm.parameters, layer_bytes=size(False), tail_bytes=size(True),
        embedding_bytes=patches + sum(linear(table) // table.rows
                                      for table in plan.embedding.tables),
        layer_macs=total(macs, False), tail_macs=total(macs, True),
        tail_attends=int(not all_tokens))
