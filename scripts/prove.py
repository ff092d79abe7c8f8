#!/usr/bin/env python3
"""Prove what tests can only sample: that no input whatever breaks a block's promises.

The claims are in sim_tests/proofs.py. Yosys makes a circuit of gates of each, ABC proves them: for
all time by property directed reachability, or for so many cycles after power-up by bounded model
checking. ``make prove``.
"""
from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from amaranth.back import rtlil
from meadowlark.chip.ecp5 import check_tools
from meadowlark.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim_tests"))
from proofs import PROOFS, Proof

_GATES = """
from pyosys import libyosys
design = libyosys.Design()
for command in ("read_rtlil proof.il", "prep -flatten -top top", "memory_map", "formalff -clk2ff",
                "async2sync", "chformal -lower", "opt_clean", "setundef -anyseq",
                "opt -keepdc -fast", "delete -output", "techmap", "abc -g AND", "opt_clean",
                "write_aiger -I -B -zinit -no-startoffset proof.aig"):
    libyosys.run_pass(command, design)
"""


def prove(proof: Proof, seconds: int, cycles: int | None = None) -> tuple[bool, str]:
    """Whether the claims hold, and in words for how long or when they do not."""
    package = importlib.util.find_spec("pyosys")
    assert package and package.origin           # check_tools has been here
    abc = Path(package.origin).parent / "yosys-abc"
    claims = proof.claims()
    bound = proof.bounded and (cycles or proof.bounded)
    with tempfile.TemporaryDirectory() as folder:
        text = rtlil.convert(claims, name="top", ports=[claims.clk, *claims.inputs], emit_src=False)
        (Path(folder) / "proof.il").write_text(text)

        def run(*command: str) -> str:
            return subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT).stdout
        said = run(sys.executable, "-c", _GATES)
        if not (Path(folder) / "proof.aig").exists():
            return False, f"no circuit came of it:\n{said[-2000:]}"
        how = f"bmc3 -F {bound} -T {seconds}" if bound else f"pdr -T {seconds}"
        said = run(str(abc), "-c", f"read_aiger proof.aig; fold; strash; {how}")
    for line in said.splitlines():
        if "was asserted in frame" in line:
            return False, f"a claim is broken in cycle {line.partition('frame')[2].split()[0]}"
        if "Property proved" in line:
            return True, "for all time"
        if bound and "No output asserted in" in line:
            done = int(line.partition("asserted in")[2].split()[0])
            return done >= bound, f"for {done} cycles after power-up"
    return False, f"not decided in {seconds} s:\n{said[-500:]}"


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("names", nargs=-1, type=click.Choice(list(PROOFS)))
@click.option("--cycles", type=click.IntRange(1), metavar="N",
              help="Cycles that a bounded proof looks at.")
@click.option("--seconds", default=900, show_default=True, type=click.IntRange(1), metavar="S",
              help="Give up after so long.")
def main(names: tuple[str, ...], cycles: int | None, seconds: int) -> None:
    try:
        check_tools()
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    failed = False
    for name in names or PROOFS:
        begun = time.monotonic()
        holds, how = prove(PROOFS[name], seconds, cycles)
        failed |= not holds
        click.echo(f"{name}: {'holds' if holds else 'FAILS:'} {how}, "
                   f"{time.monotonic() - begun:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
