"""`make replay`: what may change without a netlist becoming another, and what may not."""
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from amaranth import Cat, Elaboratable, Module, Mux, Signal, signed
from amaranth.back import rtlil
from amaranth.lib import memory
from amaranth.sim import Simulator
from click.testing import CliRunner
from meadowlark_hdl.lib.fanout import APART

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

pytest.importorskip("pyosys", reason="make setup-synth")
import netgraph
import replay


class Accumulator(Elaboratable):
    """Adds or subtracts ``x``, and says when the sum was 5; one register of it is its own."""

    def __init__(self, *, init=3, target=5, width=8, own=True, table=(1, 2, 3, 4), late=False):
        self.init, self.target, self.width, self.own = init, target, width, own
        self.table, self.late = table, late
        self.x = Signal(signed(width))
        self.minus = Signal()
        self.o = Signal(signed(width))
        self.found = Signal()
        self.word = Signal(8)
        self.ports = [self.x, self.minus, self.o, self.found, self.word]

    def elaborate(self, platform):
        m = Module()
        total = Signal(signed(self.width), init=self.init)
        with m.If(self.minus):
            m.d.sync += total.eq(total - self.x)
        with m.Else():
            m.d.sync += total.eq(total + self.x)
        found = Signal(attrs=APART if self.own else {})
        m.d.sync += found.eq(total == self.target)
        m.submodules.ram = ram = memory.Memory(shape=8, depth=4, init=self.table)
        read = ram.read_port()
        m.d.comb += [read.addr.eq(total[:2]), self.word.eq(read.data), self.o.eq(total)]
        late = Signal()
        m.d.sync += late.eq(found)
        m.d.comb += self.found.eq(late if self.late else found)
        return m


class Moved(Accumulator):
    """The same by other names, in other words, and in modules of its own."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Module()
        m.submodules.other = other = Module()
        sum_ = Signal(signed(self.width), init=self.init)
        for k in range(4):                      # bit by bit
            inner.d.sync += sum_[2 * k:2 * k + 2].eq(
                Mux(~self.minus, sum_ + self.x, sum_ - self.x)[2 * k:2 * k + 2])
        hit, want = Signal(attrs=APART), self.target
        bits = [sum_[k] if want >> k & 1 else ~sum_[k] for k in range(self.width)]
        other.d.sync += hit.eq(Cat(reversed(bits)).all())
        other.submodules.table = ram = memory.Memory(shape=8, depth=4, init=self.table)
        read = ram.read_port()
        m.d.comb += [self.o.eq(sum_), self.found.eq(hit), read.addr.eq(sum_[:2])]
        other.d.comb += self.word.eq(read.data)
        unused = Signal(4)
        m.d.sync += unused.eq(unused + self.x)  # nothing reads it
        return m


def graph(block):
    return replay.graph_of(rtlil.convert(block, name="top", ports=block.ports, emit_src=False))


@pytest.fixture(scope="module")
def base():
    return graph(Accumulator())


def test_other_names_words_and_modules_are_equal(base, tmp_path):
    found = netgraph.compare(graph(Moved()), base)
    assert found.equal and found.only == ((), ())
    assert found.digest == netgraph.compare(base, base).digest
    base.save(tmp_path / "base.npz")
    assert netgraph.compare(netgraph.Graph.load(tmp_path / "base.npz"), base) == \
        netgraph.compare(base, base)


@pytest.mark.parametrize("change", [
    {"init": 4}, {"target": 7}, {"late": True}, {"own": False}, {"table": (1, 2, 3, 5)}],
    ids=lambda change: next(iter(change)))
def test_a_small_change_differs(base, change):
    block = Accumulator(**change)
    found = netgraph.compare(graph(block), base)
    assert not found.equal and any(found.only)
    text = replay.report("small", found)
    assert text.startswith("small        ") and "differs" in text
    assert netgraph.compare(base, graph(block)).only == found.only[::-1]


def test_the_report_names_the_block_that_differs():
    def two(target):
        m = Module()
        x = Signal(signed(8))
        outputs = []
        for name, want in (("first", 5), ("second", target)):
            m.submodules[name] = block = Accumulator(target=want)
            m.d.comb += block.x.eq(x)
            outputs += [block.found, block.o]
        o = Signal(len(Cat(outputs)))
        m.d.comb += o.eq(Cat(outputs))
        return rtlil.convert(m, name="top", ports=[x, o], emit_src=False)
    found = netgraph.compare(*(replay.graph_of(two(target)) for target in (5, 6)))
    assert replay.differences(found) == ["second: 1 here, 1 in the base (found)"]


def test_what_only_has_another_name_is_not_reported():
    def chain(prefix, last):
        m, a, o = Module(), Signal(), Signal(2)
        late = []
        for k in range(4):
            late.append(Signal(name=f"{prefix}{k}", init=last if k == 3 else 0, attrs=APART))
            m.d.sync += late[-1].eq(a)
        m.d.comb += o.eq(Cat(late[0] & late[1], late[2] & late[3]))
        return replay.graph_of(rtlil.convert(m, name="top", ports=[a, o], emit_src=False))
    found = netgraph.compare(chain("new", 1), chain("old", 0))
    assert found.only[0] == (" new3",) and len(found.only[1]) == 1


class Operators(Elaboratable):
    """A formula of three words."""

    def __init__(self, formula):
        self.formula = formula
        self.a = Signal(6)
        self.b = Signal(signed(5))
        self.s = Signal(2)
        self.o = Signal(16)
        self.ports = [self.a, self.b, self.s, self.o]

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(self.formula(m, self.a, self.b, self.s))
        return m


def _switch(m, a, b, s):
    o = Signal(signed(7))
    with m.Switch(s):
        with m.Case(2):
            m.d.comb += o.eq(b)
        with m.Default():
            m.d.comb += o.eq(a)
    return o


PAIRS = {
    "less": (lambda m, a, b, s: a < 9, lambda m, a, b, s: ~(a >= 9)),
    "signed less": (lambda m, a, b, s: b < 3, lambda m, a, b, s: ~(3 <= b)),
    "equal": (lambda m, a, b, s: a == 0, lambda m, a, b, s: ~a.any()),
    "parity": (lambda m, a, b, s: a.xor(), lambda m, a, b, s: a[:3].xor() ^ a[3:].xor()),
    "choice": (_switch, lambda m, a, b, s: Mux(s[1] & ~s[0], b, a)),
    "shift": (lambda m, a, b, s: b >> s,
              lambda m, a, b, s: Mux(s[1], Mux(s[0], b >> 3, b >> 2), Mux(s[0], b >> 1, b))),
    "negation": (lambda m, a, b, s: (-a)[:6], lambda m, a, b, s: (~a + 1)[:6]),
    "product": (lambda m, a, b, s: a[:3] * b, lambda m, a, b, s: b * a[:3]),
    "majority": (lambda m, a, b, s: (a & b) | (b & a), lambda m, a, b, s: b & a),
}


@pytest.mark.parametrize("name", PAIRS)
def test_operators_in_other_words(name):
    one, other = (graph(Operators(formula)) for formula in PAIRS[name])
    assert netgraph.compare(one, other).equal


FORMULAS = {name: pair[0] for name, pair in PAIRS.items() if name != "product"} | {
    "sum": lambda m, a, b, s: a + b + s, "difference": lambda m, a, b, s: a - b,
    "greater": lambda m, a, b, s: Cat(a > b, a <= b, b > s, b >= -3, a == b, a != s),
    "left": lambda m, a, b, s: b << s, "right": lambda m, a, b, s: a >> s,
    "reductions": lambda m, a, b, s: Cat(a.any(), a.all(), b.bool(), ~b.any(), b.xor())}


def value(graph, name, inputs):
    """Of an output without states before it, from the nodes' meaning."""
    kind = {netgraph._number(kind): kind for kind in ("constant", "and", "xor", "mux", "majority")}
    kind |= {netgraph._number("input", port, k): word >> k & 1
             for port, word in inputs.items() for k in range(16)}
    values: list[int] = []

    def of(literals):
        return [values[literal >> 1] ^ literal & 1 for literal in literals.tolist()]
    for k, constant in enumerate(graph.constant.tolist()):
        bits = of(graph.operand[graph.start[k]:graph.start[k + 1]])
        match kind[constant]:
            case "constant":
                values.append(0)
            case "and":
                values.append(int(all(bits)))
            case "xor":
                values.append(sum(bits) & 1)
            case "mux":
                values.append(bits[2] if bits[0] else bits[1])
            case "majority":
                values.append(int(sum(bits) > 1))
            case bit:
                values.append(int(bit))
    return sum(of(graph.state_operand[graph.state_start[k]:graph.state_start[k + 1]])[0] << bit
               for bit, k in enumerate(np.flatnonzero(graph.names == f" {name}")))


@pytest.mark.parametrize("name", FORMULAS)
def test_a_graph_computes_what_the_simulator_does(name, seed):
    rng = random.Random(seed)
    block = Operators(FORMULAS[name])
    made = graph(block)
    simulator = Simulator(block)

    async def bench(ctx):
        for _ in range(50):
            inputs = {"a": rng.randrange(64), "b": rng.randrange(32), "s": rng.randrange(4)}
            ctx.set(block.a, inputs["a"])
            ctx.set(block.b, (inputs["b"] ^ 16) - 16)
            ctx.set(block.s, inputs["s"])
            assert value(made, "o", inputs) == ctx.get(block.o), inputs
    simulator.add_testbench(bench)
    simulator.run()


def test_all_pairs_are_told_apart():
    graphs = [graph(Operators(formula)) for formula, _ in PAIRS.values()]
    digests = {netgraph.compare(each, each).digest for each in graphs}
    assert len(digests) == len(graphs)
    for k, each in enumerate(graphs):
        assert not netgraph.compare(each, graphs[k - 1]).equal


def test_a_circle_through_other_bits_is_none():
    m, a, o = Module(), Signal(4), Signal(4)
    chain = Signal(4)
    m.d.comb += [chain.eq(a ^ Cat(0, chain[:3])), o.eq(chain)]
    text = rtlil.convert(m, name="top", ports=[a, o], emit_src=False)
    straight, bits = Module(), [a[0]]
    for k in range(1, 4):
        bits.append(a[k] ^ bits[-1])
    straight.d.comb += o.eq(Cat(bits))
    other = rtlil.convert(straight, name="top", ports=[a, o], emit_src=False)
    assert netgraph.compare(replay.graph_of(text), replay.graph_of(other)).equal


def test_registers_far_behind_a_change_tell_of_it():
    """One register, then ten: the first round in which something differs names the first alone."""
    def chain(first):
        m, a, o = Module(), Signal(), Signal()
        here = Signal(name="first")
        m.d.sync += here.eq(~a if first else a)
        for k in range(10):
            after = Signal(name=f"r{k}")
            m.d.sync += after.eq(here)
            here = after
        m.d.comb += o.eq(here)
        return replay.graph_of(rtlil.convert(m, name="top", ports=[a, o], emit_src=False))
    graphs = chain(False), chain(True)
    found = netgraph.compare(*graphs)
    assert found.only == ((" first",), (" first",))
    labels = [netgraph.first_labels(each) for each in graphs]
    for _ in range(12):
        labels = [netgraph.next_labels(g, each) for g, each in zip(graphs, labels, strict=True)]
    assert not np.isin(*labels).any()           # in the end all of them do


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two boards with a core of one register, committed as ``main``."""
    for name, text in {
        "hdl/meadowlark_hdl/__init__.py": "",
        "hdl/meadowlark_hdl/core.py": """
from amaranth import Module, Signal
from amaranth.lib import wiring
class Core(wiring.Component):
    def __init__(self, config):
        super().__init__({"o": wiring.Out(4)})
        self.config = config
    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.o + self.config)
        return m
""",
        "boards/meadowlark_boards/__init__.py": """
from types import SimpleNamespace
NONE = SimpleNamespace(name="none")
BOARDS = {name: SimpleNamespace(name=name, config=step, technology=NONE)
          for name, step in (("one", 1), ("two", 2))}
get_board = BOARDS.get
"""}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for command in (["init", "-q", "-b", "main"], ["add", "."], [
            "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(replay, "ROOT", tmp_path)
    monkeypatch.setattr(replay, "KEPT", tmp_path / "build")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(replay.main, arguments)


def test_the_command(project):
    core = project / "hdl/meadowlark_hdl/core.py"
    found = run()
    assert found.exit_code == 0, found.output
    assert [line.split()[::2] for line in found.output.splitlines()[1:]] == [
        ["one", "equal"], ["two", "equal"]]
    assert len(list((project / "build").iterdir())) == 2        # here and base are one
    core.write_text(core.read_text().replace("self.o + ", "self.o - "))
    found = run("--board", "two", "--base", "HEAD")
    assert found.exit_code == 1
    assert [line.split()[0] for line in found.output.splitlines()[1:]] == ["two", "ports:"]


@pytest.mark.parametrize("arguments, says", [
    (["--board", "three"], "no board named 'three'; there are: one, two"),
    (["--base", "nothing"], "git knows no revision 'nothing'")])
def test_bad_arguments(project, arguments, says):
    found = run(*arguments)
    assert found.exit_code == 2 and says in found.output


def test_code_that_does_not_run(project):
    core = project / "hdl/meadowlark_hdl/core.py"
    core.write_text(core.read_text() + "\nraise RuntimeError('broken here')\n")
    found = run()
    assert found.exit_code == 2 and "broken here" in found.output
