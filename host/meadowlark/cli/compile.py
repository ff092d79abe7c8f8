"""``meadowlark compile``."""
from __future__ import annotations

import time
from pathlib import Path

import click

from ..errors import UserError
from .options import board_named, common_options, ctx_option, given, open_source, weights_option
from .terminal import Progress, say, write_json


@click.command(name="compile")
@click.argument("source_model", metavar="MODEL", required=False)
@click.option("-o", "--output", required=True, metavar="IMAGE",
              help="Image file to write; replaced only when it is complete.")
@ctx_option
@weights_option
@common_options
def compile_(source_model: str | None, output: str, ctx: int | None, weights: str, model: str,
             board: str, target: str, json_to: str | None, seed: int) -> int:
    """Quantise MODEL, lay it out for the board and write an image."""
    started = time.monotonic()
    if source_model and given("model") and model != source_model:
        raise UserError(f"two models are given, {source_model!r} and {model!r}; leave one out")
    name = source_model or model
    if Path(output).is_dir():
        raise UserError(f"cannot write the image {output}: it is a folder")
    which = board_named(board)
    with Progress() as progress:
        source = open_source(name, which, ctx, weights, progress)
        parameters = source.outline.parameters      # an image cannot be compiled
        image = source.image
        progress("writing the image")
        image.save(output)
    result = {
        "model": image.name, "board": which.name, "image": output,
        "parameters": parameters, "bytes": image.size,
        "bytes_per_token": image.bytes_per_token(1),
        "bytes_per_token_full_context": image.bytes_per_token(image.context),
        "bits_per_weight": image.bits_per_weight, "context": image.context,
        "memory_bytes": image.needs["memory_bytes"],
        "instructions": image.needs["prog_depth"], "blocks": image.model_regs["blocks"],
        "seconds": time.monotonic() - started}
    write_json(result, json_to)
    say(f"{output}: {image.name} for {which.name}, {result['parameters']:,} parameters, "
         f"{result['bytes']:,} bytes, {result['bits_per_weight']:.2f} bits a weight, "
         f"{result['bytes_per_token']:,} bytes a token, context {image.context}")
    return 0
