"""A checkpoint in memory: a graph of operators, and float32 weights by name."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from ..text.chat import ChatTemplate
from ..text.tokenizer import Tokenizer
from .blocks import BlockTensor
from .graph import Embed, Graph, Head
from .pictures import Pictures

#: Name of the weight of a head that is not the embedding.
HEAD = "head"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A checkpoint in float32.

    family: its name, see :mod:`meadowlark.models.families`. graph: what is computed. weights: by
    the names of ``graph.shapes``, of those shapes; matrices are [rows (outputs), columns
    (inputs)]. blocks: the matrices that the file has in blocks of 32, as it has them. context:
    most positions the model was made for. bos_id: the token that stands before each text, None if
    the model takes texts without. stop_ids: at most 8. parameters: number of weights in the file,
    tied ones once. chat: None if the model came without a chat template. pictures: what an encoder
    of images is shown; its context is the tokens of one, its vocabulary the classes. warnings:
    sentences for people, on what was read in another way than the files say or not at all.
    """
    name: str
    family: str
    graph: Graph
    weights: Mapping[str, np.ndarray]
    context: int
    tokenizer: Tokenizer
    bos_id: int | None
    stop_ids: tuple[int, ...]
    parameters: int
    blocks: Mapping[str, BlockTensor] = field(default_factory=dict)
    chat: ChatTemplate | None = None
    pictures: Pictures | None = None
    warnings: tuple[str, ...] = ()

    @property
    def hidden(self) -> int:
        """Width of the residual."""
        return self.graph.hidden

    @property
    def vocab(self) -> int:
        """Tokens that it knows, or classes: rows of the head."""
        return self.graph.vocab

    @property
    def tied(self) -> bool:
        """The head is the embedding."""
        embed, head = (next(self.graph.of(kind)) for kind in (Embed, Head))
        return embed.weight == head.weight

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text in training, or None."""
        return self.stop_ids[0] if self.stop_ids else None

    def text_tokens(self, text: str) -> list[int]:
        """A whole text as it was in training: bos (if any), its ids, eos (if any).

        Raises
        ------
        UserError
            It has a token that the model has no row for; see :attr:`Tokenizer.base_size`.
        """
        ids = self.tokenizer.opened(text, self.bos_id)
        if self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids = [*ids, self.eos_id]
        if max(ids, default=0) >= self.vocab:
            raise UserError(f"{self.tokenizer.name} gives token {max(ids)} and the model knows "
                            f"{self.vocab}; leave the text with that token out.")
        return ids


def untied(model: Model) -> Model:
    """The model with a head of its own, by the name :data:`HEAD`, that is equal to the embedding;
    one whose head is its own already as it is."""
    if not model.tied:
        return model
    old = next(model.graph.of(Embed)).weight
    graph = Graph(
        tuple(replace(op, weight=HEAD) if isinstance(op, Head) else op
              for op in model.graph.operators),
        {**model.graph.shapes, HEAD: model.graph.shapes[old]}, model.graph.tables)
    blocks = {**model.blocks, HEAD: model.blocks[old]} if old in model.blocks else model.blocks
    return replace(model, graph=graph, blocks=blocks,
                   weights={**model.weights, HEAD: model.weights[old]})
