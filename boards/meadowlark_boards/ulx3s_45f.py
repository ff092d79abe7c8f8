"""Radiona ULX3S with a Lattice ECP5 LFE5U-45F and 32 MB of 16-bit SDR SDRAM."""
from dataclasses import replace

from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import ECP5

from .board import Board
from .ulx3s import CHIP, LINK, MEMORY

BOARD = Board(
    name="ulx3s_45f",
    title="ULX3S, LFE5U-45F, 32 MB SDR SDRAM at 267 MB/s",
    # 4 weights per cycle are what the memory gives at 4 bits each, so decode is as quick as with a
    # wider array; prefill is not. Envelope: hidden 288, FFN 768, head 64, 1,024 tokens.
    config=Config(
        W=4, P=4, bus_bytes=4, fifo_words=512, burst_words=64,
        act_words=512, residual_values=4096, score_depth=1024, rope_pairs=512, tile_beats=512,
        prog_depth=1024, context=1024, packing=1,
    ),
    # As many words of 4 bytes as the SDRAM brings.
    clock_mhz=200 / 3,
    memory=MEMORY,
    link=LINK,
    family=ECP5,
    chip=replace(CHIP, platform="amaranth_boards.ulx3s:ULX3S_45F_Platform", pins=(90, 39)),
)
