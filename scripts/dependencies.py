#!/usr/bin/env python3
"""What `pip install meadowlark` brings, why, and how large it is: the table in docs/releasing.md.

Sizes are those of what is installed here; with --write they are recorded. The rest is checked by
sim_tests/test_dependencies.py.
"""
from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import click
from meadowlark.files import write_atomic
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "releasing.md"
_TABLE = re.compile(r"(<!-- dependencies: [^>]*-->\n).*?(<!-- end -->)", re.S)


def reasons() -> dict[str, str]:
    """Name -> why it is needed, as pyproject.toml says behind each dependency."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)
    assert block is not None
    return {canonicalize_name(Requirement(one[1]).name): one[2] for one in re.finditer(
        r'^ *"([^"]+)", *# (.*)$', block[1], re.M)}


def needed() -> dict[str, set[str]]:
    """Distribution -> those that ask for it, from ours on, on this platform."""
    found: dict[str, set[str]] = {name: {"meadowlark"} for name in reasons()}
    left: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in found]
    seen = set()
    while left:
        at = left.pop()
        if at in seen:
            continue
        seen.add(at)
        for line in importlib.metadata.requires(at[0]) or ():
            wanted = Requirement(line)
            if wanted.marker is None or any(
                    wanted.marker.evaluate({"extra": extra}) for extra in (*at[1], "")):
                other = canonicalize_name(wanted.name)
                found.setdefault(other, set()).add(at[0])
                left.append((other, frozenset(wanted.extras)))
    return found


def size(name: str) -> int:
    """Bytes of what is installed of a distribution, without what Python compiles."""
    files = importlib.metadata.files(name) or ()
    return sum(Path(str(file.locate())).stat().st_size for file in files
               if "__pycache__" not in file.parts and Path(str(file.locate())).exists())


def table() -> str:
    """In Markdown: direct ones with their reasons, then what those bring."""
    why, found = reasons(), needed()
    rows, total = [], 0
    for name in (*why, *sorted(found.keys() - why.keys())):
        total += (own := size(name))
        reason = why.get(name) or "asked for by " + ", ".join(sorted(found[name]))
        rows.append(f"| {name} {importlib.metadata.version(name)} | {own / 1e6:.1f} | {reason} |\n")
    return (f"\n| CPython {platform.python_version()}, {sys.platform}, {platform.machine()} | MB | "
            f"why |\n|---|---:|---|\n{''.join(rows)}| all | {total / 1e6:.1f} | |\n\n")


@click.command()
@click.option("--write", is_flag=True, help="Write the table into docs/releasing.md.")
def main(write: bool) -> None:
    """Print the table of dependencies."""
    text = table()
    if write:
        page = PAGE.read_text()
        write_atomic(PAGE, _TABLE.sub(lambda old: old[1] + text + old[2], page).encode())
    else:
        click.echo(text.strip())


if __name__ == "__main__":
    main()
