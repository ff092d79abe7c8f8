#!/usr/bin/env python3
"""Break the gateware in one small way at a time and see whether the block's tests notice.

The mutants of hdl/meadowlark_hdl/<block>.py are in sim_tests/mutants/<block>.toml. The tree is
copied to a temporary folder, in which the block is changed; nothing here is touched. A mutant is
*caught* if one of its tests fails or never ends, *survived* if all pass, and *void* if it does not
even build: then it has to be written anew. What was found out is kept in build/mutate, and only
what has changed is tried again, or what somebody killed.
"""
from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from meadowlark.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
HDL = Path("hdl/meadowlark_hdl")
TESTS = Path("sim_tests")
MUTANTS = TESTS / "mutants"
RESULTS = ROOT / "build" / "mutate"
PAGE = ROOT / "docs" / "testing.md"
FOLDERS = ("hdl", "host", "boards", "sim_tests", "scripts")
#: What breaks: what comes out; when it comes out; a limit, an error, or what stalls and flushes do.
KINDS = ("value", "time", "edge")
#: A process of a mutant's tests may take so many times as long as they do without it, and so many
#: seconds more: in processor time, so that a busy machine condemns no mutant; in real time ten
#: times that.
TIMES, MORE_S = 3, 20
#: Simulator of the benches: small ones mostly wait for a compiler, and Icarus needs none.
SIM = "icarus" if shutil.which("iverilog") and shutil.which("vvp") else "verilator"
#: Errors of a mutant that is not even a program; an ``assert`` in a block counts as a test.
_VOID = re.compile(r"^E +((Syntax|Name|Type|Attribute|Indentation|Unbound\w+)Error\b"
                   r"|amaranth\S+: |RuntimeError: .*verilator)", re.M)
#: Something outside ended a tool, for want of memory perhaps: that says nothing of the mutant.
#: Its own limit of processor time is not outside.
_KILLED = re.compile(rf"failed with status -(?!{int(signal.SIGXCPU)}\b)\d"
                     r"|Killed signal terminated program")


@dataclass(frozen=True)
class Mutant:
    """``what`` breaks when ``old`` becomes ``new``; one of ``tests`` should notice."""
    what: str
    kind: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Mutants of one file. name: its path in the package, without suffix."""
    name: str
    mutants: tuple[Mutant, ...]

    @property
    def source(self) -> Path:
        return HDL / f"{self.name}.py"

    def key(self, mutant: Mutant) -> str:
        """Changes with all that the verdict depends on, as far as it is the block's own."""
        files = {test.partition("::")[0] for test in mutant.tests}
        parts = [repr(mutant).encode(), content(self.source),
                 *(content(TESTS / name) for name in sorted(files))]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def content(path: Path) -> bytes:
    """Of a file as it was at the start: what is changed meanwhile was not tried."""
    return (ROOT / path).read_bytes()


def load_blocks() -> list[Block]:
    """All blocks that have mutants.

    Tests are files or parts of them (``test_x.py::test_y[z]``) in sim_tests, the quickest first; a
    mutant may have its own. ``{sim}`` in one is the simulator.
    """
    blocks = []
    for path in sorted((ROOT / MUTANTS).rglob("*.toml")):
        text = tomllib.loads(path.read_text())
        blocks.append(Block(str(path.relative_to(ROOT / MUTANTS).with_suffix("")), tuple(
            Mutant(**{"tests": tuple(m.pop("tests", text["tests"])), **m})
            for m in text["mutant"])))
    return blocks


#: Files without logic of a chip.
EMPTY = ("lib/__init__", "lib/collisions", "sleep", "tech/__init__", "tech/cells",
         "tech/family", "tech/ultrascale")


def elaborating() -> list[str]:
    """Names of the blocks that should have mutants: files that define ``elaborate`` or
    ``stages``, or functions and classes that make logic in a module of others, and those of
    lib/ and tech/.
    """
    found = ((str(path.relative_to(ROOT / HDL).with_suffix("")), path)
             for path in (ROOT / HDL).rglob("*.py"))
    return sorted(name for name, path in found if name not in EMPTY and (
        name.startswith(("lib/", "tech/"))
        or re.search(r"^ +def (elaborate|stages)\(|^( +def __init__\(self, |def \w+\()(m: Module|"
                     r"pipe: Pipe)", path.read_text(), re.M)))


def faults(block: Block) -> Iterable[str]:
    """What is wrong with a block's mutants themselves."""
    source = (ROOT / block.source).read_text()
    for m in block.mutants:
        if source.count(m.old) != 1:
            yield f"{block.name}: {m.what}: {m.old!r} must occur once: the block has changed, so " \
                  "must the mutant"
        if m.kind not in KINDS:
            yield f"{block.name}: {m.what}: kind must be one of {', '.join(KINDS)}, not {m.kind!r}"


class Tree:
    """A copy of what the tests need, in which one block at a time is changed."""

    running: set[subprocess.Popen] = set()

    def __init__(self, path: Path, seed: int, sim: str) -> None:
        self.path, self.seed, self.sim = path, seed, sim
        for name in FOLDERS:
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", path)
        self.built = path / "build" / "sim"
        self.built.mkdir(parents=True)
        for runtime in (ROOT / "build" / "sim").glob("verilated-*"):
            shutil.copytree(runtime, self.built / runtime.name)
        self.cache = path / "build" / "cache"       # of whole chips; the user's stays as it is
        self.cache.mkdir()

    def run(self, test: str, limit_s: float | None = None) -> tuple[str, str]:
        """("passed", "failed", "hung", "void" or "killed", the output).

        limit_s: processor time of each process.
        """
        path = os.pathsep.join(str(self.path / name) for name in FOLDERS)
        # PYTHONPATH comes before the editable install, so the copy is what gets imported.
        limit = "unlimited" if limit_s is None else math.ceil(limit_s)
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -S -t {limit} && exec "$@"', "sh", sys.executable, "-m",
             "pytest", "-x", "-q", "-p", "no:cacheprovider",
             str(TESTS / test.replace("{sim}", self.sim))], cwd=self.path,
            env=os.environ | {
                "SIM": self.sim, "PYTHONPATH": path, "SEED": str(self.seed),
                "PYTHONDONTWRITEBYTECODE": "1", "MEADOWLARK_CACHE": str(self.cache),
                "COCOTB_MAX_FAILURES": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True)
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=limit_s and 10 * limit_s)
        except subprocess.TimeoutExpired:
            return "hung", f"no end after {limit} s"
        finally:
            stop(process)
            self.running.discard(process)
        if process.returncode == -signal.SIGXCPU:
            return "hung", output
        if process.returncode < 0 or _KILLED.search(output):
            return "killed", output
        if process.returncode not in (0, 1) or _VOID.search(output):
            return "void", output
        return ("failed" if process.returncode else "passed"), output

    def mutated(self, block: Block, m: Mutant, test: str, limit_s: float) -> tuple[str, str]:
        """:meth:`run` with a mutant in the block's place."""
        source, before = self.path / block.source, self._made()
        text = source.read_text()
        source.write_text(text.replace(m.old, m.new))
        try:
            return self.run(test, limit_s)
        finally:
            source.write_text(text)
            for path in self._made() - before:      # no other run will want it
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _made(self) -> set[Path]:
        return {*self.built.iterdir(), *self.cache.iterdir()}


def stop(process: subprocess.Popen) -> None:
    """End a run and what it has started: the simulator as well."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()          # its output is read by the thread that runs it


def commit() -> str:
    """Of the tree, "+" behind it if there are changes."""
    said = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--exclude=*",
                           "--dirty=+"], cwd=ROOT, text=True, capture_output=True)
    return said.stdout.strip() or "unknown"


def kept(block: Block) -> dict:
    """What is known of a block: {key of a mutant: its result}."""
    try:
        known = json.loads((RESULTS / f"{block.name}.json").read_text())["mutants"]
    except (OSError, ValueError, KeyError):
        return {}
    return {key: known[key] for m in block.mutants if (key := block.key(m)) in known}


def try_block(block: Block, trees: queue.Queue[Tree], anew: bool, say) -> str | None:
    """Try all mutants of a block of which nothing is known; why not, if its own tests fail or
    something is killed."""
    known = {} if anew else kept(block)
    plain: dict[str, float] = {}                    # seconds of tests without a mutant
    tree = trees.get()
    try:
        for m in block.mutants:
            if (key := block.key(m)) in known:
                continue
            begun, verdict, by = time.monotonic(), "survived", ""
            outcome = output = ""
            for test in m.tests:
                if test not in plain:
                    started = time.monotonic()
                    outcome, output = tree.run(test)
                    plain[test] = time.monotonic() - started
                    if outcome != "passed":
                        return f"{block.name}: {test} does not pass as it is\n{output[-2000:]}"
                    begun += plain[test]
                outcome, output = tree.mutated(block, m, test, TIMES * plain[test] + MORE_S)
                if outcome == "killed":
                    return f"{block.name}: {m.what}: {test} was killed; try again\n{output[-2000:]}"
                if outcome != "passed":
                    verdict, by = "void" if outcome == "void" else "caught", test
                    break
            seconds = time.monotonic() - begun
            known[key] = {"what": m.what, "kind": m.kind, "verdict": verdict, "by": by,
                          "hung": outcome == "hung", "seconds": round(seconds, 1)}
            say(f"{verdict:8s}  {seconds:5.0f} s  {block.name}: {m.what}")
            if verdict == "void":
                say(output[-2000:])
            found = {"commit": commit(), "seed": tree.seed, "sim": tree.sim, "mutants": known}
            path = RESULTS / f"{block.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    finally:
        trees.put(tree)
    return None


def tally(block: Block) -> Counter[str]:
    """How many mutants were "caught", "survived", are "void" or "unknown"."""
    known = kept(block)
    return Counter(known.get(block.key(m), {"verdict": "unknown"})["verdict"]
                   for m in block.mutants)


def table(blocks: list[Block]) -> str:
    """Caught / all of each block, by what breaks, in Markdown."""
    lines = [f"| block | {' | '.join(KINDS)} | caught / all | not tried |",
             "|---" * (len(KINDS) + 3) + "|"]
    columns = (*KINDS, "all")
    caught, count = Counter[str | None](), Counter[str | None]()

    def line(name: str, caught: Counter, count: Counter) -> str:
        return f"| {name} | " + " | ".join(f"{caught[c]} / {count[c]}" for c in columns) \
            + f" | {count[None] or ''} |"
    for block in blocks:
        known = kept(block)
        verdicts = [(m.kind, known.get(block.key(m), {}).get("verdict")) for m in block.mutants]
        ours: Counter[str | None] = Counter(
            c for kind, verdict in verdicts if verdict == "caught" for c in (kind, "all"))
        all_: Counter[str | None] = Counter(
            c for kind, _ in verdicts for c in (kind, "all"))
        all_[None] = sum(verdict is None for _, verdict in verdicts)
        lines.append(line(block.name, ours, all_))
        caught, count = caught + ours, count + all_
    return "\n".join([*lines, line("all", caught, count)]) + "\n"


def write_page(blocks: list[Block]) -> None:
    """Put the table into docs/testing.md, between its marks."""
    begin, end = "<!-- mutants: written by make mutate ARGS=--write -->\n", "<!-- mutants end -->\n"
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    write_atomic(PAGE, (before + begin + table(blocks) + end + after).encode())


def of(block: Block, name: str) -> bool:
    """Whether ``name`` is that of the block or of its folder."""
    return block.name == name or block.name.startswith(name.rstrip("/") + "/")


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("names", metavar="[BLOCK]...", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Only list the mutants.")
@click.option("--report", is_flag=True, help="Run nothing; report what is known.")
@click.option("--anew", is_flag=True, help="Try again what has not changed.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Blocks at a time.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the tests.")
@click.option("--sim", type=click.Choice(["icarus", "verilator"]), default=SIM, show_default=True,
              help="Simulator of the benches.")
@click.option("--json", "json_to", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write the results as one object.")
@click.option("--write", is_flag=True, help="Put the table of all blocks into docs/testing.md.")
def main(names, only_list, report, anew, jobs, seed, sim, json_to, write) -> None:
    blocks = load_blocks()
    for name in names:
        if not any(of(block, name) for block in blocks):
            raise click.UsageError(f"no block {name!r}: name one such as memory/axi, or a folder")
    chosen = [block for block in blocks if not names or any(of(block, name) for name in names)]
    if wrong := [line for block in chosen for line in faults(block)]:
        raise click.UsageError("\n".join(wrong))
    if only_list:
        for block in chosen:
            for m in block.mutants:
                click.echo(f"{block.name}: {m.kind}: {m.what}")
        return
    for block in chosen:            # now: a test that is changed meanwhile was not run
        for m in block.mutants:
            block.key(m)
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # leaves nothing behind either way
    failed: list[str] = []
    todo = [] if report else [b for b in chosen if anew or len(kept(b)) < len(b.mutants)]
    if todo:
        lock = threading.Lock()

        def say(line: str) -> None:
            with lock:
                click.echo(line)
        with tempfile.TemporaryDirectory(prefix="meadowlark-mutate-") as folder, \
                ThreadPoolExecutor(jobs) as pool:
            trees: queue.Queue[Tree] = queue.Queue()
            for k in range(min(jobs, len(todo))):
                trees.put(Tree(Path(folder) / str(k), seed, sim))
            try:
                failed = [why for why in pool.map(
                    lambda block: try_block(block, trees, anew, say), todo) if why]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(Tree.running):
                    stop(process)
                raise
    counts = {block.name: tally(block) for block in chosen}
    for name, count in counts.items():
        rest = ", ".join(f"{count[v]} {v}" for v in ("survived", "void", "unknown") if count[v])
        click.echo(f"{name:24s} {count['caught']:3d} / {count.total():3d}  {rest}".rstrip())
    total = sum(counts.values(), Counter())
    click.echo(f"{'all':24s} {total['caught']:3d} / {total.total():3d}")
    for why in failed:
        click.echo(why, err=True)
    if json_to:
        found = {"commit": commit(), "caught": total["caught"], "all": total.total(),
                 "blocks": {block.name: {"caught": counts[block.name]["caught"],
                                         "all": len(block.mutants),
                                         "mutants": list(kept(block).values())}
                            for block in chosen}}
        write_atomic(Path(json_to), (json.dumps(found, indent=1) + "\n").encode())
    if write:
        write_page(blocks)
    sys.exit(bool(failed) or total["caught"] < total.total())


if __name__ == "__main__":
    main()
