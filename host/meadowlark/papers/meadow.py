"""MEADOW (arXiv:2503.11663): packed weights, and attention whose intermediates stay on the chip."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from meadowlark_boards import get_board
from meadowlark_hdl.control.sequencer_golden import MAX_TILE_KEYS
from meadowlark_hdl.weights.meadow_golden import PACKETS, meadow_bits, reindexed
from meadowlark_hdl.weights.modes import Packing

from ..compile.gemm import spilled
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

def _attention(lab: Lab) -> Iterator[Row]:
    """On cores that can do both, which no board of ours but virtual is."""
    for name, width in (("ulx3s_85f", None), ("kv260", None), ("kv260", 1.25), ("kv260", 15.0)):
        board = get_board(name)
        where, counted = name, width is not None
        if width is not None:
            board, where = at_bandwidth(board, width), f"{name} at {width:g} bytes a cycle"
        board = replace(board, config=board.config.replace(gemm=True, block_modes=True))
        kept = lab.source(board, packing="raw", context=MAX_TILE_KEYS).image
        for what, test in (("prefill of 128", (128, 1)), ("decode", DECODE)):
            gemm, tphs = (
                lab.cycles(image, board, test) if counted else
                Value(predicted=lab.predict(image, board, test).cycles / test[1])
                for image in (spilled(kept, board.config), kept))
            yield Row(
                paper="meadow", mechanism="attention by TPHS against GEMM",
                unit="cycles" if test[1] == 1 else "cycles a token",
                on=f"{lab.name}, {where}, {what}", without=gemm, with_=tphs,
                command="meadowlark ablate --paper meadow --measure",
                remark="of a core with gemm and block_modes, context 128; scores and probabilities "
                       "have two bytes in memory, written and read back, of the keys that a block "
                       "sees; queries stay on the chip, which would be 23 % more traffic")
