"""A checkpoint in memory: the dimensions and float32 weights of a Llama-type model."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from ..text.chat import ChatTemplate
from ..text.tokenizer import Tokenizer
from .blocks import BlockTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Float32 weights of a layer; matrices are [rows (outputs), columns (inputs)].

    norm1, norm2: [hidden]. q: [heads*head_dim, hidden]. k, v: [kv_heads*head_dim, hidden].
    o: [hidden, heads*head_dim]. gate, up: [ffn, hidden]. down: [hidden, ffn]. The biases have one
    value a row, or are None. Rotated rows are in the order of the checkpoint (half-split). blocks:
    those of the matrices, by field, that the file has in blocks of 32, as it has them.
    """
    norm1: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray
    norm2: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    q_bias: np.ndarray | None = None
    k_bias: np.ndarray | None = None
    v_bias: np.ndarray | None = None
    o_bias: np.ndarray | None = None
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    blocks: Mapping[str, BlockTensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A checkpoint in float32.

    embedding, head: [vocab, hidden] (the same array when tied). final_norm: [hidden]. context:
    most positions the model was made for. bos_id: the token that stands before each text, None if
    the model takes texts without. eos_id: the first stop id, or None. stop_ids: at most 8.
    parameters: number of weights in the file, tied ones once.
    blocks: "embedding" and "head" as in :class:`Layer` (the same object when tied). chat: None if
    the model came without a chat template. warnings: sentences for people, on what was read in
    another way than the files say or not at all.
    """
    name: str
    hidden: int
    layers: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope_theta: float
    embedding: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    tied: bool
    tokenizer: Tokenizer
    bos_id: int | None
    stop_ids: tuple[int, ...]
    parameters: int
    blocks: Mapping[str, BlockTensor] = field(default_factory=dict)
    chat: ChatTemplate | None = None
    warnings: tuple[str, ...] = ()

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
