"""Commands on pseudo-terminals: progress on stderr, results on stdout, and neither in the other."""
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from random_model import random_model

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from terminals import ROWS, meadowlark, run, screen

#: A target that counts, slow enough for its progress to be drawn.
BENCH = """
import time
from meadowlark.run import targets
from meadowlark.run.targets import Event
from meadowlark_boards import get_board
class Counted:
    name, messages, board = "counted", 0, get_board("virtual")
    def load(self, source): pass
    def close(self): pass
    def counters(self): return {"cycles": 1000, "stall_memory": 7}
    def generate(self, tokens, sampling, *, max_new, stop_ids, reuse=False):
        for _ in range(max_new):
            time.sleep(0.1)
            yield Event(token=0, crc=0)
targets.open_target = lambda *a, **k: Counted()
import numpy as np
from contextlib import contextmanager
from meadowlark.run.timeline import Recording, Timeline
from meadowlark.sim.trace import RECORD
@contextmanager
def recording(self, target, image, name):
    yield
    self.recordings.append(Recording(name, image, target.board, np.zeros(0, RECORD), True))
Timeline.recording = recording
"""
#: The tools of a bitstream, which take minutes.
BUILD = """
import time
from pathlib import Path
from meadowlark.chip import build
from meadowlark.chip.toolchain import Report
REPORT = Report(fmax_mhz={"clk": 101.0}, used={}, available={}, critical=[])
def stub(board, directory, *, seeds, progress):
    for line in ("elaborating the chip", "2.1. Executing [yosys] :smile: PASS " + "x" * 100):
        progress(line)
        time.sleep(0.3)
    return build.Built(board, Path("x.bit"), 1, Path("seed1"), REPORT, {1: 101.0}, {"LUT4": 1234})
build.build = stub
"""
TURNS = "{{ bos_token }}{% for m in messages %}{{ m.content }}, {% endfor %}"

STORY = "Once upon a time"
#: Arguments, what stands in for parts, stdin, and what the last line on stderr holds.
COMMANDS = {
    "generate": (["generate", STORY, "--target", "golden", "-n", "40"], "", b"", "tokens/s here"),
    "chat": (["chat", "--target", "golden", "-n", "8", "--model", "MODEL"], "", b"Hello\nYou\n",
             "tokens/s here"),
    "bench": (["bench", "-p", "4", "-n", "4", "--trace", "MODEL.json"], BENCH, b"",
              "timeline of pp4 and tg4"),
    "build": (["build", "--clock", "recorded"], BUILD, b"", ""),
    "compile": (["compile", "MODEL", "-o", "MODEL.mlk"], "", b"",
                "bytes per token"),
    "info": (["info", "stories"], "", b"", ""),
}
PLACES = list(itertools.product(("pipe", "pty"), ("pipe", "pty"))) + [("same", "same")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with a chat template."""
    path = tmp_path_factory.mktemp("model")
    # Of this seed the answers are texts without control characters.
    random_model(path, seed=12, heads=2, kv_heads=2)
    (path / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": TURNS, "bos_token": "<|bos|>", "eos_token": "<|eos|>"}))
    return path


@pytest.fixture(scope="module")
def plain(model):
    """plain(name) -> what a command writes to pipes; run once."""
    kept = {}

    def of(name):
        if name not in kept:
            kept[name] = on(name, model, out="pipe", err="pipe")
        return kept[name]
    return of


def on(name: str, model: Path, **where):
    args, stub, stdin, _ = COMMANDS[name]
    return run(meadowlark(*(a.replace("MODEL", str(model)) for a in args), stub=stub),
               stdin=stdin, **where)


@pytest.mark.parametrize("name", COMMANDS)
def test_pipes(plain, name):
    """No control character anywhere; a step a line, each once, and the message behind them."""
    ran = plain(name)
    assert ran.status == 0, ran
    for stream in (ran.out, ran.err):
        assert not {c for c in stream if c < 32} - {10}
    lines = ran.err.decode().splitlines()
    last = COMMANDS[name][3]
    if last:
        assert last in lines.pop()
    steps = [line for line in lines if line.endswith(" ...")]
    assert steps == [line for line in lines if last not in line or not last]
    assert name in ("info", "chat") or steps


@pytest.mark.parametrize("out, err", PLACES[1:4])
@pytest.mark.parametrize("name", COMMANDS)
def test_terminals_of_their_own(plain, model, name, out, err):
    """stdout is byte for byte that of a pipe but for the terminal's own line ends."""
    want, ran = plain(name), on(name, model, out=out, err=err)
    assert ran.status == 0
    text = ran.out.replace(b"\r\n", b"\n") if out == "pty" else ran.out
    assert text == want.out
    lines = screen(ran.err if err == "pty" else ran.err.replace(b"\n", b"\r\n"))
    if err == "pty":
        # All progress has gone; it was there: drawn on the lines that it was taken from.
        assert [line for line in lines if line.endswith(" ...")] == []
        assert len(lines) == (2 if name == "chat" else 1 if COMMANDS[name][3] else 0), lines
        assert name == "info" or "\N{BRAILLE PATTERN DOTS-1}" in ran.err.decode() \
            or any(0x2800 < ord(c) < 0x2900 for c in ran.err.decode())


@pytest.mark.parametrize("name", COMMANDS)
def test_one_terminal(plain, model, name):
    """The final screen shows the text once and whole, then the message."""
    want, ran = plain(name), on(name, model, out="same", err="same")
    assert ran.status == 0
    lines = screen(ran.out)
    whole = screen(want.out.replace(b"\n", b"\r\n"))
    assert len(whole) < ROWS - 4
    last = COMMANDS[name][3]
    shown = [line for line in lines if not last or last not in line]
    assert shown == whole
    if last:
        assert last in lines[-1]


def test_a_conversation_on_a_terminal(plain, model):
    """Asked for with "> "; answers as in a pipe, each behind its question."""
    args = COMMANDS["chat"][0]
    ran = run(meadowlark(*(a.replace("MODEL", str(model)) for a in args)), out="same",
              err="same", stdin=[(b"> ", b"Hello\n"), (b"> ", b"You\n"), (b"> ", b"/exit\n")])
    assert ran.status == 0
    lines = screen(ran.out)
    answers = screen(plain("chat").out.replace(b"\n", b"\r\n"))
    asked = [i for i, line in enumerate(lines) if line.startswith("> ")]
    assert [lines[i] for i in asked[:2]] == ["> Hello", "> You"]
    assert [line for line in lines if line in answers] == answers
    assert all("tokens/s here" in lines[i - 1] for i in asked[1:])


def test_commands_on_a_terminal(plain, model):
    """What is no question is told, and the conversation goes on until Ctrl-D."""
    args = COMMANDS["chat"][0]
    typed = (b"/what\n", b"a\xffb\n", b"\n", b"You\n", b"/reset\n", b"Hello\n", b"\x04")
    ran = run(meadowlark(*(a.replace("MODEL", str(model)) for a in args)), out="same",
              err="same", stdin=[(b"> ", line) for line in typed])
    assert ran.status == 0
    text = "\n".join(screen(ran.out))
    assert "error: there is no command /what; /help lists them" in text
    assert "error: the question is not valid UTF-8" in text and "a new conversation begins" in text
    assert plain("chat").out.decode().splitlines()[0] in text.partition("> Hello\n")[2]


def test_ctrl_c_in_a_conversation(model):
    """It ends an answer, which stays as far as it came, and then the conversation."""
    stub = """
import time
from meadowlark.run.targets import GoldenTarget
whole = GoldenTarget.run
def slow(*args, **kw):
    for event in whole(*args, **kw):
        yield event
        time.sleep(0.3)
GoldenTarget.run = slow
"""
    args = COMMANDS["chat"][0]
    ran = run(meadowlark(*(a.replace("MODEL", str(model)) for a in args), stub=stub), out="same",
              err="same", stdin=[(b"> ", b"Hello\n"), (b"ooo", b"\x03"), (b"> ", b"You\n"),
                                 (b"> ", b"\x03")])
    lines = screen(ran.out)
    assert ran.status == 130 and lines[0] == "> Hello" and b"Traceback" not in ran.out
    assert lines[1].replace("^C", "").startswith("ooo") and "ooooo" not in lines[1]
    assert "ended by Ctrl-C" in lines[2] and lines[3] == "> You"
    assert lines[-2:] == ["> ^C", "error: interrupted"]


def test_a_terminal_that_cannot_move_its_cursor(model):
    """TERM=dumb: as on a pipe."""
    args, stub, stdin, _ = COMMANDS["bench"]
    ran = run(meadowlark(*args[:5], stub=stub), stdin=stdin, out="pipe", err="pty",
              env={"TERM": "dumb"})
    assert ran.status == 0 and b"\x1b" not in ran.err
    assert re.search(rb"^running pp4 (\(\d+ s\) )?\.\.\.\r\n", ran.err, re.M)


def test_what_is_not_ours_is_shown_as_it_is(tmp_path):
    """Neither emoji nor markup nor what a terminal would obey, in text, paths and names."""
    path = tmp_path / "a:smile:[red]b\x1b[2J"
    ran = run(meadowlark("info", str(path)), out="same", err="same")
    assert ran.status == 2
    assert "a:smile:[red]b\\x1b[2J" in "".join(screen(ran.out))
    prompt = "A :smile: [bold]cat[/bold]"
    ran = run(meadowlark("generate", prompt, "--target", "golden", "-n", "3"), out="same",
              err="same")
    assert ran.status == 0 and screen(ran.out)[0].startswith(prompt)


def test_an_error_behind_half_a_line():
    """It begins a line of its own."""
    stub = """
from meadowlark.run import targets
from meadowlark.errors import UserError
whole = targets.GoldenTarget.run
def _run(self, *args, **kw):
    yield next(whole(self, *args, **kw))
    raise UserError("the board is gone")
targets.GoldenTarget.run = _run
"""
    args = meadowlark("generate", STORY, "--target", "golden", stub=stub)
    ran = run(args, out="same", err="same")
    lines = screen(ran.out)
    assert ran.status == 2 and lines[0].startswith(STORY)
    assert lines[1:] == ["error: the board is gone"]
