"""A checkpoint of llama2.c (``stories15M.bin`` and the like) -> :class:`.checkpoint.Model`.

It has seven numbers and float32 weights, in one order without a magic number or in another with
one, and a vocabulary of SentencePiece in a file of its own.
"""
from __future__ import annotations

import re
import struct
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import TokenType

from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .checkpoint import Model
from .families.decoder import Decoder
from .gguf_tokenizer import build_tokenizer, read_vocabulary
from .graph import Rates, rates
from .metadata import Metadata

#: How files with a version begin; they are followed by that version.
MAGIC = b"24ka"
#: Bytes before the weights, by version.
_HEADER = {0: 28, 1: 256}
#: The order of the weights, by version; of each, those of all layers come together.
_ORDER = {
    0: ("embedding", "norm1", "q", "k", "v", "o", "norm2", "gate", "down", "up", "final_norm",
        "angles", "head"),
    1: ("norm1", "norm2", "final_norm", "embedding", "q", "k", "v", "o", "gate", "down", "up",
        "head")}
#: Most layers, and most of each other number: beyond these a file is something else.
MAX_LAYERS, MAX_NUMBER = 1 << 10, 1 << 24
#: The ids that every vocabulary of llama2.c has. Its stories are told from bos to bos.
UNKNOWN, BOS, EOS, BYTES = 0, 1, 2, range(3, 259)


def _numbers(start: bytes) -> tuple[int, tuple[int, ...]] | None:
    """Version, and hidden, ffn, layers, heads, kv_heads, vocab and context; None if it is no file
    of llama2.c. Of version 0, a vocab below 0 says that the head is not tied."""
    version, at = 0, 0
    if start[:4] == MAGIC and len(start) >= 36:
        version, at = *struct.unpack_from("<i", start, 4), 8
    if len(start) < at + 28:
        return None
    numbers = hidden, _, layers, heads, kv_heads, vocab, _ = struct.unpack_from("<7i", start, at)
    sound = all(1 <= n <= MAX_NUMBER for n in (*numbers[:5], abs(vocab), numbers[6])) and \
        layers <= MAX_LAYERS and hidden % heads == 0 and heads % kv_heads == 0
    return (version, numbers) if sound else None


def is_llama2c(start: bytes) -> bool:
    """A file that begins so (with 64 bytes) is a checkpoint of llama2.c.

    Without a magic number, its seven numbers have to make sense together.
    """
    return start[:4] == MAGIC or _numbers(start) is not None


def vocabularies(path: Path) -> list[Path]:
    """Files beside a checkpoint of llama2.c that may be its vocabulary; beside another file, none.
    """
    try:
        with path.open("rb") as file:
            return sorted(path.parent.glob("tok*.bin")) if is_llama2c(file.read(64)) else []
    except OSError:
        return []


def load_llama2c(path: str | Path, *, outline: bool = False) -> Model:
    """Read a model.

    Parameters
    ----------
    path : str or Path
        A checkpoint in float32, without a version or of version 1. Beside it is its vocabulary:
        ``tok512.bin`` where the model knows 512 tokens, or ``tokenizer.bin``.
    outline : bool
        See :func:`meadowlark.models.registry.load_model`.

    Raises
    ------
    UserError
        Anything missing, damaged, contradictory or not supported, by name.
    """
    path = Path(path)
    again = "get it again from where it came from"
    try:
        with path.open("rb") as file:
            start, size = file.read(256), file.seek(0, 2)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the file.") from e
    found = _numbers(start)
    if found is None:
        raise UserError(f"{path} has a header of llama2.c that makes no sense; {again}.")
    version, (hidden, ffn, layers, heads, kv_heads, vocab, context) = found
    if version not in _ORDER:
        raise UserError(f"{path} is a checkpoint of llama2.c in version {version} and only float32 "
                        "is supported; write it with `export.py --version 1`.")
    tied = vocab > 0 if version == 0 else len(start) > 36 and start[36] != 0
    vocab, head_dim = abs(vocab), hidden // heads
    if head_dim % 2:
        raise UserError(f"{path}: heads of {head_dim} dimensions have no pairs for RoPE; {again}.")
    narrow = kv_heads * head_dim
    shapes = {
        "embedding": (vocab, hidden), "head": (vocab, hidden), "final_norm": (hidden,),
        "norm1": (layers, hidden), "norm2": (layers, hidden), "angles": (context, head_dim),
        "q": (layers, hidden, hidden), "k": (layers, narrow, hidden),
        "v": (layers, narrow, hidden), "o": (layers, hidden, hidden),
        "gate": (layers, ffn, hidden), "up": (layers, ffn, hidden), "down": (layers, hidden, ffn)}
    order = [name for name in _ORDER[version] if not (tied and name == "head")]
    wanted = _HEADER[version] + 4 * sum(prod(shapes[name]) for name in order)
    if size != wanted:
        raise UserError(f"{path} has {size:,} bytes where its header implies {wanted:,}; {again}.")
    tokenizer = _read_tokenizer(path.parent, vocab)

    values, at = {}, _HEADER[version]
    for name in order:
        shape = shapes[name]
        values[name] = np.broadcast_to(np.float32(0), shape) if outline else \
            np.fromfile(path, "<f4", prod(shape), offset=at).reshape(shape)
        at += 4 * prod(shape)
        if not outline and not np.isfinite(values[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite; {again}.")
    parameters = sum(v.size for name, v in values.items() if name != "angles")
    for name in "qk":       # rotated rows are neighbours, as in GGUF
        rows = values[name].reshape(layers, -1, head_dim // 2, 2, hidden).swapaxes(2, 3)
        values[name] = rows.reshape(shapes[name])
    graph = Decoder(
        hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers, ffn=ffn,
        vocab=vocab, context=context, eps=1e-5, rope=Rates(rates(head_dim // 2, 10000.0)),
        tied=tied).graph()

    def weight(name: str) -> np.ndarray:
        layer, _, part = name.removeprefix("layers.").partition(".")
        return values[part][int(layer)] if part else values[name]
    return Model(
        name=path.stem, family="llama", graph=graph, context=context, tokenizer=tokenizer,
        weights={name: weight(name) for name in graph.shapes}, bos_id=BOS, stop_ids=(BOS, EOS),
        parameters=parameters)


def _read_tokenizer(folder: Path, vocab: int) -> Tokenizer:
    """The vocabulary beside a checkpoint: the length of the longest token, then for each its score,
    its length in bytes and its text."""
    names = (f"tok{vocab}.bin", "tokenizer.bin")
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has neither {' nor '.join(names)}; put the tokenizer of the "
                        "checkpoint beside it.")
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the file.") from e
    again = "put the one that belongs to the checkpoint there"
    tokens, scores, at = [], [], 4
    for i in range(vocab):
        if at + 8 > len(raw):
            raise UserError(f"{path} has {i:,} tokens and the checkpoint {vocab:,}; {again}.")
        score, length = struct.unpack_from("<fi", raw, at)
        at += 8 + length
        if length < 0 or at > len(raw):
            raise UserError(f"{path} is no tokenizer of llama2.c: token {i:,} has {length:,} bytes;"
                            f" {again}.")
        try:
            text = raw[at - length:at].decode()
        except UnicodeDecodeError:
            raise UserError(f"{path} is no tokenizer of llama2.c: token {i:,} is not UTF-8; "
                            f"{again}.") from None
        # Spaces stand for the mark of SentencePiece; <s> and </s> are on lines of their own.
        tokens.append(text.strip("\n") if i in (BOS, EOS) else text.replace(" ", "▁"))
        scores.append(score)
    if at != len(raw):
        raise UserError(f"{path} has more tokens than the checkpoint, {vocab:,}; {again}.")
    kinds = np.full(vocab, TokenType.NORMAL)
    kinds[[UNKNOWN]], kinds[[BOS, EOS]] = TokenType.UNKNOWN, TokenType.CONTROL
    kinds[[i for i in BYTES if i < vocab and re.fullmatch("<0x[0-9A-F]{2}>", tokens[i])]] = \
        TokenType.BYTE
    meta = Metadata(path, {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.scores": np.array(scores),
        "tokenizer.ggml.bos_token_id": BOS, "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.unknown_token_id": UNKNOWN})
    return build_tokenizer(meta, read_vocabulary(meta))
