"""Golden model of the sequencer: how a run is cut into passes, and the attention of a pass."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config import Config

#: Most keys in a tile of the KV cache: a power of two that fits the instruction field ``rows``.
MAX_TILE_KEYS = 128


class Place(NamedTuple):
    """Where a token belongs. base: chunks from the cache of the image's addresses to that of its
    sequence. position: in the sequence."""
    base: int
    position: int


@dataclass(frozen=True)
class Pass:
    """One pass over the model; the fields are those of PassLayout, and which list it runs.

    pos0: position of the first token; of a batch the passes before it in its run. n: tokens. nb:
    blocks of P tokens. ctx: pos0 + n. sub_heads, sub_blocks: query heads of a KV head, and blocks,
    that attend at once, at most. final: it ends with logits. decode: it runs the decode list.
    batch: where each token of the run's first pass belongs, if each says so itself. each: all its
    tokens have logits, if it is final, not only the last one. base: of a pass of one sequence, see
    :class:`Place`.
    """
    pos0: int
    n: int
    nb: int
    ctx: int
    sub_heads: int
    sub_blocks: int
    final: bool
    decode: bool
    batch: tuple[Place, ...] = ()
    each: bool = False
    base: int = 0

    def places(self) -> list[Place]:
        """Where each token belongs."""
        first = self.batch or [Place(self.base, slot) for slot in range(self.n)]
        return [Place(base, self.pos0 + position) for base, position in first]

    @property
    def positions(self) -> list[int]:
        """Of all tokens."""
        return [place.position for place in self.places()]

    def sees(self, config: Config, i: Mapping[str, int], block: int) -> range:
        """Keys that tokens of a block see. i: of the instruction back and ahead."""
        position = self.pos0 + block * config.P
        end = self.ctx if i["ahead"] else min(self.ctx, position + config.P)
        return range(max(0, position - i["back"]), end)


def token_ids(tokens: Sequence[int], vocab: int) -> list[int]:
    """Tokens as a list. Raises ValueError unless there is one, and all are of the vocabulary."""
    if not tokens or not 0 <= min(tokens) <= max(tokens) < vocab:
        raise ValueError(f"tokens must be ids in 0..{vocab - 1}, at least one, not {tokens!r}")
    return list(tokens)


def tile_keys(config: Config, row_log2: int) -> int:
    """Rows of 2**row_log2 bytes, keys or columns of values, in a full tile of the KV cache."""
    return tile_rows(config, (1 << row_log2) // config.W)


def tile_rows(config: Config, words: int) -> int:
    """Likewise, of rows of so many words."""
    return min(config.tile_beats // words, MAX_TILE_KEYS)


def sv_log2(config: Config, head_log2: int) -> int:
    """log2 of the columns of the values of a head of 2**head_log2 that an SV takes."""
    return min(head_log2, config.sv_values.bit_length() - 1)


def context_limit(config: Config) -> int:
    """Positions a run can use: the token memory's, and the scores of one block."""
    return min(config.context, config.score_depth)


def lots(config: Config, head_log2: int, ctx: int) -> int:
    """Pairs of a query head and a block that can attend to keys 0..ctx-1 at once: what the scores,
    maxima and sums of a lane take, and where one tile of values is not enough, its accumulators.
    0 if not even one can."""
    most, columns = min(config.score_depth // ctx, Config.SUM_BLOCKS), sv_log2(config, head_log2)
    if ctx > tile_keys(config, columns):
        most = min(most, config.sv_values >> columns)
    return most


def subgroup(config: Config, model: Mapping[str, int], nb: int, ctx: int) -> tuple[int, int]:
    """Heads and blocks that attend at once, of a pass of nb blocks: as many heads of the model's
    ``group`` as fit, and if all do, as many blocks. (0, 0) if no lot fits."""
    most = lots(config, model["head_log2"], ctx)
    heads = min(model["group"], most)
    return heads, min(nb, most // heads) if heads else 0


@dataclass(frozen=True)
class Lots:
    """The lots that one QK, and the SVs behind it, are for.

    heads: query heads, numbered within the instruction's group; if lanes are heads, the token.
    blocks: of tokens. keys: those that some of them see. begin: the first ones of the instruction.
    again: the blocks begin anew, with other heads. base: of the cache, see :class:`Place`.
    """
    heads: range
    blocks: range
    keys: range
    begin: bool
    again: bool
    base: int = 0


def subgroups(config: Config, p: Pass, i: Mapping[str, int]) -> Iterator[Lots]:
    """How often a QK is repeated in a pass, with the SVs behind it: heads outside, blocks inside.
    If lanes are heads, once for each token.

    i: of the instruction group, heads, last, back and ahead.
    """
    if i["heads"]:
        for token, (base, position) in enumerate(p.places()):
            yield Lots(range(token, token + 1), range(1),
                       range(max(0, position - i["back"]), position + 1), token == 0, True, base)
        return
    first = p.nb - 1 if i["last"] else 0
    for head in range(0, i["group"], p.sub_heads):
        for block in range(first, p.nb, p.sub_blocks):
            end = min(block + p.sub_blocks, p.nb)
            keys = range(p.sees(config, i, block).start, p.sees(config, i, end - 1).stop)
            yield Lots(range(head, min(head + p.sub_heads, i["group"])), range(block, end), keys,
                       (head, block) == (0, first), block == first, p.base)


def prompt_passes(config: Config, model: Mapping[str, int], start_pos: int, prompt: int,
                  final: bool = True) -> Iterator[Pass]:
    """The passes of a prompt; each generated token then takes one with n = 1.

    A pass has as many tokens as the model's ``blocks`` hold. A lone token runs the decode list.

    Parameters
    ----------
    config : Config
    model : mapping of str to int
        Of ``isa.MODEL_REGS`` head_log2, blocks and group.
    start_pos : int
        Position of the first token.
    prompt : int, 1..
        Tokens.
    final : bool
        Tokens are to be generated (max_new > 0).

    Raises
    ------
    ValueError
        The keys of a pass do not fit.
    """
    pos0, remaining = start_pos, prompt
    while remaining:
        n = min(remaining, model["blocks"] * config.P)
        yield pass_of(config, model, pos0, n, final=final and n == remaining,
                      decode=remaining == 1)
        pos0, remaining = pos0 + n, remaining - n


def decode_pass(config: Config, model: Mapping[str, int], position: int) -> Pass:
    """That of a generated token; see :func:`prompt_passes`."""
    return pass_of(config, model, position, 1, final=True, decode=True)


def batch_pass(config: Config, model: Mapping[str, int], batch: Sequence[Place],
               before: int = 0, *, final: bool = True) -> Pass:
    """That of tokens of several sequences, 1..P of them: it runs the decode list. before: passes
    of the same run, each of which moved all of them on by a position."""
    p = pass_of(config, model, before, len(batch), final=final, decode=True)
    return replace(p, batch=tuple(batch), each=True)


def draft_pass(config: Config, model: Mapping[str, int], pos0: int, n: int, *,
               final: bool = True) -> Pass:
    """That of a token and n - 1 drafts of those behind it, P in all at most."""
    return replace(pass_of(config, model, pos0, n, final=final, decode=n == 1), each=True)


def pass_of(config: Config, model: Mapping[str, int], pos0: int, n: int, *, final: bool,
            decode: bool) -> Pass:
    """That of tokens pos0..pos0+n-1, 1..blocks*P of them; see :func:`prompt_passes`."""
    nb, ctx = -(-n // config.P), pos0 + n
    heads, blocks = subgroup(config, model, nb, ctx)
    if not heads:
        raise ValueError(f"no pass fits at position {pos0}")
    return Pass(pos0, n, nb, ctx, heads, blocks, final, decode)
