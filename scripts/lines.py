#!/usr/bin/env python3
"""Count the lines of the gateware, and name its largest modules and methods.

Counted are lines of code: without docstrings, comments and empty lines. A method includes the
functions within it. ``--write`` puts the table into docs/architecture.md.
"""
from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from meadowlark.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
HDL = ROOT / "hdl" / "meadowlark_hdl"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- lines: written by scripts/lines.py --write -->\n", "<!-- lines end -->\n"
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENDMARKER}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Count(NamedTuple):
    """Lines of code of a module, or of a method (``link/uart.py Uart.elaborate``)."""
    name: str
    lines: int


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that have code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)) \
                and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(_span(node.body[0]))
    return lines


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, _FUNCTIONS):
            yield prefix + child.name, child


def count(text: str, name: str) -> tuple[Count, list[Count]]:
    """A module, and its functions and methods."""
    tree = ast.parse(text)
    lines = code_lines(text, tree)
    return Count(name, len(lines)), [Count(f"{name} {method}", len(lines.intersection(_span(node))))
                                     for method, node in _functions(tree)]


def counts() -> dict[str, tuple[Count, list[Count]]]:
    """Of all modules of hdl/, by path within the package."""
    return {name: count(path.read_text(), name) for path in sorted(HDL.rglob("*.py"))
            for name in [str(path.relative_to(HDL))]}


def table() -> str:
    """The largest of each folder, in Markdown."""
    folders: dict[str, list[tuple[Count, list[Count]]]] = {}
    for name, found in counts().items():
        folders.setdefault(name.partition("/")[0] if "/" in name else "", []).append(found)
    head = ("folder", "lines", "of golden models", "largest module", "lines", "largest method",
            "lines")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]

    def row(name: str, found: list[tuple[Count, list[Count]]]) -> str:
        module = max((module for module, _ in found), key=lambda c: c.lines)
        method = max((method for _, methods in found for method in methods), key=lambda c: c.lines,
                     default=Count("", 0))
        where = method.name.rpartition(" ")[2]
        golden = sum(m.lines for m, _ in found if m.name.endswith("_golden.py"))
        return f"| {name} | {sum(m.lines for m, _ in found):,} | {golden:,} | `{module.name}` " \
               f"| {module.lines} | `{where}` | {method.lines} |"
    rows += [row(f"`{name}/`" if name else "top", found) for name, found in sorted(folders.items())]
    rows.append(row("all", [one for found in folders.values() for one in found]))
    return "\n".join(rows) + "\n"


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--write", is_flag=True, help="Put the table into docs/architecture.md.")
def main(write: bool) -> None:
    if not write:
        click.echo(table(), nl=False)
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomic(PAGE, (before + BEGIN + table() + END + after).encode())


if __name__ == "__main__":
    main()
