"""``meadowlark bench``."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import (
    Asked,
    board_option,
    given,
    html_option,
    json_option,
    model_options,
    open_runner,
    sizes_option,
    target_option,
)
from .recordings import Trace, recorded, trace_option, waves_option
from .scores import tell_saturated
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..run.bench import Measured, Test
    from ..run.waves import Waves


def _report(file: str, tests: Sequence[Test], images: Mapping[str, Image],
            results: Mapping[str, Measured], board: Board) -> None:
    """``--html``: what was counted beside what the cycle model says of each part. images: by what
    stands behind the names of their tests."""
    from ..api.model import forecast_of
    from ..report.tests import report
    from ..api.predicted import predicted
    found, stalls = {}, {}
    for suffix, image in images.items():
        for test in tests:
            name = test.name + suffix
            found[name] = predicted(forecast_of(
                image, board, prompt=len(test.prompt), generate=test.generate,
                position=len(test.filled)), results[name].cycles)
            stalls[name] = results[name].stalls
    write_atomic(file, report(found, images[""].name, board, stalls=stalls).encode())


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
    from ..run import bench as benching
    from ..run import bench_drafts
    from ..run.evaluate import read_text
    from ..run.targets import SIMULATED, unfillable
    if json_to == "-" and given("form"):
        raise UserError("--json - leaves no room on stdout for a table; leave --format out, or "
                        "give --json a file")
    if against_raw and asked.packing == "raw":
        raise UserError("--against-raw measures beside --packing raw what that is itself; leave "
                        "one of them out")
    if target == "golden":
        raise UserError("the golden model has no clock to measure; use --target sim or the port "
                        "of a board")
    check_outputs(json_to, html_to, trace and trace.file, *(waves.files if waves else ()),
                  inputs=[asked.name, text_file])
    lines = None if text_file is None else read_text(text_file)
    numbers = benching.counts(prompts, "-p"), benching.counts(generates, "-n")
    begins, together = benching.positions_of(positions), benching.counts(batches, "--batch")
    if together and not numbers[1]:
        raise UserError("--batch generates the tokens of -n; give that a number above 0")
    if any(begins) and target not in SIMULATED:
        raise unfillable(target)
    with Progress() as progress, closing(open_runner(target, board, asked, progress,
                                                     trace=trace is not None,
                                                     waves=waves is not None)) as runner:
        which = runner.board
        source = asked.open(which, progress)
        image = source.image

        def measure(image: Image, suffix: str = "") -> dict[str, Measured]:
            found = benching.run(
                runner, image, which, tests, progress=progress,
                record=lambda name: recorded(runner, image, name + suffix, trace, waves))
            return {name + suffix: measured for name, measured in found.items()}
        tests = benching.plan(image, prompts=numbers[0], generates=numbers[1], batches=together,
                              positions=begins)
        begun = [] if lines is None else [
            (bench_drafts.prompts(source, lines, n), n) for n in numbers[1]]
        if lines is not None and not begun:
            raise UserError("--text is gone on with for the tokens of -n; give that a number above "
                            "0")
        images = {"": image}
        runner.load(source)
        results = measure(image)
        for texts, n in begun:
            results |= bench_drafts.run(runner, image, which, texts, n, progress=progress)
        if against_raw:
            raw = replace(source, packing="raw", bits=None, target_ppl=None, warn=None)
            runner.load(raw)
            images[" raw"] = raw.image
            results |= measure(raw.image, " raw")
        if trace:
            trace.write(progress)
        if html_to is not None:
            progress("writing the report")
            _report(html_to, tests, images, results, which)
    write_json(benching.as_json(results, image, which), json_to)
    if json_to != "-":
        show(benching.as_table(results, image, which, form=form))
        if trace and form == "md":
            show("\n" + trace.timeline.table())
    if trace:
        trace.tell()
    if waves:
        say(waves.told())
    tell_saturated({"score_saturations": sum(
        found.counters.get("score_saturations", 0) for found in results.values())})
    return 0
