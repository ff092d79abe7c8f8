"""Checkpoints of llama2.c: equal to those of Hugging Face folders, and nothing odd gets through."""
import struct

import numpy as np
import pytest
from gguf_files import interleaved
from hostile import MUTATIONS
from random_model import random_model

from meadowlark import cli
from meadowlark.errors import UserError
from meadowlark.models.float_model import FloatModel
from meadowlark.models.graph import Attend
from meadowlark.models.llama2c import is_llama2c, load_llama2c
from meadowlark.models.registry import load_model, model_files

VOCAB, CONTEXT = 300, 64


def write_tokenizer(path, vocab=VOCAB):
    """<unk>, <s>, </s>, bytes, then letters and what they make together."""
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)),
              *" abcdehlorw", "he", "ll", "hell", "hello", "wo", " wo", "rl", "rld", " world", " a",
              *(f"{chr(97 + i)}é" for i in range(20))]
    tokens += [f"x{i}x" for i in range(vocab - len(tokens))]
    raw = struct.pack("<i", max(len(t.encode()) for t in tokens[:vocab]))
    for i, token in enumerate(tokens[:vocab]):
        text = token.encode()
        raw += struct.pack("<fi", -float(i), len(text)) + text
    path.write_bytes(raw)
    return path


def write_llama2c(folder, model, version, *, tied, header=None):
    """A model as export.py of llama2.c writes it, with a vocabulary beside it."""
    w, attends = model.weights, list(model.graph.of(Attend))
    layers = {n: [w[f"layers.{i}.{n}"] for i in range(len(attends))]
              for n in ("norm1", "norm2", "q", "k", "v", "o", "gate", "up", "down")}
    heads, kv_heads = attends[0].heads, attends[0].kv_heads
    layers["q"] = [interleaved(m, heads) for m in layers["q"]]
    layers["k"] = [interleaved(m, kv_heads) for m in layers["k"]]
    angles = model.graph.tables["rope"].angles(range(model.context))
    parts = layers | {"embedding": [w["embedding"]], "final_norm": [w["final_norm"]],
                      "head": [] if tied else [w["head"]],
                      "angles": [np.cos(angles), np.sin(angles)]}
    numbers = header or (model.hidden, len(w["layers.0.gate"]), len(attends), heads, kv_heads,
                         model.vocab if tied or version else -model.vocab, model.context)
    if version == 0:
        raw = struct.pack("<7i", *numbers)
        order = "embedding norm1 q k v o norm2 gate down up final_norm angles head"
    else:
        raw = struct.pack("<Ii7iB", 0x616B3432, version, *numbers, tied).ljust(256, b"\0")
        order = "norm1 norm2 final_norm embedding q k v o gate down up head"
    raw += b"".join(w.astype("<f4").tobytes() for name in order.split() for w in parts[name])
    path = folder / f"model{version}.bin"
    path.write_bytes(raw)
    write_tokenizer(folder / "tokenizer.bin", model.vocab)
    return path


@pytest.fixture
def made(tmp_path, seed):
    """made(version, tied=..., **shape) -> path of a checkpoint, the model it is of."""
    def make(version=0, *, tied=True, **shape):
        model = load_model(random_model(tmp_path / "hf", seed=seed, vocab=VOCAB, context=CONTEXT,
                                        tied=tied, **shape))
        return write_llama2c(tmp_path, model, version, tied=tied), model
    return make


# ---- What a good file gives

@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_weights(made, seed, version, tied):
    path, want = made(version, tied=tied, heads=4, kv_heads=2)
    got = load_model(path)
    for name in ("family", "graph", "context", "parameters"):
        assert getattr(got, name) == getattr(want, name), name
    assert (got.name, got.bos_id, got.stop_ids) == (f"model{version}", 1, (1, 2))
    assert got.tied == tied
    tokens = np.random.default_rng(seed).integers(0, VOCAB, 20)
    np.testing.assert_array_equal(FloatModel(got).forward(tokens), FloatModel(want).forward(tokens))


def test_tokenizer(made):
    path, _ = made()
    tokenizer = load_model(path).tokenizer
    shown = [tokenizer._tokenizer.id_to_token(i) for i in tokenizer.encode("hello world é")]
    assert shown == ["<s>", "▁", "hello", "▁world", "▁", "<0xC3>", "<0xA9>"]
    for text in ("hello world é\n", " a  b", "🦜"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # One that is named after the number of tokens goes first.
    write_tokenizer(path.with_name(f"tok{VOCAB}.bin"))
    path.with_name("tokenizer.bin").write_bytes(b"")
    load_model(path)


def test_outline(made):
    """Shapes without values, as of other formats."""
    path, want = made(1)
    got = load_llama2c(path, outline=True)
    assert got.graph == want.graph and not got.weights["layers.0.q"].any()
    assert got.parameters == want.parameters


def test_commands(made, tmp_path, capsys, monkeypatch):
    """It is a model wherever one is asked for, and an image named .bin stays an image."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    path, _ = made(heads=2, kv_heads=2)
    assert cli.main(["info", str(path)]) == 0
    assert "head_dim       16" in capsys.readouterr().out
    assert model_files(path) == [path, tmp_path / "tokenizer.bin"]      # decide what is cached
    image = tmp_path / "image.bin"
    assert cli.main(["compile", str(path), "-o", str(image)]) == 0
    assert cli.main(["info", str(image)]) == 0 and "instructions" in capsys.readouterr().out
    assert cli.main(["generate", "hello", "--model", str(path), "--target", "golden", "-n", "4",
                     "--ignore-eos"]) == 0
    assert capsys.readouterr().out.startswith("hello")


# ---- What is refused, by name

def test_recognised():
    """By magic number, or by seven numbers that make sense together."""
    assert is_llama2c(struct.pack("<Ii", 0x616B3432, 9))
    assert is_llama2c(struct.pack("<7i", 288, 768, 6, 6, 6, -32000, 256))
    for numbers in ((288, 768, 6, 7, 7, 32000, 256), (288, 768, 6, 6, 4, 32000, 256),
                    (288, 768, 0, 6, 6, 32000, 256), (288, 768, 6, 6, 6, 32000, -256),
                    (288, 1 << 30, 6, 6, 6, 32000, 256)):
        assert not is_llama2c(struct.pack("<7i", *numbers))
    for start in (b"", b"PK\3\4" + bytes(60), b"MEADOWLK" + bytes(60), b"GGUF" + bytes(60)):
        assert not is_llama2c(start)


def test_refused(made, tmp_path):
    path, model = made(1)
    good = path.read_bytes()
    for raw, message in (
            (good[:4] + struct.pack("<i", 2) + good[8:], "version 2 and only float32 is .*export"),
            (good[:-4], "has .* bytes where its header implies"),
            (good + bytes(4), "has .* bytes where its header implies"),
            (good[:8] + struct.pack("<i", 0) + good[12:], "header of llama2.c that makes no sense"),
            (good[:20], "makes no sense"),
            (good[:-4] + struct.pack("<f", np.nan), "down|up|head|holds values that are not fin")):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=message):
            load_model(path)
    path.write_bytes(good)
    vocabulary = tmp_path / "tokenizer.bin"
    raw = vocabulary.read_bytes()
    for other, message in (
            (raw[:-20], r"has 29\d tokens and the checkpoint 300"),
            (raw + bytes(9), "more tokens than"),
            (b"", "has 0 tokens and the checkpoint 300"),
            (raw[:8] + struct.pack("<i", -5) + raw[12:], "token 0 has -5 bytes"),
            (raw[:12] + b"\xff" + raw[13:], "token 0 is not UTF-8")):
        vocabulary.write_bytes(other)
        with pytest.raises(UserError, match=message):
            load_model(path)
    vocabulary.unlink()
    with pytest.raises(UserError, match="neither tok300.bin nor tokenizer.bin; put the tokenizer"):
        load_model(path)


def test_mutated_files(made, tmp_path, seed):
    """A model, or one sentence of a UserError."""
    rng = np.random.default_rng(seed)
    kept = {p: p.read_bytes() for p in (made(int(rng.integers(2)), layers=1)[0],
                                        tmp_path / "tokenizer.bin")}
    path = next(iter(kept))
    refused = 0
    for _ in range(MUTATIONS):
        for file, raw in kept.items():
            data = bytearray(raw)
            for _ in range(rng.integers(0, 3)):
                at = int(rng.integers(0, 260 if rng.random() < 0.7 else len(data)))
                data[at:at + 4] = rng.bytes(4) if rng.random() < 0.5 else \
                    int(rng.choice([0, 1, 2, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
            file.write_bytes(data)
        try:
            load_llama2c(path)
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 1000
    assert 0 < refused < MUTATIONS
