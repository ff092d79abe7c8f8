"""The image file: what comes back, what is refused."""
import json
import os
import random
import re
import struct
from dataclasses import replace
from zlib import crc32

import pytest
from meadowlark.compiler import compile_model
from meadowlark.errors import UserError
from meadowlark.image import Image
from meadowlark.model import load_model
from meadowlark.quantise import quantise
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from random_model import random_model, random_texts

CONFIG = Config(W=8, P=4, bus_bytes=2, tile_beats=64, tile_rows=16)


def board(config=CONFIG):
    return replace(get_board("virtual"), config=config)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    model = load_model(random_model(tmp_path_factory.mktemp("m"), seed=1, layers=1))
    return compile_model(quantise(model, random_texts(model, seed=2)), board())


@pytest.fixture
def raw(image):
    return b"".join(image._parts())


def refused(raw):
    """The message, which is one line without a second sentence's full stop."""
    with pytest.raises(UserError) as caught:
        Image.parse(bytes(raw), name="x.mlk")
    text = str(caught.value)
    assert text.startswith("x.mlk") and "\n" not in text
    return text


def with_header(raw, change):
    """The file with a changed header and a right checksum."""
    magic, version, length, _ = struct.unpack_from("<8sIII", raw)
    header = json.loads(raw[20:20 + length])
    changed = change(header)
    header = header if changed is None else changed
    text = json.dumps(header).encode()
    lead = struct.pack("<8sII", magic, version, len(text))
    return lead + struct.pack("<I", crc32(text, crc32(lead))) + text + raw[20 + length:]


def test_round_trip(image, tmp_path, raw):
    path = tmp_path / "folder" / "m.anything"
    image.save(path)
    assert Image.load(path) == image and path.stat().st_size == image.size == len(raw)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    replace(image, name="other").save(path)
    assert Image.load(path).name == "other" and os.listdir(path.parent) == [path.name]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_save_refuses_and_leaves_nothing(image, tmp_path):
    with pytest.raises(UserError, match="^cannot write the image .*folder"):
        image.save(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="^cannot write the image"):
        image.save(tmp_path / "file" / "m")
    assert os.listdir(tmp_path) == ["file"]


def test_missing_foreign_old(tmp_path, raw):
    with pytest.raises(UserError, match="^cannot read the image .*No such file"):
        Image.load(tmp_path / "none")
    with pytest.raises(UserError, match="^cannot read the image"):
        Image.load(tmp_path)
    assert "is not a Meadowlark image" in refused(b"")
    assert "is not a Meadowlark image" in refused(b"GGUF" + raw)
    assert "image version 7" in refused(raw[:8] + struct.pack("<I", 7) + raw[12:])
    assert "another instruction set" in refused(with_header(raw, lambda h: h.update(isa=1)))


def test_truncation(raw, seed):
    rng = random.Random(seed)
    for n in {0, 7, 8, 19, 20, 21, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(50))}:
        text = refused(raw[:n])
        assert n < 8 or "truncated" in text
    assert "too long" in refused(raw + b"\0")


def test_every_flipped_bit_is_found(raw, seed):
    rng = random.Random(seed)
    places = [*range(8 * 24), *(rng.randrange(8 * len(raw)) for _ in range(300))]
    for place in places:
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << place % 8
        refused(bad)


def test_mutated_files(raw, seed):
    """Cuts, doubled and overwritten pieces: always a UserError."""
    rng = random.Random(seed)
    for _ in range(500):
        bad = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            a, b = sorted(rng.randrange(len(bad) + 1) for _ in range(2))
            b = min(b, a + rng.choice((1, 4, 300)))
            bad[a:b] = rng.choice((b"", rng.randbytes(b - a), bytes(b - a), bad[a:b] * 2))
        if bytes(bad) != raw:
            refused(bad)


def test_mutated_headers(raw, seed):
    """A right checksum over a wrong header: a UserError or an image, never another exception."""
    rng = random.Random(seed)
    values = (None, -1, 0, 1, 2**70, 1.5, "x", "", [], {}, [1], True, float("inf"))
    hits = 0

    def mutate(node):
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            if isinstance(node, dict) and rng.random() < 0.2:
                del node[key]
            else:
                node[key] = rng.choice(values)
            return
    for _ in range(500):
        try:
            loaded = Image.parse(with_header(raw, mutate))
            loaded.check_board(board())
            loaded.bytes_per_token(1)
        except UserError:
            hits += 1
    assert hits > 200
    for header in ([], [None], 3, "x"):
        refused(with_header(raw, lambda _, h=header: h))


@pytest.mark.parametrize("value", [True, 2.0, "2", None, -1, 1 << 63])
def test_header_numbers_are_whole(raw, value):
    for table, key in (("model_regs", "blocks"), ("needs", "act_words"), ("shape", "heads")):
        assert "makes no sense" in refused(
            with_header(raw, lambda h, t=table, k=key: h[t].__setitem__(k, value)))
    assert "missing fields" in refused(with_header(raw, lambda h: h["config"].pop("tile_beats")
                                                   and None))


def test_other_cores_are_refused(image):
    image.check_board(board())
    image.check_board(board(CONFIG.replace(act_words=1024, bus_bytes=4)))
    for change in (dict(W=16), dict(P=5), dict(tile_beats=128)):
        (field, has), = change.items()
        with pytest.raises(UserError, match=f"compiled for a core with {field} = .* the board "
                                            f"virtual has {field} = {has}; compile"):
            image.check_board(board(CONFIG.replace(**change)))
    for field in ("act_words", "residual_values", "rope_pairs", "score_depth", "prog_depth"):
        low = 1 << image.needs[field].bit_length() - 1
        low = low // 2 if low == image.needs[field] else low
        with pytest.raises(UserError, match=f"^the image needs {field} = "):
            image.check_board(board(CONFIG.replace(**{field: low})))
    with pytest.raises(UserError, match="^the image needs memory_bytes = .* this board has 64;"):
        image.check_config(CONFIG, memory_bytes=64)


def test_parse_names_the_damage(raw):
    bad = bytearray(raw)
    bad[-1] ^= 1
    assert re.search("damaged: the checksum of its tokenizer", refused(bad))
