"""Shapes of attention on the whole chip: heads, windows and query heads of a KV head, with hidden
and FFN that are no multiples of W, on a core with W = 16 and on one with W = 4.

Minutes to hours, so it is a part of ``make long``; test_chip.py has two of them.
"""
from contextlib import closing

import numpy as np
import pytest
from meadowlark.errors import UserError
from meadowlark.run.targets import SimTarget
from meadowlark_boards import get_board
from random_model import random_model
from test_chip import Chip, words

HEADS, GROUPS, WINDOWS = (8, 24, 48, 80, 128, 256), (1, 3, 9, 12), (1, 16, 100, None)
CONTEXT = 192


@pytest.fixture(scope="module", params=("virtual", "ulx3s_25f"))
def target(request):
    with closing(SimTarget(get_board(request.param))) as sim:
        yield sim


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("head_dim", HEADS)
def test_shape(target, tmp_path, seed, head_dim, group, window):
    """Prompts of a token and of several tiles of keys; then what is drawn."""
    rng = np.random.default_rng([seed, head_dim, group, window or 0])
    board = target.board
    queries = group * max(board.config.W, 1 << (head_dim - 1).bit_length())
    row = board.config.tile_beats // 2 * board.config.W         # the attention's output has one
    kv_heads = 2 if group < 4 and 2 * queries <= row else 1
    folder = random_model(
        tmp_path / "m", seed=int(rng.integers(1 << 30)), hidden=2 * int(rng.integers(15, 40)),
        layers=2, heads=group * kv_heads, kv_heads=kv_heads, head_dim=head_dim,
        ffn=int(rng.integers(30, 120)), vocab=258, context=CONTEXT,
        **(dict(family="mistral", sliding_window=window) if window else {}))
    if queries > row:
        with pytest.raises(UserError, match=f"does not fit the board {board.name}: widest matrix"):
            Chip(target, board, str(folder))
        return
    chip = Chip(target, board, str(folder))
    for length in (1, int(rng.integers(130, 180))):
        chip.compare(words(rng, chip, length), max_new=4)


def test_stories260k(target, tmp_path, seed):
    rng = np.random.default_rng(seed)
    chip = Chip(target, target.board, str(random_model(
        tmp_path / "m", seed=seed, hidden=64, layers=5, heads=8, kv_heads=4, head_dim=8, ffn=172,
        vocab=512, context=512)))
    chip.compare(words(rng, chip, 300), max_new=4)
