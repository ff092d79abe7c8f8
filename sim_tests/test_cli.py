"""The commands: what they print, and that whatever the user can put right is one sentence."""
import csv
import dataclasses
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import numpy as np
import pytest
from meadowlark import cli
from meadowlark.cli.group import cli as group
from meadowlark.cli.options import counts, positions_of
from meadowlark.compile.cycles import predict, predict_batch
from meadowlark.compile.image import Image
from meadowlark.draft.table import DraftTable, packaged
from meadowlark.errors import UserError
from meadowlark.files import read_text
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.models.registry import PACKAGED
from meadowlark.run import bench, targets
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget, Event, GoldenTarget
from meadowlark.run.targets import check as compare
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling, logits_crc
from meadowlark_hdl.isa import Op, encode
from random_model import random_model
from safetensors.numpy import load_file, save_file

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image of the packaged model."""
    path = tmp_path_factory.mktemp("image") / "stories.mlk"
    assert cli.main(["compile", "stories", "-o", str(path)]) == 0
    return path


def folder(tmp_path, **config):
    """A copy of the packaged model with other values in config.json."""
    out = tmp_path / "model"
    shutil.copytree(PACKAGED["stories"], out)
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return out


def refused(result, *words: str) -> None:
    """Status 2, nothing on stdout, one sentence on stderr that holds the words."""
    status, out, err = result
    assert status == 2 and out == ""
    lines = [x for x in err.splitlines() if not x.endswith(" ...")]     # steps in between
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


# ---- What the user can put right

def test_missing_model(run, tmp_path):
    refused(run("generate", STORY, "--model", tmp_path / "none"), "no model", "stories")
    refused(run("compile", tmp_path / "none", "-o", tmp_path / "x"), "no model")
    refused(run("info", tmp_path / "none"), "neither an image nor a model", "virtual")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_model(run, tmp_path, name):
    path = folder(tmp_path)
    (path / name).unlink()
    refused(run("compile", path, "-o", tmp_path / "x"), name)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_truncated_model(run, tmp_path, name):
    path = folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-100])
    refused(run("generate", STORY, "--model", path.parent), name)


@pytest.mark.parametrize("config, words", [
    ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
     ("mixtral", "not supported")),
    ({"hidden_act": "mish"}, ("mish", "not supported")),
    ({"rope_scaling": {"rope_type": "new"}}, ("new", "not supported")),
])
def test_unsupported_architecture(run, tmp_path, config, words):
    refused(run("generate", STORY, "--model", folder(tmp_path, **config)), *words)


def test_model_outside_the_envelope(run, tmp_path, monkeypatch):
    from meadowlark_boards import BOARDS
    board = get_board("virtual")
    small = board.config.replace(prog_depth=64)
    monkeypatch.setitem(BOARDS, "tiny", type(board)(
        **{**vars(board), "name": "tiny", "config": small}))
    refused(run("compile", "stories", "-o", tmp_path / "x", "--board", "tiny"),
            "most 64 (prog_depth)", "does not fit the board")
    refused(run("generate", STORY, "--board", "tiny", "--target", "golden"), "most 64 (prog_depth)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompt, words", [
    ("a cat " * 400, ("tokens", "the context holds 512", "shorten")),
    ("\udcff", ("UTF-8",)),
])
def test_bad_prompts(run, prompt, words):
    refused(run("generate", prompt, "--target", "golden"), *words)


def test_damaged_images(run, image, tmp_path):
    good = image.read_bytes()
    for name, raw, word in (
            ("short", good[:-1000], "truncated"), ("stub", good[:10], "truncated"),
            ("flipped", good[:-500] + bytes([good[-500] ^ 1]) + good[-499:], "damaged"),
            ("header", good[:200] + b"#" + good[201:], "damaged"),
            ("foreign", b"\x7fELF" + good[4:], "is neither a GGUF file, an image nor a checkpoint"),
            ("empty", b"", "is empty")):
        path = tmp_path / name
        path.write_bytes(raw)
        for command in (["info", path], ["generate", STORY, "--model", path],
                        ["bench", "--model", path]):
            refused(run(*command), str(path), word)


def test_warnings(run, tmp_path, seed):
    """What is in a model and not used is told once, by each command."""
    model = random_model(tmp_path / "m", seed=seed, heads=2, kv_heads=2)
    path = model / "model.safetensors"
    save_file(load_file(path) | {"other": np.ones(2, np.float32)}, path)
    for command in (["info", model], ["compile", model, "-o", tmp_path / "x"],
                    ["generate", "a", "--model", model, "--target", "golden", "-n", "1"]):
        status, _, err = run(*command)
        told = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert status == 0 and len(told) == 1 and told[0].endswith("not used: other")


def test_an_image_for_another_board(run, image):
    for command in (("bench",), ("generate", STORY, "--target", "golden")):
        refused(run(*command, "--model", image, "--board", "ulx3s_85f"), "P = 4", "P = 8",
                "compile the model")


def test_an_image_is_not_a_checkpoint(run, image, tmp_path):
    refused(run("eval", "--model", image), "is an image")
    refused(run("compile", image, "-o", tmp_path / "x"), "is an image")
    refused(run("generate", STORY, "--model", image, "--ctx", "64"), "--ctx")
    refused(run("bench", "--model", image, "--weights", "int8"), "weights", "--weights out")


@pytest.mark.parametrize("args, words", [
    (["generate"], ("PROMPT", "generate --help")),
    (["generate", STORY, "-p", STORY], ("one way only",)),
    (["generate", "-f", "/no/such/file"], ("/no/such/file", "No such file")),
    (["generate", STORY, "--top-k", "33", "--temperature", "1"], ("top_k 33", "32")),
    (["generate", STORY, "--top-p", "0", "--temperature", "1"], ("top_p",)),
    (["generate", STORY, "--temperature", "-1"], ("temperature -1.0",)),
    (["generate", STORY, "--temperature", "warm"], ("warm",)),
    (["generate", STORY, "--seed", "-1"], ("seed -1",)),
    (["generate", STORY, "-n", "0"], ("at least 1, not 0",)),
    (["generate", STORY, "--stop", ""], ("--stop",)),
    (["generate", STORY, "--weights", "q4"], ("'q4'", "'auto', 'int8'")),
    (["generate", STORY, "--packing", "huffman"], ("huffman", "raw")),
    (["generate", STORY, "--board", "arty"], ("'arty'", "virtual, ecpix5_85f")),
    (["generate", STORY, "--target", "chip"], ("'chip'", "golden, sim, pins, a serial port")),
    (["generate", STORY, "--target", "/dev/no-such-port"], ("there is no port /dev/no-such-port",)),
    (["generate", STORY, "--target", "golden", "--check"], ("leave one of them out",)),
    (["generate", STORY, "--target", "golden", "--ctx", "513"], ("1..512", "513")),
    (["bench", "--target", "golden"], ("no clock",)),
    (["bench", "-p", "0", "-n", "0"], ("nothing to measure",)),
    (["bench", "-p", "many"], ("-p 'many'",)),
    (["bench", "-n", "-3"], ("-n '-3'",)),
    (["bench", "-p", "513"], ("pp513", "512")),
    (["bench", "-p", "0", "-d", "500"], ("tg32 @ d500 takes 532", "512", "earlier --position")),
    (["bench", "--position", "0,-7"], ("--position '0,-7'",)),
    (["bench", "-d", "7", "--target", "/dev/no-such-port"],
     ("the memory of /dev/no-such-port is out of its reach", "--target sim")),
    (["bench", "--format", "xml"], ("'xml'", "'md', 'csv', 'json'")),
    (["bench", "--format", "csv", "--json", "-"], ("--format out",)),
    (["bench", "--against-raw", "--packing", "raw"], ("leave one of them out",)),
    (["bench", "--text", "/no/such/file"], ("/no/such/file",)),
    (["bench", "--text", "/dev/null", "-n", "0"], ("--text", "give that a number above 0")),
    (["bench", "--text", "/dev/null"], ("no texts to go on with",)),
    (["eval", "--tokens", "0"], ("at least 1, not 0",)),
    (["eval", "--text", "/no/such/text"], ("/no/such/text", "No such file")),
    (["compile", "stories"], ("-o",)),
    (["compile", "-o", "x"], ("MODEL",)),
    (["compile", "stories", "-o", "/"], ("it is a folder",)),
    (["compile", "stories", "-o", "/no/such/folder/x"], ("/no/such/folder/x",)),
    (["no-such-command"], ("no-such-command",)),
    (["generat", STORY], ("generat", "Did you mean 'generate'? See")),
])
def test_options_that_cannot_be_had(run, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if args[-1].startswith("/no/such/folder"):
        monkeypatch.setattr("pathlib.Path.mkdir", _read_only)
    refused(run(*args), *words)


def _read_only(path, *args, **kw):
    if str(path).startswith("/no"):
        raise PermissionError(13, "Permission denied", str(path))


def test_json_that_cannot_be_written(run, tmp_path):
    refused_ = run("info", "--json", tmp_path / "no" / "x.json")
    assert refused_[0] == 2 and "x.json" in refused_[2] and "Traceback" not in refused_[2]


# ---- Options

COMMANDS = group.commands
#: All that is understood, by command; nothing that is not used.
GRID = {"--weights", "--bits", "--target-ppl", "--fuse-ffn", "--drop-attention"}
MODEL = GRID | {"-c", "--ctx", "--ctx-size", "--packing"}
DRAWN = {"-n", "--predict", "--tokens", "--temp", "--temperature", "--top-k", "--top-p", "-s",
         "--seed", "--draft"}
RUNS = {"-m", "--model", "--board", "--target", "--json"}
SYSTEM = {"-sys", "--system", "--system-prompt"}
TRACE = {"--trace", "--trace-passes"}
WAVES = {"--waves", "--waves-cycles"}
OPTIONS = {
    "generate": MODEL | DRAWN | RUNS | {"prompt", "-p", "--prompt", "-f", "--file", "--ids",
                                        "--stop", "--chat", "--ignore-eos", "--check",
                                        "--prompts", "--parallel"
                                        } | SYSTEM | TRACE | WAVES,
    "chat": MODEL | DRAWN | RUNS | SYSTEM | {"-p", "--prompt", "--stop", "--keep"},
    "classify": MODEL | RUNS | WAVES | {"files", "--top", "--check"},
    "bench": MODEL | RUNS | {"-p", "--n-prompt", "-n", "--n-gen", "-d", "--position",
                             "--batch", "--text", "--format", "--against-raw", "--all-tokens",
                             "--lanes", "--maximum", "--html"} | TRACE | WAVES,
    "predict": MODEL | {"-m", "--model", "--board", "--json", "-p", "--n-prompt", "-n", "--n-gen",
                        "-d", "--position", "--layers", "--exact", "--counted", "--html"},
    "serve": MODEL | {"-m", "--model", "--board", "--target", "--host", "--port", "--api-key",
                      "--cors", "--queue", "--parallel", "--timeout", "--max-tokens",
                      "--max-body"},
    "eval": GRID | {"-m", "--model", "--board", "--json", "--text", "-n", "--tokens", "-c", "--ctx",
                    "--ctx-size", "--maximum"},
    "compile": MODEL | {"model", "-o", "--output", "--draft", "--board", "--json",
                        "--all-tokens", "--fence", "--attention", "--lanes", "--maximum"},
    "draft": {"model", "-o", "--output", "--text", "--chats", "--own", "--prompts", "-n",
              "--tokens", "--temp", "-s", "--seed", "--keep", "--size", "--measure", "--table",
              "-k", "--drafts", "--json"},
    "build": {"--board", "--for", "--seeds", "--clock", "-o", "--output", "--html", "--json"},
    "flash": {"bitstream", "--board"},
    "ablate": {"--paper", "--plots", "--measure", "-m", "--model", "--drop-attention", "--text",
               "--json", "-o", "--output"},
    "explore": {"-m", "--model", "--board", "--set", "--bandwidth", "--bits", "-p", "--n-prompt",
                "-n", "--n-gen", "-o", "--output", "-j", "--jobs"},
    "info": {"what", "--graph", "-o", "--plot", "--json"},
    "doctor": {"--json"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_command(name):
    found = {o for p in COMMANDS[name].params for o in p.opts}
    assert found == OPTIONS[name]


def test_options_of_others_are_refused(run):
    every = sorted({o for of in OPTIONS.values() for o in of if o.startswith("--")})
    for name, own in OPTIONS.items():
        for option in every:
            if not any(o.startswith(option) for o in own):
                refused(run(name, option, "x"), "No such option", option)


def test_help_is_whole_sentences(run, monkeypatch):
    """On 80 columns: summaries that are not cut off, and every text ends as a sentence does."""
    monkeypatch.setenv("COLUMNS", "80")
    text = run("--help")[1]
    summaries = [x for x in text[text.index("Commands:"):].splitlines()[1:] if x]
    assert len(summaries) == len(OPTIONS) == len(COMMANDS)
    for line in (*text.splitlines(), *(x for c in OPTIONS for x in run(c, "-h")[1].splitlines())):
        assert len(line) <= 80 and "..." not in re.sub(
            r"\[ARGS\]\.\.\.|IMAGE\.\.\.", "", line)
    for line in summaries:
        assert line.endswith(".")
    for command in COMMANDS.values():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help and option.help.endswith("."), (command.name, option.name)


def test_prompts_from_files_and_stdin(run, tmp_path, monkeypatch):
    """Without the one line end at the end, as llama.cpp reads them."""
    args = ("--target", "golden", "-n", "4", "--json", "-")
    want = json.loads(run("generate", f"{STORY}\n", *args)[1])
    path = tmp_path / "prompt"
    path.write_text(f"{STORY}\n\n")
    assert json.loads(run("generate", "-f", path, *args)[1])["tokens"] == want["tokens"]
    for way in (["-"], ["-f", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        assert json.loads(run("generate", *way, *args)[1])["tokens"] == want["tokens"]
    assert json.loads(run("generate", "-p", f"{STORY}\n", *args)[1])["tokens"] == want["tokens"]
    path.write_bytes(b"a\xff")
    refused(run("generate", "-f", path, *args), "not UTF-8 (byte 1)")
    refused(run("generate", "-f", tmp_path, *args), "Is a directory")


def test_names_of_llama_cpp(run):
    args = ("generate", "--target", "golden", "--json", "-", "-m", "stories", "-p", STORY)
    one = run(*args, "-n", "5", "-c", "64", "-s", "3", "--temp", "1.5", "--top-k", "9")
    other = run(*args, "--predict", "5", "--ctx-size", "64", "--seed", "3", "--temperature",
                "1.5", "--top-k", "9")
    assert json.loads(one[1])["tokens"] == json.loads(other[1])["tokens"]
    assert one[0] == 0 and json.loads(one[1])["seed"] == 3


# ---- What they print

def test_json_to_stdout_is_one_object(run):
    status, out, err = run("generate", STORY, "--target", "golden", "-n", "6", "--json", "-")
    result = json.loads(out)
    assert status == 0 and len(result["tokens"]) == 6 and result["end"] == "number of tokens"
    assert {"text", "tokens_per_s", "cycles_per_token", "bytes_per_token",
            "host_messages"} <= result.keys()
    assert result["text"] and result["text"] in err         # the text moves to stderr


def test_json_file_and_streamed_text(run, tmp_path):
    path = tmp_path / "result.json"
    status, out, _ = run("generate", STORY, "--target", "golden", "-n", "6", "--json", path)
    result = json.loads(path.read_text())
    assert status == 0 and out == STORY + result["text"] + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_sampling_repeats_with_its_seed(run):
    def tokens(seed):
        args = ("generate", STORY, "--target", "golden", "-n", "12", "--temperature", "1.5")
        return json.loads(run(*args, "--seed", seed, "--json", "-")[1])["tokens"]
    assert tokens(3) == tokens(3) != tokens(4)


def test_a_stop_text_is_not_shown(run):
    base = ("generate", STORY, "--target", "golden", "--json", "-", "-n", "20")
    whole = json.loads(run(*base)[1])["text"]
    stop = whole[10:14]
    result = json.loads(run(*base, "--stop", stop, "--stop", "not in it")[1])
    assert result["text"] == whole[:whole.index(stop)] and result["end"] == "stop text"
    assert run(*base[:4], "-n", "20", "--stop", stop)[1] == STORY + result["text"] + "\n"


def test_a_text_ends_where_the_context_does(run):
    result = json.loads(run("generate", STORY, "--target", "golden", "--ctx", "12", "--json",
                            "-")[1])
    assert result["end"] == "context"
    assert result["prompt_tokens"] + len(result["tokens"]) == 13    # the last needs no place


def test_compile_says_what_it_made(run, tmp_path):
    path = tmp_path / "any.name"
    result = json.loads(run("compile", "stories", "-o", path, "--json", "-")[1])
    assert result["bytes"] == path.stat().st_size and result["parameters"] == 1443456
    assert {"bytes_per_token", "bits_per_weight", "seconds"} <= result.keys()
    facts = json.loads(run("info", path, "--json", "-")[1])
    assert facts["image"] == "stories" and facts["board"] == "virtual"


def test_eval_gives_both_perplexities(run, tmp_path):
    text = tmp_path / "text"
    text.write_text("Once upon a time, there was a little girl named Lily.\n\nShe was happy.\n")
    result = json.loads(run("eval", "--text", text, "--json", "-")[1])
    assert {"ppl_float", "ppl_fixed", "delta_pct", "tokens"} <= result.keys()
    few = json.loads(run("eval", "--text", text, "--tokens", "5", "--json", "-")[1])
    assert few["tokens"] == 5 < result["tokens"]
    short = json.loads(run("eval", "--text", text, "--ctx", "3", "--json", "-")[1])
    assert short["tokens"] == result["tokens"] and short["ppl_float"] > result["ppl_float"]
    refused(run("eval", "--text", text, "--ctx", "513"), "windows of 513 tokens", "1 to 512")
    packed = tmp_path / "text.xz"
    packed.write_bytes(lzma.compress(text.read_bytes()))
    assert json.loads(run("eval", "--text", packed, "--json", "-")[1]) == result
    packed.write_bytes(packed.read_bytes()[:-9])
    refused(run("eval", "--text", packed), "cannot read the text", "text.xz")
    packed.write_bytes(b"plain")
    refused(run("eval", "--text", packed), "cannot read the text", "text.xz")
    text.write_text("\n\n")
    refused(run("eval", "--text", text), "no tokens")
    text.write_bytes(b"\xff")
    refused(run("eval", "--text", text), "not UTF-8")


def test_the_english_text():
    """What docs/numerics.md is measured on: long enough, the first lines longer than a window."""
    lines = read_text(Path(__file__).parent / "texts" / "jargon.txt.xz")
    assert sum(map(len, lines)) > 200_000 and len(lines) == 194
    assert len(lines[0]) == 6612 and lines[0].startswith("This document is a collection of slang")


@pytest.mark.parametrize("what, key", [("virtual", "config"), ("stories", "parameters"),
                                       (None, "boards")])
def test_info(run, what, key):
    args = ["info", *([what] if what else [])]
    assert key in json.loads(run(*args, "--json", "-")[1])
    status, out, err = run(*args)
    assert status == 0 and key in out and err == ""


def test_graph_of_a_model(run, tmp_path):
    """A line an operator; and a picture of a block with all of its operators."""
    status, out, err = run("info", "stories", "--graph", "-o", tmp_path / "x.svg")
    lines = out.splitlines()
    assert status == 0 and err == "" and len(lines) == 1 + 6 * 15 + 2
    assert re.match(r"layers.0.q +values +128  linear\(layers.0.norm1.x, weight=layers.0.q\)$",
                    lines[2])
    picture = ElementTree.parse(tmp_path / "x.svg").getroot()
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "stories, each of 6 layers" in texts and texts.count("+") == 2
    assert {"norm1", "q", "k", "v", "q.rope", "k.rope", "attention", "o", "norm2", "gate", "up",
            "h", "down", "4 heads, 2 KV, of 32", "matrix, 384 → 128"} <= set(texts)
    assert "prefers-color-scheme: dark" in (tmp_path / "x.svg").read_text()
    assert json.loads(run("info", "stories", "--graph", "--json", "-")[1])["graph"] == lines
    refused(run("info", "virtual", "--graph"), "--graph lists the operators of a model")
    refused(run("info", "virtual", "--plot", tmp_path / "y"), "give an image file or a model")
    assert not (tmp_path / "y").exists()


def test_token_ids_for_a_prompt(run, tmp_path):
    """Ids in and out, as they are; with them a model needs no tokenizer."""
    path = random_model(tmp_path / "m", seed=3, heads=2, kv_heads=2)
    (path / "tokenizer.json").unlink()
    args = ["generate", "--model", path, "--target", "golden", "-n", "4", "--ignore-eos"]
    status, out, err = run(*args, "--ids", "5, 7,9")
    found = json.loads(run(*args, "--ids", "5,7,9", "--json", "-")[1])
    assert status == 0 and out == ",".join(map(str, [5, 7, 9, *found["tokens"]])) + "\n"
    assert found["prompt_tokens"] == 3 and found["text"] is None and len(found["tokens"]) == 4
    refused(run(*args, STORY), "give token ids")
    refused(run(*args, "--ids", "5,128"), "no token 128", "knows 128")
    refused(run(*args, "--ids", "5,,7"), "whole numbers with commas")
    refused(run(*args, "--ids", "-1"), "whole numbers with commas")
    refused(run(*args, "--ids", "1", "--stop", "x"), "--ids leaves out")
    refused(run(*args, "--ids", ",".join(["5"] * 200)), "the context holds 128; give fewer ids")
    assert run(*args, "--ids", "5", STORY)[0] == 2


def test_what_is_installed(run, monkeypatch):
    """In words for people, with what to do about what is not; for programs as booleans."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = json.loads(run("info", "--json", "-")[1])
    assert found["models"]["stories"] is True and found["tools"]["openFPGALoader"] is False
    out = run("info")[1]
    assert re.search(r"^  stories +installed$", out, re.M)
    assert re.search(r"^  openFPGALoader +no: openFPGALoader is not installed: install it", out,
                     re.M)
    for kind in ("models", "tools"):
        for name, there in found[kind].items():
            assert re.search(rf"^  {re.escape(name)} +{'installed$' if there else 'no: '}", out,
                             re.M)


def test_families(run):
    """Those that are run with their classes, those that are not with what they need."""
    found = json.loads(run("info", "--json", "-")[1])
    out = run("info")[1]
    assert found["families"]["qwen2"] == "Qwen2ForCausalLM" and "qwen2" not in found["missing"]
    for name, text in found["families"].items():
        assert re.search(rf"^  {name} +{text}$", out, re.M)
    for name, needs in found["missing"].items():
        assert re.search(rf"^  {name} +no: needs {re.escape(needs)}$", out, re.M)


def test_boards_that_a_model_fits(run, tmp_path, monkeypatch):
    from meadowlark_boards import BOARDS
    board = get_board("virtual")
    for name, change in (("tiny", {"config": board.config.replace(prog_depth=64)}),
                         ("tight", {"memory": dataclasses.replace(
                             board.memory, size_bytes=480 * 4096)})):
        monkeypatch.setitem(BOARDS, name, type(board)(**{**vars(board), "name": name, **change}))
    found = json.loads(run("info", "stories", "--json", "-")[1])["boards"]
    assert found["virtual"] == {"fits": True, "options": "", "reasons": []}
    assert not found["tiny"]["fits"] and "prog_depth" in found["tiny"]["reasons"][0]
    assert found["tight"]["fits"] and re.match(r"--ctx \d+$", found["tight"]["options"])
    out = run("info", "stories")[1]
    assert re.search(r"^  virtual +yes$", out, re.M)
    assert re.search(r"^  tiny +no: program \d+ instructions, at most 64", out, re.M)
    assert re.search(r"^  tight +yes, with --ctx \d+$", out, re.M)
    # What it says is what compile does.
    context = found["tight"]["options"].split()[1]
    path = tmp_path / "x"
    status, _, err = run("compile", "stories", "-o", path, "--board", "tight", "-c", context)
    assert status == 0 and "no room for 200,000 bytes of drafts" in err
    assert Image.load(path).draft is None
    refused(run("compile", "stories", "-o", path, "--board", "tight", "-c", context, "--draft",
                packaged("stories")), "no room for 200,000 bytes of drafts", "smaller table")
    refused(run("compile", "stories", "-o", path, "--board", "tight"), f"--ctx {context}")


def test_a_text_from_nothing(run, tmp_path):
    """It begins at bos; a model without one says so."""
    result = json.loads(run("generate", "", "--target", "golden", "-n", "4", "--json", "-")[1])
    assert result["prompt_tokens"] == 1 and len(result["tokens"]) == 4
    path = folder(tmp_path, bos_token_id=None)
    name = path / "tokenizer.json"
    name.write_text(json.dumps(json.loads(name.read_text()) | {"post_processor": None}))
    (path / "tokenizer_config.json").unlink(missing_ok=True)
    refused(run("generate", "", "--model", path, "--target", "golden"), "is empty", "no bos")
    refused(run("generate", " ", "--chat", "--target", "golden"), "question is empty")


def test_table_of_drafts(run, tmp_path, image):
    """The model's own is in its image; another one, or none, is by --draft."""
    table = DraftTable.load(packaged("stories"))
    facts = json.loads(run("info", image, "--json", "-")[1])["draft"]
    assert facts == dict(model="stories", made_of=table.made_of, entries=table.used,
                         bytes=table.size)
    assert re.search(r"^  entries  49,335$", run("info", image)[1], re.M)
    path, other = tmp_path / "x.mlk", tmp_path / "t.mld"
    dataclasses.replace(table, made_of="this test", entries=table.entries[:7]).save(other)
    for given, size in ((other, 7 * 16), ("none", 0)):
        told = run("compile", "stories", "-o", path, "--draft", given, "--json", "-")[1]
        assert json.loads(told)["draft_bytes"] == size == Image.load(path).draft_bytes
    assert json.loads(run("info", path, "--json", "-")[1])["draft"] is None
    refused(run("compile", "stories", "-o", path, "--draft", tmp_path / "no"), "cannot read")
    refused(run("compile", "stories", "-o", path, "--draft", image), "is no table of drafts")
    refused(run("compile", image, "-o", path, "--draft", other), "leave --draft out")
    refused(run("compile", "stories", "-o", path, "--board", "ulx3s_25f", "--draft", other),
            "ulx3s_25f drafts nothing")
    assert run("compile", "stories", "-o", path, "--board", "ulx3s_25f")[0] == 0
    assert Image.load(path).draft is None
    dataclasses.replace(table, vocabulary="0" * 32).save(other)
    refused(run("compile", "stories", "-o", path, "--draft", other), "for the tokens of stories")


def test_drafts(run, image):
    """The same text in fewer passes, of a model and of its image."""
    found = [json.loads(run("generate", STORY, "-m", model, "--target", "golden", "-n", "40",
                            "--draft", how, "--json", "-")[1])
             for model in ("stories", image) for how in ("off", "3", "auto")]
    assert all(result["tokens"] == found[0]["tokens"] for result in found)
    for off, three, auto in (found[:3], found[3:]):
        assert (off["tokens_per_pass"], off["drafted"], off["accepted"]) == (1, 0, 0)
        for result in (three, auto):
            passes = 39 - result["accepted"]
            assert result["tokens_per_pass"] == 39 / passes > 1.5
            assert result["drafted"] <= 3 * passes
            assert result["accepted"] == result["counters"]["accepted"]
    for name in ("tokens_per_pass", "drafted", "accepted"):
        assert [result[name] for result in found[:3]] == [result[name] for result in found[3:]]
    err = run("generate", STORY, "--target", "golden", "-n", "40", "--draft", "3")[2]
    assert f"; {found[1]['tokens_per_pass']:.2f} tokens per pass" in err
    for how in ("--top-k", "3"), ("--top-p", "0.5"):
        ways = ("generate", STORY, "--target", "golden", "-n", "8", "--temp", "1", *how)
        assert json.loads(run(*ways, "--json", "-")[1])["drafted"] == 0
        refused(run(*ways, "--draft", "2"), "with --top-k and --top-p", "leave --draft out")
    refused(run("generate", STORY, "--target", "golden", "--draft", "4"), "at most 3 drafts")
    refused(run("generate", STORY, "--target", "golden", "--draft", "4", "--board", "ulx3s_25f"),
            "ulx3s_25f makes no drafts")
    refused(run("generate", STORY, "--draft", "on"), "'on' is none of off, auto")


# ---- Targets

@pytest.fixture(scope="module")
def source():
    return Source("stories", get_board("virtual"), context=64)


def test_an_image_runs_without_its_model(run, image):
    """On the golden core: the same text as the model's, with the counts that it has."""
    for how in (("-n", "12"), ("-n", "8", "--temp", "0.9", "--top-k", "7", "--seed", "3"),
                ("--ctx", "12")):
        base = ("generate", STORY, "--target", "golden", "--json", "-", *how)
        want = json.loads(run(*base)[1])
        if how[0] == "--ctx":           # a run of an image of such a context
            assert run("compile", "stories", *how, "-o", image.parent / "short.mlk")[0] == 0
            status, out, err = run(*base[:-2], "-m", image.parent / "short.mlk")
        else:
            status, out, err = run(*base, "-m", image)
        got = json.loads(out)
        assert status == 0, err
        for key in ("text", "tokens", "end", "prompt_tokens"):
            assert got[key] == want[key], key
        assert got["counters"]["passes"] == len(got["tokens"]) - got["accepted"]
        assert got["accepted"] == want["accepted"] and got["drafted"] == want["drafted"]
        assert got["counters"]["bus_read_words"] and got["cycles_per_token"] is None
    status, out, err = run("generate", STORY, "--target", "golden", "-m", image, "-n", "40",
                           "--stop", " time", "--json", "-")
    assert status == 0 and json.loads(out)["end"] in ("stop text", "number of tokens")


def test_an_image_whose_program_cannot_run(run, image, tmp_path):
    """Its checksums are right, but it is no program for any core."""
    good = Image.load(image)
    program = good.instructions
    at = max(k for k, i in enumerate(program[:good.model_regs["decode_pc"]])
             if i["op"] == Op.STORE)
    program[at]["addr"] = 0
    dataclasses.replace(good, program=b"".join(map(encode, program))).save(tmp_path / "store")
    dataclasses.replace(good, model_regs=good.model_regs | {"blocks": 50}).save(tmp_path / "regs")
    refused(run("generate", STORY, "-m", tmp_path / "store", "--target", "golden"), "is damaged",
            "STORE outside of the cache", "compile the model again")
    refused(run("generate", STORY, "-m", tmp_path / "regs", "--target", "golden"), "is damaged",
            "registers that cannot be", "compile the model again")
    refused(run("bench", "-m", image, "--target", "golden"), "no clock")


@pytest.mark.parametrize("spoil, status", [(None, 0), (4, 1)])
def test_check_of_an_image(run, image, source, monkeypatch, spoil, status):
    """By CRC, over the link of a board, and without the checkpoint."""
    short = image.parent / "ctx64.mlk"
    assert run("compile", "stories", "--ctx", "64", "-o", short)[0] == 0
    monkeypatch.setattr(targets, "open_target", lambda *a, **k: fake_target(source, spoil))
    monkeypatch.setattr(Source, "model", property(lambda _: pytest.fail("the model is read")))
    got, out, err = run("generate", STORY, "-m", short, "-n", "8", "--draft", "off", "--check",
                        "--json", "-")
    result = json.loads(out)
    assert got == status and result["bit_exact"] is (status == 0), err
    assert ("token 4: the CRC of the logits" in result["first_difference"]) == (status == 1)


def fake_target(source: Source, spoil: int | None = None) -> BoardTarget:
    """A board that answers over the link with the golden model's tokens.

    spoil: index of a token whose CRC is wrong.
    """
    golden = GoldenTarget()
    golden.load(source)
    prompt = 0

    def answer(history):
        nonlocal prompt
        prompt = prompt or len(history)
        event = next(golden.generate(history, Sampling(), max_new=1, stop_ids=()))
        return event.token, event.crc ^ (spoil is not None and len(history) == prompt + spoil)
    fake = FakeBoard(source.board.config, next_token=answer, memory_bytes=4 << 20)
    return BoardTarget("fake", Driver(fake))


@pytest.mark.parametrize("spoil, status", [(None, 0), (4, 1)])
def test_check_by_crc_over_the_link(run, source, monkeypatch, spoil, status):
    monkeypatch.setattr(targets, "open_target", lambda *a, **k: fake_target(source, spoil))
    got, out, err = run("generate", STORY, "--ctx", "64", "-n", "8", "--draft", "off", "--check",
                        "--json", "-")
    result = json.loads(out)
    assert got == status and result["bit_exact"] is (status == 0)
    assert ("token 4: the CRC of the logits" in result["first_difference"]) == (status == 1)
    assert result["host_messages"] == 0 and len(result["tokens"]) == 8


def test_a_board_ends_where_the_image_does(source):
    target = fake_target(source)
    target.load(source)
    ids = source.prompt(STORY)
    events = list(target.generate(ids, Sampling(), max_new=1000, stop_ids=()))
    assert len(ids) + len(events) == source.image.context + 1


def test_comparison_finds_each_kind_of_difference():
    rng = np.random.default_rng(1)
    logits = [rng.integers(-1000, 1000, 50).astype(np.int32) for _ in range(3)]

    def events(**change):
        out = [dict(token=int(x.argmax()), crc=logits_crc(x), logits=x) for x in logits]
        out[1] |= change
        return [Event(**e) for e in out]
    assert compare(events(), iter(events())).bit_exact
    assert compare(events(logits=None), iter(events())).bit_exact
    other = logits[1].copy()
    other[7] += 1
    for change, words in (({"logits": other}, "row 7"), ({"crc": 5}, "CRC"),
                          ({"token": 51}, "token 1 is 51")):
        verdict = compare(events(**change), iter(events()))
        assert not verdict.bit_exact and words in verdict.first_difference
        assert verdict.tokens == 1
    assert "golden model ended" in compare(events(), iter(events()[:2])).first_difference
    assert "goes on" in compare(events()[:2], iter(events())).first_difference
    assert compare(events()[:2], iter(events()), whole=False).bit_exact


# ---- bench

class Counted:
    """A target with counters of its own making."""

    name = "counted"
    messages = 0
    board = get_board("virtual")

    def fill(self, tokens, caches):
        self.filled = tokens

    def run_together(self, tokens, places, samplings, *, max_new, stop_ids):
        assert places == [(k, places[0][1]) for k in range(3)] and stop_ids == ()
        self.n = 4.5
        yield from [Event(token=0, crc=0)] * 3 * max_new

    def generate(self, tokens, sampling, *, max_new, stop_ids, reuse):
        held = self.filled if reuse else ()
        assert stop_ids == () and tokens[:len(held)] == held
        self.n = len(tokens) - len(held) + max_new - 1
        yield from [Event(token=0, crc=0)] * max_new

    def counters(self):
        return {"cycles": 20_000 * self.n, "stall_memory": 7, "stall_engine": 8}


def test_bench_measures_what_the_counters_say(source):
    image, board = source.image, source.board
    tests = bench.plan(image, prompts=[16], generates=[4], seed=2)
    assert [t.name for t in tests] == ["pp16", "tg4"]
    assert [len(t.prompt) for t in tests] == [16, 1] and tests[1].prompt == (image.bos_id,)
    results = bench.run(Counted(), image, board, tests)
    pp, tg = results["pp16"], results["tg4"]
    assert (pp.tokens, pp.cycles, tg.tokens, tg.cycles) == (16, 320_000, 4, 80_000)
    assert pp.tokens_per_s == tg.tokens_per_s == 5000.0
    assert pp.stalls == {"memory": 7, "engine": 8}
    assert tg.bytes == sum(image.bytes_per_token(i + 1) for i in range(4))
    assert tg.memory_utilisation == tg.bytes / (80_000 * 16)
    assert pp.mac_utilisation == image.useful_macs(pos0=0, n=16, final=True) / (320_000 * 64)
    assert pp.predicted_cycles > 0
    table = bench.as_table(results, image, board, form="md").splitlines()
    assert len(table) == 4 and len({len(x) for x in table}) == 1
    assert "pp16" in table[2] and "5000.00" in table[2]
    assert bench.as_table(results, image, board, form="csv").count("\n") == 2
    assert json.loads(bench.as_table(results, image, board, form="json"))["clock_mhz"] == 100


def test_bench_against_raw(capsys, monkeypatch):
    """Both in one run, on the same prompts; the ratio is that of the cycles."""
    class Sized(Counted):
        board = get_board("ulx3s_85f")

        def load(self, source):
            self.factor = {"raw": 3, "auto": 2}[source.packing]
            assert source.packing == "auto" or source.bits is None

        def counters(self):
            return {"cycles": self.factor * 1000 * self.n}

        def close(self):
            pass
    monkeypatch.setattr(targets, "open_target", lambda *_, **__: Sized())
    args = ["bench", "--board", "ulx3s_85f", "--bits", "5", "--against-raw", "-p", "8", "-n", "4"]
    assert cli.main([*args, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["speedup"] == {"pp8": 1.5, "tg4": 1.5}
    assert found["tests"]["tg4 raw"]["bytes"] > 1.3 * found["tests"]["tg4"]["bytes"]
    assert cli.main(args) == 0
    assert "tg4 raw" in capsys.readouterr().out


def test_saturated_scores_are_told(run, tmp_path, monkeypatch):
    """By each command that runs a model, once, and only if there are any."""
    calm, loud = (random_model(tmp_path / name, seed=5, vocab=300, heads=2, kv_heads=1)
                  for name in ("calm", "loud"))
    path = loud / "model.safetensors"
    save_file({name: tensor * np.float32(40 if "q_proj" in name else 1)
               for name, tensor in load_file(path).items()}, path)
    for folder in (calm, loud):
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
    text = tmp_path / "text"
    text.write_text("what is said\n")

    def told(model, *args):
        """-> (what is told, the JSON)"""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello there\n")))
        status, out, err = run(*args, "--model", model, "--json", "-")
        assert status == 0, err
        lines = [line for line in err.splitlines() if "saturated" in line]
        assert len(lines) <= 1
        return (lines[0] if lines else "", json.loads(out))
    line, result = told(loud, "generate", "hello there", "-n", "3", "--target", "golden")
    count = result["counters"]["score_saturations"]
    assert count > 9 and f"beyond +-128 log2 units or 4 soft caps, saturated: {count}. " in line
    line, result = told(loud, "chat", "-n", "3", "--target", "golden")
    count = result["turns"][0]["counters"]["score_saturations"]
    assert count > 9 and f"saturated: {count}. " in line
    line, result = told(loud, "eval", "--text", text)
    assert f"saturated: {result['saturated']['scores']:.2g} of all. " in line
    for args in (("generate", "hello there", "-n", "3", "--target", "golden"),
                 ("chat", "-n", "3", "--target", "golden"), ("eval", "--text", text)):
        assert told(calm, *args)[0] == ""

    class Some(Counted):
        def counters(self):
            return super().counters() | {"score_saturations": 1000 * self.n}

        def load(self, source):
            pass

        def close(self):
            pass
    monkeypatch.setattr(targets, "open_target", lambda *_, **__: Some())
    assert "saturated: 7,000. " in told(calm, "bench", "-p", "3", "-n", "4")[0]


def test_bench_takes_several_numbers():
    assert counts("16,128,16,0", "-p") == [16, 128]
    assert positions_of("16,128,16,0") == [16, 128, 0]


def test_bench_at_positions(source):
    """Both tests at each; rows are named as llama-bench names them, and what the cache holds is no
    token of the test but is read."""
    image, board = source.image, source.board
    tests = bench.plan(image, prompts=[3], generates=[4], positions=[0, 20, 9], seed=2)
    assert [t.name for t in tests] == ["pp3", "tg4", "pp3 @ d20", "tg4 @ d20", "pp3 @ d9",
                                       "tg4 @ d9"]
    whole = max((t.filled + t.prompt for t in tests), key=len)
    for test in tests:                  # one text, so that one cache serves all
        text = test.filled + test.prompt
        assert text == whole[:len(text)] and text[0] == image.bos_id
    results = bench.run(Counted(), image, board, tests)
    far = results["tg4 @ d20"]
    assert (far.position, far.tokens, far.cycles) == (20, 4, 80_000)
    assert far.bytes == sum(image.bytes_per_token(21 + i) for i in range(4))
    assert far.predicted_cycles == predict(image, board, prompt=1, generate=4,
                                           start_pos=20).cycles > results["tg4"].predicted_cycles
    assert "| tg4 @ d20 |" in bench.as_table(results, image, board, form="md")
    rows = list(csv.DictReader(io.StringIO(bench.as_table(results, image, board, form="csv"))))
    assert [(r["test"], r["position"]) for r in rows] == [
        (t.name, str(len(t.filled))) for t in tests]
    assert bench.as_json(results, image, board)["tests"]["pp3 @ d9"]["position"] == 9
    bench.plan(image, prompts=[], generates=[4], positions=[60])
    with pytest.raises(UserError, match="^tg4 @ d61 takes 65 positions and the context holds 64; "):
        bench.plan(image, prompts=[], generates=[4], positions=[0, 61])


def test_a_signal_to_end_is_an_interruption():
    """So that what is written beside goes, and tools that run for us end."""
    process = subprocess.Popen([sys.executable, "-c", """
import sys, time
from meadowlark import cli
from meadowlark.cli import group
@group.cli.command()
def wait():
    print("waits", flush=True)
    time.sleep(60)
sys.argv = ["meadowlark", "wait"]
sys.exit(cli.main())
"""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.terminate()
    assert "interrupted" in process.communicate(timeout=30)[1]
    assert process.returncode == 130


# ---- Many prompts

PROMPTS = ["Once upon a time", "Tom and Lily", "The big dog", "A cat", "One day", "Once upon"]


@pytest.mark.parametrize("kind", ["golden", "image", "fake"])
def test_many_prompts(run, source, tmp_path, monkeypatch, kind):
    """Each as it would be alone, with its own seed; all of a file's form."""
    how = ["-n", "9", "--json", "-", "--stop", "mm", "--temp", "0" if kind == "fake" else "0.9",
           "--ctx", "64", "--draft", "off"]
    model, target = "stories", ["--target", "golden"]
    if kind == "image":
        model = tmp_path / "m.mlk"
        source.image.save(model)
        how = [x for x in how if x not in ("--ctx", "64")]
    if kind == "fake":
        monkeypatch.setattr(targets, "open_target", lambda *a, **k: fake_target(source))
        target = ["--check"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join([json.dumps(PROMPTS[0]), "", *(
        json.dumps({"prompt": p, "seed": k}) for k, p in enumerate(PROMPTS[1:]))]))
    status, out, err = run("generate", "-m", model, "--prompts", file, *target, *how)
    result = json.loads(out)
    assert status == 0 and "6 texts, " in err and result["parallel"] == 4
    if kind == "fake":
        assert result["bit_exact"] and "bit-exact with the golden model" in err
    target = ["--target", "golden"]
    for seed, prompt, found in zip([0, *range(5)], PROMPTS, result["texts"], strict=True):
        status, out, _ = run("generate", prompt, "-m", model, *target, *how, "--seed", seed)
        alone = json.loads(out)
        assert {name: found[name] for name in ("tokens", "text", "end", "seed", "prompt_tokens")
                } == {name: alone[name] for name in ("tokens", "text", "end", "seed",
                                                     "prompt_tokens")}


def test_many_prompts_as_text(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Once upon a time\n\nTom and Lily\n")
    how = ("-n", "5", "--target", "golden", "--parallel", "1")
    status, out, _ = run("generate", "--prompts", file, *how)
    texts = [run("generate", p, *how[:4])[1] for p in ("Once upon a time", "Tom and Lily")]
    assert status == 0 and out == "\n".join(texts)


def test_many_prompts_that_are_refused(run, tmp_path, monkeypatch):
    good, bad, empty = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt"))
    good.write_text("Once\n")
    bad.write_text('"Once"\n{"prompt": 3}\n')
    empty.write_text("\n\n")
    ways = ("--target", "golden")
    refused(run("generate", "--prompts", bad, *ways), "line 2 of", "is no prompt")
    refused(run("generate", "--prompts", empty, *ways), "has no prompts")
    refused(run("generate", "--prompts", tmp_path / "none", *ways), "cannot read")
    refused(run("generate", "Once", "--parallel", "2", *ways), "--parallel is about --prompts")
    refused(run("generate", "--prompts", good, "--trace", tmp_path / "t.json"), "--trace records")
    refused(run("generate", "--prompts", good, "--waves", tmp_path / "w.vcd"), "--waves records")
    refused(run("generate", "--prompts", good, "--parallel", "9999", *ways), "not 9999")
    monkeypatch.setattr(GoldenTarget, "load", lambda *_: pytest.fail("options come first"))
    refused(run("generate", "--prompts", good, "--top-p", "2", *ways), "top_p")
    refused(run("generate", "--prompts", good, "--temp", "1", "--top-k", "5", "--draft", "2",
                *ways), "there are no drafts")
    assert run("generate", "Once", "--prompts", good, *ways)[0] == 2


def test_bench_of_batches(source):
    image, board = source.image, source.board
    tests = bench.plan(image, prompts=[], generates=[4], positions=[0, 20], batches=[3])
    assert [t.name for t in tests] == ["tg4", "b3 tg4", "tg4 @ d20", "b3 tg4 @ d20"]
    found = bench.run(Counted(), image, board, tests)["b3 tg4 @ d20"]
    assert (found.tokens, found.cycles, found.position) == (12, 90_000, 20)
    assert found.predicted_cycles == predict_batch(image, board, sequences=3, position=20,
                                                   passes=4).cycles
    assert found.bytes == sum(image.bytes_per_token(21 + k) * 3 - 2 * image.shared_bytes
                              for k in range(4))
    with pytest.raises(UserError, match="takes at most 4 of stories's sequences, not 5"):
        bench.run(Counted(), image, board, bench.plan(image, prompts=[], generates=[4],
                                                      batches=[5]))
