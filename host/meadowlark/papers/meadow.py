"""MEADOW (arXiv:2503.11663): packed weights, and attention whose intermediates stay on the chip."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from meadowlark_boards import get_board
from meadowlark_hdl.control.sequencer_golden import Pass
from meadowlark_hdl.weights.meadow_golden import PACKETS, meadow_bits, reindexed
from meadowlark_hdl.weights.modes import Packing

from ..compile.image import Image
from . import meadow_tables
from .lab import DECODE, Lab, at_bandwidth
from .rows import Row, Value

if TYPE_CHECKING:
    from ..quant.quantise import QuantModel

#: Lanes that ids are dealt to.
LANES = 16
#: Bits a weight of the coarse grid.
BITS = 5.0
#: Weights by how they are rounded, and options for that.
_GRIDS: tuple[tuple[str, dict[str, float]], ...] = (
    ("int8", {}), (f"int8 on a grid of {BITS:g} bits", {"bits": BITS}))


def rows(lab: Lab) -> Iterator[Row]:
    yield from _levels(lab)
    yield from _packed(lab)
    yield from _attention(lab)
    yield from meadow_tables.rows(lab)


# ---- Packing

def level_bytes(plain: Sequence[np.ndarray], level: str) -> int:
    """Bytes of matrices int8[...] by one of MEADOW's levels, each matrix with its best chunks of 1,
    2 or 4 weights and its own table.

    level: "naive", ids of as many bits as the unique chunks need; "packets", packets that name
    the bits of their ids, which count unique chunks as they come; "re-indexed", the same by falling
    frequency.
    """
    total = 0
    for matrix in plain:
        total += min(_level_bits(np.asarray(matrix).view(np.uint8).ravel(), C, level)
                     for C in (1, 2, 4))
    return -(-total // 8)


def _level_bits(values: np.ndarray, C: int, level: str) -> int:
    values = np.pad(values, (0, -len(values) % (C * LANES)))
    unique, ids = reindexed(values, C)
    table = 8 * unique.size
    if level == "naive":
        return table + len(ids) * max(1, int(len(unique) - 1).bit_length())
    if level == "packets":              # by first appearance
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        ids = np.argsort(np.argsort(first))[inverse]
    return table + min(meadow_bits(ids.reshape(-1, LANES), N) for N in PACKETS)


def _codes(qm: QuantModel) -> list[np.ndarray]:
    """Of the matrices of the stream."""
    return [qm.numbers[m.name].codes for m in qm.plan.matrices]


def _levels(lab: Lab) -> Iterator[Row]:
    board = get_board("ulx3s_85f")
    for what, options in _GRIDS:
        codes = _codes(lab.source(board, **options).quantised)
        raw = sum(c.size for c in codes)
        for level in ("naive", "packets", "re-indexed"):
            yield Row(
                paper="meadow", mechanism=f"packing, level {level}", unit="bytes",
                on=f"{lab.name}, {what}", without=Value(measured=raw),
                with_=Value(measured=level_bytes(codes, level)),
                command="meadowlark ablate --paper meadow --measure",
                remark="counted from the codes with the table of each matrix, however large; the "
                       "paper has 1.4, 1.54 and 2.63 x on a layer of OPT-125M, whose int8 weights "
                       "have 1,272 unique chunks" if level == "re-indexed" else "")


def _packed(lab: Lab) -> Iterator[Row]:
    """What the core's own packings bring, on a core that reads both."""
    board = get_board("ulx3s_85f")
    both = replace(board, config=board.config.replace(packing=Packing.MEADOW | Packing.ENTROPY))
    for what, options in _GRIDS:
        raw = lab.source(board, packing="raw", **options).image
        flags = "" if not options else f" --bits {BITS:g}"
        on = f"{lab.name}, {what}, {board.name}"
        for packing, core in (("entropy", board), ("meadow", both)):
            image = lab.source(core, packing=packing, **options).image
            fixed: dict[str, Any] = dict(
                paper="meadow", mechanism=f"packing in the core, {packing}",
                remark="" if core is board else "of a core with packing=3")
            command = "meadowlark ablate --paper meadow --measure"
            yield Row(**fixed, unit="bytes a token", on=on,
                      without=Value(measured=raw.bytes_per_token(1)),
                      with_=Value(measured=image.bytes_per_token(1)),
                      command=command if core is both else
                      f"meadowlark compile {lab.name} --board {board.name} --packing {packing}"
                      f"{flags} --json - -o IMAGE")
            yield Row(**fixed, unit="cycles a token", on=f"{on}, decode",
                      without=lab.cycles(raw, board, DECODE),
                      with_=lab.cycles(image, core, DECODE),
                      command=command if core is both else
                      f"meadowlark bench -m {lab.name} --board {board.name} --packing {packing}"
                      f"{flags} --against-raw -p 0 -n {DECODE[1]}")


# ---- Attention

def spilled_bytes(image: Image, p: Pass, P: int, *, value_bytes: int = 2) -> int:
    """What a pass with GEMM attention writes to memory and reads back, in bytes: queries, scores
    and probabilities of all heads. A block of P tokens has all keys up to its last token's.
    """
    shape = image.shape
    late = image.facts["tail_attends"]
    every = shape["layers"] - late
    keys = [_rows_keys(p, P, block) for block in range(p.nb)]
    one = shape["heads"] * value_bytes
    per_block = [tokens * (2 * seen + shape["head_dim"]) * one for tokens, seen in keys]
    total = every * sum(per_block) + (late * per_block[-1] if p.final else 0)
    return 2 * total


def _rows_keys(p: Pass, P: int, block: int) -> tuple[int, int]:
    """Tokens of a block, and the keys that they see together."""
    tokens = min(P, p.n - block * P)
    return tokens, p.pos0 + block * P + tokens


def _attention(lab: Lab) -> Iterator[Row]:
    for name, width in (("ulx3s_85f", None), ("kv260", None), ("kv260", 1.25), ("kv260", 15.0)):
        board = get_board(name)
        where = name
        if width is not None:
            board, where = at_bandwidth(board, width), f"{name} at {width:g} bytes a cycle"
        for what, test in (("prefill of 128", (128, 1)), ("decode", DECODE)):
            image = lab.source(board, packing="raw").image
            found = lab.predict(image, board, test)
            spilled = sum(spilled_bytes(image, p, board.config.P) for p, _ in found.passes)
            tokens = test[1]
            value = lab.cycles(image, board, test) if width is None else \
                Value(predicted=found.cycles / tokens)
            yield Row(
                paper="meadow", mechanism="attention by TPHS against GEMM", unit="cycles",
                on=f"{lab.name}, {where}, {what}",
                without=Value(predicted=(found.cycles + spilled / board.bytes_per_cycle) / tokens),
                with_=value,
                command=f"meadowlark bench -m {lab.name} --board {name} --packing raw "
                        f"-p {test[0] if test[1] == 1 else 0} -n {test[1] if test[1] > 1 else 0}",
                needs="a GEMM mode of Issue, and STORE from activations",
                remark="GEMM is today's cycles and behind them the time of what would be spilled: "
                       "queries, scores and probabilities of two bytes, written and read back")



