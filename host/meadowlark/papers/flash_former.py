"""FlashFormer (arXiv:2505.22758): loads that run ahead of the engine, over operators and layers."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from meadowlark_boards import get_board

from ..chip.ecp5 import SIZES
from ..compile.fences import PLACES, fenced
from ..compile.special import special
from ..errors import UserError
from .lab import DECODE, PREFILL, Lab
from .rows import Row, Value


def rows(lab: Lab) -> Iterator[Row]:
    for name in "ulx3s_85f", "ecpix5_85f", "kv260":
        board = get_board(name)
        image = lab.source(board, packing="raw").image
        stops = replace(board, config=board.config.replace(fences=True))
        for test, what, unit in ((DECODE, "decode", "cycles a token"),
                                 (PREFILL, f"prefill of {PREFILL[0]}", "cycles")):
            now = lab.cycles(image, stops, test)
            for where in PLACES:
                yield Row(
                    paper="flash-former", mechanism=f"run-ahead over {where}", unit=unit,
                    on=f"{lab.name}, {name}, {what}", with_=now,
                    without=lab.cycles(fenced(image, where, stops.config), stops, test),
                    command="meadowlark ablate --paper flash-former --measure",
                    remark=f"of a core with fences, which {name} has not")
    yield from _special(lab)


def _special(lab: Lab) -> Iterator[Row]:
    """A core for one model: cells after synthesis, and cycles."""
    board = get_board("ulx3s_85f")
    image = lab.source(board).image
    own = special(board, image)
    on = f"{lab.name}, {board.name}"
    one = partial(Row, paper="flash-former", mechanism="a core for one model")
    try:
        generic, own_cells = lab.cells(board), lab.cells(own)
    except UserError as error:
        yield one(on=on, needs=str(error))
        return
    for cell in SIZES:
        yield one(on=on, unit=cell, without=Value(measured=generic.get(cell)),
                  with_=Value(measured=own_cells.get(cell)),
                  command="meadowlark ablate --paper flash-former --measure",
                  needs="" if generic else "synthesis, with --measure",
                  remark="cells of the whole chip after synthesis; `meadowlark build --for` makes "
                         "the bitstream")
    for test, what, of in ((PREFILL, "prefill", "cycles"), (DECODE, "decode", "cycles a token")):
        yield one(on=f"{on}, {what}", unit=of,
                  without=lab.cycles(image, board, test), with_=lab.cycles(image, own, test),
                  command="meadowlark ablate --paper flash-former")
