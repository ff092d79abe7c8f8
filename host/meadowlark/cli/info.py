"""``meadowlark info``."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import board_named, json_option
from .terminal import listing, show, warn, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..quant.shapes import Shapes


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
    from meadowlark_boards import BOARDS

    from ..compile import packing_report
    from ..compile.image import Image, is_image
    from ..models.families import families
    from ..models.families.known import missing
    from ..models.registry import NAMES, find_model
    check_outputs(plot, json_to, inputs=[what])
    tensors: tuple[dict, ...] = ()
    drawing: Callable[[], str] | None = None
    shown: dict[str, Any] = {}      # for people, where that is not the result itself
    text: str | None = None         # instead of it
    if what is None:
        titles = {board.name: board.title for board in BOARDS.values()}
        models = {name: _remedy(lambda name=name: find_model(name)) for name in NAMES}
        tools = {name: _remedy(check) for name, check in _tools().items()}
        kinds = {name: ", ".join(family.classes) for name, family in families().items()}
        needs = missing()
        result: dict[str, Any] = {
            "boards": titles, "models": {name: not remedy for name, remedy in models.items()},
            "families": kinds, "missing": needs,
            "tools": {name: not remedy for name, remedy in tools.items()}}
        shown = {"boards": titles} | {
            kind: {name: f"no: {remedy}" if remedy else "installed"
                   for name, remedy in found.items()}
            for kind, found in (("models", models), ("tools", tools))} | {
            "families": kinds | {name: f"no: needs {what}" for name, what in needs.items()}}
    elif what in BOARDS or what.endswith(".py"):
        result = _board_facts(board_named(what))
    elif is_image(what):
        image = Image.load(what)
        result, tensors = _image_facts(image), image.tensors
        drawing = partial(packing_report.svg, tensors, image.name)
    elif what in NAMES or Path(what).exists():
        from ..compile.layout import Shape
        from ..models.drawing import svg
        from ..models.registry import load_model
        from ..quant.shapes import Shapes
        m = load_model(what, outline=True)
        for sentence in m.warnings:
            warn(sentence)
        shapes = Shapes.of_model(m)
        shape = asdict(Shape.of(shapes.plan, m.context))
        del shape["head_pad"]           # a board's
        facts = {"model": m.name, "family": m.family, "parameters": m.parameters, **shape,
                 "bos_id": m.bos_id, "stop_ids": list(m.stop_ids),
                 "chat_template": m.chat is not None}
        boards = {board.name: _fits(shapes, board) for board in BOARDS.values()}
        result = facts | {"boards": boards}
        shown = facts | {"boards": {name: _verdict(**found) for name, found in boards.items()}}
        drawing = partial(svg, m.graph, m.name)
        if graph:
            text = str(m.graph)
            result["graph"] = text.splitlines()
    else:
        raise UserError(f"{what!r} is neither an image nor a model; the boards are "
                        f"{', '.join(BOARDS)}, the models by name {', '.join(NAMES)}")
    if graph and text is None:
        raise UserError("--graph lists the operators of a model; give a model")
    if plot is not None:
        if drawing is None:
            raise UserError("only the packing of an image and a block of a model can be drawn; "
                            "give an image file or a model")
        write_atomic(plot, drawing().encode())
    write_json(result | ({"tensors": list(tensors)} if tensors else {}), json_to)
    if json_to != "-":
        show(text or listing(shown or result))
        if tensors:
            show(packing_report.table(tensors))
    return 0


def _remedy(check: Callable[[], object]) -> str:
    """What to do about something that is not installed; "" if it is."""
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _tools() -> dict[str, Callable[[], object]]:
    """What other commands need: simulation the first two, build, flash."""
    from ..chip.build import loader_tool
    from ..chip.ecp5 import check_tools
    from ..sim.build import compiler, verilator_root
    return {"Verilator": verilator_root, "C++ compiler": compiler, "synthesis": check_tools,
            "openFPGALoader": loader_tool}


def _fits(shapes: Shapes, board: Board) -> dict[str, Any]:
    """fits: whether the model fits the board with these options. reasons: why not without."""
    from ..compile import limits
    options = limits.options_for(shapes, board, None, 8.0)
    return {"fits": options is not None, "options": options or "",
            "reasons": list(map(str, limits.fits(shapes, board)))}


def _verdict(fits: bool, options: str, reasons: list[str]) -> str:
    """One line of it."""
    if not fits:
        return f"no: {'; '.join(reasons)}"
    return f"yes, with {options}" if options else "yes"


def _board_facts(board: Board) -> dict:
    return {"board": board.name, "title": board.title, "clock_mhz": board.clock_mhz,
            "bandwidth_bytes_per_s": board.bandwidth, "config": board.config.as_dict(),
            "memory": asdict(board.memory), "link": asdict(board.link)}


def _image_facts(image: Image) -> dict:
    return {"image": image.name, "board": image.board, "parameters": image.parameters,
            "bytes": image.size, "bits_per_weight": round(image.bits_per_weight, 3),
            "bytes_per_token": image.bytes_per_token(1),
            "bytes_per_token_full_context": image.bytes_per_token(image.context),
            "context": image.context, "instructions": len(image.instructions),
            "shape": image.shape, "needs": image.needs, "model_regs": image.model_regs,
            "draft": None if image.draft is None else
            image.draft | {"bytes": image.draft_bytes},
            "bos_id": image.bos_id, "stop_ids": list(image.stop_ids),
            "chat_template": image.chat is not None}
