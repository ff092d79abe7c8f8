"""Runs commands on pseudo-terminals, as a person would see them."""
from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

import pyte

ROWS, COLUMNS = 40, 240
#: Seconds after which a command counts as hanging.
HANGS = 120


@dataclass
class Ran:
    """Exit status, and what came out of stdout and stderr; of both, on one terminal, in out."""
    status: int
    out: bytes
    err: bytes


def run(command: list[str], *, out: str, err: str, stdin: list[tuple[bytes, bytes]] | bytes = b"",
        env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end.

    Parameters
    ----------
    out, err : str
        Where they lead to: "pipe", "pty" (each one of its own), or "same", one pty for both.
    stdin : bytes, or list of (bytes, bytes)
        Bytes of a pipe; or on the pty "same": what is waited for, and what is typed then, such as
        Ctrl-C.
    """
    masters: dict[str, int] = {}
    slaves: dict[str, int] = {}
    typed = list(stdin) if isinstance(stdin, list) else []
    for name, where in (("out", out), ("err", err)):
        if where == "same" and masters:
            slaves[name] = slaves["out"]
            continue
        masters[name], slaves[name] = os.pipe() if where == "pipe" else pty.openpty()
        if where != "pipe":
            fcntl.ioctl(slaves[name], termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, stdin=slaves["out"] if typed else subprocess.PIPE, stdout=slaves["out"],
        stderr=slaves["err"], start_new_session=True,
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if typed else None,
        env={**os.environ, "TERM": "xterm-256color", **(env or {})})
    if process.stdin:
        assert isinstance(stdin, bytes)
        process.stdin.write(stdin)
        process.stdin.close()
    for fd in set(slaves.values()):
        os.close(fd)
    got, open_ = dict.fromkeys(masters, b""), {fd: name for name, fd in masters.items()}
    last = time.monotonic() + HANGS
    while open_:
        ready = select.select(list(open_), [], [], max(0, last - time.monotonic()))[0]
        if not ready:
            process.kill()
            raise AssertionError(f"{command} hangs; it wrote {got!r}")
        for fd in ready:
            try:
                piece = os.read(fd, 1 << 16)
            except OSError:         # a pty whose other end is closed
                piece = b""
            if not piece:
                del open_[fd]
                os.close(fd)
                continue
            name = open_[fd]
            got[name] += piece
            if typed and got[name].endswith(typed[0][0]):
                os.write(fd, typed.pop(0)[1])
    return Ran(process.wait(), got["out"], got.get("err", b""))


def screen(raw: bytes) -> list[str]:
    """What stands on the terminal when all of it has come, without empty lines at the end."""
    shown = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(shown).feed(raw)
    assert shown.cursor.hidden is False
    lines = [line.rstrip() for line in shown.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def meadowlark(*args: str, stub: str = "") -> list[str]:
    """The command line, after ``stub`` has put something in the place of its parts."""
    return [sys.executable, "-c", f"{stub}\nimport sys\nfrom meadowlark.cli import main\n"
            "sys.exit(main())", *args]
