"""``meadowlark info``."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import json_option
from .terminal import listing, show, warn, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..image import Image


@click.command()
@click.argument("what", metavar="[IMAGE|BOARD|MODEL]", required=False)
@click.option("--plot", metavar="FILE", help="Draw the packing of an image, as SVG.")
@json_option
def info(what: str | None, plot: str | None, json_to: str | None) -> int:
    """Tell the facts of an image, a board or a model.

    Without an argument it lists what there is.
    """
    from meadowlark_boards import BOARDS

    from .. import packing_report
    from ..image import Image, is_image
    from ..model import NAMES
    check_outputs(plot, json_to, inputs=[what])
    tensors: tuple[dict, ...] = ()
    if what is None:
        result: dict[str, Any] = {"boards": {b.name: b.title for b in BOARDS.values()},
                                  "models": list(NAMES)}
    elif what in BOARDS:
        result = _board_facts(BOARDS[what])
    elif is_image(what):
        image = Image.load(what)
        result, tensors = _image_facts(image), image.tensors
    elif what in NAMES or Path(what).exists():
        from ..model import load_model
        m = load_model(what)
        for sentence in m.warnings:
            warn(sentence)
        result = {"model": m.name, "parameters": m.parameters, "hidden": m.hidden,
                  "layers": len(m.layers), "heads": m.heads, "kv_heads": m.kv_heads,
                  "head_dim": m.head_dim, "ffn": m.ffn, "vocab": m.vocab, "context": m.context}
    else:
        raise UserError(f"{what!r} is neither an image nor a model; the boards are "
                        f"{', '.join(BOARDS)}, the models by name {', '.join(NAMES)}")
    if plot is not None:
        if not tensors:
            raise UserError("only the packing of an image can be drawn; give an image file")
        write_atomic(plot, packing_report.svg(tensors, result["image"]).encode())
    write_json(result | ({"tensors": list(tensors)} if tensors else {}), json_to)
    if json_to != "-":
        show(listing(result))
        if tensors:
            show(packing_report.table(tensors))
    return 0


def _board_facts(board: Board) -> dict:
    from dataclasses import asdict
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
            "bos_id": image.bos_id, "stop_ids": list(image.stop_ids),
            "chat_template": image.chat is not None}
