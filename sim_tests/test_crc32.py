"""Shares of a CRC-32."""
import random
from functools import reduce
from operator import xor
from zlib import crc32

import pytest
from meadowlark_hdl.crc32 import crc32_shares


@pytest.mark.parametrize("width", [8, 16, 32, 128])
def test_shares_add_up_to_the_crc(width, seed):
    """Of several words, as zlib has it of their bytes."""
    rng, state, content = random.Random(seed), 0xFFFFFFFF, b""
    by_state, by_word = crc32_shares(width)
    assert (len(by_state), len(by_word)) == (32, width)
    for _ in range(20):
        word = rng.getrandbits(width)
        content += word.to_bytes(width // 8, "little")
        state = reduce(xor, [share for k, share in enumerate(by_state) if state >> k & 1] + [
            share for k, share in enumerate(by_word) if word >> k & 1], 0)
        assert ~state & 0xFFFFFFFF == crc32(content)


@pytest.mark.parametrize("width", [0, 4, 12])
def test_no_whole_bytes(width):
    with pytest.raises(ValueError, match=f"^width must be a multiple of 8 from 8 on, not {width}$"):
        crc32_shares(width)
