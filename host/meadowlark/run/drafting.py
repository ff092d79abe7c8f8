"""How many drafts a pass of a run has: what was asked for, and what board and model make of it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from meadowlark_hdl.draft.choice_golden import MOST_PRICE, PASS

from .. import cache
from ..errors import UserError
from .targets import OFF, Drafting, Target

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image

#: Share of passes of which at least j + 1 drafts are right, j = 0.., of those with 7: conversations
#: of SmolLM2 (docs/drafts.md, chat_dev). Only where more drafts cost more does it matter.
RIGHT = (0.472, 0.272, 0.184, 0.137, 0.112, 0.094, 0.083)


def parse(text: str) -> int | None:
    """``--draft``: "off" or "auto" or K -> drafts of a pass, None for auto; raises UserError."""
    if text in ("off", "auto"):
        return 0 if text == "off" else None
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"--draft {text!r} is none of off, auto and a number of drafts such as 4")
    return int(text)


def drafting(asked: int | None, sampling: Sampling, image: Image, target: Target) -> Drafting:
    """What is asked for -> drafts of a run.

    Parameters
    ----------
    asked : int, 0.., or None
        Of :func:`parse`.
    sampling : Sampling
        With top-k, and with top-p, a pass draws one token only: there are no drafts.
    image : Image
    target : Target
        What it is to run on.

    Raises
    ------
    UserError
        A number of drafts that this board cannot check, or not with this sampling.
    """
    board = target.board
    most = board.config.P - 1 if board.config.drafts else 0
    if asked is None:
        return OFF if sampling.top_k or not most else _cheapest(image, board, most)
    if asked and not most:
        raise UserError(f"the board {board.name} makes no drafts; leave --draft out")
    if asked > most:
        raise UserError(f"the board {board.name} checks at most {most} drafts in a pass, not "
                        f"{asked}; give --draft {most} or fewer")
    if asked and sampling.top_k:
        raise UserError("with --top-k and --top-p a pass draws one token, so there are no drafts; "
                        "leave --draft out, or leave these out")
    return Drafting(most=asked)


def _cheapest(image: Image, board: Board, most: int) -> Drafting:
    """The number of drafts with which tokens that are as easy to guess as :data:`RIGHT` take least
    time, and their price, at the middle of the context."""
    prices = _prices(image, board, most)
    tokens, best, rate = 1.0, OFF, 1.0
    for k, price in enumerate(prices, 1):
        tokens += RIGHT[min(k, len(RIGHT)) - 1]
        in_256 = min(max(1, round(PASS * price)), MOST_PRICE)
        if tokens / (1 + price) > rate:
            best, rate = Drafting(most=k, price=in_256), tokens / (1 + price)
    return best


def _prices(image: Image, board: Board, most: int) -> list[float]:
    """See :func:`..compile.cycles.draft_prices`; worked out once for an image, as it takes
    seconds."""
    import meadowlark_hdl

    from ..compile import cycles
    packages = (Path(meadowlark_hdl.__file__).parent, Path(cycles.__file__).parent)
    sources = [file for package in packages for file in cache.source_files(package)]
    facts = image.program, image.memory, image.model_regs, image.shape, board, most
    name = f"prices-{cache.digest(*facts, *sources)}.json"
    if kept := cache.find(name):
        return json.loads(kept.read_text())
    prices = cycles.draft_prices(image, board, most)
    cache.keep(name, json.dumps(prices).encode())
    return prices
