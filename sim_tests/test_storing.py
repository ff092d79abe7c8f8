"""What waits for the cache to be written: keys, values in the place of keys, the end of a pass."""
from contextlib import closing

import numpy as np
import pytest
from meadowlark.run.targets import SimTarget
from meadowlark_hdl.isa import Op, Sink
from random_model import random_model
from test_chip import Chip
from recordings import BOARD


@pytest.fixture(scope="module")
def target():
    with closing(SimTarget(BOARD, trace=True)) as sim:          # as test_timeline has it
        yield sim


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("values_wait", [False, True])
def test_slow_memory(target, tmp_path, layers, values_wait, seed):
    """Prompts of several passes; with one layer the first STOREs of a pass come right behind the
    last ones of the pass before."""
    shape = dict(heads=4, kv_heads=4) if values_wait else dict(heads=2, kv_heads=1)
    chip = Chip(target, BOARD, str(random_model(tmp_path / "m", seed=3, layers=layers, head_dim=8,
                                                **shape)))
    image = chip.source.image
    waits = {i["sink"] for i in image.instructions if i["wait"] and i["op"] == Op.LINEAR}
    assert waits == ({Sink.SCRATCH} if values_wait else set())
    tokens = image.model_regs["blocks"] * BOARD.config.P
    rng = np.random.default_rng(seed)
    for n in (2 * tokens + 3, tokens + 2):
        chip.compare([0, *rng.integers(2, 128, n - 1).tolist()], max_new=2)
