#!/usr/bin/env python3
"""Run a notebook and keep what it gives.

    python scripts/notebook.py docs/notebooks/story.ipynb
"""
from __future__ import annotations

from pathlib import Path

import click
import nbformat
from meadowlark.files import write_atomic
from nbclient import NotebookClient
from nbformat import NotebookNode

#: Seconds that a cell may take: the first simulation is compiled.
LIMIT_S = 900


def run(file: Path) -> NotebookNode:
    """A notebook with the outputs of a new run, without its times. Raises what a cell raises, as
    nbclient.exceptions.CellExecutionError."""
    book = nbformat.read(file, as_version=4)
    NotebookClient(book, timeout=LIMIT_S, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(file.parent)}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    return book


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    write_atomic(file, (nbformat.writes(run(file)) + "\n").encode())


if __name__ == "__main__":
    main()
