#!/usr/bin/env python3
"""Draw a pass of prefill, one of its layers, and a pass of decode from a timeline, as SVG.

    meadowlark bench --board ulx3s_85f -n 4 --trace build/trace.json
    scripts/timeline.py build/trace.json -o docs/images/timeline.svg

A lane is a unit, a colour what it does. A column is a stretch of cycles, and as high as the share
of them in which the unit does that: so an area is a time, however short its slices are.
"""
from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import click
import numpy as np
from meadowlark.files import write_atomic

#: Of the picture and its parts, in pixels.
WIDTH, LEFT, RIGHT, LANE, APART, TITLE = 900, 112, 12, 20, 6, 40
STEP = 2        # a column's width
COLUMNS = (WIDTH - LEFT - RIGHT) // STEP
PLOT = COLUMNS * STEP
#: Colours of what units do, for light and for dark.
COLOURS = {
    "linear": ("#0969da", "#4493f8"), "attention": ("#8250df", "#ab7df8"),
    "norm": ("#1a7f37", "#3fb950"), "store": ("#bf3989", "#db61a2"),
    "other": ("#8c959f", "#6e7681"), "read": ("#54aeff", "#388bfd"),
    "refresh": ("#57606a", "#8b949e"), "wait": ("#cf222e", "#f85149"),
    "settle": ("#d4a72c", "#d29922"), "full": ("#a5d6ff", "#1f4f8f"),
    "level": ("#6639ba", "#986ee2"),
}
#: What a colour stands for.
LEGEND = (("linear", "LINEAR; array at work"), ("attention", "QK, SV"), ("norm", "NORM"),
          ("store", "STORE, writes"), ("other", "EMBED, ROPE; results, logits"),
          ("read", "reads, a half fills"), ("full", "a half is full"), ("refresh", "refresh"),
          ("wait", "Issue waits: tile, store"),
          ("settle", "Issue waits: vector unit, pipelines"), ("level", "level of the FIFO"))


def of_issue(name: str) -> str:
    op = name.split(" ")[0]
    return {"LINEAR": "linear", "QK": "attention", "SV": "attention", "NORM": "norm",
            "STORE": "store"}.get(op, "other")


#: Lanes from the top: label, thread, and the colour of a slice by its name; None leaves it out.
LANES: tuple[tuple[str, str, Callable[[str], str | None]], ...] = (
    ("memory bus", "Memory bus", {"read": "read", "write": "store", "refresh": "refresh"}.get),
    ("tile buffer 0", "Tile buffer, half 0", {
        "filling": "read", "full": "full", "in use": "linear"}.get),
    ("tile buffer 1", "Tile buffer, half 1", {
        "filling": "read", "full": "full", "in use": "linear"}.get),
    ("instruction", "Issue", lambda name: None if name.startswith("wait") else of_issue(name)),
    ("waits", "Issue", {"wait: tile": "wait", "wait: store": "wait",
                        "wait: vector": "settle"}.get),
    ("array", "Array", lambda name: "linear"),
    ("vector unit", "Vector unit", {"results": "other", "norm": "norm"}.get),
    ("store unit", "Store unit", lambda name: "store"),
    ("sampler", "Sampler", lambda name: "other"),
)


@dataclass(frozen=True)
class Panel:
    """Cycles begin..end-1 of a process."""
    title: str
    pid: int
    begin: int
    end: int


def coverage(slices: Iterable[dict], begin: int, end: int) -> np.ndarray:
    """Share of each column's cycles that slices take: float64[COLUMNS].

    A slice of which fewer cycles count than it lasts takes that share.
    """
    edges = np.linspace(begin, end, COLUMNS + 1)
    total = np.zeros(COLUMNS + 1)
    for e in slices:
        counted = e["args"].get("cycles", e["args"].get("beats", e["dur"]))
        since = np.clip(edges - e["ts"], 0, e["dur"])
        total += since * min(counted / e["dur"], 1)
    return np.diff(total) / np.diff(edges)


def bars(shares: dict[str, np.ndarray], top: int) -> list[str]:
    """Columns of a lane, one colour on the other; neighbours of one height are one bar."""
    out, below = [], np.zeros(COLUMNS)
    for colour, share in shares.items():
        low = np.round(LANE * below).astype(int)
        below = np.minimum(below + share, 1)
        high = np.round(LANE * below).astype(int)
        changes = np.flatnonzero(np.diff(low) | np.diff(high)) + 1
        path, pen = f"M{LEFT} {top + LANE}", (0, 0)
        for at, end in zip([0, *changes], [*changes, COLUMNS]):
            if height := high[at] - low[at]:
                x, width = STEP * at, STEP * (end - at)
                path += f"m{x - pen[0]} {pen[1] - high[at]}h{width}v{height}h{-width}z"
                pen = x, high[at]
        if pen != (0, 0):
            out.append(f'<path class="{colour}" d="{path}"/>')
    return out


def level(events: list[dict], begin: int, end: int, top: int) -> tuple[list[str], int]:
    """The FIFO's level as an area, and its highest one."""
    found = [(e["ts"], e["args"]["level"]) for e in events if e["ph"] == "C"
             and e["name"].startswith("run-ahead FIFO")]
    times, levels = np.array(found, float).reshape(-1, 2).T
    most = levels.max(initial=1)
    at = np.searchsorted(times, np.linspace(begin, end, COLUMNS, endpoint=False), "right") - 1
    share = np.where(at >= 0, levels[at], 0) / most
    return bars({"level": share}, top), int(most)


def panel_svg(events: list[dict], panel: Panel, top: int) -> tuple[list[str], int]:
    """A panel, and where it ends."""
    mine = [e for e in events if e["pid"] == panel.pid]
    tids = {e["args"]["name"]: e["tid"] for e in mine if e["name"] == "thread_name"}
    seen = [e for e in mine if e["ph"] == "X" and e["ts"] < panel.end
            and e["ts"] + e["dur"] > panel.begin]
    out = [f'<text class="title" x="12" y="{top + 24}">{escape(panel.title)}</text>']
    y = top + TITLE
    lanes = []
    for label, thread, colour_of in LANES:
        by: dict[str, list[dict]] = {}
        for e in seen:
            if e["tid"] == tids[thread] and (colour := colour_of(e["name"])):
                by.setdefault(colour, []).append(e)
        lanes.append((label, bars({c: coverage(by[c], panel.begin, panel.end)
                                   for c in COLOURS if c in by}, y)))
        y += LANE + APART
    area, most = level(mine, panel.begin, panel.end, y)
    lanes.append((f"FIFO, {most:,} B", area))
    y = top + TITLE
    for label, shapes in lanes:
        out += [f'<text class="label" x="{LEFT - 8}" y="{y + 14}">{escape(label)}</text>',
                f'<rect class="lane" x="{LEFT}" y="{y}" width="{PLOT}" height="{LANE}"/>', *shapes]
        y += LANE + APART
    step = 10 ** int(np.log10(panel.end - panel.begin))
    step = next(s for s in (step // 5, step // 2, step) if (panel.end - panel.begin) / s <= 9)
    for cycles in range(0, panel.end - panel.begin + 1, step):
        x = LEFT + cycles * PLOT / (panel.end - panel.begin)
        out += [f'<path class="tick" d="M{x:.1f} {top + TITLE}V{y}"/>',
                f'<text class="tick" x="{x:.1f}" y="{y + 12}">{cycles:,}</text>']
    return out, y + 16


def panels(events: list[dict]) -> list[Panel]:
    """The first pass of prefill, its second layer, and the last pass of decode."""
    passes = [e for e in events if re.match("(prefill|decode).*[0-9]$", e["name"])]
    layers = [e for e in events if e["name"].startswith("NORM before layers.")
              and "instruction" in e["args"]]

    def whole(e: dict) -> Panel:
        return Panel(f"A pass of {e['name']}: {e['dur']:,} cycles", e["pid"], e["ts"],
                     e["ts"] + e["dur"])
    prefill, decode = ([e for e in passes if e["name"].startswith(kind)]
                       for kind in ("prefill", "decode"))
    out = [*map(whole, prefill[:1])]
    starts = [n["ts"] for n in layers for panel in out if panel.begin <= n["ts"] < panel.end]
    # Two norms a layer; the second one that begins with attention.
    if len(starts) > 4:
        out.append(Panel(f"A layer of it: {starts[4] - starts[2]:,} cycles", out[0].pid,
                         starts[2], starts[4]))
    return [*out, *map(whole, decode[-1:])]


def draw(trace: dict) -> str:
    """The picture of a timeline as `meadowlark bench --trace` writes it."""
    events = trace["traceEvents"]
    found = panels(events)
    if not found:
        raise click.ClickException("the timeline has no pass that is whole")
    process = next(e["args"]["name"] for e in events if e["name"] == "process_name")
    title = process.partition(", ")[2].partition(";")[0]
    shapes = [f'<text class="title" x="12" y="24">{escape(title)}: what each unit does, in cycles'
              "</text>"]
    y = 34
    x = 12.0
    for colour, text in LEGEND:
        width = 22 + 6.1 * len(text) + 10
        if x + width > WIDTH:
            x, y = 12.0, y + 20
        shapes += [f'<rect class="{colour}" x="{x:g}" y="{y}" width="12" height="12"/>',
                   f'<text class="legend" x="{x + 17:g}" y="{y + 10}">{escape(text)}</text>']
        x += width
    y += 14
    for panel in found:
        more, y = panel_svg(events, panel, y)
        shapes += more
    style = ["text{font:11px sans-serif;fill:#1f2328}text.title{font-size:14px}"
             "text.label{text-anchor:end}text.tick{font-size:10px;text-anchor:middle;fill:#59636e}"
             ".page{fill:#ffffff}.lane{fill:#f3f5f7}path.tick{stroke:#59636e;stroke-opacity:.25}",
             *(f".{name}{{fill:{light}}}" for name, (light, _) in COLOURS.items()),
             "@media (prefers-color-scheme:dark){text{fill:#e6edf3}text.tick{fill:#9198a1}"
             ".page{fill:#0d1117}.lane{fill:#161b22}path.tick{stroke:#9198a1}",
             *(f".{name}{{fill:{dark}}}" for name, (_, dark) in COLOURS.items()), "}"]
    height = y + 8
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">', f"<title>{escape(title)}</title>",
        f"<style>{''.join(style)}</style>", '<rect class="page" width="100%" height="100%"/>',
        *shapes, "</svg>", ""])


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=Path, help="SVG file to write.")
def main(trace: Path, output: Path) -> None:
    """Draw the file TRACE of `meadowlark bench --trace`."""
    raw = trace.read_bytes()
    text = draw(json.loads(gzip.decompress(raw) if trace.suffix == ".gz" else raw))
    write_atomic(output, text.encode())
    print(f"{output}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
