"""``meadowlark compile``."""
from __future__ import annotations

import time

import click

from ..files import check_outputs
from .options import Asked, board_option, json_option, model_options
from .terminal import Progress, say, write_json


@click.command(name="compile")
@click.option("-o", "--output", required=True, metavar="IMAGE",
              help="Image file to write; replaced only when it is complete.")
@model_options(argument=True, measures=True)
@click.option("--draft", default="auto", metavar="FILE",
              help="Table of drafts to put into the image, as `meadowlark draft` makes it; none "
                   "leaves it out. By default the one that comes with the model, if any.")
@click.option("--fence", metavar="PLACE", hidden=True,
              help="Let the memory side not run ahead over operators, or layers.")
@click.option("--attention", type=click.Choice(("tphs", "gemm")), default="tphs", show_default=True,
              help="With gemm scores and probabilities go to memory and come back, to measure what "
                   "keeping them on the chip (tphs) is worth.")
@board_option("virtual", "Board to compile for.")
@json_option
def compile_(output: str, asked: Asked, draft: str, fence: str | None, attention: str,
             board: str, json_to: str | None) -> int:
    """Quantise a model, lay it out for a board and write an image.

    MODEL is a GGUF file, a Hugging Face folder, a checkpoint of llama2.c, or a name that
    `meadowlark info` lists.
    """
    started = time.monotonic()
    check_outputs(output, json_to, inputs=[asked.name, draft])
    with Progress() as progress:
        image = asked.load(progress, draft=draft).compile(board, output, fence=fence,
                                                          attention=attention)
    result = {
        "model": image.name, "board": image.board, "image": output,
        "parameters": image.parameters, "bytes": image.size,
        "bytes_per_token": image.bytes_per_token(1),
        "bytes_per_token_full_context": image.bytes_per_token(image.context),
        "bits_per_weight": image.bits_per_weight, "context": image.context,
        "memory_bytes": image.needs["memory_bytes"],
        "instructions": image.needs["prog_depth"], "blocks": image.model_regs["blocks"],
        "draft_bytes": image.draft_bytes,
        "seconds": time.monotonic() - started}
    write_json(result, json_to)
    say(f"{output}: {image.name} for {image.board}, {result['parameters']:,} parameters, "
         f"{result['bytes']:,} bytes, {result['bits_per_weight']:.2f} bits per weight, "
         f"{result['bytes_per_token']:,} bytes per token, context {image.context}, "
         f"{image.draft_bytes:,} bytes of drafts")
    return 0
