"""Shapes of a model as a chip has them: its plan, and in which form each matrix lies."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from meadowlark_hdl.isa import Header, Mode

from ..models.rewrite import fold_layer_norms, suited
from .plan import Matrix, Order, Plan, plan
from .quantise import MAX_BLOCK_COLUMNS, longest

if TYPE_CHECKING:
    from ..models.checkpoint import Model
    from .quantise import QuantModel


@dataclass(frozen=True)
class Shapes:
    """What limits depend on.

    plan: the steps. modes: of the matrices by name, the embedding's too. context: the longest that
    the model allows. model, weights: where it is that of a checkpoint, which can be made to suit
    another core (:meth:`suited`); not compared.
    """
    plan: Plan
    modes: Mapping[str, Mode]
    context: int
    model: Model | None = field(default=None, compare=False, repr=False)
    weights: str = field(default="auto", compare=False)
    _suited: dict[tuple[int, int], Shapes] = field(
        default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_model(cls, model: Model, weights: str = "auto", *, head_pad: int = 1) -> Shapes:
        """Of a checkpoint, which may be an outline. weights, head_pad: see
        :func:`meadowlark.quant.quantise.quantise`; test: what that makes has the same shapes."""
        model = fold_layer_norms(model)
        steps = plan(model.graph, head_pad=head_pad)
        modes = {m.name: Mode.INT8 if weights == "int8" else _mode(
                    m, [b.kind if (b := model.blocks.get(name)) else None for name in m.weights])
                 for m in steps.every_matrix}
        return cls(steps, modes, longest(model), model, weights)

    @classmethod
    def of_integers(cls, qm: QuantModel) -> Shapes:
        """Of an integer model."""
        return cls(qm.plan, {name: q.mode for name, q in qm.linears.items()}, qm.context)

    def suited(self, head_pad: int, most_ffn: int) -> Shapes:
        """Of the same checkpoint with heads padded to at least head_pad and no FFN wider than
        most_ffn; integers are as they are."""
        if self.model is None:
            return self
        key = head_pad, most_ffn
        if key not in self._suited:
            self._suited[key] = self.of_model(suited(self.model, most_ffn), self.weights,
                                              head_pad=head_pad)
        return self._suited[key]

    def mode(self, matrix: Matrix) -> Mode:
        """In which a matrix lies."""
        return self.modes[matrix.name]

    def header(self, matrix: Matrix) -> Header:
        """As :attr:`meadowlark.quant.quantise.QuantLinear.header`."""
        if matrix.biases:
            return Header.BIAS
        return Header.SCALE if self.mode(matrix) == Mode.INT8 else Header.SHORT

    def int8(self) -> Shapes:
        """With all weights in int8."""
        return replace(self, modes=dict.fromkeys(self.modes, Mode.INT8), weights="int8",
                       _suited={})


def _mode(matrix: Matrix, kinds: Collection[str | None]) -> Mode:
    """Of a matrix whose weights are in blocks of these kinds; None: in none."""
    found = set(kinds)
    if matrix.order in (Order.DIAGONAL, Order.CONSTANT):
        return Mode.INT8
    if found == {"Q4_0", "Q4_1"}:
        found = {"Q4_1"}        # the same weights as blocks with a minimum
    kind = found.pop()
    # Blocks reach over heads and the zeros between them.
    if found or kind is None or matrix.columns > MAX_BLOCK_COLUMNS or matrix.padded_columns:
        return Mode.INT8
    return Mode[kind]
