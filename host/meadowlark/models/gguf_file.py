"""The structure of a GGUF file: metadata and tensors, every count and offset checked.

The ``gguf`` package knows the format's types and the arithmetic of its blocks. Its own reader
believes what a file says of itself (a wrong count makes it loop or allocate without end) and makes
three arrays of each of the 100,000 strings of a vocabulary, so the walk through the header is here.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from ..errors import UserError
from ..files import foreign

MAGIC = b"GGUF"
#: Versions that differ in nothing that is read here; 1 had counts of 32 bits.
VERSIONS = (2, 3)
#: Longest header that is looked at, in bytes; vocabularies of 128,256 tokens take 8 MB.
MAX_HEADER = 64 << 20
#: Most metadata entries, and most tensors.
MAX_ENTRIES = 1 << 16
#: Longest name of either, in characters; llama.cpp's own limit for tensors is 63.
MAX_NAME = 255
MAX_DIMENSIONS = 4

_SCALARS = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2", GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4",
    GGUFValueType.UINT64: "<u8", GGUFValueType.INT64: "<i8", GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.FLOAT64: "<f8"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is.

    shape: rows before columns, as in NumPy. offset: first byte in the file. size: in bytes.
    """
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


class _Cursor:
    """Reads values one after the other from the first bytes of a file, never past their end."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.at = path, raw, 0

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path} is not a sound GGUF file: {what}; get it again.")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.raw):
            raise self.refuse(f"its header ends early (wanted {count:,} bytes at {self.at:,})")
        piece = self.raw[self.at:end]
        self.at = end
        return piece

    def whole(self, size: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def string(self) -> str:
        try:
            return self.take(self.whole(8)).decode()
        except UnicodeDecodeError:
            raise self.refuse(f"the text before byte {self.at:,} is not UTF-8") from None

    def name(self) -> str:
        """The name of a tensor or a key; short enough to be shown."""
        name = self.string()
        if len(name) > MAX_NAME:
            raise self.refuse(f"a name has {len(name):,} characters")
        return name

    def kind(self) -> GGUFValueType:
        number = self.whole(4)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.refuse(f"there is no metadata type {number}") from None

    def array(self, kind: GGUFValueType, count: int) -> Any:
        """list[str], or an array[count]."""
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == GGUFValueType.BOOL:
            values = np.frombuffer(self.take(count), np.uint8)
            if values.max(initial=0) > 1:
                raise self.refuse(f"a truth value is {values.max()}")
            return values.astype(bool)
        if kind == GGUFValueType.STRING:
            if 8 * count > len(self.raw) - self.at:
                raise self.refuse(f"an array of {count:,} texts does not fit in it")
            return [self.string() for _ in range(count)]
        raise self.refuse("an array holds arrays")

    def value(self) -> Any:
        """int, float, bool or str, or an array of them."""
        kind = self.kind()
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self.array(self.kind(), self.whole(8))
        return self.array(kind, 1)[0].item()


class GgufFile:
    """A GGUF file whose header holds together; tensors are read when asked for.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    UserError
        The file cannot be read, is truncated, or contradicts itself: counts, types, names, shapes,
        offsets and overlaps of tensors are all checked. No more than :data:`MAX_HEADER` bytes are
        read for that.

    Attributes
    ----------
    metadata : dict of key to int, float, bool, str, list[str] or array
    tensors : dict of name to TensorInfo
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                raw = file.read(min(size, MAX_HEADER))
        except OSError as e:
            raise UserError(f"{self.path} cannot be read ({e.strerror}); check the file.") from e
        cursor = _Cursor(self.path, raw)
        if not raw.startswith(MAGIC):
            raise UserError(f"{self.path} {foreign(raw[:64]) or 'is not a GGUF file'}.")
        cursor.take(len(MAGIC))
        version = cursor.whole(4)
        if version not in VERSIONS:
            raise UserError(f"{self.path} has version {version:#x} of GGUF and only "
                            f"{' and '.join(map(str, VERSIONS))}, little-endian, are supported; "
                            "convert the model again.")
        tensors, entries = cursor.whole(8), cursor.whole(8)
        for count, what in ((tensors, "tensors"), (entries, "metadata entries")):
            if count > MAX_ENTRIES:
                raise cursor.refuse(f"it claims {count:,} {what}")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.name()
            if key in self.metadata:
                raise cursor.refuse(f"the key {key!r} is there twice")
            self.metadata[key] = cursor.value()
        self.tensors: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            info = _tensor_info(cursor)
            if info.name in self.tensors:
                raise cursor.refuse(f"the tensor {info.name!r} is there twice")
            self.tensors[info.name] = info
        self._place(cursor, size)

    def _place(self, cursor: _Cursor, size: int) -> None:
        """Offsets from the start of the file; tensors inside the file and apart."""
        align = self.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(align, int) or align < 1 or align & (align - 1):
            raise cursor.refuse(f"its alignment {align!r} is not a power of two")
        start = -(-cursor.at // align) * align
        end, before = start, ""
        for info in sorted(self.tensors.values(), key=lambda t: t.offset):
            if info.offset % align:
                raise cursor.refuse(f"tensor {info.name!r} is not at a multiple of {align}")
            at = start + info.offset
            if at < end:
                raise cursor.refuse(f"the tensors {before!r} and {info.name!r} overlap")
            end, before = at + info.size, info.name
            if end > size:
                raise cursor.refuse(f"tensor {info.name!r} ends at byte {end:,} of {size:,}")
            self.tensors[info.name] = TensorInfo(info.name, info.kind, info.shape, at, info.size)

    def read(self, info: TensorInfo) -> np.ndarray:
        """Its bytes: uint8[rows, bytes of a row], [1, bytes] of a vector."""
        try:
            raw = np.fromfile(self.path, np.uint8, info.size, offset=info.offset)
        except OSError as e:
            raise UserError(f"{self.path} cannot be read ({e.strerror}); check the file.") from e
        if raw.size != info.size:
            raise UserError(f"{self.path} has become shorter while it was read; get it again.")
        return raw.reshape(prod(info.shape[:-1]), -1)


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """An entry of the table of tensors; its offset counts from the end of the header."""
    name = cursor.name()
    dimensions = cursor.whole(4)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.refuse(f"tensor {name!r} has {dimensions:,} dimensions")
    shape = tuple(cursor.whole(8) for _ in range(dimensions))[::-1]
    number, offset = cursor.whole(4), cursor.whole(8)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise UserError(f"{cursor.path}: tensor {name!r} has the unknown type {number}; use a "
                        "file in Q4_1, Q4_0, Q8_0 or F16.") from None
    block, size = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise cursor.refuse(f"tensor {name!r} of type {kind.name} has the shape {list(shape)}")
    return TensorInfo(name, kind, shape, offset, prod(shape) // block * size)
