"""The window of AXI4-Lite registers as pure data, for gateware, host and docs/registers.md."""
from .protocol import Register

#: Bits of an address in the window; 4 KiB.
WINDOW_BITS = 12
#: First word of the window.
WINDOW_MAGIC = int.from_bytes(b"LAXI", "little")
#: Changes with a register of the window.
WINDOW_VERSION = 1
#: The core's memory begins at a multiple of this.
BASE_BYTES = 4096
#: Most bytes that a load from ``data`` gives.
LOAD_BYTES = 3

#: Bits of ``control``.
CONTROL_MEMORY, CONTROL_INTERRUPT = 1, 2
#: Bits of ``status``.
STATUS_LISTENS, STATUS_FAULT = 1, 2

#: Every register of the window; addresses in bytes.
WINDOW = (
    Register("id", 0x00, 32, "const", 'the bytes "LAXI"'),
    Register("version", 0x04, 16, "const", "version of this window"),
    Register("memory_kib", 0x08, 32, "const", "size of the region that the core takes as memory"),
    Register("control", 0x0C, 2, "rw", "bit 0: the memory may be used; bit 1: irq is high while "
             "bytes wait for the host"),
    Register("status", 0x10, 2, "live", "bit 0: the core listens; bit 1: an access to memory was "
             "answered with an error since the reset"),
    Register("base_low", 0x14, 32, "rw", "address of the region, a multiple of 4096; stores while "
             "the memory may be used are left out"),
    Register("base_high", 0x18, 8, "rw", "bits 39:32 of that address"),
    Register("waiting", 0x1C, 8, "live", "bytes that wait for the host"),
    Register("data", 0x20, 32, "rw", "store: the bytes with a strobe go to the core, the lowest "
             "first; load: bits 31:24 say how many bytes, 0 to 3, the others hold, the first in "
             "the lowest"),
    Register("drop", 0x24, 1, "w", "any store drops the bytes on their way, in both directions"),
)
#: Name -> address in bytes.
WINDOW_ADDRESS = {r.name: r.address for r in WINDOW}
