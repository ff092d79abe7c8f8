"""Radiona ULX3S with a Lattice ECP5 LFE5U-85F and 32 MB of 16-bit SDR SDRAM."""
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram_part import MT48LC16M16A2_75

from .board import Board, LinkInfo, MemoryTiming, SdramInfo

BOARD = Board(
    name="ulx3s_85f",
    title="ULX3S, LFE5U-85F, 32 MB SDR SDRAM at 2 bytes per cycle",
    # 128 of 156 MULT18X18D; 16 weights per beat, 8 lanes: as many multipliers as 8 x 16 for half
    # the softmax units and control, and logic is what the chip runs out of. Envelope: hidden 576,
    # FFN 1,536, head 64, 32 layers, vocabulary 49,152, 1,024 tokens.
    config=Config(
        W=16, P=8, bus_bytes=2,
        act_words=512, residual_values=16384, score_depth=2048, rope_pairs=2048, tile_beats=256,
        prog_depth=2048, context=1024, dsp="ecp5",
        packing=1, unpack_cycles=4,     # 16 weights of 5 bits take the bus 5 cycles
        block_modes=False,              # beats of 8 bits per weight: wires are what the chip lacks
    ),
    clock_mhz=100.0,
    # CL 3, tRCD = tRP = 3, tRFC = 9 cycles at 100 MHz, memory clock = core clock.
    memory=MemoryTiming(
        size_bytes=32 << 20,
        latency_cycles=10,          # CL 3, pad registers both ways, the controller's own stages
        row_miss_cycles=8,          # tRP + tRCD and the command's way
        page_bytes=1024,            # 512 columns x 16 bits
        banks=4,
        turnaround_cycles=7,        # write recovery, CL and the bus's direction
        refresh_interval_cycles=6240,   # eight refreshes of 7.8 us
        refresh_cycles=8 * 9 + 10,  # tRFC each, precharge before and activate after
    ),
    link=LinkInfo(kind="uart", baud=2_000_000),
    platform="amaranth_boards.ulx3s:ULX3S_85F_Platform",
    # Boards come with chips of Micron, ISSI or Alliance; this one is the slowest of them.
    sdram=SdramInfo(part=MT48LC16M16A2_75, oscillator="clk25", oscillator_mhz=25.0,
                    loader="ulx3s"),
)
