"""LambdaConcept ECPIX-5 with a Lattice ECP5 LFE5UM5G-85F and 512 MB of 16-bit DDR3."""
from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import ECP5

from .board import Board, LinkInfo, MemoryTiming
from .chips import Ddr3Chip

BOARD = Board(
    name="ecpix5_85f",
    title="ECPIX-5, LFE5UM5G-85F, 512 MB DDR3 at 8 bytes per cycle",
    # 112 of 156 MULT18X18D for products of weights, seven lanes: LiteDRAM stands beside its pins,
    # where an eighth would be. Envelope: hidden 576, FFN 1,536, head 64, 32 layers, vocabulary
    # 49,152, 2,048 tokens.
    config=Config(
        W=16, P=7, bus_bytes=8,
        act_words=512, residual_values=16384, score_depth=2048, rope_pairs=2048, tile_beats=512,
        prog_depth=2048, context=2048,
    ),
    clock_mhz=75.0,
    # 16 bits at 300 million transfers a second behind a controller at half of the chip's clock: 8
    # bytes per cycle of the core. tRCD = tRP = 13.75 ns, tRFC = 260 ns; the banks are closed before
    # and opened after a refresh. Estimates; docs/boards.md has what LiteDRAM's controller does.
    memory=MemoryTiming(
        size_bytes=512 << 20,
        bytes_per_s=600e6,
        latency_ns=320,
        row_miss_ns=53.3,           # tRP + tRCD and the command's way
        page_bytes=2048,            # 1,024 columns x 16 bits
        banks=8,
        turnaround_ns=53.3,
        refresh_interval_ns=15_600,     # two refreshes of 7.8 us
        refresh_ns=520,             # 260 ns each
    ),
    link=LinkInfo(kind="uart", baud=1_500_000),
    family=ECP5,
    # Micron's MT41K256M16, 4 Gbit DDR3L, -125, as LiteX's own target of this board has it.
    chip=Ddr3Chip(platform="amaranth_boards.ecpix5:ECPIX585Platform", loader="ecpix5",
                  module="MT41K256M16", rcd_ns=13.75, rp_ns=13.75, ras_ns=35, wr_ns=15, rfc_ns=260,
                  faw_ns=40, device="LFE5UM5G-85F-8BG554C", oscillator="clk100",
                  oscillator_mhz=100.0, pins=(0, 75)),
)
