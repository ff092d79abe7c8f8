"""Parts of a report: tables, bars and squares as HTML and SVG. All text that goes in is escaped."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape

#: Of what can take a cycle: its name in a legend, and its colour.
KINDS = {"work": ("multipliers work", "#4f7a28"), "memory": ("wait for memory", "#2f6da3"),
         "drain": ("results leave", "#8a6d00"), "overhead": ("rest", "#8b8f86")}
_STYLE = """
:root { color-scheme: light; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #22261f; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; } h3 { margin-bottom: .3rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #d9d8cf; text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; } .left { text-align: left; }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: #22261f; }
.soft { color: #5b6156; font-size: .9rem; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none;
  font-size: .9rem; }
.key span { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
"""
_ROW, _LEFT, _WIDTH = 22, 190, 900


def document(title: str, *parts: str) -> str:
    """A whole page."""
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n")


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f'<p class="soft">{escape(text)}</p>'


def table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A table; the first row is its head. left: columns of text."""
    def line(row: Sequence[str], cell: str) -> str:
        return "<tr>" + "".join(
            f"<{cell}{' class=left' if at in left else ''}>{escape(text)}</{cell}>"
            for at, text in enumerate(row)) + "</tr>"
    head, *body = rows
    return ("<table><thead>" + line(head, "th") + "</thead><tbody>"
            + "".join(line(row, "td") for row in body) + "</tbody></table>")


def legend(colours: Sequence[tuple[str, str]]) -> str:
    """What colours stand for."""
    return '<ul class="key">' + "".join(
        f'<li><span style="background:{escape(colour)}"></span>{escape(name)}</li>'
        for name, colour in colours) + "</ul>"


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[float, str]], str]]) -> str:
    """Horizontal bars, as wide as the longest allows. title: what they are, for those who do not
    see them. rows: name, pieces (value, colour), and what stands behind."""
    room = _WIDTH - _LEFT - 170
    most = max((sum(value for value, _ in pieces) for _, pieces, _ in rows), default=0) or 1
    out = []
    for at, (name, pieces, behind) in enumerate(rows):
        y, x = at * _ROW, float(_LEFT)
        out.append(f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for value, colour in pieces:
            width = max(value, 0) * room / most
            out.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" '
                       f'fill="{escape(colour)}"/>')
            x += width
        out.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{escape(behind)}</text>')
    return _svg(title, _WIDTH, max(len(rows), 1) * _ROW, out)


def squares(title: str, width: float, height: float,
            found: Sequence[tuple[float, float, float, float, str, str]]) -> str:
    """A plan. found: x, y, width, height, colour and name of each rectangle, y downwards."""
    out = [f'<rect x="0" y="0" width="{width:g}" height="{height:g}" fill="#f4f3ee" '
           'stroke="#8b8f86"/>']
    out += [f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{escape(colour)}">'
            f"<title>{escape(name)}</title></rect>" for x, y, w, h, colour, name in found]
    return _svg(title, width, height, out)


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
            + "".join(parts) + "</svg>")
