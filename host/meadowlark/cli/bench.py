"""``meadowlark bench``."""
from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import click

from ..errors import UserError
from ..files import check_outputs
from .options import (
    Asked,
    board_option,
    given,
    json_option,
    model_options,
    open_runner,
    target_option,
)
from .scores import tell_saturated
from .terminal import Progress, show, write_json


@click.command()
@click.option("-p", "--n-prompt", "prompts", default="128", show_default=True, metavar="N",
              help="Tokens of the prompt; several numbers with commas between them make several "
                   "tests, 0 leaves the test out.")
@click.option("-n", "--n-gen", "generates", default="32", show_default=True, metavar="N",
              help="Tokens to generate from bos, likewise.")
@click.option("--format", "form", type=click.Choice(("md", "csv", "json")), default="md",
              show_default=True, help="Form of the table on stdout.")
@click.option("--against-raw", is_flag=True,
              help="Measure the weights as they are without packing and budget too.")
@model_options()
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("sim", "pins")
@json_option
def bench(prompts: str, generates: str, form: str, against_raw: bool, asked: Asked, board: str,
          target: str, json_to: str | None) -> int:
    """Measure prefill and decode by the core's own counters."""
    from ..run import bench as benching
    if json_to == "-" and given("form"):
        raise UserError("--json - leaves no room on stdout for a table; leave --format out, or "
                        "give --json a file")
    if against_raw and asked.packing == "raw":
        raise UserError("--against-raw measures beside --packing raw what that is itself; leave "
                        "one of them out")
    if target == "golden":
        raise UserError("the golden model has no clock to measure; use --target sim or the port "
                        "of a board")
    check_outputs(json_to, inputs=[asked.name])
    numbers = benching.counts(prompts, "-p"), benching.counts(generates, "-n")
    with Progress() as progress, closing(open_runner(target, board, asked, progress)) as runner:
        which = runner.board
        source = asked.open(which, progress)
        image = source.image
        tests = benching.plan(image, prompts=numbers[0], generates=numbers[1])
        runner.load(source)
        results = benching.run(runner, image, which, tests, progress=progress)
        if against_raw:
            raw = replace(source, packing="raw", bits=None, target_ppl=None, warn=None)
            runner.load(raw)
            results |= {f"{name} raw": found for name, found in benching.run(
                runner, raw.image, which, tests, progress=progress).items()}
    write_json(benching.as_json(results, image, which), json_to)
    if json_to != "-":
        show(benching.as_table(results, image, which, form=form))
    tell_saturated({"score_saturations": sum(
        found.counters.get("score_saturations", 0) for found in results.values())})
    return 0
