"""``meadowlark ablate``."""
from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import UserError
from ..files import check_outputs, read_text, write_atomic
from ..papers.rows import PAPERS
from .terminal import Progress, say, show


@click.command()
@click.option("--paper", "papers", multiple=True, type=click.Choice((*PAPERS,)),
              help="Only the mechanisms of this one. May be given several times.")
@click.option("--measure", is_flag=True,
              help="Run the simulated chip too, and predict a text: minutes for each paper. "
                   "Without, the cycle model alone.")
@click.option("-m", "--model", default="stories", show_default=True, metavar="MODEL",
              help="Model by name or path, as other commands take it.")
@click.option("--drop-attention", default="3-4", show_default=True, metavar="LAYERS",
              help="Layers of it without attention, where FFNs are fused.")
@click.option("--text", metavar="FILE",
              help="Texts to predict, one per line. By default the packaged held-out stories.")
@click.option("--json", "json_to", metavar="FILE",
              help="Put the rows to those that the file has. What it has measured stays as long as "
                   "its prediction does.")
@click.option("-o", "--output", metavar="FILE", help="Write all rows as a page of Markdown.")
@click.option("--plots", metavar="FOLDER",
              help="Draw what mechanisms are worth: an SVG file for each paper.")
def ablate(papers: tuple[str, ...], measure: bool, model: str, drop_attention: str,
           text: str | None, json_to: str | None, output: str | None, plots: str | None) -> int:
    """Tell what each mechanism of the papers is worth here."""
    from ..papers import all as every
    from ..papers.lab import Lab
    from ..papers.rows import dump, load, markdown, merged
    check_outputs(json_to, output, inputs=[text])
    if json_to == "-":
        raise UserError("--json needs a file: rows are put to those that it has")
    lines = None if text is None else read_text(text)
    old = [] if json_to is None else load(json_to)
    with Progress() as progress:
        lab = Lab(model=model, drop_attention=drop_attention, text=lines, measure=measure,
                  progress=progress)
        found = merged(old, every.rows(lab, papers))
    if json_to is not None:
        write_atomic(json_to, dump(found))
        say(f"{json_to}: {len(found)} rows")
    if output is not None:
        pictures = "" if plots is None else os.path.relpath(plots, Path(output).parent)
        write_atomic(output, markdown(found, pictures).encode())
        say(f"{output}: {len(found)} rows")
    if plots is not None:
        from ..papers.plot import picture, shown
        drawn = [paper for paper in PAPERS if shown(found, paper)]
        Path(plots).mkdir(parents=True, exist_ok=True)
        for paper in drawn:
            write_atomic(Path(plots) / f"papers-{paper}.svg", picture(found, paper))
        say(f"{plots}: {len(drawn)} pictures")
    if output is None and plots is None:
        show(markdown([row for row in found if not papers or row.paper in papers]))
    return 0
