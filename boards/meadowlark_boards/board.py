"""What a board is: data only, validated once."""
from __future__ import annotations

from dataclasses import dataclass

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.sdram_part import SdramPart


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """A memory seen through the core's memory port, in cycles of the core's clock.

    The bus moves one word of ``Config.bus_bytes`` a cycle. The numbers describe what keeps it from
    doing so; the simulated board and the compiler's cycle model read the same ones.

    Parameters
    ----------
    size_bytes : int
        Capacity.
    latency_cycles : int, 1..1024
        From a word's cycle on the memory bus to the core.
    row_miss_cycles : int, 0..1024
        Idle cycles before a burst that opens another row; hidden while an earlier burst to another
        bank runs.
    page_bytes : int, power of two
        Bytes of a row in one bank. Addresses map to {row, bank, column}.
    banks : int, power of two
        Banks with a row of their own.
    turnaround_cycles : int, 0..1024
        Idle cycles when the bus changes direction.
    refresh_interval_cycles : int
        Between groups of refreshes; 0: none.
    refresh_cycles : int
        Length of a group, rows closed and opened again included.
    """
    size_bytes: int
    latency_cycles: int
    row_miss_cycles: int = 0
    page_bytes: int = 1024
    banks: int = 1
    turnaround_cycles: int = 0
    refresh_interval_cycles: int = 0
    refresh_cycles: int = 0

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(what)
        for name in ("page_bytes", "banks"):
            value = getattr(self, name)
            need(value > 0 and value & (value - 1) == 0,
                 f"{name} must be a power of two, not {value!r}")
        need(self.size_bytes > 0 and self.size_bytes % self.page_bytes == 0,
             f"size_bytes must be a positive multiple of page_bytes, not {self.size_bytes!r}")
        need(1 <= self.latency_cycles <= 1024,
             f"latency_cycles must be in 1..1024, not {self.latency_cycles!r}")
        for name in ("row_miss_cycles", "turnaround_cycles"):
            value = getattr(self, name)
            need(0 <= value <= 1024, f"{name} must be in 0..1024, not {value!r}")
        need(self.refresh_interval_cycles >= 0, "refresh_interval_cycles must not be negative, "
             f"not {self.refresh_interval_cycles!r}")
        need(self.refresh_cycles >= 0 and (self.refresh_interval_cycles == 0 or
             self.refresh_cycles < self.refresh_interval_cycles),
             "refresh_cycles must be at least 0 and below refresh_interval_cycles, "
             f"not {self.refresh_cycles!r}")

    @property
    def refresh_share(self) -> float:
        """Fraction of cycles taken by refresh, 0..1."""
        if not self.refresh_interval_cycles:
            return 0.0
        return self.refresh_cycles / self.refresh_interval_cycles


@dataclass(frozen=True, kw_only=True)
class LinkInfo:
    """How the host reaches the board.

    Parameters
    ----------
    kind : str
        "uart", "axi" (registers that a processor on the chip sees), or "queue" (the simulated
        board's byte queues).
    baud : int
        Bits a second of a UART, else 0.
    """
    kind: str
    baud: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("uart", "axi", "queue"):
            raise ValueError(f"kind must be uart, axi or queue, not {self.kind!r}")
        if (self.baud > 0) != (self.kind == "uart"):
            raise ValueError(f"baud must be positive for a uart and 0 for others, "
                             f"not {self.baud!r}")


@dataclass(frozen=True, kw_only=True)
class SdramInfo:
    """What a board with SDR SDRAM needs besides its platform.

    Parameters
    ----------
    part : SdramPart
        The slowest of the chips it is sold with.
    oscillator : str
        Resource of its clock input.
    oscillator_mhz : float
    loader : str
        Its name in openFPGALoader.
    clock_mhz : float, optional
        The SDRAM's clock; without it, the core's. With it ``Config.bus_bytes`` is a multiple of the
        chip's bus.
    """
    part: SdramPart
    oscillator: str
    oscillator_mhz: float
    loader: str
    clock_mhz: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ddr3Info:
    """What a board with DDR3 needs besides its platform.

    Parameters
    ----------
    module : str
        The chip's class in LiteDRAM's ``modules.py``: its geometry.
    rcd_ns, rp_ns, ras_ns, wr_ns, rfc_ns, faw_ns : float
        Its datasheet's least times.
    device : str
        The FPGA as LiteX calls it.
    oscillator : str
        Resource of its clock input.
    oscillator_mhz : float
    loader : str
        Its name in openFPGALoader.
    pins : (int, int)
        Where on the FPGA the chip's pins are, (x, y) in tiles: the controller will be beside them.
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
    loader: str
    pins: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ZynqInfo:
    """What Vivado needs for a board with a Zynq UltraScale+; the core uses the processor's memory.

    Parameters
    ----------
    part : str
        The chip.
    board_part : str
        Whose preset the processor system gets.
    window : int
        Where the processor sees the core's registers: 4 KiB of M_AXI_HPM0_FPD.
    """
    part: str
    board_part: str
    window: int = 0xA000_0000


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board and the core that is built for it.

    Parameters
    ----------
    name : str
        What ``--board`` takes.
    title : str
        One line for people.
    config : Config
        The core. Every model within its envelope runs without another build.
    clock_mhz : float
        Core clock.
    memory : MemoryTiming
        External memory behind the core's port; same clock.
    link : LinkInfo
        Host link.
    platform : str
        ``module:class`` of the amaranth-boards platform; empty where there is no hardware.
    sdram : SdramInfo, optional
        Of a board whose memory is SDR SDRAM.
    ddr3 : Ddr3Info, optional
        Of a board whose memory is DDR3 behind a LiteDRAM core.
    zynq : ZynqInfo, optional
        Of a board whose memory and host are a processor's.
    """
    name: str
    title: str
    config: Config
    clock_mhz: float
    memory: MemoryTiming
    link: LinkInfo
    platform: str = ""
    sdram: SdramInfo | None = None
    ddr3: Ddr3Info | None = None
    zynq: ZynqInfo | None = None

    def __post_init__(self) -> None:
        if not self.clock_mhz > 0:
            raise ValueError(f"clock_mhz must be positive, not {self.clock_mhz!r}")

    @property
    def bandwidth(self) -> float:
        """Peak of the memory bus, bytes per second."""
        return self.config.bus_bytes * self.clock_mhz * 1e6
