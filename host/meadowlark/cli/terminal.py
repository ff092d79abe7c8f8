"""The terminal and its one owner: whatever a command writes goes through here.

stdout gets results and generated text, byte for byte the same whatever it leads to. stderr gets
progress and messages. Progress is one line that is drawn again and again where stderr is a
terminal. It is taken away before anything else is written, and stays away while a text is being
written, so that neither is drawn into the other.
"""
from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from contextlib import nullcontext, suppress
from threading import RLock
from typing import TYPE_CHECKING, TextIO

from ..files import write_atomic

if TYPE_CHECKING:
    from rich.live import Live

_lock = RLock()
_drawn: Progress | None = None      # whose line stands on the terminal
_writing: Text | None = None        # has the terminal for itself until it ends

#: What a terminal would obey, or what turns the direction of a line.
_CONTROLS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text of others for a line of ours: control characters become escapes, line ends stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _write(stream: TextIO, text: str) -> None:
    """Results that cannot be written are an error, messages are not."""
    # A terminal may not know every character: better a question mark than an error.
    encoding = stream.encoding or "utf-8"
    with suppress(OSError) if stream is sys.stderr else nullcontext():
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()


def _clear() -> None:
    """Take the line of progress away."""
    if _drawn is not None:
        _drawn.hide()


def say(text: str) -> None:
    """Write a line to stderr."""
    with _lock:
        _clear()
        if _writing is not None:
            _writing.end_line()
        _write(sys.stderr, printable(text) + "\n")


def warn(text: str) -> None:
    """Something that the user may not expect, on stderr."""
    say(f"warning: {text}")


def ask(prompt: str) -> None:
    """Write a prompt to stderr, behind which the user types."""
    with _lock:
        _clear()
        _write(sys.stderr, prompt)


def show(text: str) -> None:
    """Write a result for people to stdout."""
    with _lock:
        _clear()
        _write(sys.stdout, printable(text) + "\n")


class Warnings(logging.Handler):
    """What the program warns of, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def write_json(result: dict, where: str | None) -> None:
    """``--json``: to stdout, or to a file that is replaced at once."""
    if where is None:
        return
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if where == "-":
        with _lock:
            _clear()
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        write_atomic(where, text.encode())


def abandoned() -> str:
    """What leaves the terminal in order when the process ends at once: the cursor seen again, and
    at the start of a line. Waits for nobody."""
    text, free = "", _lock.acquire(timeout=0.02)
    if _drawn is not None:
        text += "\r\x1b[2K\x1b[?25h"
    elif sys.stderr.isatty() or _writing is not None and not _writing.at_start:
        text += "\n"        # behind ^C, or half a line
    if free:
        _lock.release()
    return text


class Progress:
    """What is going on, on stderr: one line that changes on a terminal, else a line a step.

    Calls may come from any thread; after the ``with`` block they do nothing.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._draws = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in (
            "dumb", "unknown")
        self._live: Live | None = None
        self._step = self._line = ""
        self._over = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *what) -> None:
        with _lock:
            self._over = True
            self.hide()

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show a sentence, and the steps done (of how many, 0: not known)."""
        with _lock:
            if self._over or _writing is not None:
                return
            if self._draws:
                self._line = printable(text) + (f" {done:,} of {total:,}" if total else
                                                f" {done:,}" if done else "")
                self._show()
            elif text != self._step:
                _write(sys.stderr, f"{printable(text)}{self._elapsed()} ...\n")
            self._step = text

    def hide(self) -> None:
        """Leave the terminal to others until the next call."""
        global _drawn
        with _lock:
            if self._live is not None:
                self._live.stop()
                self._live = _drawn = None

    def _show(self) -> None:
        global _drawn
        if self._live is not None:
            return
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text as Drawn
        spinner = Spinner("dots")

        def line() -> Drawn:
            # Called from a thread of rich, so without the lock. Cut to the width: a line that
            # wraps cannot be taken away from a terminal that has become narrower.
            return Drawn.assemble(spinner.render(time.monotonic()),     # type: ignore[arg-type]
                                  f" {self._line}{self._elapsed()}", no_wrap=True,
                                  overflow="ellipsis")
        # Never put in the place of sys.stdout or sys.stderr: whoever takes them meanwhile would
        # keep a stream that ends every piece of text with a line end.
        self._live = Live(get_renderable=line, refresh_per_second=10, transient=True,
                          console=Console(stderr=True, force_terminal=True),
                          redirect_stdout=False, redirect_stderr=False)
        _drawn = self
        self._live.start()

    def _elapsed(self) -> str:
        """Since the command began, once it is long enough to be told."""
        seconds = int(time.monotonic() - self._begun)
        return "" if seconds < 2 else f" ({seconds // 60} min {seconds % 60} s)" \
            if seconds >= 60 else f" ({seconds} s)"


def listing(facts: dict, indent: str = "") -> str:
    """Facts as lines of names and values."""
    lines, width = [], max(map(len, map(str, facts)))
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", listing(value, indent + "  ")]
        elif isinstance(value, list) and len(shown := list(map(str, value))) > 1 \
                and max(map(len, shown)) > 20:
            lines += [f"{indent}{name}", *(f"{indent}  {line}" for line in shown)]
        else:
            shown = ", ".join(map(_word, value)) if isinstance(value, list) else _word(value)
            lines.append(f"{indent}{name:{width}}  {shown}".rstrip())
    return "\n".join(lines)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, (int, float)) else \
        "none" if value is None else str(value)


class Text:
    """Generated text on its way out.

    prompt: written in front of the first piece. quiet: stdout is for JSON, so the text goes to
    stderr.
    """

    def __init__(self, prompt: str, *, quiet: bool) -> None:
        self._to = sys.stderr if quiet else sys.stdout
        self._owns = quiet or self._to.isatty()
        self._prompt, self.at_start = prompt, True

    def write(self, text: str) -> None:
        """A piece of it, perhaps an empty one."""
        global _writing
        with _lock:
            if self._owns and _writing is not self:
                _clear()
                _writing = self
            text, self._prompt = self._prompt + text, ""
            if text:
                _write(self._to, text)
                self.at_start = text.endswith("\n")

    def end(self) -> None:
        """No more of it; the end of its line."""
        global _writing
        with _lock:
            self.write("\n")
            if _writing is self:
                _writing = None

    def end_line(self) -> None:
        """End the line, for somebody else to begin one; the text is over."""
        global _writing
        with _lock:
            if not self.at_start:
                self.write("\n")
            if _writing is self:
                _writing = None
