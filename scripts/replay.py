#!/usr/bin/env python3
"""Have the netlists of the boards' cores changed since a base revision?

`make replay` after a step that should change nothing. Each board's core, flat and without names, is
compared with what the base revision's code makes of that revision's board. Logic may have moved to
another module, and signals may have other names. Registers that stay, their first values, and what
each of them becomes must be the same; see scripts/netgraph.py. Exit status: 0 if all are equal, 1
if one differs, 2 if nothing can be said.

Netlists are kept in build/replay, by what they were made from.
"""
from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from meadowlark_hdl.lib.collisions import relax
from meadowlark_hdl.lib.fanout import KEEP_APART
from netgraph import Comparison, Graph, build, compare

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "replay"
#: What of a revision the netlists are made from.
FOLDERS = ("hdl", "boards")
#: Netlists kept at most, each half a megabyte.
_MOST = 100

#: These two run with the code of the tree that they look at.
_LIST = """
import json
from meadowlark_boards import BOARDS
print(json.dumps({board.name: repr((board.config, board.technology.name))
                  for board in BOARDS.values()}))
"""
_ELABORATE = """
import sys
from amaranth.back import rtlil
from meadowlark_boards import get_board
from meadowlark_hdl.core import Core
board = get_board(sys.argv[1])
text = rtlil.convert(Core(board.config), name="top", platform=board.technology, emit_src=False)
open(sys.argv[2], "w").write(text)
"""
#: As synthesis begins, but nothing is recoded, and no name and no order chooses what becomes of it.
_YOSYS = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    libyosys.run_pass(f"tee -q {command}", design)
"""
_COMMANDS = ["proc -noopt -norom", "flatten -noscopeinfo", "opt_clean", "memory_collect",
             "opt_merge", "opt_clean", "select top"]


class Unknown(click.ClickException):
    """Nothing can be said."""
    exit_code = 2


def graph_of(rtlil: str) -> Graph:
    """What a design (RTLIL as Amaranth writes it, module ``top``) becomes."""
    with tempfile.TemporaryDirectory() as folder:
        text, netlist = Path(folder) / "top.il", Path(folder) / "top.json"
        text.write_text(relax(rtlil))
        _python(ROOT, _YOSYS, "read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v",
                f"read_rtlil {text}", KEEP_APART, "hierarchy -top top", *_COMMANDS,
                f"write_json -selected {netlist}")
        return build(json.loads(netlist.read_text())["modules"]["top"])


def _python(tree: Path, code: str, *arguments: object) -> str:
    """Run Python code in a process of its own that imports from a tree."""
    path = os.pathsep.join(str(tree / folder) for folder in FOLDERS)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], text=True,
                          env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                          stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise Unknown(f"{tree} makes no netlist:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


class Tree:
    """The code of a revision, or of the working tree, and the netlists that it makes."""

    def __init__(self, root: Path):
        self.root = root
        self.configs: dict[str, str] = json.loads(_python(root, _LIST))
        made_by = [Path(__file__), Path(__file__).with_name("netgraph.py"),
                   *sorted((root / "hdl").rglob("*.py"))]
        parts = [importlib.metadata.version(name).encode() for name in ("amaranth", "pyosys")]
        parts += [part for path in made_by for part in (path.name.encode(), path.read_bytes())]
        self._content = hashlib.sha256(b"\0".join(parts))

    def kept(self, board: str) -> Path:
        """Where the netlist of a board's core is or will be; cores with one Config are one."""
        key = self._content.copy()
        key.update(self.configs[board].encode())
        return KEPT / f"{key.hexdigest()[:20]}.npz"

    def netlist(self, board: str) -> Path:
        """The netlist of a board's core, made unless it is there."""
        path = self.kept(board)
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                text = Path(folder) / "top.il"
                _python(self.root, _ELABORATE, board, text)
                graph = graph_of(text.read_text())
            beside = path.with_suffix(f".{os.getpid()}")
            graph.save(beside)
            beside.replace(path)
        path.touch()
        return path


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise Unknown(done.stderr.decode().strip() or f"git {arguments[0]} failed")
    return done.stdout


def base_revision(named: str | None) -> str:
    """A commit: the one named, or where this branch left main."""
    if named is None:
        return git("merge-base", "HEAD", "main").decode().strip()
    try:
        return git("rev-parse", "--verify", f"{named}^{{commit}}").decode().strip()
    except Unknown:
        raise Unknown(f"git knows no revision {named!r}") from None


def differences(found: Comparison) -> list[str]:
    """A line a block: how many of its registers the other side does not have, and some names."""
    here, base = (Counter(name.partition(" ")[0] for name in names) for names in found.only)
    names: dict[str, list[str]] = {}
    for name in (*found.only[0], *found.only[1]):
        block, _, register = name.partition(" ")
        if register and register not in names.setdefault(block, []):
            names[block].append(register)
    lines = []
    for block in sorted(here | base, key=lambda block: (-max(here[block], base[block]), block)):
        some = names.get(block, [])
        lines.append(f"{block or 'ports'}: {here[block]} here, {base[block]} in the base"
                     + (f" ({', '.join(some[:4])}{', ...' if len(some) > 4 else ''})"
                        if some else ""))
    return lines


def report(board: str, found: Comparison, most: int = 12) -> str:
    if found.equal:
        return f"{board:<12} {found.digest}  equal"
    lines = differences(found)
    more = [f"and {len(lines) - most} more blocks"] if len(lines) > most else []
    return "\n    ".join([f"{board:<12} {found.digest}  differs", *lines[:most], *more])


def replay(boards: Sequence[str], base: str) -> bool:
    """Compare and print, board by board; are all equal?"""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", base, *FOLDERS))) as archive:
            archive.extractall(folder, filter="data")
        here, there = Tree(ROOT), Tree(Path(folder))
        for board in boards:
            if board not in here.configs:
                raise Unknown(f"no board named {board!r}; there are: {', '.join(here.configs)}")
        all_equal = True
        wanted = list(boards or here.configs | there.configs)
        # Once each: some boards have the same core, and most cores have not changed at all.
        jobs = {tree.kept(board): (tree, board) for tree in (there, here) for board in wanted
                if board in tree.configs}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            making = {path: pool.submit(tree.netlist, board)
                      for path, (tree, board) in jobs.items()}
            try:
                for board in wanted:
                    if board not in here.configs or board not in there.configs:
                        side = "here" if board in here.configs else "in the base"
                        print(f"{board:<12} only {side}", flush=True)
                        all_equal = False
                        continue
                    graphs = [Graph.load(making[tree.kept(board)].result())
                              for tree in (here, there)]
                    found = compare(*graphs)
                    print(report(board, found), flush=True)
                    all_equal &= found.equal
            finally:
                for job in making.values():
                    job.cancel()
    for old in sorted(KEPT.glob("*.npz"), key=lambda path: -path.stat().st_mtime)[_MOST:]:
        old.unlink()
    return all_equal


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--base", metavar="REVISION",
              help="Compare with this commit. The default is where the branch left main.")
@click.option("--board", "boards", multiple=True, metavar="BOARD",
              help="Compare this board's core only. May be given several times.")
def main(base: str | None, boards: tuple[str, ...]) -> None:
    if importlib.util.find_spec("pyosys") is None:
        raise Unknown("synthesis is not installed: run `make setup-synth`")
    revision = base_revision(base)
    subject = git("log", "-1", "--format=%h %s", revision).decode().strip()
    print(f"base: {subject}", flush=True)
    if not replay(boards, revision):
        sys.exit(1)


if __name__ == "__main__":
    main()
