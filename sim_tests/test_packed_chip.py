"""The whole chip on packed weights: the same tokens and logits; damage is named."""
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from test_chip import Chip

from meadowlark.link.driver import BoardError
from meadowlark.quant.sampling import sampling
from meadowlark.run.targets import SimTarget
from meadowlark_boards import get_board

#: With both kinds of codes; as the board is, test_chip runs it.
BOARD = get_board("ulx3s_85f")
BOARD = replace(BOARD, config=BOARD.config.replace(packing=3))


@pytest.fixture(scope="module")
def ulx3s():
    with closing(SimTarget(BOARD)) as sim:
        yield sim


@pytest.mark.parametrize("packing, size", [("entropy", 0.96), ("meadow", 1.03)])
def test_story(ulx3s, packing, size):
    """Prefill and decode, every logit."""
    chip = Chip(ulx3s, BOARD, "stories", packing)
    image = chip.source.image
    assert packing in {t["mode"] for t in image.tensors}
    assert sum(t["bytes"] for t in image.tensors) < size * sum(
        t["raw_bytes"] for t in image.tensors)
    prompt = chip.source.tokenizer.encode("Once upon a time")
    assert len(chip.compare(prompt, max_new=3)) == 3


def test_damage(ulx3s, seed):
    """A flipped bit of a packed tensor ends the run with the tensor's name."""
    chip = Chip(ulx3s, BOARD, "stories")
    image = chip.source.image
    rng = np.random.default_rng(seed)
    # In the words of its last tile: row headers have no checksum.
    names = [t["name"] for t in image.tensors]
    end = image.tensors[names.index("layers.2.gate_up") + 1]["at"]
    memory = bytearray(image.memory)
    at = end - 32 - int(rng.integers(1000))
    memory[at] ^= 1 << int(rng.integers(8))
    ulx3s._write(replace(image, memory=bytes(memory)))
    with pytest.raises(BoardError, match=r"damaged.*layers\.2\.(gate_up|down) at byte"):
        list(ulx3s.generate([0, 5], sampling(), max_new=2, stop_ids=()))
    ulx3s._write(image)
    assert chip.compare([0, 5], max_new=1)
