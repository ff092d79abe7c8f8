"""Models of which nobody needs the weights: from what config.json says, or built by hand."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..text.tokenizer import Tokenizer
from .checkpoint import Model
from .families import families
from .graph import Graph
from .metadata import Metadata


def outline_of(config: Mapping[str, object], name: str) -> Model:
    """A model without values and without a tokenizer, of what config.json would have.

    Raises
    ------
    UserError
        An entry is missing, or is one that the family does not have.
    KeyError
        There is no such ``model_type``.
    """
    family = families()[str(config["model_type"])]
    made = family.from_config(Metadata(Path(name), {**family.defaults, **config}))
    return of_graph(made.graph(), name, family.name, made.context)


def of_graph(graph: Graph, name: str, family: str, context: int) -> Model:
    """The model of a graph, without values."""
    return Model(
        name=name, family=family, graph=graph, context=context, bos_id=None, stop_ids=(),
        weights={weight: np.broadcast_to(np.float32(0), shape)
                 for weight, shape in graph.shapes.items()},
        tokenizer=Tokenizer(b"", name),
        parameters=sum(int(np.prod(shape)) for shape in graph.shapes.values()))
