"""A long read through the SDRAM controller alone: how much of the chip's peak is left?"""
from __future__ import annotations

import ctypes
from dataclasses import dataclass

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram import SdramController
from meadowlark_hdl.memory.sdram_part import SdramPart

from .build import STREAM, build, to_verilog
from .pins import chip_of


class StreamBench(wiring.Component):
    """The controller with its registers in the pads, as in :class:`.sdram_top.SdramTop`; commands
    are high when asserted. Nothing is written."""

    def __init__(self, config: Config, part: SdramPart, clock_mhz: float) -> None:
        self.controller = SdramController(config, part, clock_mhz=clock_mhz, pads=2)
        self.widths = {"cke": 1, "ras": 1, "cas": 1, "we": 1, "ba": part.bank_bits,
                       "a": max(part.row_bits, 11), "dqm": part.data_bits // 8,
                       "dq_o": part.data_bits, "dq_oe": 1}
        super().__init__({name: Out(width) for name, width in self.widths.items()} | {
            "dq_i": In(part.data_bits), "ready": Out(1),
            "r_cmd_valid": In(1), "r_cmd_ready": Out(1), "r_cmd_addr": In(32),
            "r_cmd_len": In(range(config.burst_words)),
            "r_data_valid": Out(1), "r_data": Out(part.data_bits)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.controller = controller = self.controller
        pins, port = controller.pins, controller.port
        for name in self.widths:
            value = ~getattr(pins, f"{name}_n") if name in ("ras", "cas", "we") else \
                getattr(pins, name)
            m.d.sync += getattr(self, name).eq(value)
        pad = Signal.like(pins.dq_i)
        m.d.sync += pad.eq(self.dq_i)                       # type: ignore[attr-defined]
        m.d.comb += [
            pins.dq_i.eq(pad), self.ready.eq(port.ready), port.r_cmd.valid.eq(self.r_cmd_valid),
            port.r_cmd.payload.addr.eq(self.r_cmd_addr), port.r_cmd.payload.len.eq(self.r_cmd_len),
            self.r_cmd_ready.eq(port.r_cmd.ready), self.r_data_valid.eq(port.r_data.valid),
            self.r_data.eq(port.r_data.payload), port.r_data.ready.eq(1)]
        return m


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
           chip: SdramPart | None = None) -> Stream:
    """Read ``words`` words from ``first`` on, in bursts as long as the core's.

    ``chip``: the one that checks; a stricter one than the controller's shows that it does.
    """
    config = Config(W=8, P=4, bus_bytes=part.data_bits // 8)
    size = part.size_bytes // config.bus_bytes
    if not 0 <= first <= first + words <= size:
        raise ValueError(f"{words} words from {first} on do not fit {part.name}, which has {size}")
    verilog = to_verilog(StreamBench(config, part, clock_mhz))
    library = ctypes.CDLL(str(build(verilog, config, tap=False, harness=STREAM)))
    found = _Found()
    library.stream_run(ctypes.byref(chip_of(chip or part, clock_mhz)), ctypes.c_uint64(first),
                       ctypes.c_uint64(words), ctypes.c_uint64(config.burst_words),
                       ctypes.byref(found))
    return Stream(found.words, found.cycles, found.wrong, found.refreshes,
                  found.violation.decode())
