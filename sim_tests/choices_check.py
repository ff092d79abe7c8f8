"""What the compiler and the driver choose, against all there is: dataflow of attention, lanes of a
head, blocks of a pass.

Models of random shapes on the cores of virtual and kv260 at random bandwidths, prompts of random
lengths and tokens behind them: 60 points by the cycle model, all choices of each, and 12 by the
chip's counters. Minutes to an hour, so it is a part of ``make long``. Results are in
build/choices.json.
"""
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from meadowlark.compile.forecast import forecast
from meadowlark.compile.gemm import spilled
from meadowlark.compile.image import Image
from meadowlark.compile.passes import pass_blocks
from meadowlark.compile.sketch import sketch
from meadowlark.errors import UserError
from meadowlark.models.outline import outline_of
from meadowlark.papers.lab import at_bandwidth
from meadowlark.run.prepare import Source
from meadowlark.run.targets import SimTarget
from meadowlark_boards import Board, get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling
from points import kept

POINTS, COUNTED = 60, 12
#: Tokens behind the prompt.
GENERATE = 4


class Point(NamedTuple):
    """shape: of a Llama, as config.json has it. tokens: of the prompt."""
    board: Board
    shape: dict
    context: int
    tokens: int


def points(seed: int, count: int) -> Iterator[Point]:
    rng = np.random.default_rng(seed)

    def pick(*some):
        return some[int(rng.integers(len(some)))]
    for _ in range(count):
        base, bandwidth = get_board(pick("virtual", "kv260")), float(pick(1, 2, 4, 8, 16))
        base = replace(base, config=base.config.replace(gemm=True, lane_pairs=True))
        kv_heads, group, context = pick(1, 2, 3), pick(1, 2, 3), pick(100, 128, 500, 1000)
        head = pick(32, 64)
        shape = dict(model_type="llama", hidden_size=pick(128, 256), num_hidden_layers=2,
                     num_attention_heads=kv_heads * group, num_key_value_heads=kv_heads,
                     head_dim=head, intermediate_size=pick(256, 512), vocab_size=256,
                     max_position_embeddings=context)
        yield Point(at_bandwidth(base, bandwidth), shape, context,
                    int(rng.integers(1, context - GENERATE)))


class Way(NamedTuple):
    """What is chosen: of attention, of a head in decode, of a pass of the prompt."""
    attention: str
    lanes: str
    blocks: int | None


def ways(point: Point) -> dict[Way, Image]:
    """Every way to run a point."""
    direct = laid_out(point, "direct")
    most = direct.model_regs["blocks"]
    blocks = -(-point.tokens // point.board.config.P)
    sizes = range(max(most // 2, 1), most + 1) if blocks > most else [most]
    found = {Way("tphs", "direct", size): direct for size in sizes}
    if point.context <= 128:
        by_gemm = spilled(direct, point.board.config)
        found |= {Way("gemm", "direct", size): by_gemm for size in sizes}
    with suppress(UserError):           # all lanes have heads
        pairs = laid_out(point, "pairs")
        if pairs.program != direct.program:
            found |= {Way("tphs", "pairs", size): pairs for size in sizes}
    return found


def laid_out(point: Point, lanes: str) -> Image:
    return sketch(outline_of(point.shape, "random"), point.board, context=point.context,
                  packing="raw", lanes=lanes)


def chosen(point: Point) -> Way:
    """By the compiler and the driver, when nobody says how."""
    image, direct = laid_out(point, "auto"), laid_out(point, "direct")
    return Way("tphs", "direct" if image.program == direct.program else "pairs",
               pass_blocks(image, point.board, point.tokens))


def judge(kind: str, k: int, point: Point, took: dict[Way, int], least: float) -> None:
    """Keep a point and hold the choice to the best way's time."""
    way, best = chosen(point), min(took, key=lambda way: took[way])
    if way not in took:         # pairs where they change nothing are direct
        way = way._replace(lanes="direct")
    off = took[way] / took[best] - 1
    worst_way = max(took.values()) / took[best] - 1
    known = kept("choices", f"{kind} {k}", board=point.board.name, shape=point.shape,
                 bytes_per_cycle=point.board.bytes_per_cycle, context=point.context,
                 tokens=point.tokens, chosen=way, best=best, off=off, ways=len(took),
                 worst_way=worst_way)
    worst = max(found["off"] for name, found in known.items() if name.startswith(kind))
    print(f"{kind} {k}: of {len(took)} ways {way}, {off:+.2%}; the worst way {worst_way:+.1%}; "
          f"worst choice {worst:+.2%}")
    assert off < least


@pytest.mark.parametrize("k", range(POINTS))
def test_by_the_cycle_model(k):
    point = list(points(1, POINTS))[k]
    judge("predicted", k, point, {way: forecast(
        image, point.board, prompt=point.tokens, generate=GENERATE, blocks=way.blocks).cycles
        for way, image in ways(point).items()}, 0.01)


@pytest.mark.parametrize("k", range(COUNTED))
def test_by_the_chip(k, tmp_path):
    """The choice, the two best ways by the cycle model, and the best of each dataflow."""
    point = list(points(2, COUNTED))[k]
    every = ways(point)
    predicted = {way: forecast(image, point.board, prompt=point.tokens, generate=GENERATE,
                               blocks=way.blocks).cycles for way, image in every.items()}
    ranked = sorted(predicted, key=lambda way: predicted[way])
    tried = {*ranked[:2], *(next(way for way in ranked if way.attention == attention)
                            for attention in {way.attention for way in ranked})}
    tried |= {way for way in every if way[0] == "tphs" and way[1:] == chosen(point)[1:]}
    took = {}
    for way in tried:
        every[way].save(tmp_path / "a.mlk")
        with closing(SimTarget(point.board)) as target:
            target.load(Source(str(tmp_path / "a.mlk"), point.board))
            target.blocks = way.blocks
            for _ in target.generate([2 + k % 100 for k in range(point.tokens)], Sampling(),
                                     max_new=GENERATE, stop_ids=()):
                pass
            took[way] = target.counters()["cycles"]
        assert abs(predicted[way] / took[way] - 1) < 0.02
    judge("counted", k, point, took, 0.02)
