"""What commands write: progress, results, generated text."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..files import write_atomic

console = Console(stderr=True, highlight=False)


class Progress:
    """What is going on, on stderr: one live line on a terminal, else a line a step."""

    def __init__(self) -> None:
        self._status = console.status("") if console.is_terminal else None
        self._last = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *what) -> None:
        self.hide()

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show a sentence, and the steps done (of how many, 0: not known)."""
        if self._status is None:
            if text != self._last:
                console.print(f"{text} ...", style="dim", markup=False)
        else:
            self._status.update(
                f"{text} {done:,} of {total:,}" if total else f"{text} {done:,}" if done else text)
            self._status.start()
        self._last = text

    def hide(self) -> None:
        """Leave the terminal to others until the next call."""
        if self._status is not None:
            self._status.stop()


def say(text: str) -> None:
    """A line on stderr."""
    console.print(text, markup=False, soft_wrap=True)


def write_json(result: dict, where: str | None) -> None:
    """``--json``: to stdout, or to a file that is replaced at once."""
    if where is None:
        return
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(where), text.encode())


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
            shown = ", ".join(map(str, value)) if isinstance(value, list) else \
                f"{value:,}" if isinstance(value, (int, float)) else str(value)
            lines.append(f"{indent}{name:{width}}  {shown}")
    return "\n".join(lines)


class Text:
    """Generated text on its way to the terminal: held back where a stop text could begin.

    quiet: stdout is for JSON, so the text goes to stderr.
    """

    def __init__(self, prompt: str, stream, stop: Sequence[str], *, quiet: bool) -> None:
        self._stream, self._stop = stream, stop
        self._to = sys.stderr if quiet else sys.stdout
        self._shown = 0
        self.text = ""
        self.stopped = False
        self._write(prompt)

    def _write(self, text: str) -> None:
        # A terminal may not know every character: better a question mark than an error.
        encoding = self._to.encoding or "utf-8"
        self._to.write(text.encode(encoding, "replace").decode(encoding))
        self._to.flush()

    def push(self, token: int) -> bool:
        """Take a token; False when a stop text is complete."""
        return self._more(self._stream.push(token), final=False)

    def end(self) -> None:
        """No more tokens; the rest of the text and the end of its line."""
        if not self.stopped:
            self._more(self._stream.flush(), final=True)
        self._write("\n")

    def _more(self, piece: str, *, final: bool) -> bool:
        self.text += piece
        found = [at for s in self._stop if (at := self.text.find(s)) >= 0]
        if found:
            self.stopped = True
            self.text = self.text[:min(found)]
        sure = len(self.text)
        if not final and not self.stopped:
            # The longest end of the text that begins a stop text.
            sure -= max((n for s in self._stop for n in range(1, len(s))
                         if self.text.endswith(s[:n])), default=0)
        if sure > self._shown:
            self._write(self.text[self._shown:sure])
            self._shown = sure
        return not self.stopped
