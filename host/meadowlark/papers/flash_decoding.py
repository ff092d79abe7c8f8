"""FlashDecoding++ (arXiv:2311.01282): softmax without waiting, flat GEMM with double buffers."""
from __future__ import annotations

from collections.abc import Iterator

from meadowlark_boards import get_board
from meadowlark_hdl.compute.lane import score_cycle

from .lab import DECODE, Lab
from .rows import Row, Value

_BOARDS = "ulx3s_85f", "kv260"
_TESTS = (("prefill of 128", (128, 1)), ("decode", DECODE))


def rows(lab: Lab) -> Iterator[Row]:
    for name in _BOARDS:
        board = get_board(name)
        image = lab.source(board, packing="raw").image
        for what, test in _TESTS:
            found, tokens = lab.predict(image, board, test), test[1]
            on = f"{lab.name}, {name}, {what}"
            waits = found.by_kind()["QK"].count * (score_cycle(board.config) - 1)
            now = lab.cycles(image, board, test)
            yield Row(
                paper="flash-decoding", mechanism="unified maximum", unit="cycles", on=on,
                without=now, with_=Value(predicted=(found.cycles - waits) / tokens),
                needs="a softmax unit with a maximum of its own and rows that are done again",
                remark="at most this: a QK ends without waiting for the last score, and no row is "
                       "done again. The exact maximum is taken while QK writes its scores",
                command="meadowlark ablate --paper flash-decoding")
            yield Row(
                paper="flash-decoding", mechanism="deferred division", unit="divisions", on=on,
                without=Value(predicted=_probabilities(image.shape, found.passes)),
                with_=Value(predicted=_probabilities(image.shape, found.passes, rows_=True)),
                remark="counted from shapes: a division for each probability, or one for each row "
                       "of a head. The gateware has no other way, so its cycles are not compared",
                command="meadowlark ablate --paper flash-decoding")
            yield Row(
                paper="flash-decoding", mechanism="double buffers: two halves of the tile buffer",
                unit="cycles", on=on,
                without=Value(predicted=lab.predict(image, board, test, halves=1).cycles / tokens),
                with_=now, needs="a core with one half",
                command="meadowlark ablate --paper flash-decoding")
        largest = image.model_regs["blocks"] * board.config.P
        for tokens in (largest + 1, 2 * largest + 1, 3 * largest + 16):
            cut = [min(largest, tokens - start) for start in range(0, tokens, largest)]
            yield Row(
                paper="flash-decoding", mechanism="dataflow by shape: even passes", unit="cycles",
                on=f"{lab.name}, {name}, first token of {tokens}",
                without=lab.parts(image, board, cut), with_=lab.cycles(image, board, (tokens, 1)),
                remark=f"without, passes take {largest} tokens each, the last one the rest; with, "
                       "as shape, tokens and bandwidth say (`host/meadowlark/compile/passes.py`)",
                command="meadowlark ablate --paper flash-decoding --measure")


def _probabilities(shape: dict[str, int], passes: list, *, rows_: bool = False) -> int:
    """Of all heads and layers; rows_: rows of them, in place of elements."""
    return shape["heads"] * shape["layers"] * sum(
        1 if rows_ else position + 1
        for p, _ in passes for position in range(p.pos0, p.pos0 + p.n))


