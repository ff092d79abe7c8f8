"""Ctrl-C and the signals to end: a command ends within half a second, wherever it is.

A signal raises KeyboardInterrupt in the main thread, which closes files and boards on its way out.
But that thread may be in one long step of NumPy or the simulation, or in code that catches
everything. So a thread of its own hears of signals too. It ends the process when the main thread
has not done so after :data:`GRACE`, and at once when a second signal comes. Both ways end in
:func:`leave`: tools that run for us end too, and nothing half done stays.

Only light modules are imported here: this runs before all others.
"""
from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from .status import INTERRUPTED

#: Seconds that the main thread has after a signal: for the abort of a run on a board, a few
#: milliseconds, and for what is left of half a second with the end of the process.
GRACE = 0.35

_signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
            if hasattr(signal, name)]
_patient: tuple[int, ...] = ()      # of these signals the first one ends a part only
_raised = False         # a KeyboardInterrupt is on its way through the main thread
_heard = _answered = 0  # signals that came, and those whose KeyboardInterrupt was dealt with
_started: set[int] = set()      # processes that ran for us when a signal came
_leaving = threading.Lock()


def install() -> None:
    """Hear signals from here on; call it in the main thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in _signals:
        # Who starts us may have had it ignored: nohup, or a shell that runs us in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    hook = sys.unraisablehook

    def quiet(problem) -> None:
        # Raised where nothing can be raised, such as in the finaliser of an object.
        if not isinstance(problem.exc_value, KeyboardInterrupt):
            hook(problem)
    sys.unraisablehook = quiet
    threading.Thread(target=_watch, args=(ours, theirs), name="signals", daemon=True).start()


def _interrupt(number: int, frame: object) -> NoReturn:
    global _raised
    _raised = True
    raise KeyboardInterrupt


def finish() -> None:
    """The command is done: what the interpreter still does is not to be told of an exception."""
    for number in _signals:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, lambda *_: leave())


def pending() -> bool:
    """A signal has come and nobody has dealt with it."""
    return _raised or _heard > _answered


@contextmanager
def patience(on: bool = True, *, signals: Sequence[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Ctrl-C ends what is done here and not the command: it may take its time. Who catches the
    KeyboardInterrupt says so with :func:`dealt_with`; before that, a second one ends all.

    on: False changes nothing. signals: of which that is so."""
    global _patient
    before, _patient = _patient, tuple(signals) if on else ()
    try:
        yield
    finally:
        _patient = before


def dealt_with() -> None:
    """The KeyboardInterrupt was caught, and the command goes on."""
    global _answered, _raised
    if _raised:
        _answered, _raised = _answered + 1, False


def leave() -> NoReturn:
    """End the process now, with one sentence; also from another thread than the main one."""
    if not _leaving.acquire(blocking=False):
        while True:
            time.sleep(1)
    try:
        for pid in {*_started, *_descendants()}:
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        # Modules that are not there yet have nothing to tidy up, and are not to be imported now.
        if files := sys.modules.get("meadowlark.files"):
            files.remove_unfinished()
        terminal = sys.modules.get("meadowlark.cli.terminal")
        last = (terminal.abandoned() if terminal else "") + "error: interrupted\n"
        if select.select([], [2], [], 0)[1]:        # a terminal may be held (Ctrl-S)
            os.write(2, last.encode())
    finally:
        os._exit(INTERRUPTED)


def _watch(ours: socket.socket, theirs: socket.socket) -> None:
    """theirs: only kept open."""
    global _heard
    last = None
    while True:
        wait = None if last is None else max(0.0, last - time.monotonic())
        if select.select([ours], [], [], wait)[0]:
            for number in ours.recv(64):
                if number in _signals:
                    _heard += 1
                    if _heard - _answered > 1:
                        leave()
                    if _heard > _answered and number not in _patient:
                        last = time.monotonic() + GRACE
                        # Those of a tool that ends first are nobody's children any more.
                        _started.update(_descendants())
        elif pending():
            leave()
        else:
            last = None


def _descendants() -> list[int]:
    """Processes that this one has started, and theirs. Only Linux tells; elsewhere a terminal
    sends Ctrl-C to all of them by itself."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]
