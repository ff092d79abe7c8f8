"""What the machine does with a graph: its operators, gathered into the steps of a program.

A step is what one instruction, or a group of them, does: a matrix with the epilogue behind it, an
attention with its queries, keys and values. It holds names and shapes, no values, so limits, cost
and layout are there before a weight is read. Quantising gives each step its numbers
(:mod:`meadowlark.quant.quantise`); the golden model runs steps, the compiler lowers them.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from meadowlark_hdl.config import Config

from ..errors import UserError
from ..models.graph import (Add, Attend, Embed, Gate, Graph, Head, Kind, Linear, Norm, Operator,
                            Patches, Read, Rope)


#: Values of a word of any core: parts of a key that has a latent are padded to so many.
WORD = 16


class Order(Enum):
    """Where the rows of the checkpoint's matrices are in the chip's."""
    PLAIN = "plain"             #: as they are
    HEADS = "heads"             #: rows of zeros behind each head, up to head_pad
    PAIRS = "pairs"             #: likewise; rows 2i and 2i+1 of a head rotate together
    ALTERNATING = "alternating"  #: two matrices: row 0 of each, row 1 of each, ...
    DIAGONAL = "diagonal"       #: of no checkpoint: row i is input i, in another unit
    CONSTANT = "constant"       #: of no checkpoint: its bias alone


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of the weight stream.

    name: of its numbers and in reports. x: the edge that it reads. weights, biases: in the
    checkpoint; two where rows alternate; biases may be empty. rows, columns: padded as order and
    padded_columns say. padded_columns: the inputs are heads with zeros behind each. parts: of each
    head in rows or columns, its parts: (values, these and the zeros behind them). turning: pairs of
    a head that rotate.
    """
    name: str
    x: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    rows: int
    columns: int
    order: Order = Order.PLAIN
    padded_columns: bool = False
    parts: tuple[tuple[int, int], ...] = ()
    turning: int = 0

    @property
    def head_dim(self) -> int:
        """Of heads in rows or columns, else 0."""
        return sum(values for values, _ in self.parts)


@dataclass(frozen=True, kw_only=True)
class Normed:
    """What becomes of a matrix's outputs before a step takes them: they lie beside the residual,
    are normed, and a diagonal takes them to where the step wants them.

    op: the norm. width: outputs that are normed together, padded: a head, or all of them. values:
    of these, not padded. diagonal: its input is the norm's output; None: that is what is wanted.
    """
    op: Norm
    width: int
    values: int
    diagonal: Matrix | None

    @property
    def count(self) -> int:
        """Norms of a token."""
        return self.diagonal.rows // self.width if self.diagonal is not None and self.each else 1

    @property
    def each(self) -> bool:
        """Heads are normed one by one."""
        return self.op.head_dim is not None


@dataclass(frozen=True, kw_only=True)
class Step:
    """name: of its numbers, the edge that it makes. op: the operator that it ends with."""
    name: str
    op: Operator

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those that it reads, in the order of the stream."""
        return ()

    @property
    def norms(self) -> tuple[Normed, ...]:
        """Those of its matrices' outputs, in the same order."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Edges of the activation memory that it reads and others make."""
        return tuple(dict.fromkeys(m.x for m in self.matrices if m.weights))


@dataclass(frozen=True, kw_only=True)
class EmbedStep(Step):
    """tokens -> residual. matrix: the table, a row of which is read a token, or None. positions:
    that of positions, whose rows are added, or None."""
    op: Embed
    matrix: Matrix | None
    positions: Matrix | None

    @property
    def tables(self) -> tuple[Matrix, ...]:
        """Those that there are, in the order of their use."""
        return tuple(table for table in (self.matrix, self.positions) if table is not None)


@dataclass(frozen=True, kw_only=True)
class PatchStep(Step):
    """image -> activations: rows of a table that the host writes."""
    op: Patches


@dataclass(frozen=True, kw_only=True)
class NormStep(Step):
    """residual, or the outputs of a matrix -> activations. inner: of these, or None."""
    op: Norm
    matrix: Matrix | None = None
    inner: Normed | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return () if self.matrix is None else (self.matrix,)

    @property
    def norms(self) -> tuple[Normed, ...]:
        return () if self.inner is None else (self.inner,)


@dataclass(frozen=True, kw_only=True)
class Spill:
    """The residual goes to memory behind an attention's keys and values, and comes back before its
    queries, in another visit of a token: see :mod:`meadowlark.compile.spill`.

    norm: what makes the attention's input, which is made once more. planes: of a residual's digits.
    header: a constant, once a piece. roots: constants, each for as many planes. out: a diagonal for
    each piece of a plane. less, more: a diagonal for each plane, which takes it from the residual,
    and adds it.
    """
    norm: NormStep
    header: Matrix
    roots: tuple[Matrix, ...]
    out: tuple[Matrix, ...]
    less: tuple[Matrix, ...]
    more: tuple[Matrix, ...]

    @property
    def planes(self) -> int:
        return len(self.less)

    @property
    def pieces(self) -> int:
        """Rows of a table that hold a plane of a token."""
        return len(self.out)

    def root(self, plane: int) -> Matrix | None:
        """The constant before a plane, if it is another one than the latest."""
        each = self.planes // len(self.roots)
        return None if plane % each else self.roots[plane // each]

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """In the order of the stream: as the residual goes, and as it comes."""
        gone = (m for k in range(self.planes)
                for m in (self.root(k), *self.out, self.less[k]) if m is not None)
        return *(self.header for _ in self.out), *gone, *self.more


@dataclass(frozen=True, kw_only=True)
class ReadStep(Step):
    """residual -> activations, over a root that is the same for all tokens: that of what a matrix
    of a constant makes beside the residual."""
    op: Read
    matrix: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.matrix,


@dataclass(frozen=True, kw_only=True)
class AddStep(Step):
    """A matrix whose outputs are added to the residual. norm: before that, or None."""
    op: Add
    matrix: Matrix
    norm: Normed | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.matrix, *_diagonals(self.norm)

    @property
    def norms(self) -> tuple[Normed, ...]:
        return () if self.norm is None else (self.norm,)


@dataclass(frozen=True, kw_only=True)
class GateStep(Step):
    """gate and up, whose rows alternate, or gate alone -> activations."""
    op: Gate
    matrix: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.matrix,


@dataclass(frozen=True, kw_only=True)
class AttendStep(Step):
    """Queries, keys and values, the cache, and attention -> activations.

    table: of RoPE for queries and keys, or None. cache: number of the cache, in order. k_norm,
    q_norm: before they rotate, or None. v_norm: of a latent, which is a part of the key as well.
    spill: between values and queries, or None.
    """
    op: Attend
    q: Matrix
    k: Matrix
    v: Matrix
    table: str | None
    cache: int
    k_norm: Normed | None = None
    q_norm: Normed | None = None
    v_norm: Normed | None = None
    spill: Spill | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        # Keys are stored before the values are computed: their way to memory is then hidden.
        return (self.k, *_diagonals(self.k_norm), self.v, *_diagonals(self.v_norm),
                *(() if self.spill is None else self.spill.matrices),
                self.q, *_diagonals(self.q_norm))

    @property
    def norms(self) -> tuple[Normed, ...]:
        return tuple(norm for norm in (self.k_norm, self.v_norm, self.q_norm) if norm is not None)


@dataclass(frozen=True, kw_only=True)
class HeadStep(Step):
    """Logits."""
    op: Head
    matrix: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.matrix,


@dataclass(frozen=True)
class Plan:
    """Steps of a graph in the order of the program: the first is the embedding's, the last ones
    are :attr:`end`.

    head_pad: power of two, what the heads of all attention are padded to; these are alike.
    """
    graph: Graph
    steps: tuple[Step, ...]
    head_pad: int

    @cached_property
    def latent(self) -> bool:
        """Values are parts of their keys."""
        return bool(self.attends[0].op.latent)

    @property
    def end(self) -> tuple[Step, ...]:
        """What only the last token of a prompt needs: the head and the norm before it, or, where
        it reads an attention, which pools, the head alone."""
        return self.steps[-1 if isinstance(self.steps[-2], AttendStep) else -2:]

    @property
    def key_pad(self) -> int:
        """Values of a head in activations, and of a key."""
        return self.head_pad

    def key_row(self, config: Config) -> int:
        """Values of a key in memory: whole words. A power of two of them, but with
        ``config.tight_keys`` and where neither a window asks for that nor a spill, whose pieces are
        rows of the same length."""
        op = self.attends[0].op
        if not config.tight_keys or self.spill is not None or any(
                step.op.window for step in self.attends):
            return self.key_pad
        values = _before_latent(op) + _latent_pad(op) if op.latent else op.head_dim
        return -(-values // config.W) * config.W

    @property
    def value_pad(self) -> int:
        """Columns of the values of a head: a power of two."""
        op = self.attends[0].op
        return _latent_pad(op) if op.latent else self.head_pad

    @property
    def caps(self) -> int:
        """Kinds of soft caps: of scores, of logits."""
        return any(step.op.cap is not None for step in self.attends) + (
            self.head.op.cap is not None)

    def of(self, *types: type[Step]) -> Iterator:
        """Steps of these types, in order."""
        return (step for step in self.steps if isinstance(step, types))

    @property
    def matrices(self) -> Iterator[Matrix]:
        """Those of the weight stream, in its order; the embedding is not in it."""
        return (matrix for step in self.steps for matrix in step.matrices)

    @property
    def norms(self) -> Iterator[Normed]:
        """Of outputs of matrices, in the order of the program."""
        return (norm for step in self.steps for norm in step.norms)

    @property
    def every_matrix(self) -> tuple[Matrix, ...]:
        """The embedding's, then those of the weight stream."""
        return *self.embedding.tables, *self.matrices

    @property
    def embedding(self) -> EmbedStep:
        """The first step."""
        return next(self.of(EmbedStep))

    @property
    def patches(self) -> PatchStep | None:
        """Of an encoder of images."""
        return next(self.of(PatchStep), None)

    @property
    def head(self) -> HeadStep:
        """The last step."""
        return next(self.of(HeadStep))

    @property
    def attends(self) -> tuple[AttendStep, ...]:
        """By number of their cache."""
        return tuple(self.of(AttendStep))

    @property
    def spill(self) -> Spill | None:
        """What all attentions have between values and queries, or None."""
        return self.attends[0].spill

    @property
    def eps(self) -> float:
        """Epsilon of all norms of the residual."""
        return next(step for step in self.of(NormStep) if step.matrix is None).op.eps

    @property
    def tables(self) -> tuple[str, ...]:
        """RoPE tables in the order of their use."""
        return tuple(dict.fromkeys(self.loads.values()))

    @property
    def loads(self) -> dict[str, str]:
        """Attention whose RoPE table is another one than the latest before it -> that table."""
        found, latest = {}, None
        for step in self.attends:
            if step.table not in (None, latest):
                found[step.name] = latest = step.table
        return found


def plan(graph: Graph, *, head_pad: int = 1) -> Plan:
    """Gather the operators of a graph into steps.

    Parameters
    ----------
    graph : Graph
    head_pad : int, power of two
        Heads are padded to at least so many.

    Raises
    ------
    UserError
        The machine has nothing for an operator, or not where it stands; names it.
    """
    heads = {(op.heads, op.kv_heads, op.head_dim, op.latent): op for op in graph.of(Attend)}
    if len(heads) != 1:
        raise _unable("layers whose heads differ" if heads else "a model without attention")
    op, = heads.values()
    size = _before_latent(op) + _latent_pad(op) if op.latent else op.head_dim
    pad = max(head_pad, 1 << (size - 1).bit_length())
    gatherer = _Gatherer(graph, pad)
    for op in graph.operators:
        gatherer.take(op)
    gatherer.check()
    return Plan(graph, tuple(gatherer.steps), pad)


def _before_latent(op: Attend) -> int:
    """What a key has before the latent, padded to whole words."""
    return -(-op.key_dim // WORD) * WORD


def _latent_pad(op: Attend) -> int:
    """Columns of latents: a power of two."""
    return max(WORD, 1 << (op.latent - 1).bit_length())


def _diagonals(norm: Normed | None) -> tuple[Matrix, ...]:
    """The matrix behind a norm, if there is one."""
    return () if norm is None or norm.diagonal is None else (norm.diagonal,)


def _unable(what: str) -> UserError:
    return UserError(f"the machine cannot run {what}; use another model")


class _Gatherer:
    """Walks a graph. An operator that is no step of its own waits for the one that takes it in."""

    def __init__(self, graph: Graph, head_pad: int) -> None:
        self.graph, self.head_pad, self.key_pad = graph, head_pad, head_pad
        self.steps: list[Step] = []
        self.waiting: dict[str, Linear | Rope | Norm] = {}      # by edge
        self.residual = ""                              # the edge that the residual is now
        self.summed = False                             # the latest squares are its own
        self.caches = 0

    def take(self, op: Operator) -> None:
        """The next operator."""
        match op:
            case Linear() | Rope():
                self.waiting[op.out] = op
            case Embed():
                token, position = (None if weight is None else Matrix(
                    name=name, x="", weights=(weight,), biases=(),
                    rows=self.graph.shapes[weight][0], columns=self.graph.hidden)
                    for name, weight in (("embedding", op.weight), ("positions", op.positions)))
                self._put(EmbedStep(name=op.out, op=op, matrix=token, positions=position))
                self.residual, self.summed = op.out, True
            case Patches():
                self._put(PatchStep(name=op.out, op=op))
            case Norm():
                if op.centred or op.beta is not None:
                    raise _unable(f"{op.out}, a norm with a mean or an offset, as it is")
                if self.graph.edges[op.x].kind is Kind.VALUES:
                    self._inner(op)
                    return
                self._current(op, op.x)
                if op.head_dim is not None:
                    raise _unable(f"{op.out}, which norms the residual in parts")
                if not self.summed:
                    raise _unable(f"{op.out}, which norms the residual behind a norm of values")
                self._put(NormStep(name=op.out, op=op))
            case Read():
                self._current(op, op.x)
                self.summed = False
                self._put(ReadStep(name=op.out, op=op, matrix=Matrix(
                    name=f"{op.out}.constant", x=op.out, weights=(), biases=(op.out,), rows=2,
                    columns=1, order=Order.CONSTANT)))
            case Gate():
                gate, up = self._linear(op.gate, op), op.up and self._linear(op.up, op)
                self._put(GateStep(name=op.out, op=op, matrix=(
                    self._alternating(gate, up, op) if up else self._into(gate))))
            case Add():
                self._current(op, op.x)
                norm, name, by = self._norm(op.y, op)
                matrix = self._into(self._linear(name, by))
                self._put(AddStep(name=op.out, op=op, matrix=matrix,
                                  norm=norm and self._normed(norm, matrix)))
                self.residual, self.summed = op.out, True
            case Attend():
                self._attend(op)
            case Head():
                self._put(HeadStep(name=op.out, op=op,
                                   matrix=replace(self._into(op), name="head")))
            case _:
                raise _unable(f"{op.out}, a {type(op).__name__.lower()}")

    def check(self) -> None:
        """What only shows at the end."""
        if self.waiting:
            raise _unable(f"{next(iter(self.waiting))}, which nothing takes in")
        made = {step.name for step in self.steps
                if self.graph.edges[step.name].kind is Kind.VALUES}
        read = {name for step in self.steps for name in step.reads}
        if made != read:
            raise _unable(f"{min(made ^ read)}, which nothing takes in")
        before, head = self.steps[-2:]
        pools = isinstance(before, AttendStep) and self.graph.encoder
        if not (pools or isinstance(before, NormStep)) or head.reads != (before.name,):
            raise _unable("a head without a norm before it")
        if len({step.op.eps for step in self.steps
                if isinstance(step, NormStep) and step.matrix is None}) > 1:
            raise _unable("norms of the residual with different epsilons")
        if {op.ahead for op in self.graph.of(Attend)} != {self.graph.encoder}:
            raise _unable("tokens that see those behind them, but of a whole image")
        if len({op.eps > 0 for op in self.graph.of(Norm)}) > 1:
            raise _unable("norms with an epsilon, and others without")

    def _put(self, step: Step) -> None:
        self.steps.append(step)

    def _current(self, op: Operator, name: str) -> None:
        if name != self.residual:
            raise _unable(f"{op.out}, which reads a residual that is no longer there ({name})")

    def _linear(self, name: str, by: Operator) -> Linear:
        """The matrix that makes an edge, which nobody else reads."""
        op = self.waiting.pop(name, None)
        if not isinstance(op, Linear) or self.graph.readers[name] != (by,):
            raise _unable(f"{by.out} of {name}, which is no matrix of its own")
        return op

    def _norm(self, name: str, by: Operator) -> tuple[Norm | None, str, Operator]:
        """The norm that makes an edge which nobody else reads, or None; and the edge before it, and
        who reads that."""
        norm = self.waiting.get(name)
        if not isinstance(norm, Norm) or self.graph.readers[name] != (by,):
            return None, name, by
        del self.waiting[name]
        return norm, norm.x, norm

    def _inner(self, op: Norm) -> None:
        """A norm of a matrix's outputs: a step of its own if matrices read it."""
        if {type(by) for by in self.graph.readers[op.out]} != {Linear}:
            self.waiting[op.out] = op
            return
        if op.head_dim is not None:
            raise _unable(f"{op.out}, which norms the input of a matrix in parts")
        matrix = self._into(self._linear(op.x, op))
        self.summed = False
        self._put(NormStep(name=op.out, op=op, matrix=matrix, inner=Normed(
            op=op, width=matrix.rows, values=matrix.rows, diagonal=None)))

    def _normed(self, op: Norm, matrix: Matrix, rows: int | None = None) -> Normed:
        """A norm of a matrix's outputs; rows: of the diagonal, where zeros follow."""
        if op.head_dim not in (None, matrix.head_dim) or \
                op.head_dim is not None and matrix.order is Order.PLAIN:
            raise _unable(f"{op.out}, whose parts of {op.head_dim} values are no heads")
        self.summed = False
        return Normed(
            op=op, width=self.head_pad if op.head_dim else matrix.rows,
            values=op.head_dim or self.graph.edges[op.out].width,
            diagonal=Matrix(name=f"{op.gamma}.diagonal", x=op.out, weights=(), biases=(),
                            rows=rows or matrix.rows, columns=1, order=Order.DIAGONAL))

    def _alternating(self, gate: Linear, up: Linear, by: Gate) -> Matrix:
        """Two matrices of the same shape as one."""
        if gate.x != up.x or (gate.bias is None) != (up.bias is None):
            raise _unable(f"{by.out}, whose two matrices differ in what they read")
        rows, columns = self.graph.shapes[gate.weight]
        return Matrix(
            name=_both(gate.weight, up.weight), x=gate.x, weights=(gate.weight, up.weight),
            biases=(*gate.weights[1:], *up.weights[1:]), rows=2 * rows, columns=columns,
            order=Order.ALTERNATING)

    def _into(self, op: Linear | Head) -> Matrix:
        """A matrix with rows as they are. Its inputs are padded heads where attention makes them.
        """
        rows, columns = self.graph.shapes[op.weight]
        source = self.graph.maker[op.x]
        value = source.value_dim if isinstance(source, Attend) else 0
        padded = value not in (0, self.key_pad)
        return Matrix(
            name=op.weight, x=op.x, weights=(op.weight,), biases=op.weights[1:], rows=rows,
            columns=columns // value * self.key_pad if padded else columns,
            padded_columns=padded, parts=((value, self.key_pad),) if value else ())

    def _attend(self, op: Attend) -> None:
        tables, made, norms = [], {}, {}
        for part in op.edges:
            name, by, table = getattr(op, part), op, None
            rope = self.waiting.get(name)
            parts = self._parts(op, part)
            if isinstance(rope, Rope) and part != "v" and \
                    rope.head_dim == sum(values for values, _ in parts) and \
                    self.graph.readers[name] == (op,):
                del self.waiting[name]
                name, by, table = rope.x, rope, rope.table
            if part != "v":
                tables.append(table)
            norm, name, by = self._norm(name, by)
            made[part] = self._heads(self._linear(name, by), parts, table)
            if norm is not None:
                norms[f"{part}_norm"] = self._normed(norm, made[part], (
                    self.key_pad - _before_latent(op) if op.latent else None))
        if tables[0] != tables[1]:
            raise _unable(f"{op.out}, whose queries and keys rotate differently")
        if len({matrix.x for matrix in made.values()}) > 1 and not op.latent:
            raise _unable(f"{op.out}, whose queries, keys and values have different inputs")
        if "v_norm" in norms and not op.latent:
            raise _unable(f"{op.out}, whose values are normed")
        if op.latent and (norms.keys() != {"v_norm"} or op.kv_heads > 1):
            raise _unable(f"{op.out}, whose latents are of several heads, or not alone in being "
                          "normed")
        self._put(AttendStep(name=op.out, op=op, **made, **norms, table=tables[0],
                             cache=self.caches))
        self.caches += 1

    def _parts(self, op: Attend, part: str) -> tuple[tuple[int, int], ...]:
        """Those of a head of queries, keys or values; a latent is all of a value."""
        if not op.latent:
            return (op.head_dim, self.key_pad),
        before = _before_latent(op)
        key, latent = (op.key_dim, before), (op.latent, self.key_pad - before)
        return {"q": (key, latent), "k": (key,), "v": ((op.latent, op.latent),)}[part]

    def _heads(self, op: Linear, parts: tuple[tuple[int, int], ...], table: str | None) -> Matrix:
        turning = 0 if table is None else len(self.graph.tables[table].values)
        rows, columns = self.graph.shapes[op.weight]
        values, padded = map(sum, zip(*parts))
        return Matrix(
            name=op.weight, x=op.x, weights=(op.weight,), biases=op.weights[1:],
            rows=rows // values * padded, columns=columns, parts=parts,
            turning=turning, order=Order.HEADS if table is None else Order.PAIRS)


def _both(first: str, second: str) -> str:
    """Two names as one: layers.0.gate and layers.0.up -> layers.0.gate_up."""
    start = first.rpartition(".")[0]
    return f"{start}.{first.rpartition('.')[2]}_{second.rpartition('.')[2]}"
