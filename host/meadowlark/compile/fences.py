"""Fences: a program whose memory side does not run ahead, to measure what that is worth.

FlashFormer (arXiv:2505.22758) has loads run ahead over the borders of operators. Here they always
do, but for one thing: tiles of the KV cache wait until what was stored before is in memory. So a
fence is a STORE, which the engine begins only when all before it is done, with a QK behind it that
reads the key that it stores: Fetch makes jobs in order, and nothing behind that tile is read before
it. The STORE stores once more what the one before it did, and the scores go nowhere that is read.
The text stays the same, bit for bit.

A fence takes time of its own: a key is written and read, and multiplied by a query. That is in what
is measured, so it is a bound from above of what run-ahead brings.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meadowlark_hdl.isa import Instruction, Op, Sink, encode

from ..errors import UserError
from .image import Image

#: Where fences may be: before each operator, or each layer.
PLACES = ("operators", "layers")
#: Shift that leaves nothing of a score.
_NOTHING = 63


def fenced(image: Image, where: str) -> Image:
    """The image with fences in its decode list, from the first layer's keys on; it takes no
    batches.

    Parameters
    ----------
    image : Image
    where : str
        One of :data:`PLACES`.

    Raises
    ------
    UserError
        There is no such place; the program has no room for fences; or values take the place of
        keys in scratch memory.
    """
    if where not in PLACES:
        raise UserError(f"there are no fences at {where!r}; give one of {', '.join(PLACES)}")
    program, at = image.instructions, image.model_regs["decode_pc"]
    code = program[at:]
    keys = {i["addr"] for i in code if i["op"] == Op.QK}
    if any(i["wait"] for i in code):
        raise UserError(f"{image.name} has no fences: values take the place of keys in scratch "
                        "memory; compile it for a board with more")
    head = 1 << image.model_regs["head_log2"]
    words = head // image.config["W"]
    # Behind all that the decode of one token has in activations: its block, and queries of heads.
    free = max(image.model_regs["block_words"], *(
        i["x"] + words for i in code if i["op"] == Op.QK))
    borders = _layers(code) if where == "layers" else {
        k for k, i in enumerate(code) if i["op"] in (Op.NORM, Op.LINEAR)}
    qk, sv = (next(i for i in code if i["op"] == op) for op in (Op.QK, Op.SV))
    out: list[Instruction] = []
    stored: Instruction | None = None
    for k, i in enumerate(code):
        if stored is not None and k in borders:
            out += _fence(stored, qk, sv, free * image.config["W"])
        if i["op"] == Op.STORE and i["addr"] in keys:
            stored = i
        elif stored is not None and i["sink"] == Sink.SCRATCH and \
                i["y"] <= stored["x"] * image.config["W"]:
            stored = None               # other keys take their place
        out.append(i)
    needs = image.needs | dict(prog_depth=at + len(out),
                               act_words=max(image.needs["act_words"], free + words))
    if any(needs[name] > image.config[name] for name in ("prog_depth", "act_words")):
        raise UserError(f"{image.name} has no room for fences on {image.board}; take a board with "
                        "more instructions and activations, or a smaller model")
    return replace(image, program=b"".join(map(encode, program[:at] + out)), needs=needs,
                   facts=image.facts | {"batch": 1})


def _fence(stored: Instruction, qk: Instruction, sv: Instruction, y: int) -> list[Instruction]:
    """The token's own key once more to memory and back, as a value of one head too."""
    alone = dict(addr=stored["addr"], back=0, lanes=1)
    return [stored,
            Instruction(**{**qk, **alone, "shift": _NOTHING}),
            Instruction(**{**sv, **alone, "y": y, "more": 0})]


def _layers(code: Sequence[Instruction]) -> set[int]:
    """Where layers begin: the NORM before keys, or what makes those."""
    found, attended = set(), False
    for k, i in enumerate(code):
        attended |= i["op"] == Op.QK
        if attended and i["op"] == Op.LINEAR and i["sink"] == Sink.SCRATCH:
            found.add(k - (code[k - 1]["op"] == Op.NORM))
            attended = False
    return found
