"""One block of a graph as a drawing in SVG."""
from __future__ import annotations

import re
from dataclasses import replace
from html import escape

from .graph import Add, Attend, Gate, Graph, Kind, Linear, Norm, Operator, Read, Rope

#: Of a box, and between neighbours of a row and rows, in pixels.
_WIDTH, _HEIGHT, _APART, _ROW = 138, 36, 16, 64
#: Radius of an addition. The residual runs down the left edge.
_ADD, _LEFT, _TOP = 11, 40, 44
#: Light or dark, as the reader has it.
_STYLE = """<style>
 text { font: 12px sans-serif; fill: #1f2328; text-anchor: middle }
 text.small { font-size: 10px; fill: #59636e } text.title { font-size: 14px; text-anchor: start }
 rect, circle { fill: #f6f8fa; stroke: #59636e } path { fill: none; stroke: #59636e }
 rect.page { fill: #ffffff; stroke: none }
 path.residual { stroke: #0969da; stroke-width: 2.5 } circle { stroke: #0969da }
 @media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } text.small { fill: #9198a1 }
  rect, circle { fill: #1c2128; stroke: #9198a1 } path { stroke: #9198a1 }
  rect.page { fill: #0d1117 }
  path.residual, circle { stroke: #4493f8 }
 }
</style>"""


def block(graph: Graph, number: int = 0) -> list[Operator]:
    """Operators of a layer, in order."""
    return [op for op in graph.operators if op.out.startswith(f"layers.{number}.")]


def alike(graph: Graph) -> tuple[int, int]:
    """How many layers are as the first, itself too, and how many there are."""
    numbers = {int(found[1]) for op in graph.operators
               if (found := re.match(r"layers\.(\d+)\.", op.out))}

    def shape(number: int) -> list[Operator]:
        """With names that do not tell the layer; what it begins with is another's."""
        ops = block(graph, number)
        made = {op.out: str(k) for k, op in enumerate(ops)}
        return [replace(op, out=made[op.out], **{
            name: made.get(getattr(op, name), "") for name in op.edges}, **{
            name: old and old.split(".", 2)[2] for name in op.arrays
            if (old := getattr(op, name)) is not None}) for op in ops]
    first = shape(0)
    return sum(shape(n) == first for n in numbers), len(numbers)


def svg(graph: Graph, title: str) -> str:
    """The first layer: the residual down the left, all else in rows below what it reads.

    title: of the model; how many layers are alike stands behind it.
    """
    ops = block(graph)
    same, layers = alike(graph)
    title += f", {f'each of {layers}' if same == layers else f'{same} of {layers}'} layers"
    rows: dict[str, int] = {}
    for op in ops:
        rows[op.out] = 1 + max(rows.get(name, 0) for name in op.inputs)
    inside = {op.out: op for op in ops}
    by_row: dict[int, list[Operator]] = {}
    for op in ops:
        if not isinstance(op, Add):
            by_row.setdefault(rows[op.out], []).append(op)
    across: dict[str, float] = {}       # centres of boxes, from that of the widest row
    for row in sorted(by_row):
        _place(by_row[row], across)
    half = max(map(abs, across.values()), default=0) + _WIDTH / 2
    middle = _LEFT + 2 * _ADD + 24 + half

    def x(name: str) -> float:
        return middle + across[name] if name in across else _LEFT

    def y(name: str) -> float:
        return _TOP + _ROW * rows.get(name, 0)
    height = _TOP + _ROW * (max(rows.values(), default=0) + 1)
    lines, shapes = [], []
    start, end = _TOP - 14, height - _ROW / 2
    lines.append(f'<path class="residual" d="M{_LEFT} {start:g}V{end:g}"/>')
    for op in ops:
        for name in op.inputs:
            lines += _line(x(name), y(name) if name in inside else start, x(op.out), y(op.out),
                           residual=graph.edges[name].kind is Kind.RESIDUAL,
                           box=not isinstance(op, Add))
        shapes += _shape(graph, op, x(op.out), y(op.out))
    width = middle + half + 20
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">', _STYLE,
        '<rect class="page" width="100%" height="100%"/>',
        f'<text class="title" x="12" y="18">{escape(title)}</text>', *lines, *shapes,
        f'<text class="small" style="text-anchor: start" x="{_LEFT + 8}" y="{start + 6:g}">'
        f'residual, {graph.hidden}</text>', "</svg>", ""])


def _place(ops: list[Operator], across: dict[str, float]) -> None:
    """Centres of a row: below what they read, side by side, as a whole where they would be."""
    def wish(op: Operator) -> float:
        above = [across[name] for name in op.inputs if name in across]
        return sum(above) / len(above) if above else 0.0
    wishes = {op.out: wish(op) for op in ops}
    row = sorted(ops, key=lambda op: wishes[op.out])        # stable: else in order
    at: list[float] = []
    for op in row:
        at.append(max(wishes[op.out], at[-1] + _WIDTH + _APART) if at else wishes[op.out])
    shift = sum(wishes.values()) / len(row) - sum(at) / len(row)
    across |= {op.out: place + shift for op, place in zip(row, at, strict=True)}


def _line(x0: float, y0: float, x1: float, y1: float, *, residual: bool, box: bool) -> list[str]:
    """From an operator to one below it."""
    if residual:
        # The line down the left is there already; what reads it leaves it at the reader's height.
        return [f'<path d="M{_LEFT} {y1:g}H{x1 - _WIDTH / 2:g}"/>'] if box else []
    y0 += _HEIGHT / 2
    if not box:                     # an addition: into its side
        return [f'<path d="M{x0:g} {y0:g}V{y1 - 12:g}Q{x0:g} {y1:g} {x0 - 12:g} {y1:g}'
                f'H{x1 + _ADD:g}"/>']
    y1 -= _HEIGHT / 2
    bend = min(28.0, (y1 - y0) / 2)
    # Down first where the way is long, so that no box of the rows between is crossed.
    return [f'<path d="M{x0:g} {y0:g}V{y1 - 2 * bend:g}C{x0:g} {y1 - bend:g} {x1:g} '
            f'{y1 - bend:g} {x1:g} {y1:g}"/>']


def _shape(graph: Graph, op: Operator, x: float, y: float) -> list[str]:
    """An operator with its name and what it does."""
    if isinstance(op, Add):
        by = [] if op.scale == 1 else [
            f'<text class="small" x="{x + 26:g}" y="{y - 8:g}">× {op.scale:g}</text>']
        return [f'<circle cx="{x:g}" cy="{y:g}" r="{_ADD}"/>',
                f'<text x="{x:g}" y="{y + 4:g}">+</text>', *by]
    name = op.out.split(".", 2)[2].removesuffix(".x")
    return [f'<rect x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" rx="4"/>',
            f'<text x="{x:g}" y="{y - 3:g}">{escape(name)}</text>',
            f'<text class="small" x="{x:g}" y="{y + 11:g}">{escape(_what(graph, op))}</text>']


def _what(graph: Graph, op: Operator) -> str:
    """In a few words."""
    match op:
        case Norm():
            kind = "LayerNorm" if op.centred else "RMSNorm"
            return f"{kind}, ε = {op.eps:g}" + ("" if op.beta is None else ", offset")
        case Linear():
            rows, columns = graph.shapes[op.weight]
            return f"matrix, {columns} → {rows}" + ("" if op.bias is None else ", bias")
        case Read():
            return "as it is"
        case Rope():
            turned = 2 * len(graph.tables[op.table].values)
            part = "" if turned == op.head_dim else f", {turned} of {op.head_dim}"
            return f"RoPE{part}"
        case Attend():
            seen = "" if op.window is None else f", window {op.window}"
            latent = f", {op.latent} latent" if op.latent else ""
            return f"{op.heads} heads, {op.kv_heads} KV, of {op.head_dim}{latent}{seen}"
        case Gate():
            of = "(x)" if op.up is None else "(gate) × up"
            return f"{op.fn.name.lower()}{of}, {graph.edges[op.out].width}"
        case _:
            return type(op).__name__.lower()
