"""FlashFormer (arXiv:2505.22758): loads that run ahead of the engine, over operators and layers."""
from __future__ import annotations

from collections.abc import Iterator

from meadowlark_boards import get_board

from ..compile.fences import PLACES, fenced
from .lab import DECODE, Lab
from .rows import Row


def rows(lab: Lab) -> Iterator[Row]:
    for name in "ulx3s_85f", "ecpix5_85f", "kv260":
        board = get_board(name)
        image = lab.source(board, packing="raw").image
        now = lab.cycles(image, board, DECODE)
        for where in PLACES:
            yield Row(
                paper="flash-former", mechanism=f"run-ahead over {where}", unit="cycles a token",
                on=f"{lab.name}, {name}, decode",
                without=lab.cycles(fenced(image, where), board, DECODE), with_=now,
                command=f"meadowlark compile {lab.name} --board {name} --packing raw "
                        f"--fence {where} -o IMAGE && meadowlark bench -m IMAGE --board {name} "
                        f"-p 0 -n {DECODE[1]}",
                remark="a fence is a STORE and a QK whose tile waits for it, which take time of "
                       "their own, so this is a bound from above")
    for mechanism, needs in (
            ("run-ahead in prefill", "a fence in Fetch: the fence of programs has no place for "
                                     "its results where all blocks are resident"),
            ("a core for one model", "a build for a model: modes, depths and widths that the "
                                     "model does not need left out")):
        yield Row(paper="flash-former", mechanism=mechanism, needs=needs)
