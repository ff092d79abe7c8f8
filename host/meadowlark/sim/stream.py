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
    _fields_ = [(name, ctypes.c_uint64) for name in ("words", "wrong", "refreshes", "violated")] + [
        ("ns", ctypes.c_double), ("violation", ctypes.c_char * 200)]


@dataclass(frozen=True)
class Stream:
    """words of ``bus_bytes`` read in ns, from the first to the last; those of them that were wrong;
    REFRESH commands, those of power-up included; what the chip objected to, or nothing."""
    words: int
    bus_bytes: int
    ns: float
    wrong: int
    refreshes: int
    violation: str

    @property
    def bytes_per_s(self) -> float:
        return self.words * self.bus_bytes / self.ns * 1e9 if self.ns else 0.0


def stream(part: SdramPart, clock_mhz: float, words: int, *, phase: float,
           memory_mhz: float | None = None, first: int = 0, chip: SdramPart | None = None,
           round_trip: float = ROUND_TRIP_NS, offset: float = 0.0) -> Stream:
    """Read ``words`` words of the core from ``first`` on, in bursts as long as the core's.

    ``phase``: how much later than the controller's the chip's clock is, in periods.
    ``memory_mhz``: the memory's own clock; a word of the core is then two of the memory.
    ``chip``: the one that checks; a stricter one than the controller's shows that it does.
    ``round_trip``: ns of the pads and wires, out and back. ``offset``: ns from the core's first
    edge to the memory's.
    """
    config = Config(W=8, P=4, bus_bytes=part.data_bits // 8)
    if memory_mhz is not None:
        config = config.replace(bus_bytes=2 * config.bus_bytes, burst_words=config.burst_words // 2,
                                fifo_words=config.fifo_words // 2)
    size = part.size_bytes // config.bus_bytes
    if not 0 <= first <= first + words <= size:
        raise ValueError(f"{words} words from {first} on do not fit {part.name}, which has {size}")
    verilog = to_verilog(SdramStream(config, part, clock_mhz, memory_mhz))
    library = ctypes.CDLL(str(build(verilog, config, tap=False, harness=STREAM,
                                    memory_clock=memory_mhz is not None)))
    found = _Found()
    model = chip_of(chip or part, clock_mhz, memory_mhz, phase=phase, round_trip=round_trip,
                    offset=offset)
    library.stream_run(ctypes.byref(model), ctypes.c_uint64(first), ctypes.c_uint64(words),
                       ctypes.c_uint64(config.burst_words), ctypes.byref(found))
    return Stream(found.words, config.bus_bytes, found.ns, found.wrong, found.refreshes,
                  found.violation.decode())
