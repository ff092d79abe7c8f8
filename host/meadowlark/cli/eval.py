"""``meadowlark eval``."""
from __future__ import annotations

import click

from ..errors import UserError
from .options import board_named, common_options, given, open_source, weights_option
from .terminal import Progress, show, write_json


@click.command(name="eval")
@click.option("--text", metavar="FILE",
              help="Text to predict, a text a line, plain or .xz; by default the packaged held-out "
                   "stories.")
@click.option("--tokens", type=int, metavar="N", help="Most tokens to predict; by default all.")
@weights_option
@common_options
def eval_(text: str | None, tokens: int | None, weights: str, model: str, board: str, target: str,
          json_to: str | None, seed: int) -> int:
    """Perplexity of the exact integer arithmetic beside that of float32."""
    from ..evaluate import perplexity, read_text, validation_text
    if given("target") and target != "golden":
        raise UserError("eval runs the golden model, which is bit-exact with the board; use "
                        "--target golden or leave it out")
    if tokens is not None and tokens < 1:
        raise UserError(f"the number of tokens must be at least 1, not {tokens}")
    lines = validation_text() if text is None else read_text(text)
    which = board_named(board)
    with Progress() as progress:
        source = open_source(model, which, None, weights, progress)
        quantised = source.quantised
        found = perplexity(source.model, quantised, lines, max_tokens=tokens,
                           progress=lambda n: progress("predicting", n, tokens or 0))
    result = {"model": source.model.name, **found.as_dict()}
    write_json(result, json_to)
    if json_to != "-":
        show(f"float32   {found.ppl_float:.4f} +- {found.ppl_se:.4f}\n"
             f"integers  {found.ppl_fixed:.4f} ({found.delta_pct:+.3f} % +- "
             f"{found.delta_se:.3f})\n"
             f"tokens    {found.tokens:,}")
    return 0
