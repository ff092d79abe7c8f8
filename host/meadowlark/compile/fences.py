"""Fences: a program whose memory side does not run ahead, to measure what that is worth.

FlashFormer (arXiv:2505.22758) has loads run ahead over the borders of operators. Here they always
do. So the baseline is the same program, with a bit in some of its instructions: Fetch stops in
front of them until all before them is done. The text stays the same, bit for bit, and a fence takes
no more than what Fetch and memory need to begin again.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Instruction, Op, Sink, encode

from ..errors import UserError
from .image import Image

#: Where fences may be: before each operator, or each layer.
PLACES = ("operators", "layers")


def fenced(image: Image, where: str, config: Config) -> Image:
    """The image with fences in both lists, but not before what comes first in a pass.

    Parameters
    ----------
    image : Image
    where : str
        One of :data:`PLACES`. Operators are NORM and LINEAR: keys and values always wait for what
        was stored.
    config : Config
        Of the core that it is for.

    Raises
    ------
    UserError
        There is no such place, or the core has no fences.
    """
    if where not in PLACES:
        raise UserError(f"there are no fences at {where!r}; give one of {', '.join(PLACES)}")
    if not config.fences:
        raise UserError(f"the core of the board {image.board} always runs ahead; take the board "
                        "virtual")
    out: list[Instruction] = []
    at = image.model_regs["decode_pc"]
    for code in image.instructions[:at], image.instructions[at:]:
        borders = _layers(code) if where == "layers" else {
            k for k, i in enumerate(code) if i["op"] in (Op.NORM, Op.LINEAR)}
        out += [Instruction(**{**i, "more": 1}) if k in borders else i for k, i in enumerate(code)]
    return replace(image, program=b"".join(map(encode, out)),
                   config=image.config | {"fences": True})


def _layers(code: Sequence[Instruction]) -> set[int]:
    """Where layers begin, but for the first: the NORM before keys, or what makes those."""
    found, attended = set(), False
    for k, i in enumerate(code):
        attended |= i["op"] == Op.QK
        if attended and i["op"] == Op.LINEAR and i["sink"] == Sink.SCRATCH:
            found.add(k - (code[k - 1]["op"] == Op.NORM))
            attended = False
    return found
