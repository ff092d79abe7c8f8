"""AMD ZCU102: Zynq UltraScale+ XCZU9EG, 4 GB of 64-bit DDR4 at its processor system."""
from dataclasses import replace

from .chips import ZynqChip
from .kv260 import BOARD as KV260

# The core, memory and link of the KV260; the chip is larger, which this core has no use for.
BOARD = replace(
    KV260, name="zcu102", title="ZCU102, XCZU9EG, DDR4 of the processor at 16 bytes per cycle",
    chip=ZynqChip(part="xczu9eg-ffvb1156-2-e", board_part="xilinx.com:zcu102:part0:3.4"))
