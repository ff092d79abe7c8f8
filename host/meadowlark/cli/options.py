"""Options that several commands take, and what is made of them."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..errors import UserError
from .terminal import Progress

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..prepare import Source


def board_named(name: str) -> Board:
    """A board; :class:`UserError` if there is none of the name."""
    from meadowlark_boards import get_board
    try:
        return get_board(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def common_options(command: Callable) -> Callable:
    """The options that every command takes."""
    for option in reversed((
            click.option("--model", default="stories", show_default=True, metavar="MODEL",
                         help="GGUF file, Hugging Face folder, image file, or the name of a "
                              "model; `meadowlark info` lists them."),
            click.option("--board", default="virtual", show_default=True, metavar="BOARD",
                         help="Board to compile for and to simulate; `meadowlark info` lists "
                              "them."),
            click.option("--target", default="sim", show_default=True, metavar="TARGET",
                         help="sim (the gateware, simulated), pins (the whole chip, down to the "
                              "pins of its SDRAM and UART), golden (the bit-exact model), or the "
                              "port of a board."),
            click.option("--packing", default="auto", show_default=True, metavar="PACKING",
                         help="How weights are packed in memory: raw, meadow, entropy, or auto, "
                              "the smallest of them that the board can read, a tensor at a time."),
            click.option("--json", "json_to", metavar="FILE",
                         help="Write the results as JSON; - is stdout, which then gets nothing "
                              "else."),
            click.option("--seed", default=0, show_default=True, type=int,
                         help="Of everything that is drawn."))):
        command = option(command)

    @functools.wraps(command)
    def checked(*args, packing: str, **kw):
        from ..packing import PACKINGS
        if packing not in PACKINGS:
            raise UserError(f"there is no packing {packing!r}; give one of {', '.join(PACKINGS)}")
        return command(*args, **kw)
    return checked


def ctx_option(command: Callable) -> Callable:
    return click.option("--ctx", type=int, metavar="N",
                        help="Tokens the KV cache holds; by default as many as model and board "
                             "allow.")(command)


def weights_option(command: Callable) -> Callable:
    """The options of how weights are quantised."""
    for option in reversed((
            click.option("--weights", type=click.Choice(("auto", "int8")), default="auto",
                         show_default=True,
                         help="auto: blocks of a GGUF file (Q8_0, Q4_0, Q4_1) as they are, all "
                              "else in int8 with a scale a row; int8: everything so."),
            click.option("--bits", type=float, metavar="B",
                         help="int8 weights on the finest grid that takes B bits a weight, "
                              "entropy-coded."),
            click.option("--target-ppl", type=float, metavar="PERCENT",
                         help="int8 weights on the coarsest grid that costs PERCENT of perplexity "
                              "on the calibration text."))):
        command = option(command)

    @functools.wraps(command)
    def checked(*args, bits: float | None, target_ppl: float | None, **kw):
        from ..budget import check_budget
        check_budget(bits, target_ppl)
        return command(*args, **kw)
    return checked


def open_source(model: str, board: Board, ctx: int | None, weights: str,
                progress: Progress) -> Source:
    """The model that the options of the command at hand ask for."""
    from ..prepare import Source
    params = click.get_current_context().params
    return Source(model, board, context=ctx, weights=weights, progress=progress,
                  **{name: params[name] for name in ("packing", "bits", "target_ppl")})


def given(name: str) -> bool:
    """The option stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def drawing_options(command: Callable) -> Callable:
    """The options of what is drawn."""
    for option in reversed((
            click.option("-n", "--tokens", "max_new", type=int, metavar="N",
                         help="Most tokens to generate; by default until the model ends the text "
                              "or the context is full."),
            click.option("--temperature", default=0.0, show_default=True,
                         help="0 takes the likeliest token."),
            click.option("--top-k", default=0, show_default=True,
                         help="Draw from the K likeliest; 0: all."),
            click.option("--top-p", default=1.0, show_default=True,
                         help="Draw from the likeliest that hold this share; 1: all."))):
        command = option(command)
    return command


def check_most(max_new: int | None) -> None:
    """Raise unless it is a number of tokens."""
    if max_new is not None and max_new < 1:
        raise UserError(f"the number of tokens must be at least 1, not {max_new}")
