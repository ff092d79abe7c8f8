"""FlashMLA-ETAP (arXiv:2506.01969): keys on the long axis of the array, so that few query heads do
not leave it idle. Here lanes are what idles; :mod:`meadowlark.compile.pairs` gives a head several.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from meadowlark_boards import get_board
from meadowlark_hdl.isa import Op

from ..compile.image import Image
from ..compile.pairs import Pairs
from ..compile.sketch import sketch
from ..models.checkpoint import Model
from ..models.outline import outline_of
from .lab import Lab
from .rows import Row, Value

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: Query heads of the models, of which each KV head has so many, and the contexts of their tokens;
#: of some of these the chip counts the cycles too.
HEADS, HEAD_DIM, GROUPS, CONTEXTS, COUNTED = 9, 64, (1, 3, 9), (512, 1024, 2048, 4096), (512, 4096)
_COMMAND = "meadowlark ablate --paper etap"


def board_of() -> Board:
    """The core of `kv260` with the longest context that there is."""
    board, context = get_board("kv260"), CONTEXTS[-1]
    return replace(board, config=board.config.replace(context=context, score_depth=context))


def model_of(group: int) -> Model:
    """A Llama of one layer, of which attention takes nearly all time."""
    return outline_of({
        "model_type": "llama", "hidden_size": HEAD_DIM, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS // group, "head_dim": HEAD_DIM,
        "intermediate_size": HEAD_DIM, "vocab_size": 64, "max_position_embeddings": CONTEXTS[-1],
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4,
        "tie_word_embeddings": True}, f"llama-{group}")


def smollm2() -> Model:
    """SmolLM2-135M."""
    return outline_of({
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 1e5, "tie_word_embeddings": True}, "SmolLM2-135M")


def rows(lab: Lab) -> Iterator[Row]:
    board = board_of()
    yield from _pairs(lab, board)
    yield from _whole(lab)
    yield from _by_arithmetic(board)


def _pairs(lab: Lab, board: Board) -> Iterator[Row]:
    for group in GROUPS:
        if lab.progress:
            lab.progress(f"attention of {group} query heads a KV head", 0, 0)
        direct, pairs = (sketch(model_of(group), board, lanes=lanes)
                         for lanes in ("direct", "auto"))
        for context in CONTEXTS:
            on = f"{HEADS} heads of {HEAD_DIM}, {group} a KV head, context {context:,}"
            one = partial(Row, paper="etap", mechanism="lane pairs", on=on)
            yield one(
                unit="cycles of QK and SV", command=_COMMAND,
                without=Value(predicted=_attention(lab, direct, board, context)),
                with_=Value(predicted=_attention(lab, pairs, board, context)),
                remark="kv260's core with a context of 4,096, one layer, weights of zeros. By "
                       "arithmetic 3 cycles a key, KV head and beat become 2 for the array, 2.1 "
                       "for memory with its refresh: 1.43 x. 9 heads a KV head are 8 at once, a "
                       "lane each, and one behind them, in a pair: 6 become 5, 1.2 x")
            counted = context in COUNTED
            measured, text = replace(lab, measure=lab.measure and counted), [2] * context
            yield one(
                unit="cycles a token",
                without=measured.cycles(direct, board, (1, 1, context - 1), text=text),
                with_=measured.cycles(pairs, board, (1, 1, context - 1), text=text),
                command=_COMMAND + " --measure" * counted)
    yield Row(paper="etap", mechanism="lane pairs", on="stories-mla",
              remark="latent attention has one KV head for all queries, and no lane that idles: no "
                     "pairs. SmolLM2-135M has 3 query heads a KV head, so 6 of kv260's 8 lanes. "
                     "Where memory gives a word of W bytes in 1.5 cycles or more, as on all "
                     "ECP5 boards, attention takes as long without pairs")


def _whole(lab: Lab) -> Iterator[Row]:
    """All of a model, whose weights memory reads as well."""
    board, model = get_board("kv260"), smollm2()
    direct, pairs = (sketch(model, board, lanes=lanes) for lanes in ("direct", "auto"))
    lab = replace(lab, measure=False)
    for context in 512, 2048:
        yield Row(paper="etap", mechanism="lane pairs", unit="cycles a token", command=_COMMAND,
                  on=f"{model.name}, kv260, context {context:,}",
                  without=lab.cycles(direct, board, (1, 1, context - 1)),
                  with_=lab.cycles(pairs, board, (1, 1, context - 1)))


def _attention(lab: Lab, image: Image, board: Board, context: int) -> int:
    """Cycles of QK and SV of a token that sees so many keys."""
    found = lab.predict(image, board, (1, 1, context - 1))
    return sum(spent.cycles for pc, spent in found.by_pc.items()
               if found.program[pc]["op"] in (Op.QK, Op.SV))


def _by_arithmetic(board: Board) -> Iterator[Row]:
    """QK and SV as the array's units take them. Transposed each takes a cycle for a beat of P keys,
    and the sums over lanes three more a query head."""
    config = board.config
    pairs, alone = Pairs("auto", config, HEAD_DIM // config.W), 1 + config.sv_cycles
    for group in GROUPS:
        at_once = [min(config.P, group - first) for first in range(0, group, config.P)]
        of_pairs = sum(2 if pairs.fits(heads) else alone for heads in at_once)
        for mechanism, cycles, remark in (
                ("lane pairs", of_pairs, "cycles a key, KV head and beat are of the array alone"),
                ("transposed mapping", 2 + 3 * group / config.P,
                 "arithmetic, 2 + 3 g / P cycles against 3 for each P of g query heads. It is not "
                 "built: lane pairs take fewer, in the same walk of keys and without a sum over "
                 "lanes")):
            yield Row(paper="etap", mechanism=mechanism, on=f"{group} query heads a KV head",
                      unit="cycles a key, KV head and beat", command=_COMMAND, remark=remark,
                      without=Value(predicted=alone * len(at_once)),
                      with_=Value(predicted=cycles))
