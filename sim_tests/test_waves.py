"""Waves: the file agrees with the chip's own counters, and the save file names what is in it."""
import re
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from meadowlark.compile.disassemble import line
from meadowlark.errors import UserError
from meadowlark.run.targets import GoldenTarget, SimTarget
from meadowlark.cli.recordings import waves_of
from meadowlark.run.waves import Waves
from meadowlark.sim import build
from meadowlark_hdl.isa import Op
from meadowlark_hdl.sampler.sampler_golden import Sampling
from recordings import BOARD, commands, refused_before_the_work, small_model
from vcd.reader import TokenKind, tokenize

TOP = "core.core.inner.wired"
EVER = 1 << 60


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def target(source):
    with closing(SimTarget(BOARD, waves=True)) as sim:
        sim.load(source)
        yield sim


def run(target, waves, source, prompt, *, max_new):
    """The events of a run, recorded."""
    with waves.recording(target, source.image, "run"), closing(target.generate(
            prompt, Sampling(), max_new=max_new, stop_ids=())) as events:
        return [*events]


class File:
    """A VCD file: signals by their names, and values of those that are wanted, by cycle."""

    def __init__(self, path, *wanted):
        self.names, self.cycles, scopes = {}, [], []
        with open(path) as file:
            for words in map(str.split, file):
                match words:
                    case ["$timescale", unit, _]: self.unit = unit
                    case ["$scope", _, name, _]: scopes.append(name)
                    case ["$upscope", _]: scopes.pop()
                    case ["$var", _, _, code, *name, _]:
                        self.names[".".join([*scopes, "".join(name)])] = code
                    case ["$enddefinitions", _]: break
            codes = {code: name for name in wanted for full, code in self.names.items()
                     if full.partition("[")[0] == f"{TOP}.{name}"}
            assert {*codes.values()} == {*wanted}
            last, values = dict.fromkeys(wanted, 0), {name: [] for name in wanted}
            change = re.compile(rf"b([01]+) ({'|'.join(map(re.escape, codes))})\n|"
                                rf"([01])({'|'.join(map(re.escape, codes))})\n|#(\d+)\n")
            for found in filter(None, map(change.fullmatch, file)):
                if found[5]:
                    self._keep(values, last)
                    self.cycles.append(int(found[5]))
                else:
                    last[codes[found[2] or found[4]]] = int(found[1] or found[3], 2)
        self._keep(values, last)
        self.values = {name: np.array(some) for name, some in values.items()}

    def _keep(self, values, last):
        if self.cycles:
            for name, value in last.items():
                values[name].append(value)


def test_signals_are_the_counters(target, source, tmp_path, seed):
    """Of a whole run, every cycle: pulses add up to the chip's counters, and the program counter
    goes through the program's lists. The run is the golden model's."""
    prompt = [0, *np.random.default_rng(seed).integers(2, 128, 2).tolist()]
    waves = Waves(str(tmp_path / "w.vcd"), 0, EVER)
    events = run(target, waves, source, prompt, max_new=2)
    golden = GoldenTarget(BOARD)
    golden.load(source)
    with closing(golden.generate(prompt, Sampling(), max_new=2, stop_ids=())) as wanted:
        assert [e.crc for e in events] == [e.crc for e in wanted]
    file = File(tmp_path / "w.vcd", "issue.retired", "issue.pc", "issue.array_active",
                "issue.wait_vector", "sequencer.pass_done")
    assert file.unit == "1us" and file.cycles[0] == 0
    assert all(b == a + 1 for a, b in pairwise(file.cycles))
    counters, found = target.counters(), file.values
    for name, counter in (("issue.retired", "instructions"), ("issue.array_active", "array_active"),
                          ("issue.wait_vector", "stall_vector"), ("sequencer.pass_done", "passes")):
        assert found[name].sum() == counters[counter], name
    pcs = found["issue.pc"][found["issue.retired"] == 1].tolist()
    image = source.image
    prefill, decode = (image.model_regs[x] for x in ("prefill_pc", "decode_pc"))
    begins = [pc for pc in pcs if pc in (prefill, decode)]
    assert begins == [prefill, decode]
    for pc, i in enumerate(image.instructions[decode:], decode):
        if i["op"] == Op.LINEAR:
            assert pcs.count(pc) == 1, pc


def test_cycles_from_to(target, source, tmp_path):
    """Those alone, with the values that they have in the whole run."""
    whole, part = (tmp_path / name for name in ("whole.vcd", "part.vcd"))
    for path, cycles in ((whole, (0, EVER)), (part, (700, 1000))):
        waves = Waves(str(path), *cycles)
        run(target, waves, source, [0, 5, 7], max_new=1)
        assert f"in {path}" in waves.told()
    assert "waves of 300 cycles" in waves.told()
    whole, part = (File(path, "issue.pc", "issue.array_active") for path in (whole, part))
    assert part.cycles == [*range(700, 1000)]
    for name, values in part.values.items():
        # A refresh of the memory may fall otherwise, so a few cycles may lie beside each other.
        assert set(values) <= set(whole.values[name][600:1100])


def test_a_run_that_ends_before(target, source, tmp_path):
    """Nothing is written, and it is said."""
    waves = Waves(str(tmp_path / "w.vcd"), EVER - 1, EVER)
    run(target, waves, source, [0, 5], max_new=1)
    assert waves.told().startswith("no waves in") and not [*tmp_path.iterdir()]


def test_the_first_run_alone(target, source, tmp_path):
    waves = Waves(str(tmp_path / "w.vcd"), 0, 50)
    run(target, waves, source, [0, 5], max_new=1)
    first = (tmp_path / "w.vcd").read_bytes()
    run(target, waves, source, [0, 9, 4], max_new=2)
    assert (tmp_path / "w.vcd").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "w.gtkw", "w.op.txt", "w.pc.txt", "w.vcd"]


def test_the_save_file(target, source, tmp_path):
    """Its signals are in the file, as GTKWave calls them; its groups are units; instructions are
    text."""
    waves = Waves(str(tmp_path / "w.vcd"), 0, 20)
    run(target, waves, source, [0, 5], max_new=1)
    lines = (tmp_path / "w.gtkw").read_text().splitlines()
    file = File(tmp_path / "w.vcd")
    # A reader that is not ours takes all of it.
    with open(tmp_path / "w.vcd", "rb") as content:
        assert sum(x.kind is TokenKind.CHANGE_TIME for x in tokenize(content)) == 20
    shown = [x.rpartition("} ")[2].replace("\\", "") for x in lines
             if x.startswith((TOP, "+{"))]
    assert len(shown) > 300 and {*shown} <= file.names.keys()
    # A point in a signal's own name is marked.
    assert any(x.endswith(rf"{TOP}.issue.dispatch.\instr.rows[7:0]") for x in lines)
    groups = [x[1:] for x in lines if x.startswith("-")]
    for name in ("Instruction", "Sequencer", "Fetch", "Issue", "Tile buffer", "Tiling engine",
                 "Softmax, lane 0", "Vector unit", "Decoder", "Memory: reader", "Sampler"):
        assert groups.count(name) == 2, name          # begins and ends
    filters = {re.match(r"\^\d+ (.*)", x)[1]: lines[n + 1] for n, x in enumerate(lines)
               if re.match(r"\^\d+ ", x)}
    counters, operators = (str(tmp_path / name) for name in ("w.pc.txt", "w.op.txt"))
    assert filters[counters] == f"+{{instruction}} {TOP}.issue.pc[15:0]"
    assert filters[operators] == rf"+{{op[3:0]}} {TOP}.issue.dispatch.\instr.op[3:0]"
    said = [x.partition(" ") for x in (tmp_path / "w.pc.txt").read_text().splitlines()]
    assert [int(pc, 16) for pc, _, _ in said] == [*range(len(source.image.instructions))]
    assert all(len(pc) == 4 for pc, _, _ in said)     # as GTKWave writes 16 bits
    for pc, i in enumerate(source.image.instructions):
        assert said[pc][2].startswith(f"{pc} {line(i)}")
    assert "(layers.0.k)" in "".join(text for _, _, text in said)
    assert (tmp_path / "w.op.txt").read_text().splitlines() == [f"{op:x} {op.name}" for op in Op]


def test_another_build():
    """Signals that nobody named are not seen, and nothing else changes; without waves the simulator
    is what it was."""
    text = ("module \\core.a (x);\n  wire [3:0] \\$12 ;\n  reg \\$auto$x.cc:5:y$3  = 0;\n"
            "  wire \\s.f ;\n  wire [1:0] x;\n  assign x = \\$12 [1:0];\nendmodule\n"
            "module \\core.a.lane2 (x);\n  wire y;\nendmodule\n"
            "module \\core.a.pair2 (x);\n  wire \\$3 ;\n  wire y;\nendmodule\n"
            "module \\core.a.pair0 (x);\n  wire y;\nendmodule\n")
    seen = build._seen(text)
    off, on = "/*verilator tracing_off*/", "/*verilator tracing_on*/"
    assert seen.replace(f"{off} ", "").replace(f" {on}", "") == text
    hidden = re.findall(re.escape(off) + "(.*?)" + re.escape(on), seen, re.S)
    assert [x.split()[:3] for x in hidden] == [
        ["wire", "[3:0]", "\\$12"], ["reg", "\\$auto$x.cc:5:y$3", "="],
        ["module", "\\core.a.pair2", "(x);"]]


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:3", "-1:4", "a:b", "1:2:3", "1e3:2e3"])
def test_cycles_that_are_none(text):
    with pytest.raises(UserError, match="^--waves-cycles is FROM:TO, .* such as 0:10000, not "):
        waves_of("w.vcd", text)


def test_cycles():
    made = waves_of("w.vcd", "3:10")
    assert (made.first, made.last) == (3, 10)


@pytest.fixture
def command(target, source, monkeypatch, capsys, tmp_path):
    return commands(target, source, monkeypatch, capsys, tmp_path,
                    lambda trace, waves: (trace, waves))


@pytest.mark.parametrize("args", [
    ("generate", "--ids", "5,7,9", "-n", "3"), ("bench", "-p", "9", "-n", "3")])
def test_commands(command, tmp_path, args):
    status, out, err, asked = command(*args, "--waves", "w.vcd", "--waves-cycles", "5:25")
    assert status == 0 and asked == [(False, True)]
    assert "waves of 20 cycles in w.vcd; `gtkwave w.gtkw`" in err
    assert File(tmp_path / "w.vcd").cycles == [*range(5, 25)]
    # A refresh may fall otherwise, so numbers of cycles may differ.
    plain = command(*args)[1]
    assert re.sub(r"[\d.,]+", "", out) == re.sub(r"[\d.,]+", "", plain)


@pytest.mark.parametrize("name", ["bench", "generate"])
@pytest.mark.parametrize("args, said", [
    (["--waves", "no/w.vcd"], "cannot write no/w.vcd: there is no folder"),
    (["--waves", "m.mlk"], "cannot write m.mlk: it is read by this command as well"),
    (["--waves", "w.gtkw"], "cannot write w.gtkw: it is another output"),
    (["--waves", "w", "--json", "w"], "cannot write w: it is another output"),
    (["--waves", "-"], "--waves needs a file"),
    (["--waves-cycles", "0:3"], "--waves-cycles limits --waves"),
    (["--waves", "w", "--waves-cycles", "3"], "--waves-cycles is FROM:TO"),
    (["--waves", "w", "--target", "pins"], "--waves shows signals that --target sim simulates"),
    (["--waves", "w", "--target", "/dev/ttyUSB9"], "not /dev/ttyUSB9")])
def test_errors_come_before_the_work(command, tmp_path, name, args, said):
    refused_before_the_work(command, tmp_path, name, args, said)
