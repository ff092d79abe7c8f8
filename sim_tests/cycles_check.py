"""The cycle model against the whole chip: cores of 4 to 32 lanes and weights a beat, three
bandwidths, attention on the chip and by GEMM.

Half an hour, most of it C++ compiled for ten cores, so it is a part of ``make long``;
test_cycles.py has the boards. What was counted is in build/cycles.json, a point a core, bandwidth
and kind of attention.
"""
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.cycles import predict
from meadowlark.compile.gemm import spilled
from meadowlark.papers.lab import at_bandwidth
from meadowlark.run.prepare import Source
from meadowlark.run.targets import SimTarget
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling
from points import kept
from random_model import random_model

#: (P, W): at W = 32 at least 5 lanes. GEMM takes P a power of two of at most W / 2.
CORES = ((4, 4), (16, 4), (4, 8), (8, 8), (4, 16), (8, 16), (6, 32), (8, 32), (16, 32), (32, 32))
#: Shares of a chunk that memory moves in a cycle.
BANDWIDTHS = (1 / 8, 1 / 2, 1)
PROMPT, GENERATE, CONTEXT = 70, 6, 100


def has_gemm(P, W):
    return 2 * P <= W and P.bit_count() == 1


def board_of(P, W):
    """As virtual, with another core: memories for the model below."""
    base = get_board("virtual")
    return replace(base, name=f"p{P}w{W}", config=base.config.replace(
        P=P, W=W, bus_bytes=min(W, 16), score_depth=1024, prog_depth=1024, context=256,
        act_words=max(256, 4096 // W), residual_values=8192, gemm=has_gemm(P, W)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("m"), seed=11, hidden=128, layers=3, heads=4,
                        kv_heads=2, ffn=384, vocab=512, context=CONTEXT)


@pytest.mark.parametrize("P, W, share, attention", [
    (P, W, share, attention) for P, W in CORES for share in BANDWIDTHS
    for attention in ("tphs", *(["gemm"] if has_gemm(P, W) else []))])
def test_cycles(P, W, share, attention, checkpoint, tmp_path, seed):
    """A prompt in blocks and tokens behind it, within 2 %."""
    board = at_bandwidth(board_of(P, W), W * share if share * W <= 16 else 16)
    image = Source(str(checkpoint), board, draft="none").image
    if attention == "gemm":
        image = spilled(image, board.config)
    image.save(tmp_path / "a.mlk")
    prompt = np.random.default_rng(seed).integers(2, 512, PROMPT).tolist()
    with closing(SimTarget(board)) as target:
        target.load(Source(str(tmp_path / "a.mlk"), board))
        for _ in target.generate(prompt, Sampling(), max_new=GENERATE, stop_ids=()):
            pass
        counted = target.counters()["cycles"]
    predicted = predict(image, board, prompt=PROMPT, generate=GENERATE).cycles
    off = predicted / counted - 1
    point = f"P {P}, W {W}, {board.bytes_per_cycle:g} bytes a cycle, {attention}"
    known = kept("cycles", point, counted=counted, predicted=predicted, off=off)
    worst = max(known, key=lambda name: abs(known[name]["off"]))
    print(f"{point}: {counted:,} cycles, {off:+.3%}; worst of {len(known)}: "
          f"{known[worst]['off']:+.3%}, {worst}")
    assert abs(off) < 0.02
