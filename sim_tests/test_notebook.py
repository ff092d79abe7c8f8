"""The notebooks of the documentation run, and still tell the stories that stand in them."""
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from notebook import run as run_notebook

ROOT = Path(__file__).resolve().parents[1]


def printed(book):
    """Of each cell what it wrote to stdout, and whether it drew."""
    return [("".join(out["text"] for out in cell.outputs if out.output_type == "stream"),
             any("image/png" in out.get("data", {}) for out in cell.outputs))
            for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("file", sorted((ROOT / "docs/notebooks").glob("*.ipynb")),
                         ids=lambda file: file.stem)
def test_notebook(file):
    stored = nbformat.read(file, as_version=4)
    assert not any("execution" in cell.metadata for cell in stored.cells), \
        "times of a run; write it with scripts/notebook.py"
    nbformat.validate(stored)
    assert printed(run_notebook(file)) == printed(stored), \
        f"{file.name} says something else; run scripts/notebook.py on it"
