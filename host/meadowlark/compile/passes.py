"""How many tokens a pass of a prompt takes: as many as the core holds, or as many each.

A pass reads all weights once. Where memory takes longer for that than the array for a block of
tokens, a last pass of few tokens costs almost as much as one of many: then a prompt that does not
fit one pass is cut into even ones. The choice is by shape, token count and bandwidth, as that of a
dataflow in FlashDecoding++ (arXiv:2311.01282, section 5), and costs no instruction: the core goes
by its register ``blocks``.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image

#: Share of a prompt's time that smaller passes must save, and what a pass costs beside the weights
#: and blocks, as a share of the time for the weights.
LEAST, PASS = 0.006, 0.02


def pass_blocks(image: Image, board: Board, tokens: int) -> int:
    """Blocks of P tokens of a pass, for a prompt of so many tokens: what register ``blocks`` shall
    hold for its run.

    Time is what a pass takes at least: that of memory for the weights, or that of the array for its
    blocks. Against all sizes that there are, by the cycle model, this one is within 2 %, and never
    slower than the largest (stories, all boards).
    """
    config, most = board.config, image.model_regs["blocks"]
    blocks = -(-tokens // config.P)
    if blocks <= most or image.vision is not None or config.only is not None:
        return most
    weights = image.useful_bytes(pos0=0, n=1, final=False) / board.bytes_per_cycle
    block = image.useful_macs(pos0=tokens // 2, n=config.P, final=False) / (config.W * config.P)

    def cycles(size: int) -> float:
        return sum(max(weights, min(size, blocks - first) * block) + PASS * weights
                   for first in range(0, blocks, size))
    best = min(range(max(most // 2, 1), most + 1), key=cycles)
    return best if cycles(best) < (1 - LEAST) * cycles(most) else most


def prompt_regs(image: Image, board: Board, tokens: int) -> dict[str, int]:
    """The model registers for a run of such a prompt."""
    return image.model_regs | {"blocks": pass_blocks(image, board, tokens)}
