"""A long read through the SDRAM controller alone: how much of the chip's peak is left?"""
from __future__ import annotations

import ctypes
from dataclasses import dataclass

from meadowlark_hdl.chips.sdram_top import SdramStream
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram_part import SdramPart

from .build import STREAM, build, to_verilog
from .pins import ROUND_TRIP_NS, chip_of


class _Found(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64)
                for name in ("words", "cycles", "wrong", "refreshes", "violated")] + [
        ("violation", ctypes.c_char * 200)]


@dataclass(frozen=True)
class Stream:
    """words read in cycles, from the first to the last; those of them that were wrong; REFRESH
    commands, those of power-up included; what the chip objected to, or nothing."""
    words: int
    cycles: int
    wrong: int
    refreshes: int
    violation: str

    @property
    def share(self) -> float:
        """Of the chip's peak, a word a cycle."""
        return self.words / self.cycles if self.cycles else 0.0


def stream(part: SdramPart, clock_mhz: float, words: int, *, first: int = 0,
           chip: SdramPart | None = None, round_trip: float = ROUND_TRIP_NS) -> Stream:
    """Read ``words`` words from ``first`` on, in bursts as long as the core's.

    ``chip``: the one that checks; a stricter one than the controller's shows that it does.
    ``round_trip``: ns of the pads and wires, out and back.
    """
    config = Config(W=8, P=4, bus_bytes=part.data_bits // 8)
    size = part.size_bytes // config.bus_bytes
    if not 0 <= first <= first + words <= size:
        raise ValueError(f"{words} words from {first} on do not fit {part.name}, which has {size}")
    verilog = to_verilog(SdramStream(config, part, clock_mhz))
    library = ctypes.CDLL(str(build(verilog, config, tap=False, harness=STREAM)))
    found = _Found()
    model = chip_of(chip or part, clock_mhz, round_trip=round_trip)
    library.stream_run(ctypes.byref(model), ctypes.c_uint64(first), ctypes.c_uint64(words),
                       ctypes.c_uint64(config.burst_words), ctypes.byref(found))
    return Stream(found.words, found.cycles, found.wrong, found.refreshes,
                  found.violation.decode())
