"""Radiona ULX3S with a Lattice ECP5 LFE5U-25F and 32 MB of 16-bit SDR SDRAM."""
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram_part import MT48LC16M16A2_75

from .board import Board, LinkInfo, MemoryTiming, SdramInfo

BOARD = Board(
    name="ulx3s_25f",
    title="ULX3S, LFE5U-25F, 32 MB SDR SDRAM at 2 bytes per cycle",
    # All that fits 28 MULT18X18D, 24,288 LUTs and 56 block RAMs: 16 multipliers in the array, 8 in
    # the vector unit; int8 weights only. Envelope: hidden 288, FFN 768, head 64, 1,024 tokens.
    config=Config(
        W=4, P=4, bus_bytes=2,
        act_words=512, residual_values=2048, score_depth=1024, rope_pairs=512, tile_beats=512,
        prog_depth=512, context=1024, topk=8, dsp="ecp5", vector_products=8, block_modes=False,
    ),
    clock_mhz=60.0,
    # The SDRAM of ulx3s_85f: CL 3, tRCD = tRP = 2, tRFC = 4 cycles at 60 MHz.
    memory=MemoryTiming(
        size_bytes=32 << 20,
        latency_cycles=10,
        row_miss_cycles=6,
        page_bytes=1024,
        banks=4,
        turnaround_cycles=7,
        refresh_interval_cycles=3744,   # eight refreshes of 7.8 us
        refresh_cycles=8 * 4 + 8,
    ),
    link=LinkInfo(kind="uart", baud=2_500_000),
    platform="amaranth_boards.ulx3s:ULX3S_25F_Platform",
    sdram=SdramInfo(part=MT48LC16M16A2_75, oscillator="clk25", oscillator_mhz=25.0,
                    loader="ulx3s"),
)
