"""Passes from a model to one that computes the same and that the machine can run.

In exact arithmetic the logits are equal; in float32 they differ by roundings. Outlines
(:func:`meadowlark.models.registry.load_model`) stay outlines.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .blocks import BlockTensor
from .checkpoint import Model, untied
from .graph import Add, Embed, Gate, Graph, GraphError, Head, Kind, Linear, Norm, Operator

#: Where an FFN may be cut: between blocks of GGUF files, and words of any core.
CUT = 32


def suited(model: Model, most_ffn: int) -> Model:
    """All passes: RMSNorm without an offset only, and no FFN wider than most_ffn."""
    return cut_ffn(fold_layer_norms(model), most_ffn)


def _changed(value: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """change of a weight, made in float64 and rounded once; of an outline one of that shape."""
    if not any(value.strides):
        shape = np.broadcast_shapes(change(np.zeros((1,) * value.ndim)).shape, value.shape)
        return np.broadcast_to(value.dtype.type(0), shape)
    return change(value.astype(np.float64)).astype(value.dtype)


# ---- LayerNorm

def fold_layer_norms(model: Model) -> Model:
    """LayerNorm -> RMSNorm without an offset.

    A norm that subtracts the mean needs not if the residual has none, so each matrix that writes
    the residual, and its bias, loses the mean of its outputs. An offset is the same as a bias of
    the matrices behind the norm. A tied head becomes one of its own, as only the embedding changes.

    Raises
    ------
    GraphError
        Only some norms subtract the mean, or something else than a matrix is before or behind one.
    """
    norms = _of_residual(model.graph)
    centred = {op.centred for op in norms}
    if centred == {False} and all(op.beta is None for op in norms):
        return model
    if len(centred) > 1:
        raise GraphError("some norms subtract the mean and others do not")
    if True in centred:
        model = _centred(untied(model))
    return _without_offsets(model)


def _of_residual(graph: Graph) -> tuple[Norm, ...]:
    """Norms of the residual; others stay as they are."""
    return tuple(op for op in graph.of(Norm) if graph.edges[op.x].kind is Kind.RESIDUAL)


def _centred(model: Model) -> Model:
    """Nothing that writes the residual has a mean."""
    graph, weights, blocks = model.graph, dict(model.weights), dict(model.blocks)
    for op in graph.of(Embed, Add):
        if isinstance(op, Embed):
            for name in op.weights:
                weights[name] = _changed(weights[name],
                                         lambda w: w - w.mean(axis=1, keepdims=True))
                blocks.pop(name, None)
            continue
        writer = graph.maker[op.y]
        if not isinstance(writer, Linear) or graph.readers[op.y] != (op,):
            raise GraphError(f"{op.out} adds {op.y}, which is no matrix of its own")
        for name in writer.weights:
            weights[name] = _changed(weights[name], lambda w: w - w.mean(axis=0))
            blocks.pop(name, None)
    norms = _of_residual(graph)
    operators = tuple(replace(op, centred=False) if op in norms else op
                      for op in graph.operators)
    return replace(model, graph=Graph(operators, graph.shapes, graph.tables), weights=weights,
                   blocks=blocks)


def _without_offsets(model: Model) -> Model:
    """Offsets of norms are biases of the matrices behind them."""
    graph, weights, shapes = model.graph, dict(model.weights), dict(model.graph.shapes)
    new: dict[str, Operator] = {}       # operators by their edge
    for norm in _of_residual(graph):
        if norm.beta is None:
            continue
        beta = weights.pop(norm.beta)
        del shapes[norm.beta]
        new[norm.out] = replace(norm, beta=None)
        for op in graph.readers[norm.out]:
            if not isinstance(op, (Linear, Head)):
                raise GraphError(f"{op.out} reads {norm.out} and is no matrix")
            matrix, name = weights[op.weight], op.bias
            made = np.broadcast_to(beta.dtype.type(0), len(matrix)) if not any(matrix.strides) \
                else matrix.astype(np.float64) @ beta
            if name is None:
                name = "head.bias" if isinstance(op, Head) else f"{op.weight}.bias"
            elif any(matrix.strides):
                made = made + weights[name]
            weights[name], shapes[name] = made.astype(beta.dtype, copy=False), made.shape
            new[op.out] = replace(op, bias=name)
    operators = tuple(new.get(op.out, op) for op in graph.operators)
    return replace(model, graph=Graph(operators, shapes, graph.tables), weights=weights)


# ---- Wide FFNs

def cut_ffn(model: Model, most: int) -> Model:
    """FFNs wider than ``most`` as slices, each of which adds to the residual: as few as possible,
    of equal widths in multiples of :data:`CUT`. The slices of ``layers.0.gate`` are called
    ``layers.0.slice0.gate`` and so on; blocks stay blocks."""
    graph = model.graph
    wide = [op for op in graph.of(Gate)
            if graph.edges[op.out].width > most >= CUT and ffn_of(graph, op) is not None]
    if not wide:
        return model
    operators = list(graph.operators)
    shapes, weights, blocks = dict(graph.shapes), dict(model.weights), dict(model.blocks)
    for gate in wide:
        parts = ffn_of(graph, gate)
        assert parts is not None
        matrices, down, add = parts
        width = graph.edges[gate.out].width
        step = -(-width // -(-width // (most // CUT * CUT)) // CUT) * CUT
        slices, residual = [], add.x
        for k, at in enumerate(range(0, width, step)):
            end = min(at + step, width)

            def name(old: str, k: int = k) -> str:
                before, _, last = old.rpartition(".")
                return f"{before}.slice{k}.{last}"

            def cut(op: Linear, x: str, where: tuple[slice, slice], bias: slice | None) -> Linear:
                new = name(op.weight)
                weights[new] = weights[op.weight][where]
                shapes[new] = weights[new].shape
                if op.weight in blocks:
                    blocks[new] = _block_part(blocks[op.weight], where)
                if op.bias is None or bias is None:
                    return Linear(out=name(op.out), x=x, weight=new)
                weights[f"{new}.bias"] = weights[op.bias][bias]
                shapes[f"{new}.bias"] = weights[f"{new}.bias"].shape
                return Linear(out=name(op.out), x=x, weight=new, bias=f"{new}.bias")
            every, part = slice(None), slice(at, end)
            rows = [cut(op, op.x, (part, every), part) for op in matrices]
            both = replace(gate, out=name(gate.out), gate=rows[0].out,
                           up=rows[1].out if rows[1:] else None)
            # The bias of the sum is in the first.
            last = cut(down, both.out, (every, part), every if k == 0 else None)
            out = add.out if end == width else f"{last.out}.residual"
            slices += [*rows, both, last, replace(add, out=out, x=residual, y=last.out)]
            residual = out
        at = operators.index(add)
        operators[at:at + 1] = slices
        for op in (*matrices, gate, down):
            operators.remove(op)
    read = {name for op in operators for name in op.weights}
    return replace(
        model, graph=Graph(tuple(operators), {n: s for n, s in shapes.items() if n in read},
                           graph.tables),
        weights={n: w for n, w in weights.items() if n in read},
        blocks={n: b for n, b in blocks.items() if n in read})


def ffn_of(graph: Graph, gate: Gate) -> tuple[list[Linear], Linear, Add] | None:
    """The matrices before a gate, the one behind it and what adds that; None: it is another
    construct."""
    matrices = [op for name in gate.inputs if graph.readers[name] == (gate,)
                and isinstance(op := graph.maker[name], Linear)]
    down = graph.readers[gate.out]
    add = graph.readers[down[0].out] if len(down) == 1 else ()
    if len(add) != 1 or len(matrices) < len(gate.inputs):
        return None
    match down[0], add[0]:
        case Linear() as behind, Add() as sum_:
            return matrices, behind, sum_
    return None


def _block_part(blocks: BlockTensor, where: tuple[slice, slice]) -> BlockTensor:
    """Rows and columns of a matrix in blocks; columns begin and end with blocks."""
    rows, columns = where
    of_blocks = rows, slice(*(None if n is None else -(-n // CUT)
                              for n in (columns.start, columns.stop)))
    return replace(blocks, codes=blocks.codes[where], scale=blocks.scale[of_blocks],
                   minimum=None if blocks.minimum is None else blocks.minimum[of_blocks])
