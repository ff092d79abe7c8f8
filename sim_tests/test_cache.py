"""What is kept between runs: the same as made anew, whole or not at all, and never another's."""
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import meadowlark_hdl
import numpy as np
import pytest
import safetensors.numpy
from gguf_files import write_gguf
from meadowlark import cache, cli
from meadowlark.files import DATA
from meadowlark.models.registry import load_model, model_files
from meadowlark.quant import integers
from meadowlark.quant.quantise import quantise
from meadowlark.run import prepare
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from meadowlark_hdl.isa import Mode
from random_model import random_model, random_texts


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty cache."""
    place = tmp_path / "cache"
    monkeypatch.setenv("MEADOWLARK_CACHE", str(place))
    return place


def wild_model(path, **shape):
    """A folder with all that people put there."""
    random_model(path, **{"seed": 7, "layers": 1, "heads": 2, "kv_heads": 1, **shape})
    (path / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<|bos|>", "chat_template": "{{ messages[0].content }}"}))
    (path / "generation_config.json").write_text('{"eos_token_id": 1}')
    (path / "README.md").write_text("a model")
    return path


def saved(source, path):
    source.image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}, {"bits": 5.0}, {"target_ppl": 3.0}])
def test_two_compiles_give_one_file(tmp_path, monkeypatch, options):
    """With an empty cache and a filled one; of another folder all but its name is the same."""
    board = get_board("ulx3s_85f")
    first = wild_model(tmp_path / "first", hidden=64, ffn=64)
    other = shutil.copytree(first, tmp_path / "other")
    kept = [saved(Source(str(first), board, **options), tmp_path / f"{i}.mlk") for i in range(2)]
    image = Source(str(other), board, **options).image
    assert image.name == "other"
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "empty"))
    anew = saved(Source(str(first), board, **options), tmp_path / "anew.mlk")
    replace(image, name="first").save(tmp_path / "renamed.mlk")
    assert {*kept, anew, (tmp_path / "renamed.mlk").read_bytes()} == {anew}


def test_what_is_not_integers_is_the_model_at_hand(tmp_path, monkeypatch):
    """Name, template, tokenizer: not those of the folder from which the integers come."""
    first = wild_model(tmp_path / "first")
    other = shutil.copytree(first, tmp_path / "other")
    (other / "chat_template.jinja").write_text("another template")
    board = get_board("virtual")
    for digest in (prepare._digest, lambda *_: "0" * 24):       # even where all have one digest
        monkeypatch.setattr(prepare, "_digest", digest)
        one, two = (Source(str(path), board).image for path in (first, other))
        assert one.memory == two.memory
        assert (one.name, two.name) == ("first", "other")
        assert [image.chat and image.chat.template for image in (one, two)] == [
            "{{ messages[0].content }}", "another template"]


def test_a_kept_model_is_not_read_again(tmp_path, monkeypatch):
    path = wild_model(tmp_path / "m")
    want = Source(str(path), get_board("virtual")).image
    monkeypatch.setattr(Source, "model", property(lambda _: pytest.fail("weights were read")))
    assert Source(str(path), get_board("virtual")).image == want


def test_every_file_that_is_read_counts(tmp_path):
    """Those that Python opens while a model is loaded are among the hashed ones, and each
    changes the digest; a file that nobody reads does not."""
    path = wild_model(tmp_path / "m")
    (path / "chat_template.jinja").write_text("a template")
    opened = set()
    watching = True

    def watch(event, args):
        if watching and event == "open" and str(args[0]).startswith(str(path)):
            opened.add(Path(args[0]))
    sys.addaudithook(watch)
    load_model(path)
    watching = False
    assert {p.name for p in opened} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert opened <= set(model_files(path))
    seen = {prepare._digest(str(path), "")}
    for file in model_files(path):
        raw = file.read_bytes()
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        seen.add(prepare._digest(str(path), ""))
        file.write_bytes(raw)
    assert len(seen) == 1 + len(model_files(path))
    (path / "README.md").write_text("changed")
    assert prepare._digest(str(path), "") in seen


def test_all_of_the_program_counts(tmp_path, monkeypatch):
    """Every module that is there once a model has been quantised is hashed."""
    said = subprocess.run(
        [sys.executable, "-c", "import sys; from meadowlark.run.prepare import Source\n"
         "from meadowlark_boards import get_board\n"
         "Source('stories', get_board('ulx3s_85f'), bits=5.0).quantised\n"
         "print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in "
         "('meadowlark', 'meadowlark_hdl')])"], check=True, capture_output=True, text=True)
    hashed = []
    monkeypatch.setattr(cache, "digest", lambda *parts: hashed.extend(parts))
    prepare._digest("stories", "")
    used = {Path(name) for name in eval(said.stdout)}
    hdl = Path(meadowlark_hdl.__file__).parent
    assert used <= set(hashed)
    assert {hdl / "isa.py", hdl / "config.py", hdl / "weights" / "decoder_golden.py",
            hdl / "weights" / "entropy_golden.py", DATA / "calibration.txt"} <= set(hashed)


# ---- Damage

def damaged(rng, raw):
    """A file after an accident."""
    kind, at = rng.choice(("flip", "cut", "longer", "empty", "zeros", "foreign")), \
        rng.randrange(len(raw))
    return {"flip": raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1:],
            "cut": raw[:at], "longer": raw + b"x", "empty": b"", "zeros": bytes(len(raw)),
            "foreign": b"\x80\x05K\x01."}[kind]


def test_damage_is_noticed_and_made_good(tmp_path, place, seed):
    rng = random.Random(seed)
    path = wild_model(tmp_path / "m")
    board = get_board("virtual")
    want = Source(str(path), board).image
    (file,) = place.iterdir()
    good = file.read_bytes()
    for _ in range(12):
        file.write_bytes(damaged(rng, good))
        assert Source(str(path), board).image == want
        assert [p.read_bytes() for p in place.iterdir()] == [good]
    shutil.rmtree(place)
    file.mkdir(parents=True)            # a folder in its place
    assert Source(str(path), board).image == want


@pytest.mark.parametrize("kind", ["", "Q4_1"])
def test_integers_survive_and_nothing_else_passes(tmp_path, seed, kind):
    """As bytes and back; bytes that were meddled with are a ValueError or a model of that shape."""
    rng = random.Random(seed)
    path = wild_model(tmp_path / "m", layers=2, head_dim=16)
    if kind:
        path = write_gguf(tmp_path / "m.gguf", path, kind=kind)
    model = load_model(path)
    qm = quantise(model, random_texts(model, seed=1, sequences=2))
    raw = integers.dump(qm)
    found = integers.load(raw, load_model(path, outline=True), "auto")
    assert integers.dump(found) == raw
    assert found.tied is True
    for name in ("rope", "eps", "stop_ids", "tokenizer_json", "chat", "parameters", "context"):
        assert np.array_equal(getattr(found, name), getattr(qm, name)), name
    assert type(found.numbers["layers.0.q"].mode) is Mode and found.plan == qm.plan
    with pytest.raises(ValueError, match="another shape"):
        integers.load(raw, load_model(wild_model(tmp_path / "n", layers=2, head_dim=16, ffn=96)),
                      "auto")
    if kind:
        with pytest.raises(ValueError, match="kept in another way"):
            integers.load(raw, model, "int8")
    with pytest.raises(ValueError, match="kept in another way"):
        integers.load(integers.dump(replace(qm, context=5, rope=qm.rope[:, :5])), model, "auto")
    begin = int.from_bytes(raw[:8], "little")
    for _ in range(300):
        some = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            some[rng.randrange(begin)] = rng.randrange(256)
        try:
            integers.load(bytes(some), model, "auto")
        except ValueError:
            pass
    for _ in range(100):
        with pytest.raises(ValueError):
            integers.load(raw[:rng.randrange(len(raw))], model, "auto")
    tensors = safetensors.numpy.load(raw)
    for bad in ({"layers.0.q.mant": np.ones(3, np.uint16)},
                {"layers.1.k.codes": tensors["layers.1.k.codes"].astype(np.int16)},
                {"layers.1.k.codes": tensors["layers.1.k.codes"].ravel()}):
        head = json.loads(raw[8:8 + begin])["__metadata__"]
        with pytest.raises(ValueError):
            integers.load(safetensors.numpy.save(tensors | bad, head), model, "auto")


# ---- Its size

def test_what_was_of_no_use_for_longest_is_forgotten(place, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 2500)
    place.mkdir()
    (place / "mine.txt").write_bytes(bytes(5000))       # of somebody else
    old = place / f"model-{'0' * 24}.pickle"
    old.write_bytes(bytes(1000))
    os.utime(old, (999, 999))
    names = [f"sim-{i:024x}.so" for i in range(4)]
    for age, name in enumerate(names):
        path = cache.keep(name, name.encode() * 32)     # 992 bytes
        assert path is not None and path.exists()
        os.utime(path, (1000 + age, 1000 + age))
        if age == 1:
            assert cache.find(names[0]) is not None     # used now
    assert [cache.find(name) is not None for name in names] == [True, False, False, True]
    assert (place / "mine.txt").exists() and len(list(place.iterdir())) == 3
    big = cache.keep("sim-" + "f" * 24 + ".so", bytes(9000))
    assert big is not None and big.exists()             # what was just made stays


# ---- A folder that cannot be written

def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in its place")
    model = wild_model(tmp_path / "m")
    for bad in ("file", "file/below"):
        monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / bad))
        out = tmp_path / f"{bad[:4]}.mlk"
        for _ in range(2):
            assert cli.main(["compile", str(model), "-o", str(out)]) == 0
        said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
        assert len(said) == 1 and str(tmp_path / bad) in said[0] and "MEADOWLARK_CACHE" in said[0]
    assert (tmp_path / "file").read_text() == "in its place"


def test_what_others_filled_is_read(tmp_path, monkeypatch, place, caplog):
    """A cache on a file system that is read only."""
    path = wild_model(tmp_path / "m")
    want = Source(str(path), get_board("virtual")).image

    def refuse(**_):
        raise OSError(30, "Read-only file system")
    cache._writable.cache_clear()
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(Source, "model", property(lambda _: pytest.fail("weights were read")))
    assert Source(str(path), get_board("virtual")).image == want
    monkeypatch.undo()
    cache._writable.cache_clear()


def test_no_room(tmp_path, monkeypatch, caplog):
    """Said once; the work goes on."""
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(cache, "write_atomic", full)
    for layers in (1, 2):
        path = wild_model(tmp_path / f"m{layers}", layers=layers)
        assert Source(str(path), get_board("virtual")).image.shape["layers"] == layers
    assert len(caplog.messages) == 1 and "make room" in caplog.messages[0]


def test_no_home(tmp_path, monkeypatch):
    monkeypatch.delenv("MEADOWLARK_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(cache.Path, "home", homeless)
    path = cache.keep("a-0.txt", b"kept")
    assert path is not None and path.read_bytes() == b"kept"
    assert cache.find("a-0.txt") == path and cache.find("a-1.txt") is None
