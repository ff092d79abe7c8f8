#!/usr/bin/env python3
"""Run the checks that take too long for every change, one part after the other.

A part takes less than two hours on two cores. Its result is build/long/PART.json with the commit
that was tried; its output is beside it. A part that passed at this commit is not run again, so an
interrupted run goes on where it was.
"""
from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
from meadowlark.files import write_atomic
from meadowlark_boards import BOARDS
from mutate import commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "long"
#: Seconds after which a part has failed.
LIMIT_S = 7200
PYTEST = "-m pytest -q -p no:cacheprovider"


@dataclass(frozen=True)
class Part:
    """``command``: arguments of Python. environment: set for it."""
    name: str
    command: str
    environment: tuple[tuple[str, str], ...] = ()


PARTS = [
    *(Part(f"mutants-{path.stem}", f"scripts/mutate.py --jobs 2 {path.stem}")
      for path in sorted((ROOT / "sim_tests" / "mutants").iterdir())),
    Part("fuzz", f"{PYTEST} -k mutated sim_tests", (("FUZZ", "10000"),)),
    Part("attention", f"{PYTEST} sim_tests/test_attention.py", (("SHAPES", "1000"),)),
    Part("same-text", f"{PYTEST} sim_tests/test_same_text.py", (("TOKENS", "2000"),)),
    Part("seeds", f"{PYTEST} -n 2 sim_tests -k 'not verilator and not icarus and not chip and "
         "not simboard and not pins and not link and not cycles'",
         (("SEEDS", "20"),)),
    Part("server", f"{PYTEST} sim_tests/test_serve.py -k 'load or hostile'",
         (("LOAD", "200"), ("HOSTILE", "5000"))),
    Part("eight", f"{PYTEST} sim_tests/test_eight.py", (("EIGHT", "32"),)),
    Part("shapes", f"{PYTEST} sim_tests/shapes_check.py"),
    Part("cycles", f"{PYTEST} -s sim_tests/cycles_check.py"),
    Part("choices", f"{PYTEST} -s sim_tests/choices_check.py"),
    Part("link-faults", "scripts/link_faults.py"),
    Part("prove", "scripts/prove.py"),
    Part("netlist", f"{PYTEST} sim_tests/netlist_check.py"),
    Part("sdram-stream", "scripts/sdram_stream.py"),
    Part("sdram-crossing", "scripts/sdram_stream.py --clock 133.3333 " + " ".join(
        f"--core {mhz}" for mhz in (60, 66.7, 80, 88.9, 100, 120))),
    *(Part(f"bitstream-{board.name}",
           f"-m meadowlark.cli build --board {board.name} --clock recorded")
      for board in BOARDS.values() if board.chip.platform),
]


def passed(part: Part, at: str) -> bool:
    """Whether the part is known to pass at this commit; with changes beside it nothing is known."""
    try:
        known = json.loads((RESULTS / f"{part.name}.json").read_text())
    except (OSError, ValueError):
        return False
    return known.get("passed") is True and known.get("commit") == at and not at.endswith("+")


def run(part: Part, at: str) -> bool:
    """Run a part and store its result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    begun, status = time.monotonic(), None
    with open(RESULTS / f"{part.name}.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *shlex.split(part.command)], cwd=ROOT, text=True, stdout=log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | dict(part.environment))
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    found = {"part": part.name, "commit": at, "passed": status == 0, "status": status,
             "seconds": round(time.monotonic() - begun), "command": part.command,
             "environment": dict(part.environment)}
    write_atomic(RESULTS / f"{part.name}.json", (json.dumps(found, indent=1) + "\n").encode())
    return status == 0


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("names", metavar="[PART]...", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Only list the parts.")
@click.option("--anew", is_flag=True, help="Run again what passed at this commit.")
def main(names: tuple[str, ...], only_list: bool, anew: bool) -> None:
    chosen = [part for part in PARTS if not names or any(part.name.startswith(n) for n in names)]
    if not chosen:
        raise click.UsageError(f"no part begins with {' or '.join(names)}: --list lists them")
    if only_list:
        for part in chosen:
            click.echo(part.name)
        return
    at, failed = commit(), 0
    for part in chosen:
        if not anew and passed(part, at):
            click.echo(f"{part.name}: passed before")
            continue
        fine = run(part, at)
        failed += not fine
        log = RESULTS / f"{part.name}.log"
        lines = log.read_text(errors="replace").splitlines()
        click.echo(f"{part.name}: {'passed' if fine else f'FAILED, see {log}'}: "
                   f"{lines[-1] if lines else ''}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
