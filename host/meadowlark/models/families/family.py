"""What a family is: how files call its hyperparameters and tensors, and what it computes."""
from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from ..graph import Attend, Graph, Linear, Rope
from ..metadata import Metadata
from ..pictures import Pictures

#: Most layers, and most dimensions of a head: beyond any model.
MAX_LAYERS, MAX_HEAD_DIM = 1 << 10, 1 << 12
#: Ends of the names of weights here, and in files; all else is a "weight".
_ENDS = {"bias": "bias", "beta": "bias"}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(ABC):
    """Of a model: all that its graph depends on.

    layers: 1..MAX_LAYERS. vocab: rows of the embedding. context: most positions. tied: the head is
    the embedding.
    """
    layers: int
    vocab: int
    context: int
    tied: bool

    @abstractmethod
    def graph(self) -> Graph:
        """The model without its values. Weights are named "embedding", "head", "layers.3.q"."""

    def stored(self, graph: Graph) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the weights that files have, by name: the graph's, unless :meth:`made` makes
        some of those from others."""
        return graph.shapes

    def made(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The graph's weights from those that files have, which are no outline."""
        return weights

    def pictures(self, folder: Path) -> Pictures | None:
        """What an encoder of images is shown, from its folder; None: it is none."""
        return None


class Tensors(Protocol):
    """The tensors of a GGUF file, for a family that has to look which there are."""

    def has(self, name: str) -> bool:
        """There is one of this name."""
        ...

    def factors(self, name: str, count: int) -> np.ndarray | None:
        """float64[count] from a tensor that is no weight; None without it."""
        ...


class Family(ABC):
    """A family of models; a module of this package has one, and an object of it is one.

    name: model_type in config.json. classes: its architectures there. arch: in GGUF, None if
    llama.cpp has another for it. defaults: entries that config.json may lack, as transformers has
    them. neutral: entries that change nothing at this value, beside those that no family has.
    unused: entries that change nothing of the models that this family takes.
    names: weight -> tensor of transformers without its end, ``{}`` for the layer; weights with the
    same tensor are its rows, in the order of the graph. prefix: what all tensors begin with but
    those of the head; checkpoints made without a head leave it out. interleaved: in GGUF, rows of
    queries and keys that rotate together are neighbours.
    """
    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    arch: ClassVar[MODEL_ARCH | None] = None
    defaults: ClassVar[Mapping[str, object]] = {}
    neutral: ClassVar[Mapping[str, object]] = {}
    unused: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[Mapping[str, str]]
    prefix: ClassVar[str] = ""
    interleaved: ClassVar[bool] = False

    @abstractmethod
    def from_config(self, config: Metadata) -> Hyperparameters:
        """What config.json says. Raise :class:`meadowlark.errors.UserError` for what this family
        does not have."""

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Hyperparameters:
        """Likewise, of a GGUF file; of a family with an ``arch``."""
        raise NotImplementedError(f"GGUF files have no {self.name}")

    @property
    def gguf_name(self) -> str:
        """The architecture as GGUF files call it, and what their keys begin with."""
        assert self.arch is not None
        return MODEL_ARCH_NAMES[self.arch]

    def tensor(self, weight: str) -> str:
        """The name of a weight in checkpoints of transformers."""
        stem, end, layer = _split(weight)
        return f"{self.names[stem].format(layer)}.{end}"

    def stored(self, weight: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor there, from that which the graph has. weight: the first in it."""
        return shape

    def restored(self, weight: str, value: np.ndarray, graph: Graph) -> np.ndarray:
        """The values of a tensor there as the graph has them."""
        return value

    def gguf_tensor(self, weight: str) -> str:
        """The name of a weight in GGUF files."""
        stem, end, layer = _split(weight)
        assert self.arch is not None
        name = _gguf_names(self.arch).get_name(self.names[stem].format(0))
        if name is None and stem == "head":     # of an architecture whose head is the embedding
            name = "output"
        assert name is not None, f"the gguf package has no name for {weight}"
        return f"{name.replace('.0.', f'.{layer}.')}.{end}"

    def last(self, layers: int) -> str:
        """A weight of the last layer: with it, the number of layers makes sense."""
        return next(name for name in self.names if "{}" in name).format(layers - 1)

    def rotated(self, graph: Graph) -> dict[str, int]:
        """Weight or bias -> heads, of those whose rows have the order of a rotation in GGUF."""
        found: dict[str, int] = {}
        if not self.interleaved:
            return found
        for op in graph.of(Attend):
            for edge, heads in ((op.q, op.heads), (op.k, op.kv_heads)):
                made = graph.maker[edge]
                if isinstance(made, Rope):
                    made = graph.maker[made.x]
                assert isinstance(made, Linear)
                found |= {name: heads for name in made.weights}
        return found


@cache
def _gguf_names(arch: MODEL_ARCH) -> TensorNameMap:
    """Names of the tensors of layer 0, and of those outside of layers."""
    return get_tensor_name_map(arch, 1)


def _split(weight: str) -> tuple[str, str, str]:
    """layers.3.q.bias -> layers.{}.q, bias, 3."""
    stem, _, last = weight.rpartition(".")
    end = _ENDS.get(last)
    if end is None:
        stem, end = weight, "weight"
    layer = re.match(r"layers\.(\d+)\.", stem)
    return (stem, end, "") if layer is None else \
        (f"layers.{{}}.{stem[layer.end():]}", end, layer[1])


#: Takes a tensor by its name in the file, shape, and heads whose rows are interleaved (0: none);
#: gives its values and, where the file has it so, its blocks.
Take = Callable[..., tuple[np.ndarray, Any]]


def read_weights(graph: Graph, name: Callable[[str], str], take: Take,
                 rotated: Mapping[str, int] | None = None, family: Family | None = None,
                 shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[dict, dict]:
    """Weights of a graph, and blocks of those that have them.

    Parameters
    ----------
    graph : Graph
    name : callable
        Weight -> its tensor. Weights with the same are parts of its rows.
    take : callable
        ``take(tensor, *shape, heads=0) -> float32 array, BlockTensor or None``.
    rotated : mapping, optional
        See :meth:`Family.rotated`.
    family : Family, optional
        Whose tensors are as transformers stores them, see :meth:`Family.restored`.
    shapes : mapping, optional
        Of the weights, where they are not the graph's; see :meth:`Hyperparameters.stored`.
    """
    tensors: dict[str, list[str]] = {}
    shapes = graph.shapes if shapes is None else shapes
    for weight in shapes:
        tensors.setdefault(name(weight), []).append(weight)
    weights, blocks = {}, {}
    for tensor, parts in tensors.items():
        rows = [shapes[part][0] for part in parts]
        heads = (rotated or {}).get(parts[0], 0)
        shape = sum(rows), *shapes[parts[0]][1:]
        value, kept = take(tensor, *(family.stored(parts[0], shape) if family else shape),
                           heads=heads)
        if family and any(value.strides):
            value = family.restored(parts[0], value, graph)
        elif family:                    # an outline stays one
            value = np.broadcast_to(value.dtype.type(0), shape)
        at = 0
        for part, count in zip(parts, rows, strict=True):
            whole = count == len(value)
            weights[part] = value if whole else value[at:at + count]
            if kept is not None:
                blocks[part] = kept if whole else kept.slice(at, at + count)
            at += count
    return {w: weights[w] for w in shapes}, blocks
