"""AMD Kria KV260: Zynq UltraScale+ XCK26, 4 GB of 64-bit DDR4 at its processor system."""
from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import ULTRASCALE

from .board import Board, LinkInfo, MemoryTiming
from .chips import ZynqChip

BOARD = Board(
    name="kv260",
    title="KV260, XCK26, DDR4 of the processor at 16 bytes per cycle",
    # 128 multipliers for 1,248 DSP48E2. A beat is a word of the bus, so decode keeps lane 0 busy
    # and packing would gain nothing. Envelope: hidden 576, FFN 1,536, head 64, 32 layers,
    # vocabulary 49,152, 2,048 tokens.
    config=Config(
        W=16, P=8, bus_bytes=16,
        act_words=512, residual_values=16384, score_depth=2048, rope_pairs=2048, tile_beats=512,
        prog_depth=4096, context=2048, tight_keys=True, lane_pairs=True, softcap=True,
        unified=True,       # where decode waits for the array, what it waits for can be measured
    ),
    clock_mhz=200.0,                    # a target: no tool has placed it
    # Estimates. The port moves a sixth of what DDR4-2400 of 64 bits does, so most of what rows and
    # refresh cost is hidden behind it.
    memory=MemoryTiming(
        size_bytes=1 << 30,             # of 4 GB: the region that Linux leaves to the core
        bytes_per_s=3.2e9,
        latency_ns=250,                 # through interconnect and controller
        row_miss_ns=30,                 # tRP + tRCD = 28 ns
        page_bytes=8192,                # 1,024 columns x 64 bits
        banks=8,
        turnaround_ns=20,
        refresh_interval_ns=7800,       # tREFI
        refresh_ns=350,                 # tRFC (8 Gbit)
    ),
    link=LinkInfo(kind="axi"),
    family=ULTRASCALE,
    chip=ZynqChip(part="xck26-sfvc784-2LV-c", board_part="xilinx.com:kv260_som:part0:1.4"),
)
