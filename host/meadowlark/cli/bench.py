"""``meadowlark bench``."""
from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import click

from ..errors import UserError
from .options import board_named, common_options, ctx_option, open_source, weights_option
from .terminal import Progress, show, write_json


@click.command()
@click.option("-p", "--prompt", "prompts", default="128", show_default=True, metavar="N",
              help="Prompt tokens (several with commas between them); 0 leaves the test out.")
@click.option("-n", "--generate", "generates", default="32", show_default=True, metavar="N",
              help="Tokens to generate from bos; 0 leaves the test out.")
@click.option("-o", "--output", "form", default="md", show_default=True, metavar="FORM",
              help="Table as md, csv or json.")
@click.option("--against-raw", is_flag=True,
              help="Measure the weights as they are without packing and budget too.")
@ctx_option
@weights_option
@common_options
def bench(prompts: str, generates: str, form: str, against_raw: bool, ctx: int | None,
          weights: str, model: str, board: str, target: str, json_to: str | None,
          seed: int) -> int:
    """Cycles, bandwidth and products of prefill and decode, from the core's counters."""
    from .. import bench as benching
    from ..targets import open_target
    if form not in ("md", "csv", "json"):
        raise UserError(f"there is no form {form!r}; give md, csv or json")
    if target == "golden":
        raise UserError("the golden model has no clock to measure; use --target sim or the port "
                        "of a board")
    which = board_named(board)
    numbers = benching.counts(prompts, "-p"), benching.counts(generates, "-n")
    with Progress() as progress:
        source = open_source(model, which, ctx, weights, progress)
        image = source.image
        tests = benching.plan(image, prompts=numbers[0], generates=numbers[1], seed=seed)
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            results = benching.run(runner, image, which, tests, progress=progress)
            if against_raw:
                raw = replace(source, packing="raw", bits=None, target_ppl=None)
                runner.load(raw)
                results |= {f"{name} raw": found for name, found in benching.run(
                    runner, raw.image, which, tests, progress=progress).items()}
    write_json(benching.as_json(results, image, which), json_to)
    if json_to != "-":
        show(benching.as_table(results, image, which, form=form))
    return 0
