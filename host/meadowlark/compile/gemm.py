"""Attention by GEMM: scores and probabilities go to memory and come back, to measure what it costs.

MEADOW (arXiv:2503.11663) is measured against a GEMM dataflow, in which the result of a product goes
to memory before the next step reads it. Here attention is TPHS: what is between keys and output
never leaves the lanes. So the baseline is a program with more instructions, on the same array:
behind each QK its scores are written and read back, then their probabilities. See "Attention by
GEMM" in docs/architecture.md for what that takes, and what it is not.
"""
from __future__ import annotations

from dataclasses import replace

from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import MAX_TILE_KEYS
from meadowlark_hdl.isa import NO_WINDOW, Header, Instruction, Mode, Op, Src, encode

from ..errors import UserError
from .image import Image
from .layout import ALIGN, round_up

#: Beats of a tile of what comes back: the lanes are busy with one while the next is read.
_BEATS = 64
#: What SPILL and FILL have in common with the QK before them.
_SHARED = ("group", "heads", "lanes", "last", "back", "ahead")


def spilled(image: Image, config: Config) -> Image:
    """The image with attention by GEMM in both lists.

    Its logits are those of :class:`meadowlark.quant.golden.GoldenModel` with ``gemm``: a score has
    16 bits in memory, of which 8 are fractional.

    Parameters
    ----------
    image : Image
    config : Config
        Of the core that it is for.

    Raises
    ------
    UserError
        The core has no SPILL; the program has no room; a token sees only a window; the keys of a
        context are more than a tile; or query heads have several lanes.
    """
    if not config.gemm:
        raise UserError(f"the core of the board {image.board} keeps attention on the chip: it "
                        "cannot do it by GEMM; take the board virtual")
    if "unified" in image.extras:
        raise UserError("attention by GEMM has exact maxima; leave --maximum out")
    program, decode_pc = image.instructions, image.model_regs["decode_pc"]
    keys = min([MAX_TILE_KEYS] + [i["rows"] for i in program if i["op"] == Op.QK])
    if image.context > keys:
        raise UserError(f"attention by GEMM takes contexts of at most {keys} tokens, not "
                        f"{image.context}; compile with --ctx {keys}")
    if any(i["back"] != NO_WINDOW for i in program if i["op"] == Op.QK):
        raise UserError(f"{image.name} has layers with a window, which attention by GEMM has not")
    if "lane_pairs" in image.extras:
        raise UserError("attention by GEMM has a lane for each query head; compile with --lanes "
                        "direct")
    at = round_up(image.needs["memory_bytes"], ALIGN)
    out: list[Instruction] = []
    begins = decode_pc              # of what is decode's
    for pc, i in enumerate(program):
        if pc == decode_pc:
            begins = len(out)
        if i["op"] == Op.SV:
            fields = {**i, "beside": 1}
            i = Instruction(Op(fields.pop("op")), **fields)
        out.append(i)
        if i["op"] == Op.QK:
            out += _spills(i, config, at // config.W)
    size = config.score_depth // config.spilled_keys * 2 * config.W
    needs = image.needs | dict(prog_depth=len(out), memory_bytes=at + size)
    if len(out) > config.prog_depth:
        raise UserError(f"{image.name} has no room for attention by GEMM on {image.board}: "
                        f"{len(out)} instructions, at most {config.prog_depth}")
    return replace(image, program=b"".join(map(encode, out)), needs=needs,
                   config=image.config | {"gemm": True},
                   model_regs=image.model_regs | {"decode_pc": begins})


def _spills(qk: Instruction, config: Config, addr: int) -> list[Instruction]:
    """Scores to memory and back, then probabilities."""
    shared = {name: qk[name] for name in _SHARED} | dict(addr=addr, more=1)
    beats = min(_BEATS, config.tile_beats)
    fill = Instruction(Op.FILL, src=Src.KV, mode=Mode.INT16, header=Header.NONE, rows=1,
                       row_beats=1, chunks=2 * beats, **shared)
    return [each for beside in (0, 1) for each in (
        Instruction(Op.SPILL, rows=MAX_TILE_KEYS, row_beats=1, beside=beside, **shared), fill)]
