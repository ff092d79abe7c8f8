#!/usr/bin/env python3
"""Write a checkpoint with random weights, for speed and bit-exactness of a model that is not there.

SHAPE is a file like config.json of a Hugging Face folder, or a family of docs/families.json, whose
public model it then is. The folder has no tokenizer: prompts are ids, as of `meadowlark generate
--ids 5,7,9` and `meadowlark bench`. Fidelity is not to be measured with it.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from meadowlark.files import write_atomic
from meadowlark.models.families import families
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim_tests"))
from random_model import of_graph

PUBLIC = Path(__file__).resolve().parents[1] / "docs" / "families.json"
#: What says how many layers there are.
LAYERS = ("num_hidden_layers", "num_layers", "n_layer")


def config_of(shape: str) -> dict[str, Any]:
    """Entries of config.json."""
    public = json.loads(PUBLIC.read_text())["public"]
    if shape in public:
        return {"model_type": shape, **public[shape]["config"]}
    try:
        found = json.loads(Path(shape).read_text())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{shape} is no family of docs/families.json ({', '.join(public)}) "
                               f"and no JSON file: {error}") from None
    if not isinstance(found, dict) or found.get("model_type") not in families():
        raise click.UsageError(f"{shape} has no model_type that is run")
    return found


@click.command()
@click.argument("shape")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="Folder; files in it are replaced.")
@click.option("--layers", type=click.IntRange(min=1), help="So many, not all.")
@click.option("--seed", default=1, show_default=True)
def main(shape: str, output: Path, layers: int | None, seed: int) -> None:
    """Write a checkpoint with random weights in the shape of SHAPE."""
    config = config_of(shape)
    for key in LAYERS:
        if layers is not None and key in config:
            config[key] = layers
    family = families()[config["model_type"]]
    config.setdefault("architectures", list(family.classes[:1]))
    tensors = of_graph(seed, family, config)
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "model.safetensors", save(tensors))
    write_atomic(output / "config.json", json.dumps(config, indent=1).encode())
    click.echo(f"{output}: {sum(t.size for t in tensors.values()):,} weights")


if __name__ == "__main__":
    main()
