"""Where texts begin and answers end: the same for a folder and for the GGUF file made of it."""
import json

import numpy as np
import pytest
from gguf import TokenType
from gguf_files import write_gguf
from random_model import name_tokens, random_model

from meadowlark.errors import UserError
from meadowlark.models.registry import PACKAGED, load_model
from meadowlark.run.prepare import Source
from meadowlark.text.stops import ENDS, end_tokens, stop_ids
from meadowlark_boards import get_board
from meadowlark_hdl.run_table import STOP_IDS


def folder_with(path, seed, name, *, added=None, **declared):
    """A folder in whose vocabulary id 100 has this name."""
    folder = name_tokens(random_model(path, seed=seed), {name: 100}, added)
    if declared:
        (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


def text_of(model, *ids):
    return model.tokenizer.decode([4, *ids, 5])


# ---- Ends of answers

def test_order():
    ids = {text: i for i, text in enumerate(ENDS)}
    assert len(ids) == len(ENDS)
    # Named ones first, in their order, then those of chats; never more than a run can have.
    chosen = stop_ids([40, None, 41, 40], end_tokens(ids.get))
    assert chosen[:4] == (40, 41, ids["<|im_end|>"], ids["<|eot_id|>"])
    assert len(chosen) == len(set(chosen)) == STOP_IDS
    assert stop_ids([None], []) == ()


@pytest.mark.parametrize("texts, ends", [
    (["<|end|>", "<|return|>"], ["<|end|>", "<|return|>"]),
    (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
    (["<|end|>", "<|flush|>", "<|calls|>"], ["<|calls|>", "<|flush|>"]),
    (["</s>", "<|tool_response>"], ["<|tool_response>"]),
    (["<|im_start|>", "end"], []),
])
def test_parts(texts, ends):
    """Tokens that end a part of an answer, where others end the whole."""
    ids = {text: i for i, text in enumerate(texts)}
    assert end_tokens(ids.get) == [ids[text] for text in ends]


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>"])
def test_gguf(tmp_path, seed, kind, end):
    """Of whatever type the file says it is; its text is never in an answer."""
    folder = folder_with(tmp_path / "m", seed, end)
    kinds = np.full(128, int(TokenType.NORMAL), np.int32)
    kinds[:2], kinds[100] = int(TokenType.CONTROL), int(kind)
    model = load_model(write_gguf(tmp_path / "m.gguf", folder, values={
        "tokenizer.ggml.token_type": kinds.tolist()}))
    assert model.stop_ids == (1, 100)
    assert model.tokenizer.encode(f"a{end}b", special=False)[1] == 100
    assert text_of(model, 100) == text_of(model)


@pytest.mark.parametrize("added", [{}, {"<|im_end|>": False}, {"<|im_end|>": True}])
def test_folder(tmp_path, seed, added):
    folder = folder_with(tmp_path, seed, "<|im_end|>", added=added)
    model = load_model(folder)
    assert model.stop_ids == (1, 100)
    assert model.tokenizer.encode("a<|im_end|>b", special=False)[1] == 100
    assert text_of(model, 100) == text_of(model)


@pytest.mark.parametrize("eos", ["<over>", {"content": "<over>", "lstrip": False}])
def test_folder_says_so_in_tokenizer_config(tmp_path, seed, eos):
    folder = folder_with(tmp_path, seed, "<over>", added={"<over>": True}, eos_token=eos)
    assert load_model(folder).stop_ids == (1, 100)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    assert load_model(folder).stop_ids == (5, 1, 100)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(8))}))
    with pytest.raises(UserError, match="9 stop ids and a run can have 8"):
        load_model(folder)


def test_folder_with_nothing_new():
    """A tokenizer.json that says it all is kept as it is."""
    stories = load_model("stories")
    assert stories.tokenizer.json == (PACKAGED["stories"] / "tokenizer.json").read_bytes()


# ---- Beginnings of texts

def begins(path, text="ab"):
    """How many bos tokens a prompt begins with, and whether the model says that it has one."""
    source = Source(str(path), get_board("virtual"))
    ids = source.prompt(text)
    return next(i for i, id in enumerate(ids) if id != 0), source.model.bos_id


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("add", [None, True, False])
def test_bos_of_folders(tmp_path, seed, monkeypatch, processed, add):
    """As tokenizer.json does it, unless tokenizer_config.json says otherwise; that config.json has
    an id for it says nothing."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    folder = random_model(tmp_path / "m", seed=seed, heads=2, kv_heads=2)
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    if not processed:
        stored["post_processor"] = None
    file.write_text(json.dumps(stored))
    declared = {"bos_token": "<|bos|>"} | ({} if add is None else {"add_bos_token": add})
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    wanted = processed if add is None else add
    assert begins(folder) == (int(wanted), 0 if wanted else None)
    assert begins(folder, "<|bos|>ab")[0] == 1                  # never two
    assert load_model(folder).text_tokens("ab").count(0) == wanted


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("template", ["", "{{ bos_token }}"])
def test_bos_of_chats_in_gguf(tmp_path, seed, monkeypatch, add, template):
    """Put in front where the file asks for one and the template has none; never two."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    folder = random_model(tmp_path / "m", seed=seed, heads=2, kv_heads=2)
    path = write_gguf(tmp_path / "m.gguf", folder, values={
        "tokenizer.ggml.add_bos_token": add,
        "tokenizer.chat_template": template + "{% for m in messages %}Q{{ m.content }}A"
                                              "{% endfor %}"})
    source = Source(str(path), get_board("virtual"))
    bos = [0] if add or template else []
    rest = source.tokenizer.encode("QHelloA", special=False)
    assert source.prompt("Hello", chat=True) == bos + rest
    talk = source.conversation()
    first = talk.ask("Hello")
    talk.answered([7, 1])
    assert first == bos + rest and talk.ask("Bye").count(0) == len(bos)
    # The image says the same.
    image = tmp_path / "m.mlk"
    source.image.save(image)
    assert Source(str(image), source.board).prompt("Hello", chat=True) == first


@pytest.mark.parametrize("add", [True, False])
def test_bos_of_chats_in_folders(tmp_path, seed, monkeypatch, add):
    """As the template has it."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    folder = random_model(tmp_path / "m", seed=seed, heads=2, kv_heads=2)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<|bos|>", "chat_template": "{{ bos_token }}" * add + "a"}))
    assert Source(str(folder), get_board("virtual")).prompt("Hello", chat=True)[:-1] == [0] * add


@pytest.mark.parametrize("values, message", [
    ({"add_bos_token": "no"}, "add_bos_token must be true or false, not 'no'"),
    ({"eos_token": 3}, "eos_token must be a text, not 3"),
    ({"eos_token": {"content": ["a"]}}, "eos_token.content must be a text, not a list of 1")])
def test_damaged_tokenizer_config(tmp_path, seed, values, message):
    folder = random_model(tmp_path, seed=seed)
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_model(folder)
