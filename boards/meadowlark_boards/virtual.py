"""A board that only exists in simulation: as wide a bus as the array, quick to simulate on a PC."""
from meadowlark_hdl.config import Config

from .board import Board, LinkInfo, MemoryTiming

BOARD = Board(
    name="virtual",
    title="Simulated board: 16 weights per beat, 4 lanes, 16 bytes per cycle",
    # Envelope: hidden 576, FFN 1,536, head 64, 32 layers, vocabulary 49,152, 2,048 tokens.
    config=Config(
        W=16, P=4, bus_bytes=16,
        # A block of the largest model takes 36 (hidden) + 96 (FFN) words and its queries, keys
        # and values; eight blocks of a model with hidden 128 and FFN 384 take less.
        act_words=512,
        residual_values=8192,       # 3 blocks x 4 lanes x 576; 8 blocks x 4 lanes x 128 are 4,096
        score_depth=2048,           # one block over the whole context
        rope_pairs=1024,            # 8 blocks x 4 lanes x 32 pairs (head 64)
        tile_beats=512,             # 4 rows of FFN 1,536 (96 beats) and more; 128 keys of head 64
        prog_depth=4096,            # 32 layers, both lists, up to 64 instructions a layer
        context=2048,
        # So that they are simulated with all the others.
        gemm=True, tight_keys=True, fences=True, unified=True, lane_pairs=True, softcap=True,
    ),
    clock_mhz=100.0,
    memory=MemoryTiming(
        size_bytes=256 << 20,       # int8 weights of 135 M parameters and a cache of 2,048 tokens
        bytes_per_s=1.6e9,
        latency_ns=200,
        page_bytes=4096,
    ),
    link=LinkInfo(kind="queue"),
)
