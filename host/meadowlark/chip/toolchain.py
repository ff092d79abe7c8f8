"""What makes a bitstream for a chip family, as building one needs it."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError

#: What a long step is told about its progress: one short line.
Progress = Callable[[str], None]


class Unroutable(UserError):
    """The router gets further from its end: another placement may do."""


@dataclass(frozen=True, kw_only=True)
class PathStep:
    """One hop of a critical path: ``kind`` is logic, routing, clk-to-q, setup or source."""
    kind: str
    delay_ns: float
    source: str
    sink: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What place and route found.

    Attributes
    ----------
    fmax_mhz : dict
        Highest frequency after routing of each clock, MHz.
    wanted_mhz : dict
        What each clock was to reach; of some nothing is known.
    used, available : dict
        Count of each kind of cell of the chip, such as TRELLIS_COMB.
    critical : list of PathStep
        The slowest path of the slowest clock, from register to register.
    """
    fmax_mhz: dict[str, float]
    used: dict[str, int]
    available: dict[str, int]
    critical: list[PathStep]
    wanted_mhz: dict[str, float] = field(default_factory=dict)

    @property
    def core_mhz(self) -> float:
        """The slowest clock, MHz."""
        return min(self.fmax_mhz.values(), default=0.0)


class Toolchain(Protocol):
    """Open tools for one technology of :mod:`meadowlark_hdl.tech`.

    Attributes
    ----------
    cells : dict
        What reports count: name -> cell of the chip.
    pins : str
        File with the pins among those that Amaranth's platform makes.
    """
    cells: dict[str, str]
    pins: str

    def check(self) -> None:
        """Raise a ``UserError`` that says what to install unless the tools are."""

    def synthesise(self, rtlil: str, directory: Path, *, verilog: Sequence[Path] = (),
                   dense: bool = False, progress: Progress | None = None) -> dict[str, int]:
        """Synthesise a chip, module ``top``, to ``top.json``; the count of each kind of cell.
        ``verilog``: modules that it only names. ``dense``: see :attr:`.Chip.dense`."""
        ...

    def place_and_route(self, platform: Any, directory: Path, *, seed: int, freq_mhz: float,
                        pins: Path, memory_pins: tuple[int, int] | None = None,
                        progress: Progress | None = None) -> Report:
        """Place and route ``top.json`` for a platform's chip. ``memory_pins``: where those are, in
        tiles, if that is to count. Raises :class:`Unroutable`."""
        ...

    def pack(self, directory: Path, bitstream: Path) -> None:
        """Make the bitstream of what :meth:`place_and_route` left in a directory below its own."""


def block_of(pin: str) -> str:
    """"top.core.wired.engine.lane3.sum_TRELLIS_FF_Q_3.DI" -> "engine.lane3.sum"."""
    name = pin.rpartition(".")[0]
    for above in ("top.", "dut.", "core.", "wired."):
        name = name.removeprefix(above)
    for kind in ("_TRELLIS", "_LUT", "_CCU", "_PFUMX", "_L6MUX", "_MULT18", "_DP16", "$", "["):
        name = name.split(kind)[0]
    return name


def path_lines(report: Report) -> list[str]:
    """The critical path in names of blocks: ns until a name is left, the hops in it, the name."""
    hops: list[tuple[float, int, str]] = []
    for step in report.critical:
        name, (total, count, last) = block_of(step.sink), hops[-1] if hops else (0.0, 0, "")
        if name == last and hops:
            hops[-1] = total + step.delay_ns, count + 1, name
        else:
            hops.append((total + step.delay_ns, 1, name))
    return [f"{total:6.2f} ns  {count:2} hops  {name}" for total, count, name in hops]
