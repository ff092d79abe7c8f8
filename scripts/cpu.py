#!/usr/bin/env python3
"""What a thread of this computer does with the same models, by llama.cpp: docs/when-not.md.

    python -m venv build/judge && build/judge/bin/pip install xllamacpp
    python scripts/cpu.py --judge build/judge/bin/python

llama.cpp is an outside judge: it stays in an environment of its own. It gets the packaged model as
GGUF, and SmolLM2 where `make setup-smollm2` has put it. Times are of the processor, so that others
may use it too.
"""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from meadowlark.errors import UserError
from meadowlark.models.registry import find_model
from meadowlark.run.bench import markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim_tests"))
from gguf_files import write_gguf

ROOT = Path(__file__).resolve().parents[1]
FORMATS = "Q8_0", "Q4_1"


def processor() -> str:
    """Its name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines
                 if line.startswith("model name")), "unknown")


def files() -> list[tuple[str, str, Path]]:
    """(model, format, file) of all that are there."""
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    found = [("stories", kind, write_gguf(folder / f"stories-{kind}.gguf", find_model("stories"),
                                          kind=kind)) for kind in FORMATS]
    try:
        found.append(("smollm2", "Q4_1 and Q8_0", find_model("smollm2")))
    except UserError as absent:
        click.echo(absent, err=True)
    return found


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--judge", required=True, type=click.Path(exists=True, dir_okay=False),
              help="Python of an environment that has xllamacpp.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(min=1),
              help="The best of so many counts.")
@click.option("-p", "--prompt", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("-n", "--generate", default=32, show_default=True, type=click.IntRange(min=1))
def main(judge: str, runs: int, prompt: int, generate: int) -> None:
    rows = [("model", "format", "MB", f"tg{generate}, tokens/s",
             f"pp{prompt}, tokens/s")]
    version = ""
    for model, kind, file in files():
        done = subprocess.run([judge, ROOT / "scripts/cpu_bench.py", file, str(prompt),
                               str(generate), str(runs)], text=True, capture_output=True)
        if done.returncode:
            raise click.ClickException(f"{judge} failed: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        version = found["version"]
        rows.append((model, kind, f"{file.stat().st_size / 1e6:.1f}",
                     f"{found['generate']:,.0f}", f"{found['prompt']:,.0f}"))
    click.echo(markdown(rows, left={0, 1}))
    click.echo(f"\n{processor()}; xllamacpp {version}")


if __name__ == "__main__":
    main()
