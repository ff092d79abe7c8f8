"""Radiona ULX3S with a Lattice ECP5 LFE5U-25F and 32 MB of 16-bit SDR SDRAM."""
from dataclasses import replace

from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import ECP5

from .board import Board
from .ulx3s import CHIP, LINK, MEMORY

BOARD = Board(
    name="ulx3s_25f",
    title="ULX3S, LFE5U-25F, 32 MB SDR SDRAM at 150 MB/s",
    # All that fits 28 MULT18X18D, 24,288 LUTs and 56 block RAMs: 16 multipliers in the array, 8 in
    # the vector unit; int8 weights only. Envelope: hidden 288, FFN 768, head 64, 1,024 tokens.
    config=Config(
        W=4, P=4, bus_bytes=2, fifo_words=1024, burst_words=128,
        act_words=512, scratch_bytes=4096, residual_values=2048, score_depth=1024, rope_pairs=512,
        tile_beats=512,
        prog_depth=512, context=1024, topk=8, vector_products=8, block_modes=False, batches=False,
    ),
    # One clock for core and SDRAM: with the crossing between two, the chip does not route. Every
    # MHz is 2 MB/s of memory, and this is what timing allows with some to spare.
    clock_mhz=75.0,
    # CL 3, tRCD = tRP = 2, tRFC = 5 cycles of 13.3 ns.
    memory=replace(
        MEMORY,
        bytes_per_s=150e6,
        latency_ns=213.3,
        row_miss_ns=80,
        turnaround_ns=93.3,
        refresh_ns=693.3,
    ),
    link=LINK,
    family=ECP5,
    chip=replace(CHIP, platform="amaranth_boards.ulx3s:ULX3S_25F_Platform", pins=(72, 27),
                 clock_mhz=None, phase=3 / 4, dense=True),
)
