"""``meadowlark bench``."""
from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..files import check_outputs, read_text, write_atomic
from .options import (
    Asked,
    board_option,
    counts,
    given,
    html_option,
    json_option,
    model_options,
    positions_of,
    sizes_option,
    target_option,
)
from .recordings import Trace, trace_option, waves_option
from .scores import tell_saturated
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from ..api import Waves


@click.command()
@sizes_option(" Behind position 0 the golden model computes the keys and values before it, and "
              "they are put into the simulated memory directly.")
@click.option("--batch", "batches", default="0", show_default=True, metavar="N",
              help="Sequences that generate together too, a token each a pass, likewise: tests b8 "
                   "tg32, with the numbers of -n.")
@click.option("--text", "text_file", metavar="FILE",
              help="Go on with texts too, one a line, with drafts and without: test sg, with the "
                   "numbers of -n. A model with a chat template answers lines as questions, "
                   "another one takes the first 16 tokens of each.")
@click.option("--format", "form", type=click.Choice(("md", "csv", "json")), default="md",
              show_default=True, help="Form of the table on stdout.")
@click.option("--against-raw", is_flag=True,
              help="Measure the weights as they are without packing and budget too.")
@html_option
@model_options(measures=True)
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("sim", "pins")
@trace_option
@waves_option
@json_option
def bench(prompts: str, generates: str, positions: str, batches: str, text_file: str | None,
          form: str, against_raw: bool, html_to: str | None, asked: Asked, board: str, target: str,
          trace: Trace | None, waves: Waves | None, json_to: str | None) -> int:
    """Measure prefill and decode by the core's own counters."""
    from ..api.bench import check_measures
    if json_to == "-" and given("form"):
        raise UserError("--json - leaves no room on stdout for a table; leave --format out, or "
                        "give --json a file")
    if against_raw and asked.packing == "raw":
        raise UserError("--against-raw measures beside --packing raw what that is itself; leave "
                        "one of them out")
    check_outputs(json_to, html_to, trace and trace.file, *(waves.files if waves else ()),
                  inputs=[asked.name, text_file])
    lines = None if text_file is None else read_text(text_file)
    numbers = counts(prompts, "-p"), counts(generates, "-n")
    begins, together = positions_of(positions), counts(batches, "--batch")
    if together and not numbers[1]:
        raise UserError("--batch generates the tokens of -n; give that a number above 0")
    if lines is not None and not numbers[1]:
        raise UserError("--text is gone on with for the tokens of -n; give that a number above 0")
    check_measures(target, begins)
    with Progress() as progress, asked.on(target, board, progress, trace=trace and trace.timeline,
                                          waves=waves) as chip:
        found = chip.bench(prompts=numbers[0], generates=numbers[1], positions=begins,
                           batches=together, texts=lines, against_raw=against_raw)
        if trace:
            trace.write(progress)
        if html_to is not None:
            from ..report.tests import report
            progress("writing the report")
            stalls = {name: one.stalls for name, one in found.results.items()}
            write_atomic(html_to, report(found.predicted, chip.image.name, chip.board,
                                         stalls=stalls).encode())
    write_json(found.as_dict(), json_to)
    if json_to != "-":
        show(found.table(form))
        if trace and form == "md":
            show("\n" + trace.timeline.table())
    if trace:
        trace.tell()
    if waves:
        say(waves.told())
    tell_saturated({"score_saturations": sum(
        one.counters.get("score_saturations", 0) for one in found.results.values())})
    return 0
