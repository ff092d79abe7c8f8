"""A board's core for one model alone: what the model does not need is not built.

Source: a kernel for one model, FlashFormer, arXiv:2505.22758, section 3.
"""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meadowlark_hdl.config import Config

from ..errors import UserError
from .forecast import forecast

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image

#: Config fields that become powers of two, and the least of each.
_POWERS = {"scratch_bytes": 1024, "context": 16, "prog_depth": 16, "tile_rows": 2}
#: Those that may be any number, and of what a multiple.
_ANY = {"act_words": 1, "residual_values": 4, "rope_pairs": 4}


def special(board: Board, image: Image) -> Board:
    """The board with a core for one image's model.

    Memories are as deep as the image needs, decoders of weights it does not have are gone, and what
    all its instructions have in common is in the netlist (:class:`meadowlark_hdl.only.Only`). It
    runs the same image in as many cycles: lanes, weights a beat, tile buffer and run-ahead stay. A
    core without soft caps, where the board's has them, takes 10 cycles less an attention.

    Raises
    ------
    UserError
        The image is not for this board, or runs in visits, which change the model's registers.
    """
    image.check_board(board)
    if image.visits:
        raise UserError(f"{image.name} has more tokens than a pass takes, so its registers change "
                        f"as it runs; build {board.name} without --for")
    was, needs = board.config, image.needs
    sizes = {name: max(least, _power(needs[name])) for name, least in _POWERS.items()}
    sizes |= {name: max(step, -(-needs[name] // step) * step) for name, step in _ANY.items()}
    small = was.replace(**sizes, packing=image.needs_packing, only=image.only,
                        block_modes=image.needs_blocks or "gemm" in image.extras,
                        **{name: name in image.extras for name in Config.EXTRAS})
    depth, cycles = _power(needs["score_depth"]), _cycles(image, board, was)
    # Fewer scores would be enough for a query, but then keys are read more often.
    while depth < was.score_depth and _cycles(
            image, board, small.replace(score_depth=depth)) > cycles:
        depth *= 2
    return replace(board, title=f"{board.title}; for {image.name} alone",
                   config=small.replace(score_depth=depth))


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def _cycles(image: Image, board: Board, config: Config) -> int:
    """Of the longest prompt, and of the last token."""
    at = replace(board, config=config)
    return forecast(image, at, prompt=image.context - 1, generate=2).cycles


def board_file(board: Board, generic: str) -> str:
    """A board's file, for ``--board``: the generic one with this one's core.

    generic: name of one of the boards here, or its file.
    """
    only, sizes = board.config.only, board.config.as_dict()
    assert only is not None
    registers = "\n".join(f"        ({name!r}, {value})," for name, value in only.registers)
    return f'''"""{board.title}. Written by `meadowlark build --for`."""
from dataclasses import replace

from meadowlark_boards import read_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.only import Only

BOARD = replace(read_board({generic!r}), title={board.title!r}, config=Config(
{"".join(f"    {name}={value!r},{chr(10)}" for name, value in sizes.items())}\
    only=Only(
        ones={only.ones:#x},
        zeros={only.zeros:#x},
        registers=(
{registers}
        ))))
'''
