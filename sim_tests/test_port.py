"""Ports: whatever is there is refused soon, one program has a port, and a board says what it is."""
import json
import os
import random
import select
import socket
import struct
import threading
import time
import tty
from contextlib import closing, contextmanager

import pytest
from meadowlark import cli
from meadowlark.errors import UserError
from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.link.frames import Frame, FrameParser
from meadowlark.link.ports import open_transport
from meadowlark.link.transport import TransportError
from meadowlark.run.prepare import Source, made_for
from meadowlark.run.targets import open_target
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.link.protocol import (ANSWER, EVENT_FORMAT, MAGIC, SYNC, TOKEN, VERSION,
                                          Command)
from random_model import random_model

LIMIT = 5.0


@contextmanager
def port(serve):
    """Name of a pseudo-terminal; serve(fd, stop) is what is behind it, until stop is set."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(ours, stop), daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        stop.set()
        thread.join()
        os.close(theirs)
        os.close(ours)


def send(fd, data, stop):
    """All of it, unless it ends before."""
    while data and not stop.is_set():
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:
            stop.wait(0.001)


def talker(say, every=0.02):
    """Writes what ``say(random, heard)`` gives; heard: bytes read since."""
    def serve(fd, stop):
        rng, due = random.Random(1), 0.0
        while not stop.is_set():
            heard = b""
            while select.select([fd], [], [], 0)[0]:
                heard += os.read(fd, 4096)
            send(fd, say(rng, heard), stop)
            due = max(due + every, time.monotonic() - every)
            stop.wait(max(0.0, due - time.monotonic()) if every else 0)
    return serve


def an_answer(rng, heard):
    """To what was asked, and it makes no sense."""
    out = b""
    for frame in FrameParser().feed(heard):
        out += Frame(frame.type | ANSWER, frame.seq, bytes(1) + rng.randbytes(8)).encode()
    return out


def half_an_answer(rng, heard):
    return b"".join(Frame(frame.type | ANSWER, frame.seq, rng.randbytes(rng.randrange(4))).encode()
                    for frame in FrameParser().feed(heard))


def one_answer(rng, heard):
    """The first question of ours is answered as a board does, then there are lines of text."""
    for frame in FrameParser().feed(heard):
        if frame.payload == struct.pack("<II", 0, 2):
            return Frame(Command.READ | ANSWER, frame.seq,
                         struct.pack("<BII", 0, MAGIC, VERSION)).encode()
    return b"hello\n"


TALKERS = {
    "nothing": (lambda rng, heard: b"", 0.02),
    "echo": (lambda rng, heard: heard, 0.001),
    "lines": (lambda rng, heard: b"\x1b[32mI (1234) wifi: connected\x1b[0m\r\n", 0.02),
    "a byte": (lambda rng, heard: b"\n", 0.02),
    "zeros": (lambda rng, heard: bytes(64), 0.02),
    "junk": (lambda rng, heard: rng.randbytes(100), 0.02),
    "beginnings": (lambda rng, heard: bytes((SYNC, 0x81, 0, 0, 1)) + bytes(9), 0.02),
    "frames": (lambda rng, heard: Frame(rng.randrange(256), rng.randrange(256),
                                        rng.randbytes(rng.randrange(40))).encode(), 0.02),
    "answers to others": (lambda rng, heard: Frame(
        Command.READ | ANSWER, rng.randrange(256), rng.randbytes(3)).encode(), 0.02),
    "events": (lambda rng, heard: Frame(TOKEN, 0, struct.pack(
        EVENT_FORMAT, 7, rng.randrange(64), 9, 0, 0)).encode(), 0.02),
    "answers": (an_answer, 0.02),
    "halves": (half_an_answer, 0.02),
    "one answer": (one_answer, 0.02),
    "a flood of zeros": (lambda rng, heard: bytes(4096), 0),
    "a flood of frames": (lambda rng, heard: Frame(TOKEN, 0, bytes(13)).encode() * 50, 0),
}


def refusal(target):
    """Seconds, and the sentence."""
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_target(target, get_board("virtual")).close()
    return time.monotonic() - begun, str(caught.value)


def test_what_is_no_board_is_refused_soon():
    """All at once: it is time that is spent, not work."""
    found = {}

    def run(name, target):
        found[name] = refusal(target)

    def behind_a_port(name):
        with port(talker(*TALKERS[name])) as target:
            run(name, target)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threads = [threading.Thread(target=behind_a_port, args=(name,)) for name in TALKERS]
        threads.append(threading.Thread(target=run, args=(
            "tcp", f"tcp:127.0.0.1:{silent.getsockname()[1]}")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.keys() == {*TALKERS, "tcp"}
    for name, (seconds, said) in found.items():
        assert seconds < LIMIT, (name, seconds)
        want = ("the board does not answer",) if name in ("nothing", "tcp") else \
            ("what is at the port is no Meadowlark", "what answers is not a Meadowlark")
        assert said.startswith(want), (name, said)


def test_frames_of_another_device_end_in_a_sentence(seed):
    """Answers that fit what was asked, with anything in them: no error but one for people."""
    rng = random.Random(seed)
    said = set()
    for case in range(300):
        board = FakeBoard(seed=case)
        honest = rng.randrange(12)          # answers as they should be, before that

        class Liar(FakeBoard):
            told = 0

            def _execute(self, frame):
                answer = board._execute(frame)
                self.told += 1
                if answer is None or self.told <= honest or rng.random() < 0.3:
                    return answer
                return rng.choice((
                    answer[:rng.randrange(len(answer) + 1)], answer + rng.randbytes(3),
                    bytes([rng.randrange(8)]) + rng.randbytes(len(answer) - 1),
                    rng.randbytes(len(answer)), bytes([0]) + rng.randbytes(len(answer) - 1)))
        try:
            Driver(Liar()).close()
        except BoardError as error:
            said.add(str(error).split(" (")[0][:40])
    assert len(said) >= 4, said


@contextmanager
def a_board(board):
    """A port with a board of ours."""
    def serve(fd, stop):
        while not stop.is_set():
            if select.select([fd], [], [], 0.001)[0]:
                board.write(os.read(fd, 4096))
            send(fd, board.read(4096, 0.001), stop)
    with port(serve) as name:
        yield name


def test_a_board_at_a_port_is_for_one(tmp_path):
    with a_board(FakeBoard(name="mine")) as name:
        with Driver(open_transport(name)) as driver:
            assert driver.info.name == "mine"
            with pytest.raises(TransportError, match=f"^the port {name} is in use by another prog"):
                open_transport(name)
            assert driver.status().ready
        with closing(open_transport(name)):         # free again
            pass


def test_a_board_that_mumbles_is_ours():
    """Lines of a boot loader between its frames do no harm."""
    board = FakeBoard(name="mine")
    plain = board.read

    def read(max, timeout):
        data = plain(max - 40, timeout)
        return data and b"\r\nbooting ...\r\n" + data
    board.read = read
    with a_board(board) as name, Driver(open_transport(name)) as driver:
        assert driver.info.name == "mine"


@pytest.mark.parametrize("make, words", [
    (lambda path: None, "there is no port .*plugged in"),
    (lambda path: path.write_text(""), "cannot open .*check that it is a serial port"),
    (lambda path: path.mkdir(), "cannot open .*check that it is a serial port"),
])
def test_what_is_no_port(tmp_path, make, words):
    make(tmp_path / "tty")
    with pytest.raises(UserError, match=words):
        open_target(str(tmp_path / "tty"), get_board("virtual"))


def test_a_port_that_takes_nothing():
    """Its buffer is full and nobody reads: told, not waited for without end."""
    with port(lambda fd, stop: stop.wait()) as name, \
            closing(open_transport(f"{name}@115200")) as transport:
        with pytest.raises(TransportError, match=f"^{name} takes no bytes; "):
            for _ in range(1000):
                transport.write(bytes(256))


# ---- A board says what it is

@pytest.fixture
def at_port(monkeypatch):
    """Puts a fake board at the port /dev/board."""
    def put(name, config):
        board = FakeBoard(config, name=name, memory_bytes=1 << 25,
                          next_token=lambda history: (5 + len(history) % 50, len(history)))

        def opened(target):
            assert target == "/dev/board"
            return board
        monkeypatch.setattr("meadowlark.link.ports.open_transport", opened)
        return board
    return put


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("m") / "small", seed=3, heads=2, kv_heads=1)


def run(capsys, *args):
    status = cli.main([str(a) for a in args])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("command", [("generate", "Once"), ("chat",), ("bench",)])
def test_a_missing_port_is_told_before_a_model_is_read(tmp_path, monkeypatch, capsys, command):
    for name in ("outline", "model", "quantised", "image"):
        monkeypatch.setattr(Source, name, property(lambda _: pytest.fail("work was done")))
    status, out, err = run(capsys, *command, "--target", tmp_path / "tty")
    assert status == 2 and out == "" and f"error: there is no port {tmp_path / 'tty'}; " in err


@pytest.mark.parametrize("options", [(), ("--board", "ulx3s_85f")])
def test_a_model_is_compiled_for_the_board_that_answers(model, at_port, capsys, options):
    config = get_board("ulx3s_85f").config
    board = at_port("ulx3s_85f", config)
    status, out, err = run(capsys, "generate", "ab", "-m", model, "-n", 4, "--target",
                           "/dev/board", "--json", "-", *options)
    assert status == 0, err
    result = json.loads(out)
    assert result["board"] == "ulx3s_85f" and len(result["tokens"]) == 4 and board.program
    assert result["clock_mhz"] == 100


def test_its_core_is_the_one_that_it_has(model, at_port, capsys):
    """A bitstream of the name with another Config."""
    config = get_board("ulx3s_85f").config.replace(prog_depth=128, context=64)
    at_port("ulx3s_85f", config)
    args = "generate", "ab", "-m", model, "-n", "99", "--target", "/dev/board", "--json", "-"
    status, out, err = run(capsys, *args)
    assert status == 0 and json.loads(out)["end"] == "context", err
    at_port("ulx3s_85f", config.replace(prog_depth=32))
    status, out, err = run(capsys, *args)
    assert status == 2 and "at most 32 (prog_depth)" in err


def test_another_board_than_asked_for(model, at_port, capsys):
    at_port("ulx3s_85f", get_board("ulx3s_85f").config)
    status, out, err = run(capsys, "generate", "ab", "-m", model, "--target", "/dev/board",
                           "--board", "virtual")
    assert status == 2 and out == ""
    assert "the board at /dev/board says that it is ulx3s_85f, and --board asks for virtual" in err


def test_a_board_that_nobody_knows(model, at_port, capsys, tmp_path):
    """Its Config and memory are all that a model or an image needs."""
    at_port("homemade", Config(W=16, P=5, bus_bytes=4))
    status, out, err = run(capsys, "generate", "ab", "-m", model, "-n", 4, "--target",
                           "/dev/board", "--json", "-")
    assert status == 0 and json.loads(out)["board"] == "homemade", err
    assert run(capsys, "compile", model, "-o", tmp_path / "m.mlk")[0] == 0
    at_port("homemade", get_board("virtual").config)
    status, out, err = run(capsys, "bench", "-m", tmp_path / "m.mlk", "-p", 8, "-n", 4,
                           "--target", "/dev/board")
    assert status == 0 and "homemade" in out and out.count(" - |") == 2, err


def test_an_image_needs_no_board(model, at_port, capsys, tmp_path):
    path = tmp_path / "m.mlk"
    assert run(capsys, "compile", model, "-o", path, "--board", "ulx3s_85f")[0] == 0
    board = made_for(str(path))
    assert board is not None and board.name == "ulx3s_85f" and made_for(str(model)) is None
    at_port("ulx3s_85f", board.config)
    assert run(capsys, "generate", "ab", "-m", path, "-n", 4, "--target", "/dev/board")[0] == 0
    at_port("virtual", get_board("virtual").config)
    status, out, err = run(capsys, "generate", "ab", "-m", path, "--target", "/dev/board")
    assert status == 2 and "P = 8" in err and "board virtual has P = 4" in err
    # Simulated without --board, it is the image's.
    status, out, err = run(capsys, "generate", "ab", "-m", path, "-n", 2, "--target", "golden",
                           "--json", "-")
    assert status == 0 and json.loads(out)["board"] == "ulx3s_85f", err
