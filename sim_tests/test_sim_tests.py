"""What the tests are held to: mutants of every block, and no case that ends without a word."""
import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import long as long_checks
import mutate

HERE = Path(__file__).parent
BLOCKS = mutate.load_blocks()


def test_every_block_has_mutants():
    assert [block.name for block in BLOCKS] == mutate.elaborating()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_mutants(block):
    """One at least of each kind, each in one place only, none twice."""
    assert list(mutate.faults(block)) == []
    kinds = Counter(m.kind for m in block.mutants)
    assert kinds.keys() == set(mutate.KINDS) and kinds.total() >= 3
    assert len({m.what for m in block.mutants}) == len({(m.old, m.new) for m in block.mutants}) \
        == len(block.mutants)
    assert all(m.old != m.new for m in block.mutants)


def test_mutants_name_tests():
    """Each exists, by itself: pytest is silent of a part that is missing of a file that it has."""
    tests = {test.replace("{sim}", "verilator") for block in BLOCKS for m in block.mutants
             for test in m.tests}
    files = sorted({test.partition("::")[0] for test in tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         *(f"{HERE.name}/{name}" for name in files)], cwd=HERE.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"SIM": "verilator"})
    assert done.returncode == 0, done.stdout[-2000:]
    found = {line.partition("/")[2] for line in done.stdout.splitlines()}
    parts = {name.partition(mark)[0] for name in found for mark in ("[", "::")} | found
    assert sorted(tests - parts) == []


@pytest.mark.parametrize("body, found", [
    ("assert True", "passed"), ("assert False", "failed"), ("x", "void"),
    ("os.kill(os.getpid(), 9)", "killed"), ("raise RuntimeError('verilator: an error')", "void"),
    ("raise RuntimeError('verilator\\nfailed with status -9:')", "killed"),
    ("raise RuntimeError('g++ -I verilator: Killed signal terminated program cc1plus')", "killed"),
    ("raise RuntimeError('vvp\\nfailed with status -24:')", "failed"),
    ("while True: pass", "hung")])
def test_what_becomes_of_a_mutant(tmp_path, monkeypatch, body, found):
    """Nothing is said of a mutant whose test was killed by something else."""
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    for name in mutate.FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "sim_tests" / "test_one.py").write_text(
        f"import os, time\n\ndef test_one():\n    {body}\n")
    tree = mutate.Tree(tmp_path / "tree", seed=1, sim="verilator")
    assert tree.run("test_one.py", 2 if found == "hung" else 60)[0] == found


def returns(body, checked=False):
    """Lines of ``return`` statements before which nothing was checked in their own branch."""
    for node in body:
        if isinstance(node, ast.Return) and not checked:
            yield node.lineno
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        checked = checked or any(isinstance(n, ast.Assert) or isinstance(n, ast.Attribute)
                                 and n.attr in ("raises", "assert_array_equal")
                                 for n in ast.walk(node))
        for part in ("body", "orelse", "finalbody"):
            yield from returns(getattr(node, part, []))


def test_no_case_ends_unseen():
    """A case that cannot be tried is not generated, or skipped with a reason."""
    found = []
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    node.name.startswith("test_") or any("cocotb.test" in ast.unparse(d)
                                                         for d in node.decorator_list)):
                found += [f"{path.name}:{line}" for line in returns(node.body)]
    assert found == []


def test_long_goes_on_where_it_was(tmp_path, monkeypatch):
    """What passed at a commit is not run again there; what failed is, and what has no commit."""
    def run(*args):
        done = CliRunner().invoke(long_checks.main, args)
        return done.exit_code, [line.partition(":")[0::2] for line in done.output.splitlines()]
    at = ["aaa"]
    monkeypatch.setattr(long_checks, "RESULTS", tmp_path)
    monkeypatch.setattr(long_checks, "commit", lambda: at[0])
    monkeypatch.setattr(long_checks, "PARTS", [
        long_checks.Part("good", "-c 'import os; print(os.environ[\"FUZZ\"])'", (("FUZZ", "7"),)),
        long_checks.Part("bad", "-c 'raise SystemExit(3)'")])
    status, lines = run()
    assert status == 1 and lines[0] == ("good", " passed: 7") and "FAILED" in lines[1][1]
    found = json.loads((tmp_path / "bad.json").read_text())
    assert (found["commit"], found["passed"], found["status"]) == ("aaa", False, 3)
    assert run("good") == (0, [("good", " passed before")])
    assert run("good", "--anew") == (0, [("good", " passed: 7")])
    assert run("bad")[0] == 1
    for at[0] in ("bbb", "bbb+", "bbb+"):
        assert run("good") == (0, [("good", " passed: 7")])
    assert run("neither")[0] == 2
