"""The simulated board at its pins: memory chip and UART in C++, everything else is the bitstream's.
"""
from __future__ import annotations

import ctypes

from meadowlark_boards import Board, SdramChip
from meadowlark_hdl.link.uart import divisor
from meadowlark_hdl.memory.sdram_part import SdramPart

from ..errors import UserError
from .board import SimBoard, SimulationError, open_library
from .build import PINS, Progress, build, pins_verilog

_WORDS = ("size_bytes", "row_bits", "col_bits", "bank_bits", "data_bits", "mrd_cycles", "refreshes",
          "divisor")
_TIMES = ("core_period", "offset", "period", "rcd", "rp", "ras", "rc", "rrd", "rfc", "wr",
          "refresh_ms", "init_us", "access", "hold", "round_trip", "phase")
#: From the core's edge to a pin of the SDRAM and back to the pad's register, in ns, by the ECP5's
#: data sheet: 4 out, 1 back. SdramPart.round_trip says what is allowed.
ROUND_TRIP_NS = 5.0


class _Chip(ctypes.Structure):
    _fields_ = [(x, ctypes.c_uint64) for x in _WORDS] + [(x, ctypes.c_double) for x in _TIMES] + [
        ("clock_ns", ctypes.c_double * 4)]


def chip_of(part: SdramPart, clock_mhz: float, memory_mhz: float | None = None, *, phase: float,
            divisor: int = 1, round_trip: float = ROUND_TRIP_NS,
            offset: float = 0.0) -> ctypes.Structure:
    """A part as the C++ model takes it.

    ``memory_mhz``: its clock, unless it has the core's. ``phase``: how much later than the
    controller's it is, in periods. ``divisor``: cycles of a bit of the UART. ``offset``: ns from
    the core's first edge to the memory's.
    """
    clocks = (ctypes.c_double * 4)(*(part.clock_ns.get(cas, 0.0) for cas in range(4)))
    return _Chip(
        part.size_bytes, part.row_bits, part.col_bits, part.bank_bits, part.data_bits,
        part.mrd_cycles, part.refreshes, divisor, 1000 / clock_mhz, offset,
        1000 / (memory_mhz or clock_mhz), part.rcd_ns, part.rp_ns, part.ras_ns, part.rc_ns,
        part.rrd_ns, part.rfc_ns, part.wr_ns, part.refresh_ms, part.init_us, part.access_ns,
        part.hold_ns, round_trip, phase, clocks)


def check_pins(board: Board) -> SdramChip:
    """The board's chip; :class:`UserError` unless its memory is SDR SDRAM."""
    if not isinstance(board.chip, SdramChip):
        raise UserError(f"board {board.name} has no pins to simulate; give one with SDRAM, such as "
                        "ulx3s_85f")
    return board.chip


class PinBoard(SimBoard):
    """A board with SDR SDRAM, simulated down to the pins of its chip.

    The top is the one that is synthesised, memory controller, UART and pad registers included; PLL
    and clock pad are left out. The SDRAM checks every command against its datasheet.

    Parameters
    ----------
    board : Board
    progress : callable, optional
        See :func:`.build.build`.
    round_trip : float
        ns of pads and wires, out to the SDRAM and back.

    Raises
    ------
    UserError
        The board has no SDR SDRAM.
    """

    def __init__(self, board: Board, *, progress: Progress | None = None,
                 round_trip: float = ROUND_TRIP_NS) -> None:
        chip = check_pins(board)
        self.board, part, memory_mhz = board, chip.part, chip.clock_mhz
        self._lib = open_library(build(
            pins_verilog(board, progress), board.config, tap=False, harness=PINS,
            memory_clock=memory_mhz is not None, progress=progress))
        self._lib.sim_violation.restype = ctypes.c_char_p
        self._lib.sim_violation.argtypes = [ctypes.c_void_p]
        bit = divisor(board.clock_mhz * 1e6, board.link.baud)
        self._begin(chip_of(part, board.clock_mhz, memory_mhz, phase=chip.phase, divisor=bit,
                            round_trip=round_trip))
        self.quiet = 20 * bit

    def _faulty(self) -> SimulationError | None:
        text = self._lib.sim_violation(self._sim).decode()
        return SimulationError(f"the SDRAM was misused, {text}") if text else None
