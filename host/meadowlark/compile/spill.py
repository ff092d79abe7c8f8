"""A residual that leaves for memory and comes back, bit for bit, by instructions that there are.

An encoder needs all keys of a layer before its first query. Where its tokens are more than a pass
takes, the program is cut behind the values of each attention, and its parts are *visits*: each goes
over all blocks of tokens before the next one begins. Of a token the residual goes from a visit to
the next one, and nothing else.

Scratch memory takes 8 bits, so the 27 of a residual go in :data:`PLANES`, as digits to the base
2**7. A NORM whose root is a constant makes the largest digit, a diagonal brings it to scratch
memory, another one takes it from the residual: what that loses by rounding, the next plane has. No
digit reaches 8 bits, and the last one is what is left, so nothing is lost. The sum of all planes is
the residual again. It is 0 before, because all planes were taken from it.

A STORE goes where a KV cache's base says, in rows as long as keys; so a plane is *pieces*, rows of
that length: a chunk of row header, which makes them tiles of EMBED, and values in the others.
"""
from __future__ import annotations

from dataclasses import replace
from math import log2

import numpy as np

from meadowlark_hdl.compute.norm_golden import rmsnorm
from meadowlark_hdl.config import Config
from meadowlark_hdl.fixed import rsqrt
from meadowlark_hdl.isa import Mode

from ..errors import UserError
from ..quant.plan import AttendStep, Matrix, NormStep, Order, Plan, Spill
from ..quant.quantise import QuantLinear, QuantModel, QuantNorm
from ..quant.shapes import Shapes
from .layout import round_up

#: log2 of a digit's unit, the upper planes first.
PLANES = (20, 13, 6, 0)
#: Constants whose squares are roots, each for half of the planes. The first is as large as a
#: residual, of which NORM then has 18 bits; with the second it has a bit more than there are.
ROOTS = 1 << 25, 1 << 15
#: Largest magnitude of what a plane is made from: a residual's, and beyond what rounding leaves.
REACH = 1 << Config.RESID_BITS - 1, 5 << 17, 5 << 10, 5 << 3
#: Row header that changes nothing: 2**15 as the mantissa, 15 as the shift.
HEADER = np.array([1 << 15, 15], "<u2").view(np.int8)


def can(plan: Plan, config: Config) -> bool:
    """Whether a core can run a model in visits: it has bases for caches, rows of keys have a place
    for a header, an SV takes a head, and there is a norm of the residual before each attention and
    no angle."""
    return (config.batches and not plan.latent and not plan.loads
            and 2 * config.W <= plan.key_pad <= config.sv_values
            and not any(plan.norms) and all(_norms(plan)))


def _norms(plan: Plan) -> list[NormStep | None]:
    """What makes the input of each attention."""
    made = {step.name: step for step in plan.of(NormStep) if step.matrix is None}
    return [made.get(step.q.x) for step in plan.attends]


def spilled(plan: Plan, W: int) -> Plan:
    """The steps with a spill in each attention; see :func:`can`."""
    hidden, words = round_up(plan.graph.hidden, W), plan.key_pad // W - 1
    pieces = -(-hidden // (words * W))

    def matrix(name: str, rows: int, order: Order = Order.DIAGONAL) -> Matrix:
        constant = order is Order.CONSTANT
        return Matrix(name=f"spill.{name}", x="spill", weights=(), rows=rows, columns=1,
                      order=order, biases=(f"spill.{name}",) if constant else ())
    last = hidden - (pieces - 1) * words * W
    out = [matrix("out", words * W)] * (pieces - 1) + [matrix("out.last", last)]

    def spill(norm: NormStep | None) -> Spill:
        assert norm is not None
        return Spill(
            norm=norm, header=matrix("header", W, Order.CONSTANT), out=tuple(out),
            roots=tuple(matrix(f"root.{k}", 2, Order.CONSTANT) for k in range(len(ROOTS))),
            less=tuple(matrix(f"less.{k}", hidden) for k in range(len(PLANES))),
            more=tuple(matrix(f"more.{k}", hidden) for k in range(len(PLANES))))
    norms = iter(_norms(plan))
    return replace(plan, steps=tuple(
        replace(step, spill=spill(next(norms))) if isinstance(step, AttendStep) else step
        for step in plan.steps))


def shapes_of(shapes: Shapes, W: int) -> Shapes:
    """Of the same model with a spill."""
    plan = spilled(shapes.plan, W)
    assert plan.spill is not None
    return replace(shapes, plan=plan, _suited={}, modes={
        **shapes.modes, **{m.name: Mode.INT8 for m in plan.spill.matrices}})


def with_spill(qm: QuantModel, plan: Plan) -> QuantModel:
    """An integer model with the steps that it gets, and their numbers.

    Raises
    ------
    UserError
        Its epsilon is so large that NORM does not see all of a residual.
    """
    found, hidden = dict[str, QuantLinear | QuantNorm](), round_up(qm.hidden, _word(plan))
    spill = plan.spill
    assert spill is not None
    found[spill.header.name] = _constant(np.resize(
        np.pad(HEADER, (0, spill.header.rows - len(HEADER))), spill.header.rows))
    for root, matrix in zip(ROOTS, spill.roots, strict=True):
        found[matrix.name] = _constant(np.array([root, 0]))
    for matrix in set(spill.out):
        found[matrix.name] = _diagonal(matrix.rows, 1, 0)
    for k, (bits, less, more) in enumerate(zip(PLANES, spill.less, spill.more, strict=True)):
        found[less.name] = _diagonal(hidden, -1, bits)
        found[more.name] = _diagonal(hidden, 1, bits)
        found[digit_name(k)] = _digit(qm, k, hidden)
    return replace(qm, plan=plan, numbers={**qm.numbers, **found})


def digit_name(plane: int) -> str:
    """Of the numbers of the NORM that makes a plane."""
    return f"spill.digit.{plane}"


def _word(plan: Plan) -> int:
    """Values of a word: what a header takes."""
    assert plan.spill is not None
    return plan.spill.header.rows


def _constant(bias: np.ndarray) -> QuantLinear:
    rows = len(bias)
    return QuantLinear(codes=np.zeros((rows, 1), np.int8), mant=np.full(rows, 1 << 15, np.uint16),
                       shift=np.full(rows, 15, np.uint8), bias=bias.astype(np.int32))


def _diagonal(rows: int, sign: int, bits: int) -> QuantLinear:
    """sign * 2**bits, bits up to 21, of each value."""
    return QuantLinear(codes=np.full((rows, 1), sign << 6, np.int8), shift=np.full(
        rows, 21 - bits, np.uint8), mant=np.full(rows, 1 << 15, np.uint16))


def _digit(qm: QuantModel, plane: int, hidden: int) -> QuantNorm:
    """The NORM that divides by a plane's unit, as near as its root is known."""
    squares = np.uint64(ROOTS[plane // (len(PLANES) // len(ROOTS))] ** 2)
    t, j = (int(v) for v in rsqrt(squares + np.uint64(qm.eps)))
    unit = t * 2.0**-j * 2.0**PLANES[plane]         # n of NORM for a digit of 1
    shift = 14 + int(np.ceil(log2(unit)))
    norm = QuantNorm(gamma=np.full(hidden, round(2.0**shift / unit), np.int16), shift=shift)
    # What is left of a few values of each size is within the next plane's reach.
    most = REACH[plane]
    r = np.unique(np.concatenate([np.arange(-4096, 4096), np.linspace(-most, most - 1, 8191).astype(
        np.int64)]).clip(-most, most - 1))
    digits = rmsnorm(r, squares, qm.eps, norm.gamma[0], shift)
    left = np.abs(r - (digits << PLANES[plane])).max()
    if np.abs(digits).max() > 127 or left >= (*REACH, 1)[plane + 1]:
        raise UserError(f"{qm.name} has more tokens than a pass takes, and its residual cannot be "
                        "spilled, because its epsilon is too large; use another model, or a board "
                        "with more memory on the chip")
    return norm
