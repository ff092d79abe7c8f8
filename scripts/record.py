#!/usr/bin/env python3
"""Record a command on a terminal as an animated SVG.

    scripts/record.py -o docs/images/generate.svg meadowlark generate "Once upon a time"

The command runs in a pseudo-terminal. What it writes goes, with its times, through a terminal
emulator. Each line of the screen becomes one text for each state it was in, and CSS shows that text
for as long as the state lasted. The SVG has no script. A viewer that does not animate, or a reader
who asked for reduced motion, sees the last screen.
"""
from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import click
import pyte
from meadowlark.files import write_atomic

CHAR, LINE, SIZE, MARGIN, BAR = 8.4, 20, 14, 16, 30     # user units
BACKGROUND, FRAME, INK, FAINT = "#12161c", "#39424e", "#d8dee6", "#7d8794"
COLOURS = {"black": "#4a5360", "red": "#f47067", "green": "#6bc46d", "brown": "#daaa3f",
           "blue": "#6cb6ff", "magenta": "#dcbdfb", "cyan": "#56d4dd", "white": "#f0f3f6"}


@dataclass(frozen=True)
class Run:
    """Neighbouring characters of one look."""
    column: int
    text: str
    colour: str
    bold: bool


Row = tuple[Run, ...]


def look(char: pyte.screens.Char) -> tuple[str, bool]:
    """(colour, bold) of a character."""
    name = (char.bg if char.reverse else char.fg).removeprefix("bright")
    return COLOURS.get(name, INK if name == "default" else f"#{name}"), char.bold


def rows_of(screen: pyte.Screen) -> tuple[Row, ...]:
    """The screen as runs, without what is blank."""
    rows = []
    for line in range(screen.lines):
        runs: list[Run] = []
        for column in range(screen.columns):
            char = screen.buffer[line][column]
            colour, bold = look(char)
            last = runs[-1] if runs else None
            if last and (last.colour, last.bold) == (colour, bold) \
                    and last.column + len(last.text) == column:
                runs[-1] = Run(last.column, last.text + char.data, colour, bold)
            elif char.data.strip():
                runs.append(Run(column, char.data, colour, bold))
        rows.append(tuple(Run(r.column, r.text.rstrip(), r.colour, r.bold) for r in runs))
    return tuple(rows)


def run(command: Sequence[str], columns: int, lines: int) -> tuple[list[tuple[float, bytes]], int]:
    """Run a command in a terminal of that size: ([(seconds, what it wrote)], exit status)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns),
                                "LINES": str(lines)}
    # As a shell does it: the terminal is the command's own, and its end is the command's end.
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                               env=environment, start_new_session=True,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    begun, written = time.monotonic(), []
    try:
        while True:
            select.select([ours], [], [])
            try:
                data = os.read(ours, 65536)
            except OSError:             # Linux's way to say that nobody holds the other end
                break
            if not data:
                break
            written.append((time.monotonic() - begun, data))
    finally:
        os.close(ours)
    return written, process.wait()


def frames(written: Iterable[tuple[float, bytes]], command: str, columns: int, lines: int, *,
           pause: float, least: float = 0.05) -> list[tuple[float, tuple[Row, ...]]]:
    """[(seconds, screen)]: the screen changes at these times.

    pause: longest time between two frames; longer ones are shortened to it. least: shortest.
    """
    screen = pyte.Screen(columns, lines)
    stream = pyte.Stream(screen)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    stream.feed(f"\x1b[32m$\x1b[0m {command}\r\n")
    found = [(0.0, rows_of(screen))]
    before = now = 0.0
    for at, data in written:
        now += min(at - before, pause)
        before = at
        stream.feed(decode(data))
        rows = rows_of(screen)
        if rows == found[-1][1]:
            continue
        if now - found[-1][0] < least and len(found) > 1:
            found[-1] = found[-1][0], rows
        else:
            found.append((now, rows))
    return found


def svg(found: Sequence[tuple[float, tuple[Row, ...]]], title: str, columns: int, *,
        hold: float) -> str:
    """The frames as an SVG that plays them again and again, the last one for `hold` seconds."""
    whole = found[-1][0] + hold
    used = max(row for _, rows in found for row, runs in enumerate(rows) if runs) + 1
    width, height = 2 * MARGIN + columns * CHAR, BAR + MARGIN + used * LINE
    style, texts = [], []

    def percent(seconds: float) -> str:
        return f"{100 * seconds / whole:.2f}".rstrip("0").rstrip(".")

    for row in range(used):
        states: list[tuple[float, Row]] = []        # when the row came to show what
        for at, rows in found:
            if not states or states[-1][1] != rows[row]:
                states.append((at, rows[row]))
        for i, (begin, runs) in enumerate(states):
            if not runs:
                continue
            last = i + 1 == len(states)
            name = ""
            if begin or not last:
                name = f"f{len(style)}"
                steps = ("0%{visibility:hidden}" if begin else "") \
                    + f"{percent(begin)}%{{visibility:visible}}" \
                    + ("" if last else f"{percent(states[i + 1][0])}%,to{{visibility:hidden}}")
                style.append(f"@keyframes {name}{{{steps}}}#{name}{{animation-name:{name}}}")
            spans = "".join(
                f'<tspan x="{MARGIN + r.column * CHAR:g}" textLength="{len(r.text) * CHAR:g}" '
                f'lengthAdjust="spacingAndGlyphs"'
                + (f' fill="{r.colour}"' if r.colour != INK else "")
                + (' font-weight="bold"' if r.bold else "") + f">{escape(r.text)}</tspan>"
                for r in runs)
            texts.append(f'<text y="{BAR + SIZE + row * LINE}"' + (f' id="{name}"' if name else "")
                         + ("" if last else ' visibility="hidden"') + f">{spans}</text>")
    dots = "".join(f'<circle cx="{MARGIN + 4 + 16 * i}" cy="15" r="5" fill="{FRAME}"/>'
                   for i in range(3))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" \
width="{width:g}" height="{height}" role="img">
<title>{escape(title)}</title>
<style>
text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;\
fill:{INK};white-space:pre;animation:{whole:.2f}s step-end infinite}}
{"".join(style)}
@media (prefers-reduced-motion:reduce){{text{{animation:none}}}}
</style>
<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1}" rx="8" fill="{BACKGROUND}" \
stroke="{FRAME}"/>
{dots}
{chr(10).join(texts)}
</svg>
"""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--output", required=True, type=Path, help="SVG file to write.")
@click.option("--columns", default=96, show_default=True, help="Characters of a line.")
@click.option("--lines", default=24, show_default=True, help="Lines of the screen.")
@click.option("--pause", default=1.0, show_default=True,
              help="Seconds to which longer pauses are shortened.")
@click.option("--hold", default=6.0, show_default=True,
              help="Seconds for which the last screen stays.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(output: Path, columns: int, lines: int, pause: float, hold: float,
         command: tuple[str, ...]) -> None:
    """Record COMMAND on a terminal as an animated SVG."""
    if not output.parent.is_dir():
        raise click.ClickException(f"there is no folder {output.parent}")
    written, status = run(command, columns, lines)
    if status:
        sys.stdout.buffer.write(b"".join(data for _, data in written))
        raise click.ClickException(f"{command[0]} ended with status {status}; nothing is written")
    shown = " ".join(f'"{w}"' if shlex.quote(w) != w and '"' not in w else w for w in command)
    found = frames(written, shown, columns, lines, pause=pause)
    text = svg(found, shown, columns, hold=hold)
    write_atomic(output, text.encode())
    print(f"{output}: {len(found)} frames, {found[-1][0]:.1f} s, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
