"""Compiler: a quantised model and a board -> program, packed memory, registers, statistics."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import tile_keys
from meadowlark_hdl.isa import (FIELDS, MODEL_REGS, Epi, Field, Header, Instruction, Mode, Op, Src,
                                encode)
from meadowlark_hdl.weights.block_golden import BLOCK
from meadowlark_hdl.weights.decoder_golden import (HEADER_BYTES, encode_tile, header_chunks,
                                                    row_headers, tile_chunks)

from ..errors import UserError
from ..models.blocks import KINDS
from ..quant.shapes import Shape, Shapes
from . import limits
from .image import Image
from .layout import ALIGN, Tiling, act_map, packed_jobs, round_up, spare_chunks, tile_linear
from .packing import Packer, Segment

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..quant.quantise import QuantLayer, QuantLinear, QuantModel, QuantNorm


#: Fields of a QuantLinear with an entry a row.
_ROWS = ("codes", "mant", "shift", "bias", "scale", "minimum")


class _Stream:
    """The weight stream under construction: appends tiles, returns instruction fields."""

    def __init__(self, config: Config, packing: str) -> None:
        self.config = config
        self.parts: list[bytes] = []
        self.tensors: list[dict] = []       # see Image.tensors
        self.packer = Packer(packing, config.packing, config.unpack_lanes)

    def norm(self, gamma: np.ndarray) -> dict:
        """A tile of gammas, zeros where hidden is padded."""
        raw = encode_tile(np.asarray(gamma).reshape(1, -1), W=self.config.W, mode=Mode.INT16)
        self.parts.append(raw)
        chunks = len(raw) // self.config.W
        return dict(src=Src.STREAM, mode=Mode.INT16, header=Header.NONE, tiles=1, rows=1,
                    last_rows=1, row_beats=chunks // 2, chunks=chunks, last_chunks=chunks)

    def linear(self, q: QuantLinear, name: str, *, divides: int | None = None, even: bool = True,
               ) -> tuple[Tiling, dict, list[int]]:
        """The tiles of a linear layer: their shape, fields, and chunks of each.

        divides: rows that are packed together; an instruction has whole ones. even: add a row of
        zeros to an odd number of rows.
        """
        W = self.config.W
        parts = {name: getattr(q, name) for name in _ROWS if getattr(q, name) is not None}
        if even and len(q.codes) % 2:
            parts = {name: np.concatenate([part, np.zeros_like(part[:1])])
                     for name, part in parts.items()}
        rows, columns = parts["codes"].shape
        t = tile_linear(rows, -(-columns // W), self.config, header=q.header, mode=q.mode,
                        divides=divides)
        fields: dict = dict(src=Src.STREAM, mode=q.mode, header=q.header, **t._asdict())
        tiles = []
        for at in range(0, rows, t.rows):
            tile = {key: part[at:at + t.rows] for key, part in parts.items()}
            tiles.append(encode_tile(**tile, W=W, mode=q.mode, header=q.header))
        heads = [header_chunks(q.header, n, W) * W
                 for n in (*[t.rows] * (len(tiles) - 1), t.last_rows)]
        each = divides // t.rows if divides else len(tiles)
        plain = [np.frombuffer(tile, np.uint8, offset=head).reshape(-1, W)
                 for tile, head in zip(tiles, heads)]
        segments = [Segment(np.concatenate(plain[k:k + each]), [len(p) for p in plain[k:k + each]])
                    for k in range(0, len(tiles), each)]
        spare = 0

        def fits(parts: list[list[bytes]]) -> bool:
            nonlocal spare
            sizes = [[(head + len(part)) // W for head, part in zip(heads, some)]
                     for some in parts]
            if len(parts) == 1:
                spare = spare_chunks(sizes[0])
            return self._fits(sizes)
        packed = self.packer.pack(segments, fits)
        if packed.parts is None and spare:
            # Its first tiles are the larger ones, so all jobs must be: chunks at the end fill them.
            packed = self.packer.pack([segments[0]._replace(spare=spare)], fits)
        self.tensors.append(dict(
            name=name, mode=packed.mode, how=packed.how, weights=int(q.codes.size),
            at=sum(map(len, self.parts)), raw_bytes=sum(map(len, plain)) * W,
            bytes=packed.bytes, entropy=round(packed.entropy, 4)))
        if packed.parts is not None:
            coded = [part for parts in packed.parts for part in parts]
            tiles = [tile[:head] + part for tile, head, part in zip(tiles, heads, coded)]
            fields["packed"] = 1
        self.parts += tiles
        return t, fields, [len(tile) // W for tile in tiles]

    def _fits(self, segments: list[list[int]]) -> bool:
        """Whatever segments an instruction has, there are jobs for their tiles."""
        return all(packed_jobs(sum(segments[a:b], [])) for b in range(1, len(segments) + 1)
                   for a in range(max(0, b - self.config.P), b))


class _Lists:
    """Both instruction lists under construction, with the stream they share.

    External memory holds stream, RoPE table, embedding table, KV cache. The length of the stream
    is known last, so addresses of the rest are counted from its end and completed by ``finish``.
    """

    def __init__(self, shape: Shape, config: Config, embedding: QuantLinear, packing: str) -> None:
        self.shape, self.config, W = shape, config, config.W
        self.act = act_map(shape, W)
        self.head = shape.head_pad // W             # words of a head
        self.hidden = round_up(shape.hidden, W)
        self.stream = _Stream(config, packing)
        self.prefill: list[Instruction] = []
        self.decode: list[Instruction] = []
        self._fixups: list[Instruction] = []        # addr counts from the end of the stream
        self.rope_chunks = 2 * self.head
        self.embedding = dict(mode=embedding.mode, header=embedding.header)
        self.embed_chunks = tile_chunks(embedding.mode, embedding.header, 1, self.hidden // W, W)
        # Offsets from the end of the stream, in bytes.
        self.embed_at = round_up(shape.context * self.rope_chunks * W, ALIGN)
        self.kv_at = self.embed_at + round_up(shape.vocab * self.embed_chunks * W, ALIGN)
        self.kv_step = round_up(shape.context * shape.head_pad, ALIGN)
        self.end = self.kv_at + self.kv_step * 2 * shape.layers * shape.kv_heads

    def both(self, op: Op, **fields: int) -> None:
        for code in (self.prefill, self.decode):
            code.append(Instruction(op, **fields))

    def _relative(self, code: list[Instruction], op: Op, at: int, **fields: int) -> None:
        code.append(Instruction(op, addr=at // self.config.W, **fields))
        self._fixups.append(code[-1])

    def _kv(self, layer: int, which: int, kv_head: int) -> int:
        s = self.shape
        return self.kv_at + self.kv_step * ((2 * layer + which) * s.kv_heads + kv_head)

    def start(self) -> None:
        """RoPE rows first: the position is known before the token is."""
        for code in (self.prefill, self.decode):
            for op, at, row_beats, chunks, fields in (
                    (Op.ROPE, 0, self.head, self.rope_chunks,
                     dict(src=Src.TABLE, mode=Mode.INT16, header=Header.NONE)),
                    (Op.EMBED, self.embed_at, self.hidden // self.config.W, self.embed_chunks,
                     dict(src=Src.TOKEN, **self.embedding))):
                self._relative(code, op, at, tiles=1, rows=1, last_rows=1, row_beats=row_beats,
                               chunks=chunks, last_chunks=chunks, **fields)

    def norm(self, norm: QuantNorm, *, last: int = 0) -> None:
        self.both(Op.NORM, y=self.act.x * self.config.W, shift=norm.shift, last=last,
                  **self.stream.norm(norm.gamma))

    def linear(self, weights: QuantLinear, name: str, even: bool = True, /, **fields: int) -> None:
        _, found, sizes = self.stream.linear(weights, name, even=even)
        self.both(Op.LINEAR, **fields, **_of(found, sizes))

    def keys_and_values(self, i: int, layer: QuantLayer) -> None:
        """Keys are stored before the values are computed: their way to memory is then hidden."""
        for which, (weights, at, epilogue) in enumerate((
                (layer.k, self.act.k, dict(epi=Epi.ROPE8, shift=layer.k_rope_shift)),
                (layer.v, self.act.v, dict(epi=Epi.ACT8)))):
            self.linear(weights, f"layers.{i}.{'kv'[which]}", x=self.act.x, y=at * self.config.W,
                        **epilogue)
            for code in (self.prefill, self.decode):
                for h in range(self.shape.kv_heads):
                    self._relative(code, Op.STORE, self._kv(i, which, h), x=at + h * self.head,
                                   row_beats=self.head)

    def attention(self, i: int, layer: QuantLayer) -> None:
        """Prefill: a query head at a time. Decode: lanes are the heads of a KV head.

        Decode leaves all but the first block of the activation memory unused: if the queries of
        all groups fit there, they are computed before the first group attends, so that the memory
        side has those weights to read while it waits for the new keys to be stored.
        """
        s, config = self.shape, self.config
        tiling, fields, sizes = self.stream.linear(layer.q, f"layers.{i}.q", divides=s.head_pad)
        group = s.heads // s.kv_heads

        def queries(code: list[Instruction], at: int, first: int, count: int, **lanes: int) -> None:
            a, b = (n * s.head_pad // tiling.rows for n in (first, first + count))
            code.append(Instruction(Op.LINEAR, **_of(fields, sizes[a:b]) | dict(
                tiles=b - a, x=self.act.x, y=at * config.W, epi=Epi.ROPE16,
                shift=layer.q_rope_shift, **lanes)))

        def attend(code: list[Instruction], at: int, first: int, **lanes: int) -> None:
            kv_head = first // group
            keys = tile_keys(config, s.head_pad.bit_length() - 1)
            kv = dict(src=Src.KV, mode=Mode.INT8, header=Header.NONE, rows=keys,
                      row_beats=self.head, chunks=keys * self.head, **lanes)
            self._relative(code, Op.QK, self._kv(i, 0, kv_head), x=at, shift=layer.score_shift,
                           **kv)
            self._relative(code, Op.SV, self._kv(i, 1, kv_head),
                           y=self.act.out * config.W + first * s.head_pad,
                           mant=int(layer.v_mant[kv_head]), shift=int(layer.v_shift[kv_head]),
                           **kv)

        for h in range(s.heads):
            queries(self.prefill, self.act.q, h, 1)
            attend(self.prefill, self.act.q, h)
        # (first head, heads) of each group: at most a lane a head
        groups = [(h, min(config.P, end - h)) for end in range(group, s.heads + 1, group)
                  for h in range(end - group, end, config.P)]
        early = self.act.block_words + len(groups) * self.head <= config.act_words
        at = [self.act.block_words + g * self.head if early else self.act.q
              for g in range(len(groups))]
        for g, (first, n) in enumerate(groups):
            queries(self.decode, at[g], first, n, heads=1, lanes=n)
            if not early:
                attend(self.decode, at[g], first, heads=1, lanes=n)
        if early:
            for g, (first, n) in enumerate(groups):
                attend(self.decode, at[g], first, heads=1, lanes=n)

    def finish(self) -> tuple[bytes, int]:
        """Complete the addresses; returns the stream, padded, and all of the memory's size."""
        weights = b"".join(self.stream.parts)
        weights += bytes(-len(weights) % ALIGN)
        for instruction in self._fixups:
            addr = instruction["addr"] + len(weights) // self.config.W
            instruction["addr"] = _fit("addr", addr, FIELDS)
        return weights, len(weights) + self.end


def compile_model(qm: QuantModel, board: Board, *, context: int | None = None,
                  packing: str = "auto") -> Image:
    """Lay a model out for a board.

    Both lists consume the weight stream in the same order: per layer gamma, K, V, the query heads,
    O, gamma, gate and up, down; then the last gamma and the head.

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
    for bit, mode in ((1, "entropy"), (2, "meadow")):
        if packing == mode and not config.packing & bit:
            raise UserError(f"the board {board.name} cannot read the packing {mode}")
    if not config.block_modes and any(q.scale is not None for q in _matrices(qm)):
        raise UserError(f"the board {board.name} cannot read weights in blocks, as GGUF files have "
                        "them; quantise the model to int8 (--weights int8)")
    shapes = Shapes.of_integers(qm)
    limits.check(shapes, board, context=context, least=limits.least_bits(board, packing))
    shape = shapes.on(board, context).shape
    context, blocks = shape.context, limits.residents(shape, config)

    lists = _Lists(shape, config, qm.embedding, packing)
    act = lists.act
    lists.start()
    for i, layer in enumerate(qm.layers):
        lists.norm(layer.norm1)
        lists.keys_and_values(i, layer)
        lists.attention(i, layer)
        lists.linear(layer.o, f"layers.{i}.o", x=act.out, epi=Epi.RESID)
        lists.norm(layer.norm2)
        lists.linear(layer.gate_up, f"layers.{i}.gate_up", x=act.x, y=act.ffn * W, epi=Epi.SWIGLU,
                     shift=layer.swiglu_shift)
        lists.linear(layer.down, f"layers.{i}.down", x=act.ffn, epi=Epi.RESID)
    lists.both(Op.END, last=1)
    lists.norm(qm.final_norm, last=1)
    # Nothing pairs the rows of the head, and the sampler counts exactly ``vocab`` of them.
    lists.linear(qm.head, "head", False, last=1, x=act.x, epi=Epi.LOGIT)
    lists.both(Op.END)

    # What was left open: what the packed weights take.
    plain, packed = (sum(t[key] for t in lists.stream.tensors) for key in ("raw_bytes", "bytes"))
    bits = 8 * packed / plain
    limits.check(shapes, board, context=context, bits=bits)
    weights, memory_bytes = lists.finish()
    program = lists.prefill + lists.decode
    assert len(program) == limits.instructions(shape, config)
    assert memory_bytes == limits.memory_bytes(shapes.on(board, context), config, bits)
    rope = encode_tile(np.asarray(qm.rope)[:context].reshape(context, -1), W=W, mode=Mode.INT16)
    memory = b"".join((weights, rope.ljust(lists.embed_at, b"\0"),
                       _embedding(qm.embedding, W).ljust(lists.kv_at - lists.embed_at, b"\0")))
    regs = dict(prefill_pc=0, decode_pc=len(lists.prefill), stream_addr=0,
                block_words=act.block_words, blocks=blocks, hidden=lists.hidden,
                head_log2=shape.head_pad.bit_length() - 1, eps=int(qm.eps), vocab=shape.vocab)
    for name, value in regs.items():
        _fit(name, value, MODEL_REGS)
    return Image(
        name=qm.name, board=board.name, config=config.as_dict(),
        needs=dict(act_words=_act_words(program, blocks * act.block_words, lists.head),
                   residual_values=blocks * P * lists.hidden,
                   rope_pairs=blocks * P * shape.head_pad // 2, score_depth=context,
                   context=context, prog_depth=len(program), memory_bytes=memory_bytes,
                   tile_rows=max(i["rows"] for i in program if i["header"] != Header.NONE)),
        model_regs=regs, shape=asdict(shape), program=b"".join(map(encode, program)),
        memory=memory, tokenizer=qm.tokenizer_json, chat=qm.chat, bos_id=qm.bos_id,
        stop_ids=tuple(qm.stop_ids), facts=_facts(qm, shape, lists.stream.tensors),
        tensors=tuple(lists.stream.tensors))


def _matrices(qm: QuantModel) -> Iterator[QuantLinear]:
    """All of a model."""
    yield from (qm.embedding, qm.head)
    for layer in qm.layers:
        yield from (layer.q, layer.k, layer.v, layer.o, layer.gate_up, layer.down)


def _act_words(program: list[Instruction], blocks: int, head: int) -> int:
    """Activation words in use: resident blocks, or decode's queries behind the first one."""
    return max(blocks, *(i["x"] + head for i in program if i["op"] == Op.QK))


def _of(fields: dict, sizes: list[int]) -> dict:
    """Fields of an instruction that has the tiles of these chunks."""
    return fields | (packed_jobs(sizes) or {}) if fields.get("packed") else fields


def _fit(name: str, value: int, table: tuple[Field, ...]) -> int:
    """Value of an instruction field or register; that it has no more bits is due to the limits."""
    assert 0 <= value < 1 << next(f.bits for f in table if f.name == name), (name, value)
    return value


def _embedding(q: QuantLinear, W: int) -> bytes:
    """One tile a row: their parts side by side, as an encode_tile a row would take seconds."""
    def chunks(part: np.ndarray) -> np.ndarray:
        """Rows of bytes, filled with zeros to whole chunks."""
        raw = np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1)
        return np.pad(raw, ((0, 0), (0, -raw.shape[1] % W)))
    rows, codes = len(q.codes), q.codes
    parts = [row_headers(q.header, q.mant, q.shift, q.bias)]
    if q.scale is not None:
        halves = [q.scale] if q.minimum is None else [q.scale, q.minimum]
        parts.append(np.stack(halves, axis=-1).astype("<f2"))
    if q.mode in (Mode.Q4_0, Mode.Q4_1):
        beats = (codes + 8 * (q.mode == Mode.Q4_0)).astype(np.uint8).reshape(rows, -1, W)
        beats = np.pad(beats, ((0, 0), (0, beats.shape[1] % 2), (0, 0)))
        codes = beats[:, 0::2] | beats[:, 1::2] << 4
    return np.concatenate([chunks(part) for part in (*parts, codes)], axis=1).tobytes()


def _facts(qm: QuantModel, s: Shape, tensors: list[dict]) -> dict:
    """What of a pass is useful, without any padding; see :meth:`Image.useful_bytes`.

    layer_bytes, head_bytes: codes, scales and minima of blocks, row scales, biases and gammas read
    once a pass. embedding_bytes: those of a token's embedding row. layer_macs, head_macs: products
    a token. parameters: weights of the float model. Of what is packed, the packed bytes.
    """
    packed = {t["name"]: t["bytes"] for t in tensors if t["mode"] != "raw"}

    def linear(q: QuantLinear, rows: int, columns: int, name: str) -> int:
        row = columns if q.scale is None else columns // BLOCK * KINDS[q.mode.name]
        return packed.get(name, rows * row) + rows * HEADER_BYTES[q.header]
    n_layer = n_bytes = 0
    qo, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i, layer in enumerate(qm.layers):
        for name, rows, columns in (
                ("q", qo, s.hidden), ("k", kv, s.hidden), ("v", kv, s.hidden),
                ("o", s.hidden, qo), ("gate_up", 2 * s.ffn, s.hidden), ("down", s.hidden, s.ffn)):
            n_layer += rows * columns
            n_bytes += linear(getattr(layer, name), rows, columns, f"layers.{i}.{name}")
        n_bytes += 2 * 2 * s.hidden
    return dict(
        parameters=qm.parameters, layer_bytes=n_bytes,
        head_bytes=linear(qm.head, s.vocab, s.hidden, "head") + 2 * s.hidden,
        embedding_bytes=linear(qm.embedding, 1, s.hidden, "embedding"),
        layer_macs=n_layer, head_macs=s.vocab * s.hidden)
