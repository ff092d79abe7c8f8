"""``meadowlark eval``."""
from __future__ import annotations

import click

from ..errors import UserError
from ..files import check_outputs, read_text
from .options import Asked, board_option, json_option, model_options
from .scores import tell_saturated
from .terminal import Progress, show, write_json


@click.command(name="eval")
@click.option("--text", metavar="FILE",
              help="Texts to predict, one per line, plain or .xz. By default the packaged held-out "
                   "stories.")
@click.option("-n", "--tokens", type=int, metavar="N",
              help="Most tokens to predict. By default all.")
@click.option("-c", "--ctx", "--ctx-size", "context", type=int, metavar="N",
              help="Tokens of a window: longer texts are cut into several. By default as many as "
                   "the model allows.")
@model_options(image=False, measures=True)
@board_option("virtual", "Board whose arithmetic it is: not every one reads blocks of GGUF files.")
@json_option
def eval_(text: str | None, tokens: int | None, asked: Asked, board: str,
          json_to: str | None) -> int:
    """Compare the integer arithmetic's perplexity with float32's."""
    check_outputs(json_to, inputs=[asked.name, text])
    if tokens is not None and tokens < 1:
        raise UserError(f"the number of tokens must be at least 1, not {tokens}")
    lines = None if text is None else read_text(text)
    with Progress() as progress:
        found = asked.load(progress).perplexity(lines, board=board, max_tokens=tokens,
                                                context=asked.context)
    write_json(found.as_dict(), json_to)
    if json_to != "-":
        show(f"float32   {found.ppl_float:.4f} +- {found.ppl_se:.4f}\n"
             f"integers  {found.ppl_fixed:.4f} ({found.delta_pct:+.3f} % +- "
             f"{found.delta_se:.3f})\n"
             f"tokens    {found.tokens:,}")
        if found.redone is not None:
            show(f"redone    {found.redone:.3%} of the rows of scores have another maximum")
    tell_saturated({"score_saturations": found.saturated["scores"]})
    return 0
