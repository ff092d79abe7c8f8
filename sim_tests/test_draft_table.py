"""Tables of drafts: what is in them, their files, and the command that makes and measures them."""
import json
import struct
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from meadowlark import cache, cli
from meadowlark.draft import own as own_module
from meadowlark.draft.conversations import Conversations
from meadowlark.draft.make import LARGEST, make
from meadowlark.draft.own import own
from meadowlark.draft.replay import measure
from meadowlark.draft.table import DraftTable, packaged
from meadowlark.errors import UserError
from meadowlark.files import DATA
from meadowlark.models.float_model import FloatModel
from meadowlark.models.registry import load_model
from meadowlark_hdl.draft.drafter_golden import NEVER
from meadowlark_hdl.draft.table_lookup_golden import EMPTY, SLOTS, lookup
from random_model import random_model

TEXTS = ["Once upon a time, there was a little dog.", "Once upon a time, there was a big cat.",
         "The dog and the cat were friends."]


def answers(*texts):
    return Conversations.of(([0], list(text)) for text in texts)


def said_by(table, *contexts):
    return [entry[0] if (entry := lookup(table, list(context))) else None for context in contexts]


# ---- What is in a table

def test_an_entry_is_there_for_what_it_brings():
    """The most frequent token behind a context; none that a shorter context says anyway."""
    said = answers(*[(9, 1, 2, 3)] * 3, *[(9, 1, 2, 4)] * 2, *[(9, 5, 2, 4)] * 4)
    table, least = make(said, 4000)
    assert least in range(2, NEVER + 1)
    assert said_by(table, [2], [1, 2], [5, 2], [9], [7]) == [4, 3, 4, 1, None]
    assert lookup(table, [5, 2]) == (4, 1) and lookup(table, [1, 2]) == (3, 2)
    # 9, which each answer begins with, is none that a pass drafts.
    assert said_by(table, [0]) == [None]


def test_a_table_keeps_what_brings_most(seed):
    """And is no larger than asked for."""
    ids = np.random.default_rng(seed).permutation(49000)[:60].reshape(20, 3).tolist()
    said = Conversations.joined([answers(*[three] * (i + 1)) for i, three in enumerate(ids)])

    def kept(size):
        table, _ = make(said, size)
        assert table.shape[1] == SLOTS and table.nbytes <= size
        return [i for i, (_, token, then) in enumerate(ids) if said_by(table, [token]) == [then]]
    assert kept(16)[-1] == 19 and len(kept(16)) <= SLOTS
    assert np.mean(kept(64)) > 12 and len(kept(160)) > len(kept(64))
    best, _ = make(said, LARGEST)
    # 40 entries in 64 buckets: one seed in 25 has five in a bucket, of which one has no room.
    assert len(kept(LARGEST)) > 16 and 36 < (best != EMPTY).sum() <= 40 and best.nbytes == 1024


def test_more_memory_brings_more(seed):
    """On text of the same source that was not in it."""
    rng = np.random.default_rng(seed)
    grammar = rng.integers(0, 300, (300, 2))

    def text(n):
        tokens = [int(rng.integers(300))]
        for chance in rng.random(n):
            tokens.append(int(grammar[tokens[-1], 0 if chance < 0.9 else 1]))
        return tokens
    train, held = (Conversations.of(([0], text(60)) for _ in range(100)) for _ in "ab")
    found = []
    for size in (16, 320, 5000):
        table, least = make(train, size)
        found.append(measure(held, 7, table, least)["together"].tokens_per_pass)
    assert found[0] < found[1] < found[2] and found[2] > 4


def test_the_table_against_the_context(seed):
    """Whichever was better on conversations that were held out stands first."""
    rng = np.random.default_rng(seed)
    copies = []         # each repeats a text that no other has; the table knows half-truths
    for _ in range(80):
        text = rng.integers(10, 400, 30).tolist()
        copies.append((text, text))
    assert make(Conversations.of(copies), 100_000)[1] == 2
    misleading = []     # "1 2" stands in each text with something else first, and then as always
    for _ in range(80):
        misleading.append(([1, 2, int(rng.integers(10, 400)), 1], [2, 7, 8, 9]))
    assert make(Conversations.of(misleading), 100_000)[1] > 2


@pytest.mark.parametrize("size", [0, 15, LARGEST + 1])
def test_sizes_that_no_table_has(size):
    with pytest.raises(UserError, match=f"16 to 2,097,136 bytes, not {size:,}$"):
        make(answers((1, 2)), size)


def test_nothing_to_make_a_table_from():
    with pytest.raises(UserError, match="no answers of two tokens"):
        make(answers((1,)), 100)


# ---- Conversations

def test_conversations_are_kept(tmp_path, seed):
    rng = np.random.default_rng(seed)
    said = Conversations.of([([1, 2], [3]), ([], [4, 5]), ([6], [])])
    path = tmp_path / "chats.npz"
    path.write_bytes(said.content())
    read = Conversations.read(path, 7)
    for name in ("tokens", "prompt_lengths", "answer_lengths", "starts", "positions", "drafted"):
        np.testing.assert_array_equal(getattr(read, name), getattr(said, name))
    assert read.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert read.drafted.tolist() == [0, 0, 0, 0, 1, 0]
    assert read.part(slice(1, 3)).tokens.tolist() == [4, 5, 6]
    with pytest.raises(UserError, match="token 6, and the model knows 6"):
        Conversations.read(path, 6)
    content = path.read_bytes()
    path.write_bytes(content[:int(rng.integers(0, len(content)))])
    with pytest.raises(UserError, match="holds no conversations"):
        Conversations.read(path, 7)


@pytest.mark.parametrize("change, words", [
    (dict(tokens=None), "tokens"), (dict(tokens=[0.5, 1.0, 2.0]), "float64"),
    (dict(tokens=[[1, 2, 3]]), "int64"), (dict(tokens=[1, 2]), "add up to 2 tokens"),
    (dict(tokens=[1, -1, 2]), "token -1"), (dict(prompt_lengths=[1]), "1 lengths of prompts"),
    (dict(prompt_lengths=[-1, 2], answer_lengths=[1, 1]), "add up"),
    (dict(prompt_lengths=[0, 1], answer_lengths=[0, 2]), "add up"),
    (dict(prompt_lengths=np.zeros(0, int), answer_lengths=np.zeros(0, int)), "0 lengths"),
    (dict(tokens=np.array([None] * 3)), "allow_pickle")])
def test_files_that_are_no_conversations(tmp_path, change, words):
    arrays = dict(tokens=[1, 2, 3], prompt_lengths=[1, 1], answer_lengths=[0, 1]) | change
    path = tmp_path / "x.npz"
    np.savez(path, **{k: np.array(v) for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=words) as error:
        Conversations.read(path, 10)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    np.save(path, np.arange(3))
    with pytest.raises(UserError, match="holds no conversations"):
        Conversations.read(path.with_suffix(".npz.npy"), 10)
    with pytest.raises(UserError, match="No such file"):
        Conversations.read(tmp_path / "none.npz", 10)


# ---- Files

@pytest.fixture(scope="module")
def stories():
    return load_model("stories", outline=True)


@pytest.fixture
def table(stories):
    entries, least = make(Conversations.of_text(stories, TEXTS * 3, ""), 3000)
    return DraftTable.of(stories, entries, least, "three sentences")


def test_a_file_is_read_as_it_was_written(tmp_path, table, stories):
    path = tmp_path / "a.mld"
    table.save(path)
    read = DraftTable.load(path)
    np.testing.assert_array_equal(read.entries, table.entries)
    assert vars(replace(read, entries=table.entries)) == vars(table)
    assert path.read_bytes()[-table.size:] == table.entries.astype("<u4").tobytes()
    read.check_for(stories, "a.mld")


def test_a_damaged_file_is_refused(tmp_path, table, seed):
    rng = np.random.default_rng(seed)
    whole = b"".join(table.content())
    path = tmp_path / "a.mld"
    for at in {*rng.integers(0, len(whole), 40).tolist(), 0, 8, 12, 16, 20, len(whole) - 1}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))])
                         + whole[at + 1:])
        with pytest.raises(UserError, match="a.mld (is|has)"):
            DraftTable.load(path)
    for length in {*rng.integers(1, len(whole), 20).tolist(), 7, 8, 19, 20}:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            DraftTable.load(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        DraftTable.load(path)
    with pytest.raises(UserError, match="cannot read"):
        DraftTable.load(tmp_path / "none")


@pytest.mark.parametrize("change, words", [
    (dict(least=1), "another rule"), (dict(least=6), "another rule"),
    (dict(lengths=[1, 2]), "another rule"), (dict(buckets=1), "1 buckets"),
    (dict(buckets=0), "0 buckets"), (dict(vocab=3), "of 3"), (dict(vocab="x"), "another kind"),
    (dict(model=4), "another kind"), (dict(least=True), "another kind"), (None, "")])
def test_a_whole_file_that_is_no_table(tmp_path, table, change, words):
    """Nothing is believed for a checksum."""
    lead, header, memory = table.content()
    header = b"[]" if change is None else json.dumps(json.loads(header) | change).encode()
    lead = struct.pack("<8sII", b"MEADOWDT", 1, len(header))
    check = crc32(memory, crc32(header, crc32(lead)))
    path = tmp_path / "a.mld"
    path.write_bytes(lead + struct.pack("<I", check) + header + memory)
    with pytest.raises(UserError, match=f"is no table of drafts .*{words}"):
        DraftTable.load(path)


def test_another_version_is_refused(tmp_path, table):
    lead, header, memory = table.content()
    path = tmp_path / "a.mld"
    path.write_bytes(lead[:8] + struct.pack("<I", 2) + lead[12:] + header + memory)
    with pytest.raises(UserError, match="version 2, and this program reads 1"):
        DraftTable.load(path)


def test_a_table_of_another_vocabulary_is_refused(tmp_path, table, seed):
    other = load_model(random_model(tmp_path / "m", seed=seed), outline=True)
    with pytest.raises(UserError, match=r"is for the tokens of stories \(2,048\), and .* has "
                                        r"others \(\d+\)"):
        table.check_for(other, "a.mld")
    with pytest.raises(UserError, match="is for the tokens of stories"):
        replace(table, vocabulary="0" * 32).check_for(load_model("stories", outline=True), "a.mld")


# ---- What a model writes

SHAPE = dict(hidden=32, layers=1, heads=2, kv_heads=2, head_dim=16, ffn=48, vocab=64)


@pytest.mark.parametrize("temp", [0.0, 0.8])
def test_own_is_what_the_model_writes(tmp_path, seed, temp, monkeypatch):
    """Answers token by token the likeliest, at temperature 0; prompts are those given, in turn."""
    monkeypatch.setattr(own_module, "AT_ONCE", 3)
    model = load_model(random_model(tmp_path / "m", seed=seed, **SHAPE))
    prompts = [[1, 2, 3], [9], [4, 5]]
    said = own(model, 7, prompts=prompts, length=16, seed=seed, temp=temp)
    runner = FloatModel(model)
    assert len(said) == 7
    for i in range(7):
        one = said.part(slice(i, i + 1))
        tokens, given = one.tokens.tolist(), int(one.prompt_lengths[0])
        assert tokens[:given] == prompts[i % 3]
        assert len(tokens) == 16 or tokens[-1] in model.stop_ids
        assert not set(tokens[given:-1]) & set(model.stop_ids)
        if not temp:
            logits = runner.forward(tokens[:-1])[given - 1:]
            got = logits[np.arange(len(logits)), tokens[given:]]
            assert (got >= logits.max(axis=1) - 1e-4).all()


def test_own_draws_beginnings_where_none_are_given(tmp_path, seed):
    model = load_model(random_model(tmp_path / "m", seed=seed, tied=False, **SHAPE))
    model = replace(model, stop_ids=(), bos_id=None if seed % 2 else model.bos_id)
    said = own(model, 12, length=14, seed=seed)
    assert set(said.prompt_lengths) == {9} and set(said.lengths) == {14}
    starts = {tuple(said.part(slice(i, i + 1)).tokens[:9]) for i in range(12)}
    assert len(starts) > 6


def test_own_goes_on_where_it_was_interrupted(tmp_path, seed, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own_module, "AT_ONCE", 2)
    model = load_model(random_model(tmp_path / "m", seed=seed, **SHAPE))
    whole = own(model, 6, length=12, seed=seed)
    steps = []

    def stop(text, done, total):
        steps.append(text)
        if "5 to 6" in text:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        own(model, 6, length=12, seed=seed, key="a", progress=stop)
    assert len({*steps}) == 3
    steps.clear()
    again = own(model, 6, length=12, seed=seed, key="a",
                progress=lambda text, *_: steps.append(text))
    assert {text[:29] for text in steps} == {"writing conversations 5 to 6 "}
    np.testing.assert_array_equal(again.tokens, whole.tokens)
    steps.clear()
    own(model, 6, length=12, seed=seed, key="b", progress=lambda text, *_: steps.append(text))
    assert len({*steps}) == 3 and cache.folder() == tmp_path / "cache"


# ---- The command

@pytest.fixture
def run(capsys):
    """run(*args) -> (exit status, stdout, stderr)."""
    def command(*args):
        status = cli.main(["draft", *map(str, args)])
        return (status, *capsys.readouterr())
    return command


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS * 4))
    return path


def test_command_makes_and_measures(run, tmp_path, text, stories):
    out = tmp_path / "t.mld"
    status, told, err = run("stories", "-o", out, "--text", text, "--size", "2k", "--measure", text,
                            "-k", "3", "--json", "-")
    result = json.loads(told)
    assert status == 0 and "entries" in err
    table = DraftTable.load(out)
    assert result["bytes"] == table.size <= 2000 and result["entries"] == table.used
    assert result["tokens_per_pass"] == result["together"]["tokens_per_pass"] > 2.5
    assert {"context", "table"} <= result.keys() and len(result["table"]["accepted"]) == 4
    chats = tmp_path / "chats.npz"
    chats.write_bytes(Conversations.of_text(stories, TEXTS * 4, "").content())
    status, told, _ = run("stories", "--measure", chats, "-k", "3", "--table", out, "--json", "-")
    again = json.loads(told)
    assert again["together"] == result["together"] and again["file"] == str(out)
    other = tmp_path / "u.mld"
    assert run("stories", "-o", other, "--chats", chats, "--size", "2k")[0] == 0
    np.testing.assert_array_equal(DraftTable.load(other).entries, table.entries)
    status, told, _ = run("stories", "--measure", chats, "--table", out)
    assert status == 0 and "context alone" in told and "table alone" in told


def test_command_writes_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\n\nThe dog\n")
    out = tmp_path / "t.mld"
    status, told, err = run("stories", "-o", out, "--own", "3", "--prompts", prompts, "-n", "30",
                            "--json", "-")
    assert status == 0 and json.loads(told)["conversations"] == 3
    assert "writing conversations 1 to 3 of 3" in err
    kept = tmp_path / "kept.npz"
    status, _, err = run("stories", "--keep", kept, "--own", "3", "--prompts", prompts, "-n", "30")
    assert status == 0 and "writing" not in err
    said = Conversations.read(kept, 2048)
    assert len(said) == 3 and said.lengths.tolist() == [30] * 3
    assert said.part(slice(2, 3)).tokens.tolist() == said.part(slice(0, 1)).tokens.tolist()


@pytest.mark.parametrize("args, words", [
    ((), ("nothing is asked for",)),
    (("-o", "x.mld"), ("--text, --chats or --own", "give one of them")),
    (("--measure", "text.txt", "--text", "text.txt"), ("--text is to make a table", "-o FILE")),
    (("-o", "x.mld", "--text", "text.txt", "--prompts", "text.txt"),
     ("--prompts is for", "give --own N")),
    (("-o", "x.mld", "--text", "text.txt", "--keep", "y"), ("--keep is for", "give --own N")),
    (("--measure", "text.txt", "--own", "3"), ("--own is to make a table from",)),
    (("-o", "x.mld", "--text", "text.txt", "--table", "y"), ("leave one of them out",)),
    (("-o", "x.mld", "--text", "text.txt", "--size", "big"), ("300k or 1M", "'big'")),
    (("-o", "x.mld", "--text", "text.txt", "--size", "2.1M"), ("not 2,100,000",)),
    (("-o", "x.mld", "--text", "empty.txt"), ("empty.txt has no tokens",)),
    (("-o", "x.mld", "--chats", "text.txt"), ("text.txt holds no conversations",)),
    (("-o", "x.mld", "--own", "2", "--prompts", "empty.txt"), ("no prompts in empty.txt",)),
    (("-o", "text.txt", "--text", "text.txt"), ("cannot write text.txt", "is read by")),
    (("--measure", "text.txt", "--table", "text.txt"), ("text.txt is no table of drafts",)),
    (("--measure", "text.txt", "-k", "0"), ("-k",)),
])
def test_command_refuses(run, tmp_path, monkeypatch, text, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    status, told, err = run("stories", *args)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and not told and len(said) == 1
    assert all(word in said[0] for word in words), said
    assert not (tmp_path / "x.mld").exists()


@pytest.mark.parametrize("name, k, least", [("stories", 7, 2.3)])
def test_packaged_tables(run, name, k, least):
    """They are for the models that they come with, and worth having."""
    status, told, err = run(name, "--measure", DATA / "validation.txt", "-k", k, "--json", "-")
    result = json.loads(told)
    assert status == 0 and result["tokens_per_pass"] > least and result["k"] == k
    assert result["together"]["tokens_per_pass"] > result["context"]["tokens_per_pass"]


def test_packaged_table_of_smollm2(smollm2):
    table = DraftTable.load(packaged("smollm2"))
    table.check_for(smollm2, "smollm2.mld")
    assert 150_000 < table.used and packaged("smollm3") is packaged("../stories") is None
