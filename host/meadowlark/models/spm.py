"""A folder's ``tokenizer.model``, SentencePiece's own file, for folders without a tokenizer.json.

It is a message of Protocol Buffers, of SentencePiece's ``sentencepiece_model.proto``. What it says
is put under the names that GGUF files have for the same, and the tokenizer is made as theirs is.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .gguf_tokenizer import build_tokenizer, read_vocabulary
from .metadata import Metadata

#: TrainerSpec.model_type -> what GGUF files call it.
_KINDS = {1: "t5", 2: "llama"}
#: Numbers of fields in the proto: of the file, of a piece, of TrainerSpec and of NormalizerSpec.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _UNKNOWN, _BOS, _EOS = 3, 40, 41, 42
_CHARSMAP, _PREFIX, _EXTRA_SPACES = 2, 3, 4


def read_spm(path: Path) -> Tokenizer:
    """The tokenizer in a file: of type unigram (arXiv:1804.10959) or BPE.

    Raises
    ------
    UserError
        It cannot be read, is damaged, or of another type.
    """
    try:
        meta = Metadata(path, _values(path.read_bytes()))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the file") from e
    except (ValueError, TypeError, LookupError, AttributeError, struct.error) as e:
        raise UserError(f"{path} is damaged, or no model of SentencePiece; get the file again"
                        ) from e
    if not meta.has("tokenizer.ggml.model"):
        raise meta.refuse("its type of tokenizer is not supported",
                          "use a model whose tokenizer is of type unigram or BPE")
    return build_tokenizer(meta, read_vocabulary(meta))


def _values(raw: bytes) -> dict[str, Any]:
    """What a file says, by the keys of GGUF."""
    pieces: list[dict[int, Any]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(raw):
        if number == _PIECE:
            pieces.append(dict(_fields(value)))
        elif number == _TRAINER:
            trainer = dict(_fields(value))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    kind = _KINDS.get(trainer.get(_MODEL_TYPE, 1))
    found = {
        "model": kind, "tokens": [piece[_TEXT].decode() for piece in pieces],
        "scores": np.array([float(piece.get(_SCORE, 0)) for piece in pieces]),
        "token_type": np.array([int(piece.get(_TYPE, 1)) for piece in pieces]),
        "add_space_prefix": bool(normalizer.get(_PREFIX, 1)),
        "remove_extra_whitespaces": bool(normalizer.get(_EXTRA_SPACES, 1)),
        "precompiled_charsmap": np.frombuffer(normalizer.get(_CHARSMAP, b""), np.uint8)}
    for name, number, default in (("unknown", _UNKNOWN, 0), ("bos", _BOS, 1), ("eos", _EOS, 2)):
        if 0 <= trainer.get(number, default) < len(pieces):     # -1 stands for none
            found[f"{name}_token_id"] = trainer.get(number, default)
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message, by number: an integer, a float or bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        match key & 7:
            case 0:
                value, at = _varint(raw, at)
                value -= (value >> 63) << 64
            case 1:
                (value,), at = struct.unpack_from("<d", raw, at), at + 8
            case 2:
                size, at = _varint(raw, at)
                value, at = raw[at:at + size], at + size
            case 5:
                (value,), at = struct.unpack_from("<f", raw, at), at + 4
            case kind:
                raise ValueError(f"a field of kind {kind}")
        if at > len(raw):
            raise ValueError("a field that goes on behind the end")
        yield key >> 3, value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, and where it ends."""
    value = shift = 0
    while True:
        value |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
