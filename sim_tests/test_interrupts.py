"""Ctrl-C: any command ends soon, without a traceback, and leaves outputs and boards whole."""
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from random_model import random_model

from meadowlark.link.fake_board import FakeBoard
from meadowlark_boards import get_board
from meadowlark_hdl.link.protocol import Command

if sys.platform == "win32":
    pytest.skip("signals are those of POSIX", allow_module_level=True)

#: Seconds from the signal to the end of the process, half a second where nothing else runs. The
#: tests share their machine.
LIMIT = 3.0


def begin(*args: str, stub: str = "", env: dict | None = None, flags: tuple[str, ...] = ()):
    """A command in a session of its own; its stdout and stderr are one pipe."""
    code = f"{stub}\nimport sys\nfrom meadowlark.cli import main\nsys.exit(main())"
    return subprocess.Popen([sys.executable, *flags, "-c", code, *args], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, env={**os.environ, **(env or {})})


def until(process, marker: str) -> str:
    """Read lines up to one that holds the marker."""
    seen = ""
    for line in process.stdout:
        seen += line
        if marker in line:
            return seen
    raise AssertionError(f"no {marker!r} in {seen!r}")


def ends(process, *signals: int) -> str:
    """Send the signals to this process alone; what it writes until it ends, within the limit."""
    since = time.monotonic()
    for number in signals or (signal.SIGINT,):
        process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    taken = time.monotonic() - since
    assert process.returncode == 130
    assert "Traceback" not in rest and "Exception ignored" not in rest
    assert rest.count("error: interrupted\n") == 1 and rest.endswith("error: interrupted\n")
    assert "\n\n" not in rest
    assert taken < LIMIT
    while alive(process.pid) and time.monotonic() - since < LIMIT:
        time.sleep(0.05)        # told to end, and not yet at it
    assert alive(process.pid) == []
    return rest


def alive(session: int) -> list[str]:
    """Processes of a session that still run; Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, *numbers = rest.split()
        if int(numbers[2]) == session and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.parametrize("module", [
    "click.core", "meadowlark.cli.terminal", "numpy._core.multiarray", "meadowlark_hdl.config"])
def test_start_up(module):
    """While modules are imported: here when one has just been."""
    process = begin("generate", "Once", "--target", "golden", "-n", "400",
                    flags=("-X", "importtime"))
    until(process, module)
    ends(process)


@pytest.fixture
def model(tmp_path):
    """A model that takes seconds to calibrate."""
    return random_model(tmp_path / "model", seed=1, layers=12, hidden=128, heads=4, kv_heads=4,
                        ffn=512)


def test_calibration_leaves_what_was_there(model, tmp_path):
    path, cache = tmp_path / "out" / "x.mlk", tmp_path / "cache"
    path.parent.mkdir()
    path.write_bytes(b"old")
    process = begin("compile", str(model), "-o", str(path), env={"MEADOWLARK_CACHE": str(cache)})
    until(process, "calibrating")
    ends(process)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["x.mlk"]
    assert [x for x in os.listdir(cache) if x.startswith(".")] == []


@pytest.mark.parametrize("args, marker", [
    (["bench", "-p", "256", "-n", "0"], "running pp256"),
    (["generate", "Once upon a time"], "taking the prompt"),
    (["eval"], "predicting")])
def test_long_runs(args, marker):
    process = begin(*args)
    until(process, marker)
    time.sleep(0.3)
    ends(process)


#: Stand-ins of steps that do not hear a KeyboardInterrupt.
DEAF = {
    "one call of C": "import lzma\nlzma.compress(os.urandom(1 << 27))",
    "code that catches everything": """
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass""",
    "a thread that is waited for": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    pool.submit(time.sleep, 60).result()""",
    "a tool": "import subprocess\nsubprocess.run(['sh', '-c', 'trap \"\" INT; sleep 60 & wait'])",
}


@pytest.mark.parametrize("what", DEAF)
def test_deaf_steps(what, tmp_path):
    body = "\n".join("    " + line for line in DEAF[what].splitlines())
    stub = f"""
import os, sys, time
from pathlib import Path
from meadowlark.chip import build
from meadowlark.files import temporary_folder
def stub(board, directory, **kw):
    with temporary_folder(Path({str(tmp_path)!r}), "half-"):
        print("begun", flush=True)
        step()
def step():
    {body.strip()}
build.build = stub
"""
    process = begin("build", stub=stub)
    until(process, "begun")
    time.sleep(0.2)
    ends(process)
    assert os.listdir(tmp_path) == []


def test_a_second_one_ends_at_once():
    stub = """
import time
from meadowlark.cli import build, interrupts
from meadowlark.chip import build
def stub(*args, **kw):
    with interrupts.patience():
        for word in ("heard", *[""] * 60):      # while it ends nothing comes in between
            try:
                if word:
                    print("begun", flush=True)
                time.sleep(1)
            except KeyboardInterrupt:
                if word:
                    print(word, flush=True)
build.build = stub
"""
    process = begin("build", stub=stub)
    until(process, "begun")
    process.send_signal(signal.SIGINT)
    until(process, "heard")
    time.sleep(1.0)             # patience: no end of its own
    assert process.poll() is None
    ends(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_to_end(number):
    process = begin("eval")
    until(process, "predicting")
    ends(process, number)


def test_an_ignored_signal_stays_ignored():
    """As nohup and a shell in the background have it."""
    stub = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
    process = begin("info", stub=stub + "\nimport meadowlark.cli.group as g\n"
                    "import os\nos.kill(os.getpid(), signal.SIGINT)")
    assert "boards" in process.communicate(timeout=60)[0] and process.returncode == 0


def test_compilers_end_too(tmp_path):
    """Verilator has run; the C++ compiler is one that takes its time and hears no Ctrl-C."""
    slow = tmp_path / "c++"
    slow.write_text("#!/bin/sh\ncase \"$*\" in *-E*|*--version*) exit 0;; esac\n"
                    "trap '' INT\nsleep 60\n")
    slow.chmod(0o755)
    cache = tmp_path / "cache"
    stub = """
from meadowlark.run import targets
from meadowlark.sim import build
def open_target(name, board, *, trace=False, waves=None, progress=None):
    build.build("module core(input clk, output x); assign x = clk; endmodule", board.config,
                progress=progress)
targets.open_target = open_target
"""
    process = begin("generate", "Once", stub=stub, env={
        "CXX": str(slow), "MEADOWLARK_CACHE": str(cache)})
    until(process, "compiling the simulated board")
    time.sleep(0.3)
    assert any("c++" in name for name in alive(process.pid))
    ends(process)
    assert [x for x in os.listdir(cache) if x.startswith("build-")] == []


def test_a_board_is_left_ready(tmp_path):
    """The run on it is aborted before the command ends."""
    board = get_board("virtual")
    fake = FakeBoard(board.config, memory_bytes=board.memory.size_bytes,
                     next_token=lambda history: (time.sleep(0.05), (len(history) % 50 + 5, 0))[1])
    server = socket.create_server(("127.0.0.1", 0))
    served = threading.Event()

    def serve():
        connection, _ = server.accept()
        connection.setblocking(False)
        while True:
            try:
                raw = connection.recv(4096)
                if not raw:
                    break
                fake.write(raw)
            except BlockingIOError:
                time.sleep(0.001)
            except ConnectionError:
                break
            try:
                if said := fake.read(4096, 0.0):
                    connection.sendall(said)
            except (BlockingIOError, ConnectionError):
                break
        served.set()
    threading.Thread(target=serve, daemon=True).start()
    image = tmp_path / "m.mlk"
    model = random_model(tmp_path / "small", seed=2, heads=2, kv_heads=2)
    from meadowlark import cli
    assert cli.main(["compile", str(model), "-o", str(image)]) == 0
    process = begin("generate", "Once", "-m", str(image), "--ignore-eos", "--target",
                    f"tcp:127.0.0.1:{server.getsockname()[1]}")
    until(process, "taking the prompt")
    while Command.START not in fake.commands:
        time.sleep(0.01)
    time.sleep(0.3)
    ends(process)
    assert served.wait(10)
    assert fake.commands[fake.commands.index(Command.START):].count(Command.ABORT) == 1
    assert not fake.busy
