"""FlashDecoding++ (arXiv:2311.01282): softmax without waiting, flat GEMM with double buffers."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from meadowlark_boards import get_board

from ..quant.maximum import WINDOW_OF
from ..run.evaluate import Perplexity, perplexity, validation_text
from .lab import DECODE, Lab
from .rows import Row, Value

_BOARDS = "ulx3s_85f", "kv260"
_TESTS = (("prefill of 128", (128, 1)), ("decode", DECODE))
#: Boards with a unified maximum, and tests of it: at some positions too.
_UNIFIED = "virtual", "kv260"
_POSITIONS = 0, 120, 250, 500
#: Tokens of the text that are predicted.
TOKENS = 2000


def rows(lab: Lab) -> Iterator[Row]:
    yield from _unified(lab)
    for name in _BOARDS:
        board = get_board(name)
        image = lab.source(board, packing="raw").image
        single = replace(board, config=board.config.replace(one_half=True))
        for what, test in _TESTS:
            found, tokens = lab.predict(image, board, test), test[1]
            on = f"{lab.name}, {name}, {what}"
            now = lab.cycles(image, board, test)
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
                without=lab.cycles(image, single, test), with_=now,
                remark="without, a tile is decoded when the one before is used up",
                command="meadowlark ablate --paper flash-decoding --measure")
        largest = image.model_regs["blocks"] * board.config.P
        for tokens in (largest + 1, 2 * largest + 1, 3 * largest + 16):
            yield Row(
                paper="flash-decoding", mechanism="dataflow by shape: even passes", unit="cycles",
                on=f"{lab.name}, {name}, first token of {tokens}",
                with_=lab.cycles(image, board, (tokens, 1)), without=lab.cycles(
                    image, board, (tokens, 1), blocks=image.model_regs["blocks"]),
                remark=f"without, passes take {largest} tokens each, the last one the rest; with, "
                       "as shape, tokens and bandwidth say (`host/meadowlark/compile/passes.py`)",
                command="meadowlark ablate --paper flash-decoding --measure")


def _unified(lab: Lab) -> Iterator[Row]:
    """Cycles with an exact and a unified maximum, and what the second costs."""
    options = f"-m {lab.model}"
    for name in _UNIFIED:
        board = get_board(name)     # where a soft cap makes scores no later
        board = replace(board, config=board.config.replace(softcap=False))
        exact = lab.source(board, packing="raw")
        text = list(chain.from_iterable(map(exact.model.text_tokens, validation_text())))
        tests = [("cycles", "prefill of 128", (128, 1)), *(
            ("cycles a token", f"decode at {at}" if at else "decode", (*DECODE, at))
            for at in _POSITIONS)]
        for unit, words, test in tests:
            if sum(test) > exact.image.context:
                continue
            without = lab.cycles(exact.image, board, test, text=text)
            for how in ("unified", "unified-16"):
                yield Row(
                    paper="flash-decoding", unit=unit, on=f"{lab.name}, {name} without soft caps, "
                             f"{words}",
                    mechanism=f"unified maximum, window of {WINDOW_OF[how]}", without=without,
                    with_=lab.cycles(lab.source(board, packing="raw", maximum=how).image, board,
                                     test, text=text),
                    remark="SV begins beside the last scores of QK, and its first lot again where "
                           "a row has another maximum. The cycle model takes the share of such "
                           "rows from calibration; counted is on the packaged stories. SVs wait "
                           "for the drain of the one before, too, which hides most of what is "
                           "gained",
                    command=f"meadowlark ablate --paper flash-decoding {options} --measure")
    plain = _perplexity(lab, "exact")
    for how, window in WINDOW_OF.items():
        found = _perplexity(lab, how)
        if plain is None or found is None or found.redone is None:
            continue
        same: dict = dict(
            paper="flash-decoding", mechanism=f"unified maximum, window of {window}", on=lab.name,
            command=f"meadowlark eval {options} --maximum {how} -n {TOKENS}")
        yield Row(unit="perplexity, integers", without=Value(measured=plain.ppl_fixed),
                  with_=Value(measured=found.ppl_fixed), **same)
        yield Row(unit="rows of scores done again, per cent",
                  with_=Value(measured=100 * found.redone), **same)


def _perplexity(lab: Lab, maximum: str) -> Perplexity | None:
    """On the lab's text; None where nothing is measured."""
    if not lab.measure:
        return None
    source = lab.source(get_board("virtual"), maximum=maximum)
    lines = validation_text() if lab.text is None else lab.text
    return perplexity(source.model, source.quantised, lines, TOKENS,
                      progress=lambda n: source.tell("predicting", n, TOKENS))


def _probabilities(shape: dict[str, int], passes: list, *, rows_: bool = False) -> int:
    """Of all heads and layers; rows_: rows of them, in place of elements."""
    return shape["heads"] * shape["layers"] * sum(
        1 if rows_ else position + 1
        for p, _ in passes for position in range(p.pos0, p.pos0 + p.n))


