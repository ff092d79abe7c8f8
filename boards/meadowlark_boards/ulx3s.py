"""What all ULX3S have: 32 MB of 16-bit SDR SDRAM with a clock of its own, an oscillator, a UART."""
from meadowlark_hdl.memory.sdram_part import MT48LC16M16A2_75

from .board import LinkInfo, MemoryTiming
from .chips import SdramChip

#: Boards come with chips of Micron, ISSI or Alliance; this one is the slowest of them. All reach
#: 133.33 MHz.
CHIP = SdramChip(part=MT48LC16M16A2_75, oscillator="clk25", oscillator_mhz=25.0, loader="ulx3s",
                 clock_mhz=400 / 3, phase=3 / 8)

#: CL 3, tRCD = tRP = 3, tRFC = 9 cycles of 7.5 ns, behind the crossing to the core's clock.
MEMORY = MemoryTiming(
    size_bytes=32 << 20,
    bytes_per_s=800e6 / 3,      # 2 bytes a cycle
    latency_ns=287,             # crossing, controller, pads, CL 3: docs/boards.md adds them up
    row_miss_ns=60,             # tRP + tRCD and the command's way
    page_bytes=1024,            # 512 columns x 16 bits
    banks=4,
    turnaround_ns=52.5,         # write recovery, CL and the bus's direction
    refresh_interval_ns=62_400,     # eight refreshes of 7.8 us
    refresh_ns=645,             # tRFC each, precharge before and activate after
    ahead_words=320,            # of the queue up, less three commands under way
)

#: Of the baud rates that the board's FT231X makes from 3 MHz, the quickest that is within 1 % at
#: every core clock which the PLL makes beside the SDRAM's.
LINK = LinkInfo(kind="uart", baud=1_333_333)
