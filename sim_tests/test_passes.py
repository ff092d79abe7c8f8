"""How a prompt is cut into passes: against all other ways by the cycle model, and on the chip."""
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.cycles import predict
from meadowlark.compile.forecast import forecast
from meadowlark.compile.passes import pass_blocks
from meadowlark.papers.lab import at_bandwidth
from meadowlark.run.prepare import Source
from meadowlark.run.targets import GoldenTarget, SimTarget
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling
from random_model import random_model

#: Prompts of stories on ulx3s_85f, whose passes have 16 blocks of 8 tokens, and what they take.
FOUND = {127: 16, 128: 16, 129: 9, 168: 11, 257: 12, 300: 16, 385: 13, 500: 16}


@pytest.fixture(scope="module")
def sketch():
    """Of stories, by board."""
    known = {}

    def of(board):
        if board.name not in known:
            known[board.name] = Source("stories", board, draft="none", packing="raw").sketch
        return known[board.name]
    return of


def test_sizes(sketch):
    """Even passes where a short one would wait for memory, and only there."""
    board = get_board("ulx3s_85f")
    assert {n: pass_blocks(sketch(board), board, n) for n in FOUND} == FOUND
    quick = get_board("virtual")
    assert {pass_blocks(sketch(quick), quick, n) for n in range(1, 512)} == {16}
    # A board with one image's registers in its netlist has no choice.
    image = sketch(board)
    assert pass_blocks(image, replace(board, config=board.config.replace(only=image.only)),
                       129) == 16


@pytest.mark.parametrize("name", ["virtual", "ulx3s_85f", "ecpix5_85f", "kv260"])
def test_against_all_sizes(name, sketch, seed):
    """Within 2 % of the best of all sizes by the cycle model, 0.5 % of the largest."""
    board, rng = get_board(name), np.random.default_rng(seed)
    image = sketch(board)
    most = image.model_regs["blocks"]
    for tokens in rng.integers(most * board.config.P + 1, image.context - 1, 3).tolist():
        took = {}
        for blocks in range(most // 2, most + 1):
            took[blocks] = forecast(image, board, prompt=tokens, generate=1, blocks=blocks).cycles
        chosen = took[pass_blocks(image, board, tokens)]
        assert chosen <= 1.02 * min(took.values()) and chosen <= 1.005 * took[most], (tokens, took)


def test_on_the_chip(tmp_path, seed):
    """A memory that takes long for the weights: the same tokens as ever, as many passes as the
    golden model says, and as many cycles as the cycle model, fewer than with the largest passes.
    The register is there for the next prompt, too."""
    board = at_bandwidth(get_board("virtual"), 2)
    rng = np.random.default_rng(seed)
    source = Source(str(random_model(tmp_path / "m", seed=seed, hidden=64, ffn=256, context=200)),
                    board, draft="none")
    source.image.save(tmp_path / "a.mlk")
    source = Source(str(tmp_path / "a.mlk"), board)
    image = source.image
    largest = image.model_regs["blocks"] * board.config.P
    with closing(SimTarget(board)) as chip:
        golden = GoldenTarget(board)
        for one in (golden, chip):
            one.load(source)
        for tokens in (largest + 1, 7, largest + 9, largest):
            prompt = rng.integers(2, 128, tokens).tolist()
            events = [[(e.token, e.crc) for e in one.generate(
                prompt, Sampling(), max_new=3, stop_ids=())] for one in (golden, chip)]
            assert events[0] == events[1]
            told, counted = chip.counters(), golden.counters()
            assert {name: told[name] for name in counted} == counted
            predicted = predict(image, board, prompt=tokens, generate=3)
            assert abs(predicted.cycles / told["cycles"] - 1) < 0.01
            assert len(predicted.passes) == told["passes"] == (4 if tokens > largest else 3)
    assert pass_blocks(image, board, largest + 1) < image.model_regs["blocks"]
