"""A model as a list of operators with named edges: a family builds it, every pass walks it.

An edge is what an operator makes, named as the operator's ``out``; a token has a vector of float32
on each. A weight is an array of the checkpoint under a name of this project (``layers.0.q``): a
family says what it is called in files. Operators hold no values, so a graph is small, can be
compared and printed, and is there before any weight is read.

Each pass defines an operator in one place: :mod:`meadowlark.models.float_model` runs it,
:mod:`meadowlark.models.vjp` takes its gradient, :mod:`meadowlark.quant.plan` gives it to the
machine. A new operator is a class here and a row in each of those.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property
from typing import ClassVar

import numpy as np

from meadowlark_hdl.isa import Fn


class Kind(Enum):
    """What an edge carries."""
    RESIDUAL = "residual"   #: the sum that every block adds to
    VALUES = "values"       #: inputs and outputs of matrices
    LOGITS = "logits"


@dataclass(frozen=True)
class Edge:
    """kind: what it carries. width: values a token."""
    kind: Kind
    width: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Fields named in ``edges`` hold names of edges, those in ``arrays`` names of weights; both may
    be None."""
    out: str
    edges: ClassVar[tuple[str, ...]] = ()
    arrays: ClassVar[tuple[str, ...]] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges that it reads."""
        return tuple(edge for name in self.edges if (edge := getattr(self, name)) is not None)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that it reads."""
        return tuple(w for name in self.arrays if (w := getattr(self, name)) is not None)


@dataclass(frozen=True, kw_only=True)
class Embed(Operator):
    """tokens -> residual: row ``token`` of weight[vocab, hidden], times scale. positions: weight
    [offset + positions, hidden] of which row ``offset + position`` is added, or None. weight: None
    where tokens have no ids, but :class:`Patches`."""
    weight: str | None
    scale: float = 1.0
    positions: str | None = None
    offset: int = 0
    arrays = ("weight", "positions")


@dataclass(frozen=True, kw_only=True)
class Patches(Operator):
    """image -> values: what a token is given of it, ``width`` values (arXiv:2010.11929, section
    3.1); see :meth:`meadowlark.models.pictures.Pictures.rows`."""
    width: int


@dataclass(frozen=True, kw_only=True)
class Norm(Operator):
    """residual or values -> values: ``x / sqrt(mean(x**2) + eps) * gamma`` (RMSNorm,
    arXiv:1910.07467); with ``centred``, of ``x - mean(x)`` (LayerNorm, arXiv:1607.06450). beta:
    added, or None. head_dim: each head of so many values is normed alone, with one gamma
    (arXiv:2010.04245); None: all are together."""
    x: str
    gamma: str
    eps: float
    beta: str | None = None
    centred: bool = False
    head_dim: int | None = None
    edges = ("x",)
    arrays = ("gamma", "beta")


@dataclass(frozen=True, kw_only=True)
class Read(Operator):
    """residual -> values: the same, for matrices that read a residual without a norm."""
    x: str
    edges = ("x",)


@dataclass(frozen=True, kw_only=True)
class Linear(Operator):
    """values -> values: weight[rows, columns] @ x + bias[rows]."""
    x: str
    weight: str
    bias: str | None = None
    edges = ("x",)
    arrays = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class Rope(Operator):
    """values -> values: heads of head_dim, each rotated by its position (arXiv:2104.09864).

    Dimension i < D/2 rotates with i + D/2, where D = 2 * len(rates of table) <= head_dim; what is
    beyond D stays. table: name in :attr:`Graph.tables`.
    """
    x: str
    head_dim: int
    table: str
    edges = ("x",)


@dataclass(frozen=True, kw_only=True)
class Attend(Operator):
    """q[heads*head_dim], k[kv_heads*key_dim] and v[kv_heads*value_dim] -> values[heads*value_dim].

    Attention (arXiv:1706.03762) with grouped queries (arXiv:2305.13245): query head h sees
    the keys of head ``h * kv_heads // heads``; scores are ``q.k / divisor``. k and v are what the
    cache holds. window: a query at position p sees keys p - window < position <= p; None: all.
    ahead: it sees all keys behind its own, too; else attention is causal. cap: scores become
    ``cap * tanh(score / cap)`` (soft capping, arXiv:2408.00118, section 2), or None.
    latent: 0, or so many dimensions of a value, which is a part of its key as well: behind what k
    has of it (latent attention with its projections absorbed, arXiv:2405.04434, section 2.1).
    """
    q: str
    k: str
    v: str
    heads: int
    kv_heads: int
    head_dim: int
    divisor: float
    window: int | None = None
    ahead: bool = False
    latent: int = 0
    cap: float | None = None
    edges = ("q", "k", "v")

    @property
    def value_dim(self) -> int:
        """Dimensions of a value."""
        return self.latent or self.head_dim

    @property
    def key_dim(self) -> int:
        """Dimensions of a key that no value has."""
        return self.head_dim - self.latent


@dataclass(frozen=True, kw_only=True)
class Gate(Operator):
    """values, values -> values: fn(gate) * up (GLU Variants, arXiv:2002.05202); without up,
    fn(gate)."""
    gate: str
    up: str | None
    fn: Fn = Fn.SILU
    edges = ("gate", "up")


@dataclass(frozen=True, kw_only=True)
class Add(Operator):
    """residual, values -> residual: x + scale * y."""
    x: str
    y: str
    scale: float = 1.0
    edges = ("x", "y")


@dataclass(frozen=True, kw_only=True)
class Head(Operator):
    """values -> logits: weight[vocab, hidden] @ x + bias[vocab], times scale. cap: a logit then
    becomes ``cap * tanh(logit / cap)``, or None."""
    x: str
    weight: str
    bias: str | None = None
    scale: float = 1.0
    cap: float | None = None
    edges = ("x",)
    arrays = ("weight", "bias")


@dataclass(frozen=True, eq=False)
class Rates:
    """How fast the pairs of a head turn. values: float64[pairs], radians a position. longer: what
    queries and keys are multiplied by once they have turned. most: positions up to which that
    holds; None: all."""
    values: np.ndarray
    longer: float = 1.0
    most: int | None = None

    def _key(self) -> tuple[bytes, float, int | None]:
        return self.values.tobytes(), self.longer, self.most

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rates) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def angles(self, positions: np.ndarray | range) -> np.ndarray:
        """float64[positions, pairs]."""
        return np.asarray(positions, np.float64)[:, None] * self.values


def rates(pairs: int, theta: float) -> np.ndarray:
    """float64[pairs]: theta**(-i/pairs), without any scaling (arXiv:2104.09864, section 3.2.2)."""
    return float(theta) ** (-np.arange(0, 2 * pairs, 2) / (2 * pairs))


class GraphError(ValueError):
    """A graph that makes no sense: a fault of the family or pass that built it."""


@dataclass(frozen=True)
class Graph:
    """A model without its values.

    operators: in an order in which they can run; the first is an Embed, the last a Head. shapes:
    of each weight. tables: rates of the RoPE tables, by name.

    Raises
    ------
    GraphError
        An edge is made twice, read before it is made or of the wrong kind or width; a weight has
        no shape or the wrong one.
    """
    operators: tuple[Operator, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tables: Mapping[str, Rates] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.operators or not isinstance(self.operators[-1], Head):
            raise GraphError("the last operator of a graph is a Head")
        assert self.edges   # which checks all

    @cached_property
    def edges(self) -> Mapping[str, Edge]:
        """Every edge, in the order in which they are made."""
        found: dict[str, Edge] = {}
        for op in self.operators:
            if op.out in found:
                raise GraphError(f"the edge {op.out} is made twice")
            for name in op.inputs:
                if name not in found:
                    raise GraphError(f"{op.out} reads the edge {name} before it is made")
            for name in op.weights:
                if name not in self.shapes:
                    raise GraphError(f"{op.out} reads the weight {name}, which has no shape")
            found[op.out] = _EDGE[type(op)](self, op, [found[name] for name in op.inputs])
        return found

    @cached_property
    def readers(self) -> Mapping[str, tuple[Operator, ...]]:
        """Edge -> the operators that read it, in order."""
        found: dict[str, list[Operator]] = {op.out: [] for op in self.operators}
        for op in self.operators:
            for name in op.inputs:
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    @cached_property
    def spent(self) -> Mapping[str, tuple[str, ...]]:
        """Edge -> the edges that no operator reads behind the one that makes it."""
        found: dict[str, tuple[str, ...]] = {op.out: () for op in self.operators}
        for name, ops in self.readers.items():
            if ops:
                found[ops[-1].out] += name,
        return found

    @cached_property
    def maker(self) -> Mapping[str, Operator]:
        """Edge -> the operator that makes it."""
        return {op.out: op for op in self.operators}

    def of(self, *types: type[Operator]) -> Iterator:
        """Operators of these types, in order."""
        return (op for op in self.operators if isinstance(op, types))

    @property
    def hidden(self) -> int:
        """Width of the residual."""
        return next(edge.width for edge in self.edges.values() if edge.kind is Kind.RESIDUAL)

    @property
    def vocab(self) -> int:
        """Logits: tokens, or classes of images."""
        return self.edges[self.operators[-1].out].width

    @property
    def encoder(self) -> bool:
        """It reads an image, all tokens of which see each other, and gives classes."""
        return any(self.of(Patches))

    def __str__(self) -> str:
        """One operator a line: what it makes, how wide, and from what."""
        width = max(len(op.out) for op in self.operators)
        lines = []
        for op in self.operators:
            given = {f.name: getattr(op, f.name) for f in fields(op) if f.name != "out"}
            words = [str(edge) for name in op.edges if (edge := given.pop(name)) is not None]
            words += [f"{name}={value}" for name, value in given.items()
                      if value is not None and value is not False and
                      not (name == "scale" and value == 1) and
                      not (name == "offset" and value == 0)]
            edge = self.edges[op.out]
            lines.append(f"{op.out:{width}}  {edge.kind.value:8} {edge.width:>6}  "
                         f"{type(op).__name__.lower()}({', '.join(words)})")
        return "\n".join(lines)


# ---- The edge that an operator makes, from those that it reads

def _kind(op: Operator, edge: Edge, kind: Kind, width: int | None = None) -> None:
    if edge.kind is not kind or width is not None and edge.width != width:
        wanted = kind.value if width is None else f"{width} {kind.value}"
        raise GraphError(f"{op.out} reads {edge.width} {edge.kind.value} where it takes {wanted}")


def _shape(graph: Graph, op: Operator, name: str | None, *shape: int) -> None:
    if name is not None and graph.shapes[name] != shape:
        raise GraphError(f"{op.out}: the weight {name} has shape {list(graph.shapes[name])}, not "
                         f"{list(shape)}")


def _embed(graph: Graph, op: Embed, _: list[Edge]) -> Edge:
    if not op.weights:
        raise GraphError(f"{op.out}: an embedding of neither tokens nor positions")
    width = graph.shapes[op.weights[0]][1]
    if op.positions is not None:
        rows = graph.shapes[op.positions][0]
        _shape(graph, op, op.positions, rows, width)
        if not 0 <= op.offset < rows:
            raise GraphError(f"{op.out}: {rows} rows of positions have no row {op.offset}")
    return Edge(Kind.RESIDUAL, width)


def _patches(_: Graph, op: Patches, __: list[Edge]) -> Edge:
    return Edge(Kind.VALUES, op.width)


def _norm(graph: Graph, op: Norm, inputs: list[Edge]) -> Edge:
    x, = inputs
    if x.kind is Kind.LOGITS or x.width % (op.head_dim or x.width):
        raise GraphError(f"{op.out} cannot norm {x.width} {x.kind.value} in heads of {op.head_dim}")
    for name in op.weights:
        _shape(graph, op, name, op.head_dim or x.width)
    return Edge(Kind.VALUES, x.width)


def _read(_: Graph, op: Read, inputs: list[Edge]) -> Edge:
    x, = inputs
    _kind(op, x, Kind.RESIDUAL)
    return Edge(Kind.VALUES, x.width)


def _linear(graph: Graph, op: Linear, inputs: list[Edge]) -> Edge:
    x, = inputs
    _kind(op, x, Kind.VALUES)
    rows = graph.shapes[op.weight][0]
    _shape(graph, op, op.weight, rows, x.width)
    _shape(graph, op, op.bias, rows)
    return Edge(Kind.VALUES, rows)


def _rope(graph: Graph, op: Rope, inputs: list[Edge]) -> Edge:
    x, = inputs
    _kind(op, x, Kind.VALUES)
    if op.table not in graph.tables:
        raise GraphError(f"{op.out} reads the RoPE table {op.table}, which is not there")
    if x.width % op.head_dim or 2 * len(graph.tables[op.table].values) > op.head_dim:
        raise GraphError(f"{op.out}: {x.width} values are no heads of {op.head_dim} that "
                         f"{len(graph.tables[op.table].values)} pairs can turn")
    return x


def _attend(_: Graph, op: Attend, inputs: list[Edge]) -> Edge:
    q, k, v = inputs
    if op.heads % op.kv_heads or op.window is not None and op.window < 1 or not op.divisor > 0 \
            or not 0 <= op.latent < op.head_dim or not _caps(op.cap):
        raise GraphError(f"{op.out}: {op.heads} heads, {op.kv_heads} KV heads, a window of "
                         f"{op.window}, a divisor of {op.divisor} and a cap of {op.cap} do not go "
                         "together")
    _kind(op, q, Kind.VALUES, op.heads * op.head_dim)
    for edge, width in ((k, op.key_dim), (v, op.value_dim)):
        _kind(op, edge, Kind.VALUES, op.kv_heads * width)
    return Edge(Kind.VALUES, op.heads * op.value_dim)


def _gate(_: Graph, op: Gate, inputs: list[Edge]) -> Edge:
    gate, *up = inputs
    _kind(op, gate, Kind.VALUES)
    for edge in up:
        _kind(op, edge, Kind.VALUES, gate.width)
    return gate


def _add(_: Graph, op: Add, inputs: list[Edge]) -> Edge:
    x, y = inputs
    _kind(op, x, Kind.RESIDUAL)
    _kind(op, y, Kind.VALUES, x.width)
    return x


def _head(graph: Graph, op: Head, inputs: list[Edge]) -> Edge:
    x, = inputs
    _kind(op, x, Kind.VALUES)
    vocab = graph.shapes[op.weight][0]
    _shape(graph, op, op.weight, vocab, x.width)
    _shape(graph, op, op.bias, vocab)
    if not _caps(op.cap):
        raise GraphError(f"{op.out} has a cap of {op.cap}")
    return Edge(Kind.LOGITS, vocab)


def _caps(cap: float | None) -> bool:
    return cap is None or cap > 0


_EDGE = {Embed: _embed, Patches: _patches, Norm: _norm, Read: _read, Linear: _linear, Rope: _rope,
         Attend: _attend, Gate: _gate, Add: _add, Head: _head}


# ---- Building

class Builder:
    """Makes a graph, an operator at a time; each method returns the name of its edge.

    Weights are named by the caller and get their shapes here; edges are named after the weight
    that makes them, or after the first edge that they are made from.
    """

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.tables: dict[str, Rates] = {}
        self._width: dict[str, int] = {}

    def _put(self, op: Operator, width: int) -> str:
        self.operators.append(op)
        self._width[op.out] = width
        return op.out

    def _array(self, name: str, *shape: int) -> str:
        if self.shapes.setdefault(name, shape) != shape:
            raise GraphError(f"the weight {name} has two shapes, {list(self.shapes[name])} and "
                             f"{list(shape)}")
        return name

    def embed(self, vocab: int | None, hidden: int, *, scale: float = 1.0, positions: int = 0,
              offset: int = 0) -> str:
        """The residual of the tokens; weight "embedding", without vocab none. positions: those that
        have a row, behind ``offset`` others, of the weight "positions"; 0: none."""
        learned = self._array("positions", offset + positions, hidden) if positions else None
        weight = None if vocab is None else self._array("embedding", vocab, hidden)
        return self._put(Embed(out="residual", weight=weight, scale=scale, positions=learned,
                               offset=offset), hidden)

    def patches(self, width: int) -> str:
        """What each token is given of an image."""
        return self._put(Patches(out="patches", width=width), width)

    def norm(self, x: str, name: str, eps: float, *, beta: bool = False, centred: bool = False,
             head_dim: int | None = None) -> str:
        """Norm of the residual or of values x, or of their heads; weights ``name`` and, with beta,
        ``name.beta``."""
        width = head_dim or self._width[x]
        return self._put(Norm(
            out=f"{name}.x", x=x, gamma=self._array(name, width), eps=eps, centred=centred,
            beta=self._array(f"{name}.beta", width) if beta else None, head_dim=head_dim),
            self._width[x])

    def read(self, x: str, name: str) -> str:
        """The residual x as it is."""
        return self._put(Read(out=f"{name}.x", x=x), self._width[x])

    def linear(self, x: str, name: str, rows: int, *, bias: bool = False) -> str:
        """Matrix ``name``[rows, width of x] and, with bias, ``name.bias``."""
        return self._put(Linear(
            out=name, x=x, weight=self._array(name, rows, self._width[x]),
            bias=self._array(f"{name}.bias", rows) if bias else None), rows)

    def rope(self, x: str, head_dim: int, table: Rates, name: str = "rope") -> str:
        """Heads of x rotated; name: of the table, one for each that differs."""
        if self.tables.setdefault(name, table) != table:
            raise GraphError(f"two RoPE tables have the name {name}")
        return self._put(Rope(out=f"{x}.rope", x=x, head_dim=head_dim, table=name),
                         self._width[x])

    def attend(self, q: str, k: str, v: str, name: str, *, heads: int, kv_heads: int,
               head_dim: int, divisor: float | None = None, window: int | None = None,
               ahead: bool = False, latent: int = 0, cap: float | None = None) -> str:
        """Attention; divisor: the root of head_dim unless it is given. window, ahead, latent, cap:
        see :class:`Attend`."""
        return self._put(Attend(
            out=name, q=q, k=k, v=v, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            divisor=float(np.sqrt(head_dim)) if divisor is None else divisor, window=window,
            ahead=ahead, latent=latent, cap=cap), heads * (latent or head_dim))

    def gate(self, gate: str, up: str | None, name: str, *, fn: Fn = Fn.SILU) -> str:
        """fn(gate) * up, or fn(gate) where there is no up."""
        return self._put(Gate(out=name, gate=gate, up=up, fn=fn), self._width[gate])

    def add(self, r: str, y: str, *, scale: float = 1.0) -> str:
        """The residual r and y."""
        return self._put(Add(out=f"{y}.residual", x=r, y=y, scale=scale), self._width[r])

    def head(self, x: str, vocab: int, *, weight: str = "head", bias: bool = False,
             scale: float = 1.0, cap: float | None = None) -> str:
        """Logits. weight: "embedding" where the head is tied. bias: weight "head.bias". cap: see
        :class:`Head`."""
        return self._put(Head(
            out="logits", x=x, weight=self._array(weight, vocab, self._width[x]), scale=scale,
            bias=self._array("head.bias", vocab) if bias else None, cap=cap), vocab)

    def graph(self) -> Graph:
        """All of it, checked."""
        return Graph(tuple(self.operators), self.shapes, self.tables)
