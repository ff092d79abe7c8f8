"""How many tokens a pass of a prompt takes: as many as the core holds, or about as many each.

A pass reads all weights once. Where memory takes longer for that than the array for a block of
tokens, a last pass of few tokens costs almost as much as one of many: then a prompt that does not
fit one pass is cut into even ones. The choice is by shape, token count and bandwidth, as that of a
dataflow in FlashDecoding++ (arXiv:2311.01282, section 5), and costs no instruction: the core goes
by its register ``blocks``.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from meadowlark_hdl.control.sequencer_golden import Pass, prompt_passes

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image

#: Share of a prompt's time that smaller passes must save.
LEAST = 0.006


def pass_blocks(image: Image, board: Board, tokens: int, start_pos: int = 0) -> int:
    """Blocks of P tokens of a pass, for a prompt of so many tokens at a position: what register
    ``blocks`` shall hold for its run.

    Against all sizes that there are, by the cycle model, this one is within 2 %.
    """
    config, most = board.config, image.model_regs["blocks"]
    if -(-tokens // config.P) <= most or image.vision is not None or config.only is not None:
        return most

    width = sum(width for _, width in image.caches) / len(image.backs)      # of an attention's

    def cycles(size: int) -> float:
        return sum(_cycles(image, board, width, p) for p in prompt_passes(
            config, image.model_regs | {"blocks": size}, start_pos, tokens))
    took = {size: cycles(size) for size in range(max(most // 2, 1), most + 1)}
    best = min(took, key=lambda size: took[size])
    return best if took[best] < (1 - LEAST) * took[most] else most


def _cycles(image: Image, board: Board, width: float, p: Pass) -> float:
    """Of a pass, at least: matrices, then attention, each as long as memory or the array takes.
    width: bytes of a key and its value, of all KV heads."""
    config, shape = board.config, image.shape
    W, P = config.W, config.P
    weights = image.facts["layer_bytes"] / board.bytes_per_cycle
    matrices = max(weights, image.facts["layer_macs"] * p.nb / W)

    def keys(blocks: int) -> int:
        """That all layers see, of so many blocks at a time."""
        ends = [min(p.pos0 + (first + blocks) * P, p.ctx) for first in range(0, p.nb, blocks)]
        return sum(min(end, back + blocks * P) for back in image.backs for end in ends)
    read = keys(p.sub_blocks) * -(-image.model_regs["group"] // p.sub_heads)
    attention = max(read * width / board.bytes_per_cycle,
                    keys(1) * shape["heads"] * shape["head_pad"] / W * (1 + config.sv_cycles))
    return matrices + attention


def prompt_regs(image: Image, board: Board, tokens: int, start_pos: int,
                blocks: int | None = None) -> dict[str, int]:
    """The model registers for a run of such a prompt. blocks: of its passes, in place of
    :func:`pass_blocks`."""
    return image.model_regs | {"blocks": blocks or pass_blocks(image, board, tokens, start_pos)}
