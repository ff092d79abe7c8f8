"""Golden model of the sequencer: how a run is cut into passes."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import Config

#: Most keys in a tile of the KV cache: a power of two that fits the instruction field ``rows``.
MAX_TILE_KEYS = 128


@dataclass(frozen=True)
class Pass:
    """One pass over the model; the fields are those of PassLayout, and which list it runs.

    pos0: position of the first token. n: tokens. nb: blocks of P tokens. ctx: pos0 + n.
    final: it ends with logits. decode: it runs the decode list.
    """
    pos0: int
    n: int
    nb: int
    ctx: int
    final: bool
    decode: bool


def tile_keys(config: Config, head_log2: int) -> int:
    """Keys (rows of 2**head_log2 bytes) in a full tile of the KV cache."""
    return min(config.tile_beats * config.W >> head_log2, MAX_TILE_KEYS)


def context_limit(config: Config) -> int:
    """Positions a run can use: the token memory's, and the scores of one block."""
    return min(config.context, config.score_depth)


def fits(config: Config, head_log2: int, nb: int, ctx: int) -> bool:
    """Whether nb blocks that see keys 0..ctx-1 fit the scores and accumulators of a lane."""
    return nb * ctx <= config.score_depth and (
        ctx <= tile_keys(config, head_log2)
        or nb * (1 << head_log2) // config.sv_columns <= config.acc_slots)


def plan(config: Config, head_log2: int, blocks: int, pos0: int, remaining: int) -> int:
    """Blocks of the next pass: the largest number that fits; 0 if not even one does.

    head_log2, blocks: of the model. pos0: position of its first token. remaining: tokens left, 1..
    """
    best = 0
    for nb in range(1, (1 if remaining == 1 else blocks) + 1):
        if (nb - 1) * config.P < remaining and fits(
                config, head_log2, nb, pos0 + min(remaining, nb * config.P)):
            best = nb
    return best


def prompt_passes(config: Config, head_log2: int, blocks: int, start_pos: int, prompt: int,
                  final: bool = True) -> Iterator[Pass]:
    """The passes of a prompt; each generated token then takes one with n = 1.

    final: tokens are to be generated (max_new > 0).

    Raises
    ------
    ValueError
        Not even one block of tokens fits.
    """
    pos0, remaining = start_pos, prompt
    while remaining:
        nb = plan(config, head_log2, blocks, pos0, remaining)
        if not nb:
            raise ValueError(f"no pass fits at position {pos0}")
        n = min(remaining, nb * config.P)
        yield Pass(pos0, n, nb, pos0 + n, final and n == remaining, remaining == 1)
        pos0, remaining = pos0 + n, remaining - n
