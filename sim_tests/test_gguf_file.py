"""The structure of GGUF files: what a hostile header can claim."""
import struct
import time
import tracemalloc

import numpy as np
import pytest

from meadowlark.errors import UserError
from meadowlark.models.gguf_file import MAX_HEADER, GgufFile

U8, I32, BOOL, STRING, ARRAY, U64 = 0, 5, 7, 8, 9, 10
HUGE = (1 << 64) - 1


def text(value) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, raw) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(kind, count, raw=b"") -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def tensor(name="t", shape=(4, 32), kind=0, offset=0, dimensions=None) -> bytes:
    """shape: rows first; kind: F32 unless given."""
    return text(name) + struct.pack("<I", len(shape) if dimensions is None else dimensions) + \
        struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, offset)


def gguf(entries=(), tensors=(), data=b"", *, version=3, counts=None) -> bytes:
    """A file with its parts as given, padded to 32 bytes before the data."""
    counts = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % 32) + data


def read(tmp_path, raw) -> GgufFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    return GgufFile(path)


def test_values(tmp_path):
    entries = [entry("a", U8, b"\x05"), entry("b", I32, struct.pack("<i", -3)),
               entry("c", BOOL, b"\x01"), entry("d", STRING, text("Zoë")),
               entry("e", ARRAY, array(I32, 2, struct.pack("<ii", -1, 7))),
               entry("f", ARRAY, array(STRING, 2, text("x") + text(""))),
               entry("g", ARRAY, array(BOOL, 2, b"\x00\x01")), entry("h", ARRAY, array(U8, 0)),
               entry("i", U64, struct.pack("<Q", HUGE))]
    data = np.arange(128, dtype="<f4").tobytes()
    file = read(tmp_path, gguf(entries, [tensor()], data))
    got = file.metadata
    assert [got[k] for k in "abcdfi"] == [5, -3, True, "Zoë", ["x", ""], HUGE]
    assert got["e"].tolist() == [-1, 7] and got["g"].tolist() == [False, True]
    assert len(got["h"]) == 0
    info = file.tensors["t"]
    assert (info.shape, info.size, info.elements) == ((4, 32), 512, 128)
    assert file.read(info).tobytes() == data and file.read(info).shape == (4, 128)


def test_version_2(tmp_path):
    assert read(tmp_path, gguf(version=2)).tensors == {}


F32 = bytes(512)                        # the data of tensor()
BAD = {
    "empty": (b"", "is empty; get it again"),
    "foreign": (b"PK\3\4" + bytes(60), "is not a GGUF file"),
    "HTML": (b"<html>" + bytes(60), "is a web page"),
    "version 1": (gguf(version=1), "version 0x1"),
    "big-endian": (gguf(version=3 << 24), "version 0x3000000 .*little-endian"),
    "many tensors": (gguf(counts=(HUGE, 0)), "claims 18,446,744,073,709,551,615 tensors"),
    "many entries": (gguf(counts=(0, 1 << 40)), "claims 1,099,511,627,776 metadata entries"),
    "fewer entries": (gguf(counts=(0, 60000)), "is there twice|header ends early"),
    "long key": (gguf(counts=(0, 1))[:24] + text("k" * 300), "300 characters"),
    "huge key": (gguf(counts=(0, 1))[:24] + struct.pack("<Q", HUGE) + bytes(64), "ends early"),
    "huge text": (gguf([entry("a", STRING, struct.pack("<Q", 1 << 62))]), "ends early"),
    "huge array": (gguf([entry("a", ARRAY, array(I32, 1 << 61))]), "ends early"),
    "huge texts": (gguf([entry("a", ARRAY, array(STRING, 1 << 61))]), "array of .* does not fit"),
    "huge truths": (gguf([entry("a", ARRAY, array(BOOL, HUGE))]), "ends early"),
    "nested": (gguf([entry("a", ARRAY, array(ARRAY, 1, array(ARRAY, 1)))]), "array holds arrays"),
    "type": (gguf([entry("a", 99, b"")]), "no metadata type 99"),
    "truth": (gguf([entry("a", BOOL, b"\x02")]), "truth value is 2"),
    "not UTF-8": (gguf([entry("a", STRING, text(b"\xff\xfe"))]), "is not UTF-8"),
    "twice": (gguf([entry("a", U8, b"\0")] * 2), "key 'a' is there twice"),
    "alignment": (gguf([entry("general.alignment", U8, b"\0")]), "alignment 0 is not a power"),
    "alignment text": (gguf([entry("general.alignment", STRING, text("x"))]), "alignment 'x'"),
    "truncated": (gguf((), [tensor()], F32[:-1]), "tensor 't' ends at byte 608 of 607"),
    "offset": (gguf((), [tensor(offset=1 << 63)], F32), "tensor 't' ends at byte"),
    "misaligned": (gguf((), [tensor(offset=4)], F32 + bytes(4)), "not at a multiple of 32"),
    "overlap": (gguf((), [tensor("a"), tensor("b", offset=480)], F32 * 2), "'a' and 'b' overlap"),
    "same place": (gguf((), [tensor("a"), tensor("b")], F32), "overlap"),
    "same name": (gguf((), [tensor(), tensor(offset=512)], F32 * 2), "'t' is there twice"),
    "no dimension": (gguf((), [tensor(shape=())], F32), "0 dimensions"),
    "5 dimensions": (gguf((), [tensor(shape=(1,) * 5)], F32), "5 dimensions"),
    "many dimensions": (gguf((), [tensor(dimensions=0xFFFFFFFF)], F32), "4,294,967,295 dimens"),
    "zero": (gguf((), [tensor(shape=(0, 32))], F32), r"has the shape \[0, 32\]"),
    "huge": (gguf((), [tensor(shape=(HUGE, HUGE, HUGE, HUGE))], F32), "ends at byte"),
    "part of a block": (gguf((), [tensor(shape=(4, 33), kind=8)], F32), r"Q8_0 has the shape"),
    "unknown type": (gguf((), [tensor(kind=200)], F32), "tensor 't' has the unknown type 200"),
}


@pytest.mark.parametrize("raw, message", BAD.values(), ids=BAD)
def test_refused(tmp_path, raw, message):
    """At once, without memory for what is claimed."""
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, raw)
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert str(error.value).count("\n") == 0


def test_cut_anywhere(tmp_path):
    """A file is refused whatever its end is missing."""
    whole = gguf([entry("a", ARRAY, array(STRING, 3, text("x") * 3)), entry("b", U8, b"\1")],
                 [tensor()], F32)
    read(tmp_path, whole)
    for length in range(len(whole)):
        with pytest.raises(UserError):
            read(tmp_path, whole[:length])


def test_long_header(tmp_path):
    """A header that goes on and on is read no further than its limit."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:       # sparse: 1 TB on paper
        file.write(gguf([entry("a", ARRAY, array(U8, 1 << 39))]))
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(UserError, match="header ends early"):
        GgufFile(path)
    assert tracemalloc.get_traced_memory()[1] < MAX_HEADER + (16 << 20)
    tracemalloc.stop()


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        GgufFile(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        GgufFile(tmp_path)


def test_shorter_while_read(tmp_path):
    file = read(tmp_path, gguf((), [tensor()], F32))
    with file.path.open("r+b") as f:
        f.truncate(300)
    with pytest.raises(UserError, match="has become shorter"):
        file.read(file.tensors["t"])
