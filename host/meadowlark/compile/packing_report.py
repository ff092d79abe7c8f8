"""What packing did to an image: a table, a drawing."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape

_COLOURS = {"raw": "#9a9a9a", "meadow": "#4f9d69", "entropy": "#3f78b5"}


def rows(tensors: Sequence[dict]) -> list[dict]:
    """For each tensor and all of them: bits per weight, entropy (bits per byte), ratio to raw."""
    out = [dict(name=t["name"], mode=t["mode"], how=t["how"],
                bits=8 * t["bytes"] / t["weights"], entropy=t["entropy"],
                ratio=t["raw_bytes"] / t["bytes"]) for t in tensors]
    if out:
        raw, now = (sum(t[key] for t in tensors) for key in ("raw_bytes", "bytes"))
        out.append(dict(
            name="all", mode="", how="", bits=8 * now / sum(t["weights"] for t in tensors),
            entropy=sum(t["entropy"] * t["raw_bytes"] for t in tensors) / raw, ratio=raw / now))
    return out


def table(tensors: Sequence[dict]) -> str:
    """Lines of text."""
    found = rows(tensors)
    width = max(len(r["name"]) for r in found)
    lines = [f"{'tensor':{width}}  mode     bits/weight  entropy  ratio"]
    lines += [f"{r['name']:{width}}  {r['mode']:7}  {r['bits']:11.3f}  {r['entropy']:7.3f}  "
              f"{r['ratio']:5.3f}  {r['how']}".rstrip() for r in found]
    return "\n".join(lines)


def svg(tensors: Sequence[dict], title: str) -> str:
    """A bar of bits per weight for each tensor, its entropy as a line across the bar."""
    found = rows(tensors)
    step, left, scale, top = 14, 150, 60, 44
    height = top + step * len(found) + 10
    most = max(8.0, *(r["bits"] for r in found))
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + round(scale * most) + 60}" '
             f'height="{height}" font-family="sans-serif" font-size="10">',
             f'<text x="8" y="16" font-size="13">{escape(title)}: bits per weight</text>']
    for k, (mode, colour) in enumerate(_COLOURS.items()):
        lines.append(f'<rect x="{left + 80 * k}" y="24" width="9" height="9" fill="{colour}"/>'
                     f'<text x="{left + 80 * k + 13}" y="32">{mode}</text>')
    lines.append(f'<line x1="{left + 240}" x2="{left + 240}" y1="23" y2="34" stroke="black"/>'
                 f'<text x="{left + 245}" y="32">entropy</text>')
    for k, (r, t) in enumerate(zip(found, [*tensors, None], strict=True)):
        y = top + step * k
        per_weight = r["entropy"] * (1 if t is None else t["raw_bytes"] / t["weights"])
        x = left + scale * per_weight
        lines.append(
            f'<text x="{left - 6}" y="{y + 9}" text-anchor="end">{escape(r["name"])}</text>'
            f'<rect x="{left}" y="{y}" width="{scale * r["bits"]:.1f}" height="{step - 3}" '
            f'fill="{_COLOURS.get(r["mode"], "#444444")}"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 1}" y2="{y + step - 2}" stroke="black"/>'
            f'<text x="{left + scale * r["bits"] + 4:.1f}" y="{y + 9}">{r["bits"]:.2f}</text>')
    return "\n".join([*lines, "</svg>", ""])
