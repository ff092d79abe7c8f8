"""Radiona ULX3S with a Lattice ECP5 LFE5U-85F and 32 MB of 16-bit SDR SDRAM."""
from dataclasses import replace

from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import ECP5

from .board import Board
from .ulx3s import CHIP, LINK, MEMORY

BOARD = Board(
    name="ulx3s_85f",
    title="ULX3S, LFE5U-85F, 32 MB SDR SDRAM at 267 MB/s",
    # 128 of 156 MULT18X18D; 16 weights per beat, 8 lanes: as many multipliers as 8 x 16 for half
    # the softmax units and control, and logic is what the chip runs out of. Envelope: hidden 576,
    # FFN 1,536, head 64, 32 layers, vocabulary 49,152, 1,024 tokens.
    config=Config(
        W=16, P=8, bus_bytes=4, fifo_words=512, burst_words=64,
        act_words=512, residual_values=16384, score_depth=2048, rope_pairs=2048, tile_beats=256,
        prog_depth=2048, context=1024,
        packing=1, unpack_cycles=4,     # 4 weights a cycle: memory gives 4.8 of 5 bits
        block_modes=False,              # beats of 8 bits per weight: wires are what the chip lacks
    ),
    # The PLL makes 80, 83.3, 88.9, 95.2, 100 and 106.7 MHz beside the SDRAM's clock. Decode waits
    # for memory at all of them.
    clock_mhz=800 / 9,
    memory=MEMORY,
    link=LINK,
    family=ECP5,
    chip=replace(CHIP, platform="amaranth_boards.ulx3s:ULX3S_85F_Platform", pins=(126, 55)),
)
