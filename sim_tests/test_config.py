"""Config refuses what no core can be built from, and says what it wants instead."""
import pytest

from meadowlark_boards import BOARDS
from meadowlark_hdl.config import Config

GOOD = Config(W=16, P=8, bus_bytes=4)


@pytest.mark.parametrize(("changes", "message"), [
    ({"W": 12}, "W must be 4, 8, 16 or 32, not 12"),
    ({"W": 64}, "W must be 4, 8, 16 or 32, not 64"),
    ({"P": 2}, r"P must be in 3\.\.32, not 2"),
    ({"W": 32, "P": 4}, "P must be at least 5 with W=32, not 4"),
    ({"bus_bytes": 32}, "bus_bytes must be a power of two of at most W=16, not 32"),
    ({"bus_bytes": 3}, "bus_bytes must be a power of two of at most W=16, not 3"),
    *(({name: 100}, f"{name} must be a power of two, not 100") for name in (
        "score_depth", "tile_beats", "fifo_words", "prog_depth", "context", "burst_words")),
    ({"burst_words": 1024}, "burst_words must be at most half of fifo_words, not 1024"),
    ({"burst_words": 2}, "burst_words must be at least the 4 bus words of a chunk, not 2"),
    ({"residual_values": 6}, "residual_values must be a multiple of 4, not 6"),
    ({"tile_rows": 256}, r"tile_rows must be a power of two in 2\.\.128, not 256"),
    ({"context": 8192}, "context must be at most 4096, not 8192"),
    ({"topk": 33}, r"topk must be in 1\.\.32, not 33"),
    ({"packing": 4}, r"packing must be in 0\.\.3, not 4"),
    ({"unpack_cycles": 3}, "unpack_cycles must be 1, 2 or 4, not 3"),
    ({"W": 4, "bus_bytes": 4, "unpack_cycles": 4}, "unpack_cycles must be 1 or 2 with W=4"),
    ({"sv_cycles": 1}, "sv_cycles must be a power of two in 2..W/2=8, not 1"),
    ({"sv_cycles": 16}, "sv_cycles must be a power of two in 2..W/2=8, not 16"),
    ({"sv_cycles": 3}, "sv_cycles must be a power of two in 2..W/2=8, not 3"),
    ({"vector_products": 9}, "vector_products must be 8 or 23, not 9"),
    ({"block_modes": 2}, "block_modes must be True or False, not 2")],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items())
        if isinstance(value, dict) else "")
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        GOOD.replace(**changes)


def test_values_of_a_norm():
    assert [GOOD.replace(vector_products=n).norm_width for n in (23, 8)] == [4, 1]
    assert not GOOD.shared_products


def test_columns_of_sv():
    assert [GOOD.replace(sv_cycles=n).sv_columns for n in (2, 4, 8)] == [8, 4, 2]
    assert all(board.config.as_dict() == Config(**board.config.as_dict()).as_dict()
               for board in BOARDS.values())
