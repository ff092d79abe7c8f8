"""What mechanisms are worth, as a picture for each paper."""
from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from zlib import crc32

from ..errors import UserError, how_to_add
from .rows import PAPERS, Row

#: Inches of a bar, of what stands around them, and of the width.
BAR, AROUND, WIDTH = 0.24, 1.0, 9.0


def shown(rows: Sequence[Row], paper: str) -> list[tuple[Row, float]]:
    """Rows of a paper that have a worth, in their order."""
    return [(row, row.worth) for row in rows if row.paper == paper and row.worth is not None]


def mark(rows: Sequence[Row], paper: str) -> str:
    """Names what a picture was made of; it stands in the picture."""
    data = [asdict(row) for row, _ in shown(rows, paper)]
    return f"rows {crc32(json.dumps(data, sort_keys=True).encode()):08x}"


def picture(rows: Sequence[Row], paper: str) -> bytes:
    """An SVG: a bar for each row, from 1 to what it is worth, in octaves; filled where it is
    measured, else predicted. The same rows give the same bytes.

    Raises
    ------
    UserError
        matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"pictures need matplotlib: run {how_to_add('plot')}") from None
    bars = shown(rows, paper)
    with matplotlib.rc_context({"svg.hashsalt": paper, "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(WIDTH, AROUND + BAR * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        for k, (row, worth) in enumerate(bars):
            measured = None not in (row.without.measured, row.with_.measured)
            color = "#2a7f62" if worth >= 1 else "#b3432b"
            axes.barh(k, worth - 1, left=1, height=0.7, color=color if measured else "none",
                      edgecolor=color)
            digits = 2 if abs(worth - 1) >= 0.05 else 4
            axes.text(max(worth, 1), k, f" {worth:.{digits}f}", va="center")
        axes.set_yticks(range(len(bars)), [
            ": ".join(filter(None, (row.mechanism, row.on)))
            + ("" if row.unit.startswith("cycles") else f" ({row.unit})") for row, _ in bars])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        title, _ = PAPERS[paper]
        figure.suptitle(f"{title}: baseline over mechanism. Filled: measured, else predicted",
                        x=0.01, ha="left")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={
            "Date": None, "Creator": "meadowlark ablate", "Description": mark(rows, paper)})
    return out.getvalue()
