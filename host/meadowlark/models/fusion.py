"""FFN Fusion: FFNs that follow each other become one that reads what the first one reads.

Source: FFN Fusion, arXiv:2503.18908. FFNs in order are ``r1 = r0 + f1(r0)``, ``r2 = r1 + f2(r1)``;
side by side they are ``r2 = r0 + f1(r0) + f2(r0)``. That is one FFN whose gate and up have the rows
of both and whose down has the columns of both: so much is exact (section 3). That f2 reads r0 in
place of r1 changes what the model says, the less the less f2 depends on f1 (section 4).

Only FFNs without attention between them can be fused. Where a model has none such,
:func:`without_attention` leaves attentions out, as the paper has it done by a search beforehand.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np

from ..errors import UserError
from .checkpoint import Model
from .float_model import FORWARD, FloatModel
from .graph import Add, Attend, Gate, Graph, GraphError, Kind, Linear, Norm, Operator
from .rewrite import ffn_of, fold_layer_norms

#: Groups that :func:`choose` makes have no dependence above this. Neighbours in a small model that
#: was trained without attention between them have 0.14, and pairs cost it 6 % of perplexity.
MOST_DEPENDENCE = 0.15
NONE, AUTO = "none", "auto"


@dataclass(frozen=True, kw_only=True)
class Ffn:
    """The operators of an FFN, in order: a norm of the residual, matrices that read it alone, a
    gate, a matrix, and the sum with that residual."""
    norm: Norm
    matrices: tuple[Linear, ...]
    gate: Gate
    down: Linear
    add: Add

    @property
    def operators(self) -> tuple[Operator, ...]:
        return (self.norm, *self.matrices, self.gate, self.down, self.add)

    @property
    def name(self) -> str:
        """For people: the layer's."""
        return self.down.weight.rpartition(".")[0]

    def alike(self, other: Ffn) -> bool:
        """They can be one: what is not stacked is equal."""
        return (self.gate.fn, self.norm.eps, self.add.scale, len(self.matrices)) == (
            other.gate.fn, other.norm.eps, other.add.scale, len(other.matrices))


def check_fusion(asked: str) -> None:
    """Raise :class:`UserError` unless it is what :func:`groups` takes."""
    if asked not in (NONE, AUTO) and not (asked.isascii() and asked.isdigit() and int(asked) > 1):
        _layers(asked)


def _layers(asked: str) -> list[range]:
    """ "3-4,5-6" -> layers 3 and 4, 5 and 6."""
    found = []
    for part in asked.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UserError(f"--fuse-ffn {asked!r} is no way to fuse; give auto, none, how many "
                            "FFNs become one, from 2 on, or layers such as 3-4,5-6")
        found.append(range(int(first), int(last) + 1))
    return found


def runs(graph: Graph) -> list[list[Ffn]]:
    """FFNs that follow each other with nothing between them, two at least a run, in order. The
    graph's norms are folded (:func:`.rewrite.fold_layer_norms`)."""
    found: list[list[Ffn]] = []
    for gate in graph.of(Gate):
        ffn = _ffn(graph, gate)
        if ffn is None:
            continue
        before = found[-1][-1] if found else None
        if before is not None and before.add.out == ffn.norm.x and before.alike(ffn) and \
                set(graph.readers[ffn.norm.x]) == {ffn.norm, ffn.add}:
            found[-1].append(ffn)
        else:
            found.append([ffn])
    return [run for run in found if len(run) > 1]


def _ffn(graph: Graph, gate: Gate) -> Ffn | None:
    """The FFN around a gate; None: it is another construct."""
    parts = ffn_of(graph, gate)
    if parts is None:
        return None
    matrices, down, add = parts
    norm = graph.maker[matrices[0].x]
    if not isinstance(norm, Norm) or graph.edges[norm.x].kind is not Kind.RESIDUAL or \
            norm.x != add.x or set(graph.readers[norm.out]) != set(matrices):
        return None
    return Ffn(norm=norm, matrices=tuple(matrices), gate=gate, down=down, add=add)


# ---- What is fused

def groups(model: Model, asked: str, texts: Callable[[Model], list[list[int]]],
           ) -> list[list[Ffn]]:
    """The FFNs that become one, a list for each.

    Parameters
    ----------
    model : Model
        With folded norms; with ``auto`` it has its values.
    asked : str
        "none"; a number: so many FFNs each, from the first of a run on, fewer at its end; layers
        such as "3-4,5-6", counted from 0: these; "auto": those that :func:`choose` finds.
    texts : callable
        Sequences of ids to measure on, from the model.

    Raises
    ------
    UserError
        No two FFNs follow each other, or those asked for do not.
    """
    if asked == NONE:
        return []
    found = runs(model.graph)
    if not found:
        raise UserError(f"{model.name} has no two FFNs without attention between them, so none can "
                        "be fused; leave attentions out with --drop-attention, or leave "
                        "--fuse-ffn out")
    if asked == AUTO:
        lines = texts(model)
        return [part for run in found for part in choose(run, dependence(model, run, lines))]
    if "-" in asked:
        return _asked(model, found, _layers(asked))
    parts = [run[at:at + int(asked)] for run in found for at in range(0, len(run), int(asked))]
    return [part for part in parts if len(part) > 1]


def _asked(model: Model, found: Sequence[Sequence[Ffn]], asked: Sequence[range],
           ) -> list[list[Ffn]]:
    """The FFNs of these layers."""
    layer = {gate.out: i for i, gate in enumerate(model.graph.of(Gate))}
    places = [{layer[ffn.gate.out]: ffn for ffn in run} for run in found]
    out, taken = [], set[int]()
    for part in asked:
        run = next((run for run in places if run.keys() >= {*part}), None)
        if run is None or taken & {*part}:
            what = "twice" if run else "which do not follow each other without attention between"
            raise UserError(f"--fuse-ffn names the layers {part[0]}-{part[-1]} of {model.name}, "
                            f"{what}; {_follow(places)} can be fused")
        taken |= {*part}
        out.append([run[i] for i in part])
    return out


def _follow(places: Sequence[Mapping[int, Ffn]]) -> str:
    """Layers whose FFNs follow each other, for people."""
    return "parts of " + " and of ".join(f"{min(run)}-{max(run)}" for run in places)


def dependence(model: Model, run: Sequence[Ffn], texts: Sequence[Sequence[int]]) -> np.ndarray:
    """float64[n, n]: [i, j], i < j, is the cosine distance of what FFN j adds from what it adds
    where FFN i is left out, a mean over tokens (arXiv:2503.18908, section 4); 0 elsewhere."""
    total, tokens = np.zeros((len(run), len(run))), 0
    runner = FloatModel(model)
    for text in texts:
        kept: dict[str, np.ndarray] = {}

        def keep(edge: str, x: np.ndarray, kept: dict[str, np.ndarray] = kept) -> None:
            if edge == run[0].norm.x:
                kept[edge] = x
        runner.watch(text, keep)
        x = kept[run[0].norm.x]
        whole = _added(model, run, x)
        for i in range(len(run)):
            for j, without in enumerate(_added(model, run, x, i)):
                if j > i:
                    total[i, j] += (1 - _cosine(whole[j], without)).sum()
        tokens += len(text)
    return total / tokens


def _added(model: Model, run: Sequence[Ffn], x: np.ndarray, without: int | None = None,
           ) -> list[np.ndarray]:
    """What each FFN adds to the residual x[n, hidden], one of them left out."""
    out, weights = [], SimpleNamespace(weights=model.weights)
    for k, ffn in enumerate(run):
        edges = {ffn.norm.x: x}
        for op in ffn.operators:
            edges[op.out] = FORWARD[type(op)](weights, op, *(edges[name] for name in op.inputs))
        out.append(edges[ffn.down.out])
        x = x if k == without else edges[ffn.add.out]
    return out


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows; of zeros it is 1 with zeros and 0 with others."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    zero = ~(a.any(axis=1) | b.any(axis=1))
    return np.where(size > 0, (a * b).sum(axis=1) / np.where(size > 0, size, 1), zero)


def choose(run: Sequence[Ffn], found: np.ndarray, most: float = MOST_DEPENDENCE,
           ) -> list[list[Ffn]]:
    """Groups of a run: each as long as no FFN in it depends on another by more than ``most``. The
    last FFN of a run is left out, as the paper does (section 4).

    found: see :func:`dependence`.
    """
    out: list[list[Ffn]] = []
    first = 0
    for j, ffn in enumerate(run[:-1]):
        if j and found[first:j, j].max() <= most:
            out[-1].append(ffn)
        else:
            out.append([ffn])
            first = j
    return [group for group in out if len(group) > 1]


# ---- Fusing

def fuse(model: Model, parts: Sequence[Sequence[Ffn]]) -> Model:
    """FFNs side by side, each list as one: ``x + sum_j f_j(x)``, equal in exact arithmetic.

    The norms differ in gamma alone, and gamma is a factor of a column: the one norm has the largest
    of each element, and the columns of gate and up have what is left of theirs. So no column grows.
    The weights of two from ``layers.3`` on are called ``layers.3.fused2.gate`` and so on.
    """
    if not parts:
        return model
    operators = list(model.graph.operators)
    shapes, weights = dict(model.graph.shapes), dict(model.weights)
    for part in parts:
        for op in _fused(model.graph, part, weights):
            operators.insert(operators.index(part[-1].add), op)
        for ffn in part:
            for op in ffn.operators:
                operators.remove(op)
    shapes = {name: weights[name].shape for op in operators for name in op.weights}
    return replace(
        model, graph=Graph(tuple(operators), shapes, model.graph.tables),
        weights={name: weights[name] for name in shapes},
        blocks={name: b for name, b in model.blocks.items() if name in shapes})


def _fused(graph: Graph, part: Sequence[Ffn], weights: dict[str, np.ndarray],
           ) -> tuple[Operator, ...]:
    """The operators of the one FFN; its weights are put to the others."""
    first, last = part[0], part[-1]

    def name(old: str) -> str:
        before, _, end = old.rpartition(".")
        return f"{before}.fused{len(part)}.{end}"

    def put(old: str, made: Callable[[], np.ndarray], *shape: int) -> str:
        """A weight, made in float64 and rounded once; of an outline one of that shape."""
        like = weights[old]
        weights[name(old)] = made().astype(like.dtype) if any(like.strides) else \
            np.broadcast_to(like.dtype.type(0), shape)
        return name(old)

    def wide(key: str | None) -> np.ndarray:
        assert key is not None
        return weights[key].astype(np.float64)

    def bias(ops: Sequence[Linear], join: Callable[[list[np.ndarray]], np.ndarray]) -> str | None:
        """Of what ops make, as it is joined; None where none has one."""
        if all(op.bias is None for op in ops):
            return None
        whole = [np.zeros(graph.edges[op.out].width) if op.bias is None else wide(op.bias)
                 for op in ops]
        new = f"{name(ops[0].weight)}.bias"
        weights[new] = join(whole).astype(weights[ops[0].weight].dtype)
        return new

    width = sum(graph.edges[ffn.gate.out].width for ffn in part)
    hidden = graph.hidden
    largest = np.maximum.reduce([np.abs(wide(ffn.norm.gamma)) for ffn in part])
    left = [wide(ffn.norm.gamma) / np.where(largest > 0, largest, 1) for ffn in part]
    gamma = put(first.norm.gamma, lambda: largest, hidden)
    norm = replace(first.norm, out=name(first.norm.out), gamma=gamma)
    rows = []
    for ops in zip(*(ffn.matrices for ffn in part), strict=True):
        made = put(ops[0].weight, lambda ops=ops: np.concatenate(
            [wide(op.weight) * factor for op, factor in zip(ops, left)]), width, hidden)
        rows.append(Linear(out=name(ops[0].out), x=norm.out, weight=made,
                           bias=bias(ops, np.concatenate)))
    gate = replace(first.gate, out=name(first.gate.out), gate=rows[0].out,
                   up=rows[1].out if rows[1:] else None)
    downs = [ffn.down for ffn in part]
    down = Linear(out=name(first.down.out), x=gate.out,
                  weight=put(first.down.weight, lambda: np.concatenate(
                      [wide(op.weight) for op in downs], axis=1), hidden, width),
                  bias=bias(downs, np.add.reduce))
    return norm, *rows, gate, down, replace(last.add, x=first.norm.x, y=down.out)


# ---- Attentions left out

def layers_of(asked: str) -> frozenset[int]:
    """ "3-6,8" -> 3, 4, 5, 6, 8; "" is none.

    Raises
    ------
    UserError
        It is not that.
    """
    out: set[int] = set()
    for part in asked.split(",") if asked else ():
        first, _, last = part.partition("-")
        try:
            if not (first.isdigit() and (last.isdigit() or "-" not in part)):
                raise ValueError
            out |= set(range(int(first), int(last or first) + 1))
        except ValueError:
            raise UserError(f"--drop-attention {asked!r} names no layers; give some such as 3-6, "
                            "or 3,4,8, counted from 0") from None
    return frozenset(out)


def without_attention(model: Model, layers: Collection[int]) -> Model:
    """Some layers have an FFN alone: their attention, and what only it reads, is left out.

    Raises
    ------
    UserError
        There are no such layers, or no attention would be left.
    """
    if not layers:
        return model
    graph = model.graph
    attends = list(graph.of(Attend))
    if max(layers) >= len(attends):
        raise UserError(f"--drop-attention names layer {max(layers)} and {model.name} has "
                        f"{len(attends)}, counted from 0")
    if len(layers) == len(attends):
        raise UserError("--drop-attention leaves no attention at all; leave some layers out of it")
    instead: dict[str, str] = {}        # sum with an attention -> that without it
    for add in (_sum_of(graph, attends[i]) for i in sorted(layers)):
        instead[add.out] = instead.get(add.x, add.x)
    operators = [_renamed(op, instead) for op in graph.operators if op.out not in instead]
    read, kept = set(), []
    for op in reversed(operators):      # what nobody reads goes, too
        if op is operators[-1] or op.out in read:
            kept.append(op)
            read |= {*op.inputs}
    names = {name for op in kept for name in op.weights}
    gone = sum(int(np.prod(graph.shapes[name])) for name in graph.shapes if name not in names)
    return replace(
        model, parameters=model.parameters - gone,
        graph=Graph(tuple(reversed(kept)), {n: s for n, s in graph.shapes.items() if n in names},
                    graph.tables),
        weights={n: w for n, w in model.weights.items() if n in names},
        blocks={n: b for n, b in model.blocks.items() if n in names})


def _sum_of(graph: Graph, attend: Attend) -> Add:
    """What adds an attention to the residual."""
    op: Operator = attend
    while not isinstance(op, Add):
        behind = graph.readers[op.out]
        if len(behind) != 1:
            raise GraphError(f"{attend.out} is read by more than a sum, so it cannot be left out")
        op = behind[0]
    return op


def _renamed(op: Operator, edges: Mapping[str, str]) -> Operator:
    """It reads other edges."""
    names = {f.name for f in fields(op)} & {*op.edges}
    return replace(op, **{name: edges[edge] for name in names
                          if (edge := getattr(op, name)) in edges})


def altered(model: Model, *, fuse_ffn: str, drop_attention: str, whole: Callable[[], Model],
            texts: Callable[[Model], list[list[int]]]) -> Model:
    """A model, maybe an outline, as options ask for it.

    fuse_ffn: see :func:`groups`. drop_attention: see :func:`layers_of`. whole: the same with its
    values. texts: see :func:`groups`.
    """
    layers = layers_of(drop_attention)
    model = without_attention(model, layers)
    if fuse_ffn == NONE:
        return model
    model = fold_layer_norms(model)
    found = model if fuse_ffn != AUTO else fold_layer_norms(without_attention(whole(), layers))
    return fuse(model, groups(found, fuse_ffn, texts))
