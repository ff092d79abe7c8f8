"""A table of drafts, and its file."""
from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from meadowlark_hdl.draft.context_match_golden import SHORTEST
from meadowlark_hdl.draft.drafter_golden import NEVER
from meadowlark_hdl.draft.table_lookup_golden import (BUCKET_BYTES, EMPTY, LENGTHS,
                                                      MOST_BUCKETS, SLOTS, TOKEN_BITS)

from ..errors import UserError, brief
from ..files import DATA, foreign, write_atomic
from ..models.checkpoint import Model
from ..models.metadata import MAX_WORD

MAGIC = b"MEADOWDT"
VERSION = 1
#: magic, version, bytes of the JSON header, CRC-32 of everything else.
_PREFIX = struct.Struct("<8sIII")
#: Longest JSON header, in bytes.
MAX_HEADER = 1 << 16
_AGAIN = "make it again with `meadowlark draft`"


@dataclass(frozen=True, kw_only=True, eq=False)
class DraftTable:
    """A table, and what it is for.

    model: name of the model it was made for, for people. vocab: tokens of that model.
    vocabulary: fingerprint of their texts. least: tokens of a match in the context that stands
    before the table, 2..5. made_of: a sentence for people. entries: uint32[buckets, 4], see
    :mod:`meadowlark_hdl.draft.table_lookup_golden`.
    """
    model: str
    vocab: int
    vocabulary: str
    least: int
    made_of: str
    entries: np.ndarray

    @classmethod
    def of(cls, model: Model, entries: np.ndarray, least: int, made_of: str) -> DraftTable:
        return cls(model=model.name, vocab=model.vocab, least=least, made_of=made_of,
                   vocabulary=model.tokenizer.fingerprint(model.vocab), entries=entries)

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return BUCKET_BYTES * len(self.entries)

    @property
    def memory(self) -> bytes:
        """The buckets as they lie in memory."""
        return self.entries.astype("<u4").tobytes()

    @property
    def used(self) -> int:
        """Entries that are there."""
        return int((self.entries != EMPTY).sum())

    def check_for(self, model: Model, name: str) -> None:
        """Raise a :class:`UserError` unless the model's tokens are those of the table. name: of the
        table's file."""
        if (self.vocab, self.vocabulary) != (model.vocab, model.tokenizer.fingerprint(model.vocab)):
            raise UserError(f"the table of drafts {name} is for the tokens of {self.model} "
                            f"({self.vocab:,}), and {model.name} has others ({model.vocab:,}); "
                            "make one for it with `meadowlark draft`")

    def content(self) -> list[bytes]:
        """The file's parts."""
        header = json.dumps({
            "model": self.model, "vocab": self.vocab, "vocabulary": self.vocabulary,
            "least": self.least, "made_of": self.made_of, "lengths": LENGTHS,
            "buckets": len(self.entries)}).encode() + b"\n"
        memory = self.memory
        lead = _PREFIX.pack(MAGIC, VERSION, len(header), 0)[:-4]
        check = crc32(memory, crc32(header, crc32(lead)))
        return [lead + struct.pack("<I", check), header, memory]

    def save(self, path: str | Path) -> None:
        """Write the file; see :func:`meadowlark.files.write_atomic`."""
        write_atomic(path, *self.content())

    @classmethod
    def load(cls, path: str | Path) -> DraftTable:
        """Read a file and check all of it.

        Raises
        ------
        UserError
            It is no table of this version, or it is damaged; one sentence.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(_PREFIX.size + MAX_HEADER + BUCKET_BYTES * MOST_BUCKETS + 1)
        except OSError as error:
            raise UserError(f"cannot read the table of drafts {path}: {error.strerror or error}"
                            ) from error
        if content[:len(MAGIC)] != MAGIC or len(content) < _PREFIX.size:
            what = foreign(content[:64]) or f"is no table of drafts; {_AGAIN}"
            raise UserError(f"{path} {what}")
        _, version, length, check = _PREFIX.unpack_from(content)
        if version != VERSION:
            raise UserError(f"{path} is a table of drafts of version {version}, and this program "
                            f"reads {VERSION}; {_AGAIN}")
        start = _PREFIX.size - 4
        if crc32(content[start + 4:], crc32(content[:start])) != check:
            raise UserError(f"{path} is damaged: its checksum is wrong; {_AGAIN}")
        try:
            return cls._of(content[_PREFIX.size:], length)
        except (ValueError, KeyError, TypeError) as error:      # whole, and still not one
            raise UserError(f"{path} is no table of drafts ({brief(error)}); {_AGAIN}") from error

    @classmethod
    def _of(cls, content: bytes, length: int) -> DraftTable:
        header, memory = json.loads(content[:length]), content[length:]
        numbers = {name: header[name] for name in ("vocab", "least", "buckets")}
        texts = {name: header[name] for name in ("model", "vocabulary", "made_of")}
        if not all(type(value) is int for value in numbers.values()) \
                or not all(isinstance(value, str) and len(value) <= MAX_WORD
                           for value in texts.values()):
            raise TypeError("a value of another kind in its header")
        buckets = numbers.pop("buckets")
        if not 1 <= buckets <= MOST_BUCKETS or len(memory) != BUCKET_BYTES * buckets:
            raise ValueError(f"{buckets} buckets in {len(memory)} bytes")
        if header["lengths"] != list(LENGTHS) or not SHORTEST <= numbers["least"] <= NEVER:
            raise ValueError("of another rule")
        return cls(**numbers, **texts, entries=entries_of(memory, numbers["vocab"]))


def entries_of(memory: bytes, vocab: int) -> np.ndarray:
    """Buckets of a table -> uint32[buckets, 4]; ValueError unless all are of tokens that a model of
    ``vocab`` has."""
    entries = np.frombuffer(memory, "<u4").reshape(-1, SLOTS).astype(np.uint32)
    tokens = entries[entries != EMPTY] & (1 << TOKEN_BITS) - 1
    if tokens.max(initial=0) >= vocab:
        raise ValueError(f"token {tokens.max()} of {vocab}")
    return entries


def packaged(name: str) -> Path | None:
    """The file of the table that comes with a model of this name, if there is one."""
    path = DATA / "drafts" / f"{name}.mld"
    return path if name.isidentifier() and path.is_file() else None
