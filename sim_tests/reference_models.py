"""The models of sim_tests/reference: checkpoints, and what transformers computes from them."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from meadowlark.models.registry import PACKAGED

REFERENCE = Path(__file__).parent / "reference"
EXAMPLES = Path(__file__).parents[1] / "models"
#: With random weights and no tokenizer.
RANDOM = tuple(sorted(path.name for path in REFERENCE.iterdir()
                      if path.is_dir() and not path.name.startswith("stories-")))
#: Trained, with the tokenizer of the packaged model.
TRAINED = tuple(sorted(path.name for path in REFERENCE.glob("stories-*")))


def reference_model(name: str, folder: Path) -> Path:
    """The folder of a model; a trained one that is no example is put into the given one, with its
    tokenizer."""
    found = REFERENCE / name
    if name in RANDOM:
        return found
    if (EXAMPLES / name).is_dir():
        return EXAMPLES / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (found / "config.json", found / "model.safetensors",
                 PACKAGED["stories"] / "tokenizer.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def reference(name: str) -> dict[str, np.ndarray]:
    """What reference.npz has."""
    with np.load(REFERENCE / name / "reference.npz") as file:
        return dict(file)
