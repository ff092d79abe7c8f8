"""What a board is: data only, validated once."""
from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, gcd
from typing import TYPE_CHECKING

from meadowlark_hdl.config import Config
from meadowlark_hdl.tech.family import GENERIC, Family

from .chips import Chip

if TYPE_CHECKING:
    from meadowlark_hdl.tech.generic import Technology


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """A memory beside a core's clock, in ticks of which both clocks' periods are whole numbers.

    core: a cycle of the core. word: a word of the core's port on the memory's bus. The others are
    the times of :class:`MemoryTiming`, never rounded down.
    """
    core: int
    word: int
    latency: int
    row_miss: int
    turnaround: int
    refresh_interval: int
    refresh: int


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """A memory seen through the core's memory port, whatever the core's clock is.

    The numbers describe what its bus moves at best and what keeps it from doing so; the simulated
    board and the compiler's cycle model read the same ones.

    Parameters
    ----------
    size_bytes : int
        Capacity.
    bytes_per_s : float
        Of the bus, while it moves words.
    latency_ns : float
        From a word's time on the memory bus to the core; with all that a command needs to get
        there.
    row_miss_ns : float
        Idle time before a burst that opens another row; hidden while an earlier burst to another
        bank runs.
    page_bytes : int, power of two
        Bytes of a row in one bank. Addresses map to {row, bank, column}.
    banks : int, power of two
        Banks with a row of their own.
    turnaround_ns : float
        Idle time when the bus changes direction.
    refresh_interval_ns : float
        Between groups of refreshes; 0: none.
    refresh_ns : float
        Length of a group, rows closed and opened again included.
    ahead_words : int
        Words of the core's port, beyond those of the latency, that wait for a core whose port is
        slower than the memory.
    """
    size_bytes: int
    bytes_per_s: float
    latency_ns: float
    row_miss_ns: float = 0.0
    page_bytes: int = 1024
    banks: int = 1
    turnaround_ns: float = 0.0
    refresh_interval_ns: float = 0.0
    refresh_ns: float = 0.0
    ahead_words: int = 16

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
        for name in ("bytes_per_s", "latency_ns"):
            value = getattr(self, name)
            need(value > 0, f"{name} must be positive, not {value!r}")
        for name in ("row_miss_ns", "turnaround_ns", "refresh_interval_ns"):
            value = getattr(self, name)
            need(value >= 0, f"{name} must not be negative, not {value!r}")
        need(self.refresh_ns >= 0 and (self.refresh_interval_ns == 0 or
             self.refresh_ns < self.refresh_interval_ns),
             "refresh_ns must be at least 0 and below refresh_interval_ns, "
             f"not {self.refresh_ns!r}")
        need(self.ahead_words >= 1, f"ahead_words must be at least 1, not {self.ahead_words!r}")

    def ticks(self, clock_mhz: float, bus_bytes: int) -> Ticks:
        """The times beside a core's clock, and for words of its port."""
        def exact(ns: float) -> Fraction:
            return Fraction(ns).limit_denominator(1000)
        core, word = exact(1000 / clock_mhz), exact(bus_bytes * 1e9 / self.bytes_per_s)
        tick = Fraction(gcd(core.numerator * word.denominator, word.numerator * core.denominator),
                        core.denominator * word.denominator)

        def whole(ns: float) -> int:
            return ceil(ns / float(tick) - 0.01)    # 166.7 ns are ten cycles at 60 MHz
        return Ticks(core=int(core / tick), word=int(word / tick), latency=whole(self.latency_ns),
                     row_miss=whole(self.row_miss_ns), turnaround=whole(self.turnaround_ns),
                     refresh_interval=whole(self.refresh_interval_ns),
                     refresh=whole(self.refresh_ns))

    def faster(self, times: float) -> MemoryTiming:
        """The same in a clock that is quicker by a factor."""
        return replace(self, bytes_per_s=self.bytes_per_s * times, **{
            name: getattr(self, name) / times for name in (
                "latency_ns", "row_miss_ns", "turnaround_ns", "refresh_interval_ns", "refresh_ns")})


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
        External memory behind the core's port.
    link : LinkInfo
        Host link.
    family : Family
        Of the chip, see :mod:`meadowlark_hdl.tech`: what the core's cells become, and which tools
        make a bitstream.
    chip : Chip
        What stands around the core.
    """
    name: str
    title: str
    config: Config
    clock_mhz: float
    memory: MemoryTiming
    link: LinkInfo
    family: Family = GENERIC
    chip: Chip = Chip()

    def __post_init__(self) -> None:
        if not self.clock_mhz > 0:
            raise ValueError(f"clock_mhz must be positive, not {self.clock_mhz!r}")

    @property
    def technology(self) -> Technology:
        """What the chip's family gives; needs Amaranth."""
        return self.family.technology

    @property
    def bandwidth(self) -> float:
        """Peak of the memory bus, bytes per second."""
        return self.memory.bytes_per_s

    @property
    def bytes_per_cycle(self) -> float:
        """Peak of the memory bus, bytes per cycle of the core."""
        return self.memory.bytes_per_s / (self.clock_mhz * 1e6)

    def at(self, clock_mhz: float) -> Board:
        """The board with another core clock; a memory without a clock of its own follows."""
        memory = self.memory
        if self.chip.follows_core and clock_mhz != self.clock_mhz:
            memory = memory.faster(clock_mhz / self.clock_mhz)
        return replace(self, clock_mhz=clock_mhz, memory=memory)
