"""``meadowlark predict``."""
from __future__ import annotations

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import (Asked, asked_board, board_option, counts, html_option, json_option,
                      model_options, positions_of, sizes_option)
from .terminal import Progress, show, write_json


@click.command()
@sizes_option()
@click.option("--layers", is_flag=True, help="Show layers in place of operators.")
@click.option("--exact", is_flag=True,
              help="Quantise and compile the model, and go through each layer of each pass. By "
                   "default shapes are enough, and what repeats is gone through a few times.")
@click.option("--counted", metavar="FILE",
              help="Show beside it what `meadowlark bench --json FILE` counted.")
@html_option
@model_options()
@board_option("virtual", "Board to predict. An image has its own.")
@json_option
def predict(prompts: str, generates: str, positions: str, layers: bool, exact: bool,
            counted: str | None, html_to: str | None, asked: Asked, board: str,
            json_to: str | None) -> int:
    """Say how long a board would take, and what bounds it.

    Nothing is run. Tests have the names that `meadowlark bench` gives them.
    """
    from ..api import predicted as predicting
    from ..api.model import board_named
    check_outputs(json_to, html_to, inputs=[asked.name, counted])
    sizes = predicting.sizes(prompts=counts(prompts, "-p"),
                             generates=counts(generates, "-n"),
                             positions=positions_of(positions))
    of, where, cycles = (None, None, {}) if counted is None else predicting.counted_in(counted)
    of_board = asked_board(board)
    results, found = {}, None
    with Progress() as progress:
        model = asked.load(progress)
        for size in sizes:
            progress(f"predicting {size.name}")
            found = model.predict(board=of_board, prompt=size.prompt, generate=size.generate,
                                  position=size.position, exact=exact)
            for what, has, wants in (("model", of, found.model), ("board", where, found.board)):
                if has not in (None, wants):
                    raise UserError(f"{counted} was counted for the {what} {has}, and this is "
                                    f"{wants}; give that --{what}")
            results[size.name] = predicting.predicted(found, cycles.get(size.name))
    assert found is not None
    facts = found.model, found.board, found.clock_mhz
    write_json(predicting.as_json(results, *facts), json_to)
    if html_to is not None:
        from ..report.tests import report
        which = board_named(of_board or found.board)
        write_atomic(html_to, report(results, found.model, which).encode())
    if json_to != "-":
        show(predicting.as_table(results, *facts, layers=layers))
    return 0
