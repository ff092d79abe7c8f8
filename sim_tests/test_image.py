"""The image file: what comes back, what is refused."""
import json
import os
import random
import re
import struct
import time
from dataclasses import replace
from resource import RUSAGE_SELF, getrusage
from zlib import crc32

import numpy as np
import pytest
from meadowlark.api.facts import of_image
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.image import VERSION, Image, board_of
from meadowlark.draft.table import DraftTable
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source, made_for
from meadowlark.run.targets import BoardTarget
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Sink, encode
from meadowlark_hdl.sampler.sampler_golden import Sampling
from random_model import random_model, random_texts

#: Mutated files that are tried; FUZZ= sets it.
MUTATIONS = int(os.environ.get("FUZZ") or 300)
CONFIG = Config(W=8, P=4, bus_bytes=2, tile_beats=64, tile_rows=16)


def board(config=CONFIG):
    return replace(get_board("virtual"), config=config)


def table(model):
    """Of drafts: each token may follow."""
    entries = np.arange(model.vocab // 4 * 4, dtype=np.uint32).reshape(-1, 4)
    return DraftTable.of(model, entries, 2, "nothing")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    model = load_model(random_model(tmp_path_factory.mktemp("m"), seed=1, layers=1))
    return compile_model(quantise(model, random_texts(model, seed=2)), board(), draft=table(model))


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


def with_header(raw, change, bodies=()):
    """The file with a changed header and a right checksum; bodies: what replaces the sections."""
    magic, version, length, _ = struct.unpack_from("<8sIII", raw)
    header = json.loads(raw[20:20 + length])
    changed = change(header)
    header = header if changed is None else changed
    text = json.dumps(header).encode()
    lead = struct.pack("<8sII", magic, version, len(text))
    body = bodies[0] if bodies else raw[20 + length:]
    return lead + struct.pack("<I", crc32(text, crc32(lead))) + text + body


def test_round_trip(image, tmp_path, raw):
    path = tmp_path / "m.anything"
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
    with pytest.raises(UserError, match="^cannot write .*it is a folder"):
        image.save(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="^cannot write"):
        image.save(tmp_path / "file" / "m")
    assert os.listdir(tmp_path) == ["file"]


def test_missing_foreign_old(tmp_path, raw):
    with pytest.raises(UserError, match="^cannot read the image .*No such file"):
        Image.load(tmp_path / "none")
    with pytest.raises(UserError, match="^cannot read the image"):
        Image.load(tmp_path)
    assert "is not a Meadowlark image" in refused(b"")
    assert "is not a Meadowlark image" in refused(b"GGUF" + raw)
    assert f"image version {VERSION + 1}" in refused(
        raw[:8] + struct.pack("<I", VERSION + 1) + raw[12:])
    assert "another instruction set" in refused(with_header(raw, lambda h: h.update(isa=1)))


def test_truncation(raw, seed):
    rng = random.Random(seed)
    for n in {0, 7, 8, 19, 20, 21, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(50))}:
        text = refused(raw[:n])
        assert n < 8 or "truncated" in text
    assert "too long" in refused(raw + b"\0")


def test_headers_that_are_no_tables(raw, tmp_path):
    for header in ([], [None], 3, "x"):
        text = refused(with_header(raw, lambda _, h=header: h))
        (tmp_path / "x").write_bytes(with_header(raw, lambda _, h=header: h))
        with pytest.raises(UserError) as caught:
            board_of(tmp_path / "x")
        assert "a header that makes no sense" in text and "makes no sense" in str(caught.value)


def test_the_board_is_read_from_the_header_alone(raw, tmp_path):
    path = tmp_path / "x.mlk"
    path.write_bytes(raw)
    assert board_of(path) == "virtual"
    with open(path, "rb+") as file:
        file.truncate(20 + struct.unpack_from("<I", raw, 12)[0])
    assert made_for(str(path)) == get_board(board_of(path)) == get_board("virtual")
    with pytest.raises(UserError, match="truncated"):
        Image.load(path)
    for start, word in ((raw[:30], "truncated"), (b"GGUF", "not a Meadowlark image"),
                        (with_header(raw, lambda h: h.update(board=3)), "board is no short text"),
                        (raw[:99] + b"?" + raw[100:], "the checksum of its header is wrong")):
        path.write_bytes(start)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))} .*{word}"):
            board_of(path)


def test_absurd_sizes_are_not_read(raw, tmp_path):
    """What the file says of itself is looked at before anything large is read."""
    path = tmp_path / "x.mlk"
    for start, word in ((b"GGUF", "not a Meadowlark image"), (raw[:12] + b"\xff\xff\xff\x7f",
                                                             "its header has 2147483647"),
                        (raw, "too long")):
        path.write_bytes(start)
        os.truncate(path, 1 << 34)                  # takes no place
        with pytest.raises(UserError, match=word):
            Image.load(path)


def test_every_flipped_bit_is_found(raw, seed):
    rng = random.Random(seed)
    places = [*range(8 * 24), *(rng.randrange(8 * len(raw)) for _ in range(300))]
    for place in places:
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << place % 8
        refused(bad)


# ---- Mutated files

#: Sections whose contents are believed once their checksum is right; memory is data to the chip.
PARSED = ("program", "tokenizer", "chat")
ODD_VALUES = (None, -1, 0, 1, 7, 255, 2**16 + 1, 2**31, 2**32, 2**62, 2**70, 1.5, float("inf"),
              "x", "", "\x1b[2J", "a" * 5000, [], {}, [1], [[]] * 500, True)


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, doubled and overwritten pieces."""
    bad = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(bad) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 300)))
        bad[a:b] = rng.choice((b"", rng.randbytes(b - a), bytes(b - a), bad[a:b] * 2,
                               b"\xff" * (b - a)))
    if rng.random() < 0.1:
        del bad[rng.randrange(len(bad) + 1):]
    return bytes(bad)


def mutate_value(node, rng: random.Random) -> None:
    """Change or drop one value somewhere in a tree of dicts and lists."""
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and rng.random() < 0.1:
            del node[key]
        elif type(node[key]) is int and rng.random() < 0.5:
            node[key] += rng.choice((-1, 1, 8, -node[key] // 2, node[key]))
        else:
            node[key] = rng.choice(ODD_VALUES)
        return


def mutate(image: Image, raw: bytes, rng: random.Random) -> bytes:
    """A damaged file, or one whose every checksum is right over wrong contents."""
    what = rng.random()
    if what < 0.2:
        return mutate_bytes(raw, rng)
    changed = {}
    if what < 0.7:
        section = rng.choice(PARSED)
        content = image.chat.as_json() if section == "chat" and image.chat else \
            getattr(image, section)
        if section == "program":
            content = mutate_bytes(content, rng)
        else:
            tree = json.loads(content)
            mutate_value(tree, rng)
            content = mutate_bytes(content, rng) if rng.random() < 0.3 else \
                json.dumps(tree).encode()
        changed[section] = content

    def change(header):
        at, parts = 0, []
        for name, old in header["sections"].items():
            begin = 20 + struct.unpack_from("<I", raw, 12)[0] + old["offset"]
            parts.append(changed.get(name, raw[begin:begin + old["size"]]))
            old.update(offset=at, size=len(parts[-1]), crc32=crc32(parts[-1]))
            at += len(parts[-1])
        if "program" in changed:
            header["needs"]["prog_depth"] = len(changed["program"]) // 21
        bodies.append(b"".join(parts))
        if not changed or rng.random() < 0.1:
            mutate_value(header if rng.random() < 0.7 else header["sections"], rng)
    bodies: list[bytes] = []
    return with_header(raw, change, bodies)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """An image for the virtual board, with a chat template."""
    folder = random_model(tmp_path_factory.mktemp("m"), seed=1, layers=1, heads=2, kv_heads=2)
    template = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": template, "bos_token": "<|bos|>"}))
    model = load_model(folder)
    return compile_model(quantise(model, random_texts(model, seed=2)), get_board("virtual"),
                         draft=table(model))


def test_mutated_files(talking, tmp_path, seed):
    """No crash, no hang, no large allocation: what an image is good for, or one sentence."""
    raw, path, which = b"".join(talking._parts()), tmp_path / "m.mlk", get_board("virtual")
    rng = random.Random(seed)
    fake = FakeBoard(which.config, memory_bytes=which.memory.size_bytes,
                     next_token=lambda history: (len(history) % 90, 0))
    target = BoardTarget("fake", Driver(fake))
    refused = 0
    before = getrusage(RUSAGE_SELF).ru_maxrss
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(talking, raw, rng))
        started = time.process_time()
        try:
            source = Source(str(path), which)
            json.dumps(of_image(source.image))
            target.load(source)
            plain = source.prompt("Hello 12")
            chat = source.prompt("Hello 12", chat=True) if source.image.chat else plain
            for ids in (plain, chat):
                tokens = [e.token for e in target.generate(
                    ids, Sampling(), max_new=3, stop_ids=source.image.stop_ids, reuse=True)]
                source.tokenizer.decode([*ids, *tokens], special=True)
        except UserError as error:
            refused += 1
            text = str(error)
            assert text and len(text) < 600 and text.isprintable()
        assert time.process_time() - started < 5
    assert MUTATIONS // 3 < refused < MUTATIONS
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 100 << 10        # KiB
    print(f"{refused} of {MUTATIONS} refused, peak {getrusage(RUSAGE_SELF).ru_maxrss >> 10} MiB")


@pytest.mark.parametrize("value", [True, 2.0, "2", None, -1, 1 << 63])
def test_header_numbers_are_whole(raw, value):
    for table, key in (("model_regs", "blocks"), ("needs", "act_words"), ("shape", "heads")):
        assert "makes no sense" in refused(
            with_header(raw, lambda h, t=table, k=key: h[t].__setitem__(k, value)))
    assert "missing fields" in refused(with_header(raw, lambda h: h["config"].pop("tile_beats")
                                                   and None))


def test_layers_without_attention(raw):
    assert "caches of keys in 1000 layers" in refused(with_header(
        raw, lambda h: h["shape"].__setitem__("layers", 1000)))


@pytest.mark.parametrize("change, words", [
    (dict(draft_addr=4), "drafts at 32"),           # chunks of 8 bytes
    (dict(draft_addr=1 << 20), "drafts at 8388608"),
    (dict(draft_addr=0), "token"),                  # weights are no table
    (dict(draft_buckets=1 << 13), "131072 bytes of drafts at"),
    (dict(draft_buckets=0), "(0 bytes of drafts"),
    (dict(draft_least=6), "draft_least 6"),
    (dict(draft_least=1), "draft_least 1"),
])
def test_tables_of_drafts_that_cannot_be(raw, change, words):
    assert words in refused(with_header(raw, lambda h: h["model_regs"].update(change)))


def test_facts_of_a_table_that_cannot_be(raw):
    assert "made_of is no short text" in refused(
        with_header(raw, lambda h: h["draft"].update(made_of="x" * 300)))
    assert "entries is -1" in refused(with_header(raw, lambda h: h["draft"].update(entries=-1)))
    assert "bytes of drafts" in refused(with_header(raw, lambda h: h.update(draft=None)))


def test_without_a_table(raw, image):
    none = replace(image, draft=None, model_regs=image.model_regs | {"draft_buckets": 0})
    assert Image.parse(b"".join(none._parts())) == none and none.draft_entries is None
    assert "draft" in refused(with_header(raw, lambda h: h.pop("draft") and None))


def test_results_that_cannot_be(image):
    """An instruction of the program asks for what no core has; the sentence says which and why."""
    program = image.instructions
    at = next(pc for pc, i in enumerate(program) if i["sink"] == Sink.RESIDUAL)
    program[at]["wide"] = 1
    changed = replace(image, program=b"".join(map(encode, program)))
    assert f"instruction {at}: only activations have 16 bits" in refused(b"".join(changed._parts()))


def test_other_cores_are_refused(image):
    image.check_board(board())
    image.check_board(board(CONFIG.replace(act_words=1024, bus_bytes=4)))
    # What no image needs, and some file says.
    replace(image, config=image.config | {"one_half": True}).check_board(board())
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
