"""What stands around the core of a board: with its memory, clocks, pins and link it is a chip.

One class for each kind of memory. All that differs by kind is a field or a method of
:class:`Chip`; who builds, loads, simulates or lists boards asks for no kind.
"""
from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meadowlark_hdl.memory.sdram_part import SdramPart

if TYPE_CHECKING:
    from meadowlark_hdl.memory.ddr3_init import LiteDramCore

    from .board import Board


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Nothing around the core: a board that exists in simulation only.

    Parameters
    ----------
    platform : str
        ``module:class`` of the amaranth-boards platform; empty where open tools make no bitstream.
    loader : str
        Its name in openFPGALoader.
    pins : (int, int), optional
        Where on the FPGA the memory's pins are, (x, y) in tiles: its controller will be beside
        them.
    dense : bool
        The core fills the FPGA so far that few LUTs and wires come before speed.
    """
    platform: str = ""
    loader: str = ""
    pins: tuple[int, int] | None = None
    dense: bool = False

    @property
    def follows_core(self) -> bool:
        """The memory has the core's clock, or one of a fixed ratio to it."""
        return False

    @property
    def memory_mhz(self) -> float | None:
        """The memory's clock, if that is one of the chip's own."""
        return None

    def new_platform(self, board: Board) -> Any:
        """A new platform of ``amaranth_boards``, with the board's technology.

        Raises
        ------
        ValueError
            No bitstream is made that way; the message says why.
        """
        if not self.platform:
            raise ValueError(f"board {board.name} has no bitstream: it exists in simulation only")
        module, _, name = self.platform.partition(":")
        platform = getattr(import_module(module), name)()
        platform.technology = board.technology
        return platform

    def core_clocks(self, board: Board) -> list[float]:
        """Core clocks that can be made, MHz; none if it is not for us to choose."""
        return []

    def core_clock(self, board: Board, wanted_mhz: float) -> float:
        """The core clock next to one that is wanted, MHz.

        Raises
        ------
        ValueError
            There is none near, memory or link cannot have it, or it is not for us to choose.
        """
        raise ValueError(f"the clock of board {board.name} is its memory's; leave --clock out")

    def litedram(self, board: Board) -> dict[str, Any] | None:
        """What ``meadowlark.chip.litedram`` has to know for the core that :meth:`top` needs of it;
        None: none."""
        return None

    def top(self, board: Board, core: LiteDramCore | None = None) -> Any:
        """The whole chip, to be elaborated for the board's platform or technology. ``core``: see
        :meth:`litedram`."""
        raise ValueError(f"board {board.name} has no chip: it exists in simulation only")

    def bench(self, board: Board) -> Any:
        """The whole chip with its pins as ports, for simulation beside a model of its memory.

        Raises
        ------
        ValueError
            There is no such model.
        """
        raise ValueError(f"board {board.name} has no pins to simulate; give one with SDRAM, such "
                         "as ulx3s_85f")


@dataclass(frozen=True, kw_only=True)
class SdramChip(Chip):
    """SDR SDRAM, a UART, and a PLL.

    Parameters
    ----------
    part : SdramPart
        The slowest of the chips it is sold with.
    oscillator : str
        Resource of its clock input.
    oscillator_mhz : float
    clock_mhz : float, optional
        The SDRAM's clock; without it, the core's. With it ``Config.bus_bytes`` is a multiple of the
        chip's bus.
    phase : float
        How much later the SDRAM's clock is at its pin than at the controller, in periods of it, so
        that :meth:`.SdramPart.round_trip` holds with time to spare. docs/boards.md says which.
    """
    part: SdramPart
    oscillator: str
    oscillator_mhz: float
    phase: float
    clock_mhz: float | None = None

    @property
    def follows_core(self) -> bool:
        return self.clock_mhz is None

    @property
    def memory_mhz(self) -> float | None:
        return self.clock_mhz

    def core_clocks(self, board: Board) -> list[float]:
        found = []
        for mhz in board.technology.pll_clocks(self.oscillator_mhz, self.clock_mhz):
            try:
                self.core_clock(board, mhz)
            except ValueError:
                continue
            found.append(mhz)
        return found

    def core_clock(self, board: Board, wanted_mhz: float) -> float:
        from meadowlark_hdl.link.uart import divisor
        made = board.technology.pll_clock(self.oscillator_mhz, wanted_mhz, self.clock_mhz)
        self.part.at(self.clock_mhz or made)
        divisor(made * 1e6, board.link.baud)
        return made

    def top(self, board: Board, core: LiteDramCore | None = None) -> Any:
        from meadowlark_hdl.chips.sdram_top import SdramTop
        return SdramTop(board.config, self.part, name=board.name, clock_mhz=board.clock_mhz,
                        input_mhz=self.oscillator_mhz, clock_pin=self.oscillator,
                        baud=board.link.baud, phase=self.phase, memory_mhz=self.clock_mhz)

    def bench(self, board: Board) -> Any:
        from meadowlark_hdl.chips.sdram_top import SdramBench
        return SdramBench(board.config, self.part, name=board.name, clock_mhz=board.clock_mhz,
                          baud=board.link.baud, memory_mhz=self.clock_mhz)


@dataclass(frozen=True, kw_only=True)
class Ddr3Chip(Chip):
    """DDR3 behind a LiteDRAM core, which makes the core's clock too, and a UART.

    Parameters
    ----------
    module : str
        The memory chip's class in LiteDRAM's ``modules.py``: its geometry.
    rcd_ns, rp_ns, ras_ns, wr_ns, rfc_ns, faw_ns : float
        Its datasheet's least times.
    device : str
        The FPGA as LiteX calls it.
    oscillator : str
        Resource of its clock input.
    oscillator_mhz : float
    """
    module: str
    rcd_ns: float
    rp_ns: float
    ras_ns: float
    wr_ns: float
    rfc_ns: float
    faw_ns: float
    device: str
    oscillator: str
    oscillator_mhz: float

    #: Settings of LiteDRAM's controller (core/controller.py). Refreshes come in pairs, which closes
    #: and opens the rows half as often; the queue of a bank holds what half a row's words need.
    CONTROLLER = {"cmd_buffer_depth": 16, "refresh_postponing": 2}

    @property
    def follows_core(self) -> bool:
        return True

    def litedram(self, board: Board) -> dict[str, Any] | None:
        return {"module": self.module, "device": self.device, "input_mhz": self.oscillator_mhz,
                "clock_mhz": board.clock_mhz, "controller": self.CONTROLLER,
                "ns": {name: getattr(self, f"{name}_ns")
                       for name in ("rp", "rcd", "ras", "wr", "rfc", "faw")}}

    def top(self, board: Board, core: LiteDramCore | None = None) -> Any:
        from meadowlark_hdl.chips.ddr3_top import Ddr3Top
        assert core is not None
        return Ddr3Top(board.config, core, name=board.name, clock_mhz=board.clock_mhz,
                       clock_pin=self.oscillator, baud=board.link.baud,
                       memory_bytes=board.memory.size_bytes)


@dataclass(frozen=True, kw_only=True)
class ZynqChip(Chip):
    """Memory and host are a processor's on the same chip, behind AXI.

    Parameters
    ----------
    part : str
        The chip, for Vivado.
    board_part : str
        Whose preset the processor system gets.
    window : int
        Where the processor sees the core's registers: 4 KiB of M_AXI_HPM0_FPD.
    """
    part: str
    board_part: str
    window: int = 0xA000_0000

    def new_platform(self, board: Board) -> Any:
        raise ValueError(f"board {board.name} is loaded by its own processor: run `meadowlark "
                         f"build --board {board.name}` and follow the README.md that it writes")

    def top(self, board: Board, core: LiteDramCore | None = None) -> Any:
        from meadowlark_hdl.chips.axi_top import AxiTop
        return AxiTop(board.config, name=board.name, clock_mhz=board.clock_mhz,
                      memory_bytes=board.memory.size_bytes)
