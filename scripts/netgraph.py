"""A netlist as a graph in which names, hierarchy and the order of things leave no trace.

What Yosys gives, flat and with memories collected, is taken apart into bits. Between states
(registers, memories, cells of the chip) stand nodes of few kinds, each a fixed function of its
operands: AND and XOR of a set, multiplexer, majority (carries), and words that stay whole, such as
products. NOT is a mark on an operand. A node that equals another is that one. So it does not matter
whether a value is chosen by ``Mux`` or ``If``, compared by ``==`` or by ANDs, or sliced in another
way, but an arithmetic transformation does matter.

:func:`compare` gives labels to the states of two graphs: first from what a state is, then, round
after round, from the labels of all that its next value depends on. Two states that once differ
differ for ever. When no round finds more differences in either, equal multisets of labels mean that
the two have the same registers, and that they do the same, cycle for cycle, from power-up on.
"""
from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

#: Sets of operands grow no larger by taking in those of operands of the same kind.
_WIDEST = 256
#: Parameters and attributes that only name things.
_NAMES = {"MEMID", "src", "hdlname", "module_not_derived", "full_case", "parallel_case"}
#: Cells that work on each bit alone; the rest works on words.
_BITWISE = {"$and", "$or", "$xor", "$xnor", "$not", "$mux", "$pmux", "$pos"}
_FALSE, _TRUE, _OPEN = 0, 1, 2      # literals: twice the node, plus 1 if negated


def _number(*what: Any) -> int:
    """A constant of 64 bits that stands for ``what``, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Graph:
    """Arrays of a netlist; a literal is twice a node, plus 1 if negated.

    Nodes are in order of their level; ``leaves`` of them come first, and stand for a constant, an
    input (``owner`` -1) or an output of the state ``owner``.

    Attributes
    ----------
    constant : uint64[nodes]
        What kind of node it is.
    owner : int32[leaves]
    levels : int32[levels + 1]
        Where the nodes of each level begin.
    start, operand, place : int32[nodes + 1], int32[operands], uint64[operands]
        Operands of each node, and what tells the first from the second where that matters.
    state_constant, state_start, state_operand, state_place
        The same of registers, memories, cells of the chip, and outputs.
    names : str[states]
        "block register", for people.
    """
    constant: np.ndarray
    owner: np.ndarray
    levels: np.ndarray
    start: np.ndarray
    operand: np.ndarray
    place: np.ndarray
    state_constant: np.ndarray
    state_start: np.ndarray
    state_operand: np.ndarray
    state_place: np.ndarray
    names: np.ndarray

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Graph:
        with np.load(path, allow_pickle=False) as found:
            return cls(**{f.name: found[f.name] for f in fields(cls)})


class _Builder:
    """Nodes and states, each node once."""

    def __init__(self) -> None:
        self.kinds: list[tuple] = [("constant",), ("open",)]
        self.operands: list[tuple[int, ...]] = [(), ()]
        self.owner: dict[int, int] = {0: -1, 1: -1}      # of leaves
        self.known: dict[tuple, int] = {}
        #: (what it is, operands, name, whether it counts even if nothing depends on it)
        self.states: list[tuple[tuple, list[int], str, bool]] = []

    def leaf(self, kind: tuple, owner: int = -1) -> int:
        node = len(self.kinds)
        self.kinds.append(kind)
        self.operands.append(())
        self.owner[node] = owner
        return 2 * node

    def node(self, kind: tuple, operands: tuple[int, ...]) -> int:
        key = kind, operands
        node = self.known.get(key)
        if node is None:
            node = self.known[key] = len(self.kinds)
            self.kinds.append(kind)
            self.operands.append(operands)
        return 2 * node

    def _of_kind(self, literal: int, kind: str) -> tuple[int, ...] | None:
        return self.operands[literal >> 1] if self.kinds[literal >> 1] == (kind,) else None

    def all(self, literals: Iterable[int]) -> int:
        found = set(literals)
        for literal in tuple(found):
            inner = None if literal & 1 else self._of_kind(literal, "and")
            if inner and len(found) + len(inner) <= _WIDEST:
                found.discard(literal)
                found.update(inner)
        found.discard(_TRUE)
        if _FALSE in found or any(literal ^ 1 in found for literal in found):
            return _FALSE
        if len(found) < 2:
            return found.pop() if found else _TRUE
        return self.node(("and",), tuple(sorted(found)))

    def any(self, literals: Iterable[int]) -> int:
        return self.all(literal ^ 1 for literal in literals) ^ 1

    def xor(self, literals: Iterable[int]) -> int:
        negated, found = 0, set()
        for literal in literals:
            negated ^= literal & 1
            positive = literal & ~1
            inner = self._of_kind(positive, "xor")
            found ^= set(inner) if inner and len(found) + len(inner) <= _WIDEST else {positive}
        found.discard(_FALSE)
        if len(found) < 2:
            return (found.pop() if found else _FALSE) ^ negated
        return self.node(("xor",), tuple(sorted(found))) ^ negated

    def mux(self, no: int, yes: int, choice: int) -> int:
        if choice & 1:
            choice, no, yes = choice ^ 1, yes, no
        if choice == _FALSE:
            return no
        no = {choice: _FALSE, choice ^ 1: _TRUE}.get(no, no)
        yes = {choice: _TRUE, choice ^ 1: _FALSE}.get(yes, yes)
        if no == yes:
            return no
        if no == yes ^ 1:
            return self.xor((choice, no))
        if yes == _FALSE:
            return self.all((choice ^ 1, no))
        if yes == _TRUE:
            return self.any((choice, no))
        if no == _FALSE:
            return self.all((choice, yes))
        if no == _TRUE:
            return self.any((choice ^ 1, yes))
        negated = yes & 1
        return self.node(("mux",), (choice, no ^ negated, yes ^ negated)) ^ negated

    def majority(self, *literals: int) -> int:
        a, b, c = sorted(literals)
        if a == _FALSE:
            return self.all((b, c))
        if a == _TRUE:
            return self.any((b, c))
        if a >> 1 == b >> 1:
            return a if a == b else c
        if b >> 1 == c >> 1:
            return b if b == c else a
        negated = (a & 1) + (b & 1) + (c & 1) > 1
        return self.node(("majority",), (a ^ negated, b ^ negated, c ^ negated)) ^ negated

    def add(self, a: Sequence[int], b: Sequence[int], carry: int) -> tuple[list[int], int]:
        total = []
        for x, y in zip(a, b, strict=True):
            total.append(self.xor((x, y, carry)))
            carry = self.majority(x, y, carry)
        return total, carry

    def less(self, a: Sequence[int], b: Sequence[int]) -> int:
        """a < b, unsigned."""
        return self.add(a, [y ^ 1 for y in b], _TRUE)[1] ^ 1

    def word(self, kind: tuple, *words: Sequence[int], bits: int) -> list[int]:
        """An operation that stays whole; different numbers of bits are different operations."""
        whole = self.node((*kind, *map(len, words)), tuple(bit for word in words for bit in word))
        return [self.node(("bit", k), (whole,)) for k in range(bits)]

    def state(self, what: tuple, operands: list[int], name: str, *, keep: bool = False) -> int:
        self.states.append((what, operands, name, keep))
        return len(self.states) - 1

    def graph(self) -> Graph:
        """All that outputs and states to be kept depend on."""
        needed, wanted = set(), [k for k, state in enumerate(self.states) if state[3]]
        states = set(wanted)
        while wanted:
            stack = [literal >> 1 for literal in self.states[wanted.pop()][1]]
            while stack:
                node = stack.pop()
                if node in needed:
                    continue
                needed.add(node)
                stack += [literal >> 1 for literal in self.operands[node]]
                owner = self.owner.get(node, -1)
                if owner >= 0 and owner not in states:
                    states.add(owner)
                    wanted.append(owner)
        level = dict.fromkeys(self.owner, 0)
        for node in sorted(needed):             # operands come before what is made of them
            if node not in level:
                level[node] = 1 + max(level[literal >> 1] for literal in self.operands[node])
        order = sorted(needed, key=lambda node: (level[node], node))
        at = {node: k for k, node in enumerate(order)}
        state_order = sorted(states)
        state_at = {state: k for k, state in enumerate(state_order)}
        depth = np.array([level[node] for node in order], np.int32)

        def edges(lists):
            start = np.cumsum([0, *map(len, lists)], dtype=np.int32)
            operand = [2 * at[literal >> 1] + (literal & 1) for each in lists for literal in each]
            return start, np.array(operand, np.int32)

        def places(lists, unordered):
            return np.array([0 if any_order else k + 1
                             for each, any_order in zip(lists, unordered, strict=True)
                             for k in range(len(each))], np.uint64)
        sets = {("and",), ("xor",), ("majority",)}
        numbers: dict[tuple, int] = {}

        def number(kind):
            if kind not in numbers:
                numbers[kind] = _number(*kind)
            return numbers[kind]
        lists = [self.operands[node] for node in order]
        start, operand = edges(lists)
        state_lists = [self.states[k][1] for k in state_order]
        state_start, state_operand = edges(state_lists)
        return Graph(
            constant=np.array([number(self.kinds[node]) for node in order], np.uint64),
            owner=np.array([state_at.get(self.owner[node], -1) for node in order
                            if level[node] == 0], np.int32),
            levels=np.searchsorted(depth, np.arange(depth.max(initial=0) + 2)).astype(np.int32),
            start=start, operand=operand,
            place=places(lists, [self.kinds[node] in sets for node in order]),
            state_constant=np.array([number(self.states[k][0]) for k in state_order], np.uint64),
            state_start=state_start, state_operand=state_operand,
            state_place=places(state_lists, [False] * len(state_lists)),
            names=np.array([self.states[k][2] for k in state_order], np.str_))


def _extended(word: Sequence[int], bits: int, signed: bool) -> list[int]:
    top = word[-1] if signed and word else _FALSE
    return [*word[:bits], *[top] * (bits - len(word))]


def _stripped(word: Sequence[int], signed: bool) -> tuple[int, ...]:
    """As a signed number of as few bits as may be."""
    word = [*word, *([] if signed else [_FALSE])]
    while len(word) > 1 and word[-1] == word[-2]:
        word.pop()
    return tuple(word)


def _computed(b: _Builder, kind: str, cell: dict, word: dict[str, list[int]]) -> list[int] | None:
    """The output of a cell without a state, or None if it is not of these."""
    number = {name: int(value, 2) for name, value in cell["parameters"].items()
              if set(value) <= {"0", "1"}}
    bits = number.get("Y_WIDTH", number.get("WIDTH", 0))
    signed = bool(number.get("A_SIGNED"))
    both_signed = signed and bool(number.get("B_SIGNED", 1))
    a, y = word.get("A", []), word.get("B", [])

    def flag(literal):
        return [literal, *[_FALSE] * (bits - 1)]

    def same(width):
        return _extended(a, width, both_signed), _extended(y, width, both_signed)
    match kind:
        case "$not" | "$pos":
            return [bit ^ (kind == "$not") for bit in _extended(a, bits, signed)]
        case "$and":
            return [b.all(pair) for pair in zip(*same(bits), strict=True)]
        case "$or":
            return [b.any(pair) for pair in zip(*same(bits), strict=True)]
        case "$xor" | "$xnor":
            return [b.xor(pair) ^ (kind == "$xnor") for pair in zip(*same(bits), strict=True)]
        case "$mux":
            return [b.mux(no, yes, word["S"][0]) for no, yes in zip(a, y, strict=True)]
        case "$pmux":           # at most one of the choices is made
            choices, none = word["S"], b.any(word["S"]) ^ 1
            return [b.any([b.all((none, a[k])), *(b.all((choice, y[bits * c + k]))
                                                  for c, choice in enumerate(choices))])
                    for k in range(bits)]
        case "$reduce_and":
            return flag(b.all(a))
        case "$reduce_or" | "$reduce_bool" | "$logic_not":
            return flag(b.any(a) ^ (kind == "$logic_not"))
        case "$reduce_xor" | "$reduce_xnor":
            return flag(b.xor(a) ^ (kind == "$reduce_xnor"))
        case "$logic_and":
            return flag(b.all((b.any(a), b.any(y))))
        case "$logic_or":
            return flag(b.any((*a, *y)))
        case "$eq" | "$ne":
            pairs = zip(*same(max(len(a), len(y))), strict=True)
            return flag(b.all(b.xor(pair) ^ 1 for pair in pairs) ^ (kind == "$ne"))
        case "$lt" | "$ge" | "$gt" | "$le":
            low, high = same(max(len(a), len(y)))
            if both_signed:
                low[-1], high[-1] = low[-1] ^ 1, high[-1] ^ 1
            if kind in ("$gt", "$le"):
                low, high = high, low
            return flag(b.less(low, high) ^ (kind in ("$ge", "$le")))
        case "$add" | "$sub":
            first, second = same(bits)
            minus = kind == "$sub"
            return b.add(first, [bit ^ minus for bit in second], int(minus))[0]
        case "$neg":
            return b.add([_FALSE] * bits, [bit ^ 1 for bit in _extended(a, bits, signed)], _TRUE)[0]
        case "$mul":
            factors = sorted((_stripped(a, both_signed), _stripped(y, both_signed)))
            return b.word((kind,), *factors, bits=bits)
        case "$shl" | "$shr" | "$sshl" | "$sshr":
            right, arithmetic = kind in ("$shr", "$sshr"), kind == "$sshr" and signed
            value = _extended(a, max(len(a), bits), signed)
            fill = value[-1] if arithmetic and value else _FALSE
            for k, choice in enumerate(y):
                by = min(1 << k, len(value))
                moved = [*value[by:], *[fill] * by] if right else \
                    [*[_FALSE] * by, *value[:len(value) - by]]
                value = [b.mux(*pair, choice) for pair in zip(value, moved, strict=True)]
            return value[:bits]
        case "$shift" | "$shiftx":
            left = bool(number.get("B_SIGNED"))
            return b.word((kind, signed, left), a, y, bits=bits)
    return None


def build(module: dict) -> Graph:
    """The graph of a module of a JSON netlist without hierarchy and processes.

    Raises
    ------
    ValueError
        Logic without a register goes round in a circle.
    """
    b = _Builder()
    literal: dict[int | str, int] = {"0": _FALSE, "1": _TRUE, "x": _OPEN, "z": _OPEN}
    init: dict[int | str, str] = {}
    named: dict[int | str, str] = {}
    recoded: set[int | str] = set()
    for name, net in module["netnames"].items():
        for bit, value in zip(net["bits"], reversed(net["attributes"].get("init", "")),
                              strict=False):
            init[bit] = value
        if not net["hide_name"]:
            for bit in net["bits"]:                         # the deepest of the names that it has
                named[bit] = max(named.get(bit, ""), name,
                                 key=lambda n: (n != "", "$" not in n, len(n)))
            if name.endswith("_state"):                     # synthesis finds another code for it
                recoded.update(net["bits"])
    for name, port in module["ports"].items():
        if port["direction"] == "input":
            for k, bit in enumerate(port["bits"]):
                literal[bit] = b.leaf(("input", name, k))

    waiting: list[tuple[str, dict, dict[str, list], list]] = []
    later: list[tuple[int, list]] = []          # states whose operands are not known yet
    for name, cell in module["cells"].items():
        kind, wires = cell["type"], cell["connections"]
        outputs = [port for port, way in cell["port_directions"].items() if way == "output"]
        block = name.removeprefix("$flatten").replace("\\", "").rpartition(".")[0]
        keep = "keep" in cell["attributes"]
        if kind in ("$dff", "$adff"):
            async_value = cell["parameters"].get("ARST_VALUE", "")
            for k, (d, q) in enumerate(zip(wires["D"], wires["Q"], strict=True)):
                value = async_value[len(async_value) - 1 - k] if async_value else ""
                what = ("register", kind, cell["parameters"]["CLK_POLARITY"],
                        cell["parameters"].get("ARST_POLARITY", ""), value, init.get(q, "x"), keep,
                        q in recoded)
                label = named.get(q, "").removeprefix(f"{block}.")
                state = b.state(what, [], f"{block} {label}", keep=keep)
                literal[q] = b.leaf(("register",), state)
                later.append((state, [d, *wires["CLK"], *wires.get("ARST", [])]))
        elif kind.startswith("$") and not kind.startswith("$mem") and outputs == ["Y"]:
            inputs = {port: bits for port, bits in wires.items() if port != "Y"}
            waiting.append((kind, cell, inputs, wires["Y"]))
        else:
            about = {**cell["parameters"], **{f"({k})": v for k, v in cell["attributes"].items()}}
            what = ("cell", kind, *sorted((k, v) for k, v in about.items()
                                          if k.strip("()") not in _NAMES),
                    *[init.get(bit, "x") for port in outputs for bit in wires[port]])
            state = b.state(what, [], f"{block} {kind}", keep=keep)
            later.append((state, [bit for port in sorted(wires) if port not in outputs
                                  for bit in wires[port]]))
            for port in outputs:
                for k, bit in enumerate(wires[port]):
                    literal[bit] = b.leaf(("output", port, k), state)
    for name, port in module["ports"].items():
        if port["direction"] == "output":
            for k, bit in enumerate(port["bits"]):
                later.append((b.state(("port", name, k), [], f" {name}", keep=True), [bit]))

    _compute(b, waiting, literal)
    for state, bits in later:
        b.states[state][1].extend(literal.get(bit, _OPEN) for bit in bits)
    return b.graph()


def _compute(b: _Builder, cells: list, literal: dict) -> None:
    """Find the literals of all that cells without state drive.

    A word may depend on another bit of itself; cells in such a circle are taken apart.
    """
    while cells:
        missing: list[int] = []
        users: dict[int, list[int]] = defaultdict(list)
        ready = []
        driven = {bit for *_, bits in cells for bit in bits}
        for k, (*_, inputs, _bits) in enumerate(cells):
            needs = {bit for word in inputs.values() for bit in word
                     if bit not in literal and bit in driven}
            missing.append(len(needs))
            for bit in needs:
                users[bit].append(k)
            if not needs:
                ready.append(k)
        done = set()
        while ready:
            k = ready.pop()
            done.add(k)
            kind, cell, inputs, bits = cells[k]
            words = {port: [literal.get(bit, _OPEN) for bit in word]
                     for port, word in inputs.items()}
            values = _computed(b, kind, cell, words)
            if values is None:
                about = sorted((name, value) for name, value in cell["parameters"].items()
                               if name not in _NAMES)
                values = b.word((kind, *about), *(words[port] for port in sorted(words)),
                                bits=len(bits))
            for bit, value in zip(bits, values, strict=True):
                literal[bit] = value
                for user in users[bit]:
                    missing[user] -= 1
                    if not missing[user]:
                        ready.append(user)
        left = [cell for k, cell in enumerate(cells) if k not in done]
        apart = [part for cell in left for part in _apart(*cell)]
        if left and len(apart) == len(left):
            raise ValueError("logic without a register goes round in a circle")
        cells = apart


def _apart(kind: str, cell: dict, inputs: dict, bits: list) -> list:
    """A cell for each bit, of those that work on bits."""
    if kind not in _BITWISE or len(bits) == 1:
        return [(kind, cell, inputs, bits)]
    signed = "A_SIGNED" in cell["parameters"] and cell["parameters"]["A_SIGNED"].endswith("1")
    one = {"parameters": {"Y_WIDTH": "1", "WIDTH": "1"}}

    def bit_of(port, word, k):
        if port == "S":
            return word
        if kind == "$pmux" and port == "B":
            return word[k::len(bits)]
        return [word[k] if k < len(word) else word[-1] if signed else "0"]
    return [(kind, one, {port: bit_of(port, word, k) for port, word in inputs.items()}, [bit])
            for k, bit in enumerate(bits)]


_ODD = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of ``x`` (the end of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sums(labels, start, operand, place, first, last):
    """What the operands of nodes first..last - 1 contribute to each."""
    begin, end = start[first], start[last]
    if begin == end:
        return np.zeros(last - first, np.uint64)
    terms = labels[operand[begin:end] >> 1] ^ (operand[begin:end] & 1).astype(np.uint64) * _ODD
    terms = _mixed(terms + place[begin:end] * _ODD)
    some = start[first:last] < start[first + 1:last + 1]
    sums = np.zeros(last - first, np.uint64)
    sums[some] = np.add.reduceat(terms, start[first:last][some] - begin)
    return sums


def first_labels(graph: Graph) -> np.ndarray:
    """Labels of the states from what they are: uint64[states]."""
    return _mixed(graph.state_constant)


def next_labels(graph: Graph, states: np.ndarray) -> np.ndarray:
    """Labels of the states that tell one step more of what their next value depends on."""
    labels = np.empty(len(graph.constant), np.uint64)
    leaves = len(graph.owner)
    owned = graph.owner >= 0
    labels[:leaves] = graph.constant[:leaves]
    labels[:leaves][owned] += states[graph.owner[owned]] * _ODD
    labels[:leaves] = _mixed(labels[:leaves])
    for first, last in zip(graph.levels[1:-1], graph.levels[2:], strict=True):
        sums = _sums(labels, graph.start, graph.operand, graph.place, first, last)
        labels[first:last] = _mixed(graph.constant[first:last] + sums)
    sums = _sums(labels, graph.state_start, graph.state_operand, graph.state_place, 0, len(states))
    return _mixed(_mixed(states + _ODD) + graph.state_constant + sums)


@dataclass(frozen=True)
class Comparison:
    """digest: of the first graph, as far as it was looked at. only: names of the states of each
    graph that the other does not have, in the first round in which there are any.
    """
    digest: str
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def equal(self) -> bool:
        return not any(self.only)


def compare(here: Graph, base: Graph) -> Comparison:
    """Do two netlists have the same registers, and do they do the same?"""
    graphs = here, base
    labels = [first_labels(graph) for graph in graphs]
    before = -1
    while True:
        ordered = [np.sort(each) for each in labels]
        same = np.array_equal(ordered[0], ordered[1])
        classes = 1 + int(np.count_nonzero(np.diff(ordered[0])))
        if not same or classes == before:
            digest = hashlib.sha256(ordered[0].tobytes()).hexdigest()[:16]
            return Comparison(digest, _only(graphs, labels) if not same else ((), ()))
        before = classes
        labels = [next_labels(graph, each) for graph, each in zip(graphs, labels, strict=True)]


def _only(graphs, labels) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the states of each graph whose label the other has less often.

    Of several with one label, those that have their like in the other graph are left out: one of
    the same name, or else of the same block, or else any.
    """
    named: tuple[dict, dict] = defaultdict(list), defaultdict(list)
    for found, graph, each in zip(named, graphs, labels, strict=True):
        for name, label in zip(graph.names.tolist(), each.tolist(), strict=True):
            found[label].append(name)
    only: tuple[list, list] = [], []
    for label in dict.fromkeys([*named[0], *named[1]]):
        here, base = (Counter(found.get(label, ())) for found in named)
        if here.total() == base.total():
            continue
        for like in (lambda name: name, lambda name: name.partition(" ")[0], lambda name: ""):
            pairs = Counter(map(like, here.elements())) & Counter(map(like, base.elements()))
            for names in (here, base):
                left = pairs.copy()
                for name in list(names.elements()):
                    if left[like(name)]:
                        left[like(name)] -= 1
                        names[name] -= 1
        for names, found in zip((here, base), only, strict=True):
            found += names.elements()
    return tuple(only[0]), tuple(only[1])
