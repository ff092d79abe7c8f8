"""Shapes of a model as a chip has them: its dimensions, and its matrices with their modes."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from meadowlark_hdl.isa import Header, Mode

from ..models.checkpoint import Model
from .quantise import MAX_BLOCK_COLUMNS, MAX_CONTEXT, QuantLinear, QuantModel

if TYPE_CHECKING:
    from meadowlark_boards import Board


@dataclass(frozen=True)
class Shape:
    """What layout and limits depend on; values as in the model, unpadded unless named ``_pad``."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    head_pad: int
    ffn: int
    vocab: int
    context: int


class Matrix(NamedTuple):
    """A matrix as it lies in memory, its rows and columns padded as the chip has them.

    part: of a layer (q, k, v, o, gate_up, down), or embedding or head. mode: of the checkpoint.
    """
    part: str
    rows: int
    columns: int
    mode: Mode
    bias: bool

    @property
    def header(self) -> Header:
        """As :attr:`meadowlark.quant.quantise.QuantLinear.header`."""
        if self.bias:
            return Header.BIAS
        return Header.SCALE if self.mode == Mode.INT8 else Header.SHORT


@dataclass(frozen=True)
class Shapes:
    """What limits depend on: the dimensions of a model, and its matrices.

    shape: for the longest context that the model allows. layers: matrices of each layer, in
    any order. embedding, head: their own.
    """
    shape: Shape
    layers: tuple[tuple[Matrix, ...], ...]
    embedding: Matrix
    head: Matrix

    @classmethod
    def of_model(cls, model: Model, weights: str = "auto") -> Shapes:
        """Of a checkpoint, which may be an outline. weights: see
        :func:`meadowlark.quant.quantise.quantise`; test: what that makes has the same shapes."""
        m, pad = model, 1 << (model.head_dim - 1).bit_length()
        shape = Shape(hidden=m.hidden, layers=len(m.layers), heads=m.heads, kv_heads=m.kv_heads,
                      head_dim=m.head_dim, head_pad=pad, ffn=m.ffn, vocab=m.vocab,
                      context=min(m.context, MAX_CONTEXT))

        def mode(columns: int, *blocks) -> Mode:
            kinds = {None if b is None else b.kind for b in blocks}
            if kinds == {"Q4_0", "Q4_1"}:
                kinds = {"Q4_1"}        # the same weights as blocks with a minimum
            kind = kinds.pop()
            if weights == "int8" or kinds or kind is None or columns > MAX_BLOCK_COLUMNS:
                return Mode.INT8
            return Mode[kind]

        def layer(w) -> Iterator[Matrix]:
            for part, names, rows, columns in (
                    ("q", "q", m.heads * pad, m.hidden), ("k", "k", m.kv_heads * pad, m.hidden),
                    ("v", "v", m.kv_heads * pad, m.hidden), ("o", "o", m.hidden, m.heads * pad),
                    ("gate_up", "gate up", 2 * m.ffn, m.hidden), ("down", "down", m.hidden, m.ffn)):
                # Blocks reach over heads and the zeros between them.
                blocks = [None if part == "o" and pad != m.head_dim else w.blocks.get(name)
                          for name in names.split()]
                yield Matrix(part, rows, columns, mode(columns, *blocks),
                             getattr(w, f"{names.split()[0]}_bias") is not None)
        return cls(shape, tuple(tuple(layer(w)) for w in m.layers), *(
            Matrix(part, m.vocab, m.hidden, mode(m.hidden, m.blocks.get(part)), False)
            for part in ("embedding", "head")))

    @classmethod
    def of_integers(cls, qm: QuantModel) -> Shapes:
        """Of an integer model."""
        def matrix(part: str, q: QuantLinear) -> Matrix:
            rows, columns = q.codes.shape
            return Matrix(part, rows, columns, q.mode, q.bias is not None)
        return cls(
            Shape(hidden=qm.hidden, layers=len(qm.layers), heads=qm.heads, kv_heads=qm.kv_heads,
                  head_dim=qm.head_dim, head_pad=qm.head_pad, ffn=qm.ffn, vocab=qm.vocab,
                  context=qm.context),
            tuple(tuple(matrix(part, getattr(w, part))
                        for part in ("q", "k", "v", "o", "gate_up", "down")) for w in qm.layers),
            matrix("embedding", qm.embedding), matrix("head", qm.head))

    def matrices(self) -> Iterator[Matrix]:
        """Those of the weight stream."""
        for layer in self.layers:
            yield from layer
        yield self.head

    def int8(self) -> Shapes:
        """With all weights in int8."""
        return replace(self, layers=tuple(tuple(m._replace(mode=Mode.INT8) for m in layer)
                                          for layer in self.layers),
                       embedding=self.embedding._replace(mode=Mode.INT8),
                       head=self.head._replace(mode=Mode.INT8))

    def on(self, board: Board, context: int | None) -> Shapes:
        """As they are on a board: for a context, by default the longest that the core holds; int8
        where it reads no blocks."""
        config = board.config
        if context is None:
            context = min(self.shape.context, config.context, config.score_depth)
        out = replace(self, shape=replace(self.shape, context=context))
        return out if config.block_modes else out.int8()
