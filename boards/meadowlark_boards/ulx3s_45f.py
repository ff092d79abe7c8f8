"""Radiona ULX3S with a Lattice ECP5 LFE5U-45F and 32 MB of 16-bit SDR SDRAM."""
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram_part import MT48LC16M16A2_75

from .board import Board, LinkInfo, MemoryTiming, SdramInfo

BOARD = Board(
    name="ulx3s_45f",
    title="ULX3S, LFE5U-45F, 32 MB SDR SDRAM at 2 bytes per cycle",
    # 4 weights per cycle are what the memory gives at 4 bits each, so decode is as quick as with a
    # wider array; prefill is not. Envelope: hidden 288, FFN 768, head 64, 1,024 tokens.
    config=Config(
        W=4, P=4, bus_bytes=2,
        act_words=512, residual_values=4096, score_depth=1024, rope_pairs=512, tile_beats=512,
        prog_depth=1024, context=1024, dsp="ecp5", packing=1,
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
    platform="amaranth_boards.ulx3s:ULX3S_45F_Platform",
    sdram=SdramInfo(part=MT48LC16M16A2_75, oscillator="clk25", oscillator_mhz=25.0,
                    loader="ulx3s"),
)
