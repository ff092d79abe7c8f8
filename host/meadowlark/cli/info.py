"""``meadowlark info``."""
from __future__ import annotations

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import json_option
from .terminal import listing, show, warn, write_json


@click.command()
@click.argument("what", metavar="[IMAGE|BOARD|MODEL]", required=False)
@click.option("--graph", is_flag=True,
              help="List the operators of a model instead: what each makes, and from what.")
@click.option("-o", "--plot", metavar="FILE",
              help="Draw the packing of an image, or the first block of a model, as SVG.")
@json_option
def info(what: str | None, graph: bool, plot: str | None, json_to: str | None) -> int:
    """Tell the facts of an image, a board or a model.

    Without an argument it lists what there is.
    """
    from ..api.facts import facts_of, here
    check_outputs(plot, json_to, inputs=[what])
    found = here() if what is None else facts_of(what)
    for sentence in found.warnings:
        warn(sentence)
    result, tensors = dict(found.facts), list(found.tensors)
    if graph and found.graph is not None:
        result["graph"] = found.graph.splitlines()
    elif graph:
        raise UserError("--graph lists the operators of a model; give a model")
    if plot is not None:
        if found.drawing is None:
            raise UserError("only the packing of an image and a block of a model can be drawn; "
                            "give an image file or a model")
        write_atomic(plot, found.drawing().encode())
    write_json(result | ({"tensors": tensors} if tensors else {}), json_to)
    if json_to != "-":
        show(found.graph or "" if graph else listing(dict(found.told or result)))
        if tensors:
            show(found.packing)
    return 0
