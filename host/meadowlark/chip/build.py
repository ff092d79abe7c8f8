"""A board's bitstream by the open toolchain: Yosys, nextpnr and ecppack."""
from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.generic import Technology

from ..cache import digest, source_files
from ..errors import UserError
from ..files import write_atomic
from .ecp5 import Ecp5Tools
from .litedram import generate
from .toolchain import Progress, Report, Toolchain, Unroutable, path_lines

if TYPE_CHECKING:
    from meadowlark_boards import Board

#: What makes bitstreams here. Of other technologies the vendors' tools do.
TOOLS: dict[Technology, Toolchain] = {ECP5: Ecp5Tools()}

#: Core clocks that may be asked for.
LEAST_MHZ, MOST_MHZ = 10, 200


@dataclass(frozen=True)
class Built:
    """A bitstream and what it is made of.

    board: with the core clock that it is driven with. bitstream: file. seed: the placement it comes
    from. placement: its folder. report: of that placement. tried: what the core's clock reached in
    MHz by seed, None if it did not route. cells: of the netlist, by type.
    """
    board: Board
    bitstream: Path
    seed: int
    placement: Path
    report: Report
    tried: dict[int, float | None]
    cells: dict[str, int]

    @property
    def meets_timing(self) -> bool:
        """Every clock reaches what it is driven with."""
        return met(self.board, self.report)


def met(board: Board, report: Report) -> bool:
    """Every clock reaches what the board drives it with."""
    return all(mhz >= report.wanted_mhz.get(name, board.clock_mhz)
               for name, mhz in report.fmax_mhz.items())


def core_mhz(board: Board, report: Report) -> float:
    """What the core's clock reached: the slowest of those that are not the SDRAM's own."""
    memory = board.chip.memory_mhz
    others = [mhz for name, mhz in report.fmax_mhz.items()
              if memory is None
              or abs(report.wanted_mhz.get(name, board.clock_mhz) - memory) > 0.005 * memory]
    return min(others, default=report.core_mhz)


def clocks(board: Board) -> list[float]:
    """Core clocks that can be made on the board and suit its memory and link, MHz, slowest first;
    none if the core's clock is not ours to choose."""
    return [mhz for mhz in board.chip.core_clocks(board) if LEAST_MHZ <= mhz <= MOST_MHZ]


def at_clock(board: Board, clock_mhz: float) -> Board:
    """The board with the core clock that its PLL makes next to one that is asked for.

    Raises
    ------
    UserError
        There is none, or memory or link cannot have it.
    """
    if not LEAST_MHZ <= clock_mhz <= MOST_MHZ:
        raise UserError(f"--clock must be {LEAST_MHZ}..{MOST_MHZ} MHz, not {clock_mhz:g}")
    try:
        return board.at(board.chip.core_clock(board, clock_mhz))
    except ValueError as error:
        raise UserError(str(error)) from error


def platform_of(board: Board) -> Any:
    """A new platform of ``amaranth_boards``, with the board's technology.

    Raises
    ------
    UserError
        The board is a simulation only, or Vivado's.
    """
    try:
        return board.chip.new_platform(board)
    except ValueError as error:
        raise UserError(str(error)) from error


def tools_of(board: Board) -> Toolchain:
    """What makes the board's bitstream; :class:`UserError` if that is no tool known here."""
    platform_of(board)
    try:
        return TOOLS[board.technology]
    except KeyError:
        raise UserError(f"no open tools are known for {board.technology.name}, the chip of board "
                        f"{board.name}") from None


def design(board: Board, directory: Path | None = None) -> tuple[str, str]:
    """The whole chip as RTLIL, and its pins as a constraint file.

    ``directory``: where the LiteDRAM core of a board that needs one goes, which :func:`modules`
    names.
    """
    tools, platform = tools_of(board), platform_of(board)
    core = None
    if (wanted := board.chip.litedram(board)) is not None:
        assert directory is not None
        core, _ = generate(wanted, directory / "litedram")
    plan = platform.prepare(board.chip.top(board, core), "top", emit_src=False)
    files = {name: text.decode() if isinstance(text, bytes) else text
             for name, text in plan.files.items()}
    return files["top.il"], files[tools.pins]


def modules(board: Board, directory: Path) -> list[Path]:
    """Verilog that :func:`design` only names."""
    return [directory / "litedram" / "litedram_core.v"] if board.chip.litedram(board) else []


def synthesise(board: Board, directory: Path, progress: Progress | None = None) -> dict[str, int]:
    """Make the netlist of a board's chip, and beside it the constraints of its pins.

    Returns
    -------
    dict
        Count of each cell of the netlist, such as LUT4.

    Raises
    ------
    UserError
        Synthesis is not installed, the board has no bitstream, or a tool failed.
    """
    tools = tools_of(board)
    tools.check()
    directory.mkdir(parents=True, exist_ok=True)
    if progress:
        progress("elaborating the chip")
    rtlil, pins = design(board, directory)
    (directory / tools.pins).write_text(pins)
    return tools.synthesise(rtlil, directory, verilog=modules(board, directory),
                            dense=board.chip.dense, progress=progress)


def build_fastest(board: Board, directory: Path, *, seeds: int = 3,
                  progress: Progress | None = None) -> tuple[Built, dict[float, float]]:
    """Build a bitstream with the fastest core clock that the PLL makes and timing allows.

    All that depends on the clock is synthesised for it, so a clock is met when a chip made for it
    is. The board's recorded clock comes first, and then the fastest that the last chip would have
    reached, until a chip reaches its own clock and no faster one, or one that was tried before.

    Parameters
    ----------
    board, seeds, progress
        See :func:`build`.
    directory : Path
        Gets a directory a clock, the bitstream and the report.

    Returns
    -------
    Built
    dict
        Core clocks tried -> what they reached, MHz.

    Raises
    ------
    UserError
        See :func:`build`.
    """
    possible, tried, best = clocks(board), {}, None
    if not possible:
        built = build(board, directory, seeds=seeds, progress=progress)
        return built, {board.clock_mhz: core_mhz(board, built.report)}
    choice: float | None = at_clock(board, board.clock_mhz).clock_mhz
    while choice is not None:
        here = board.at(choice)
        if progress:
            progress(f"a core clock of {choice:.5g} MHz")
        built = build(here, directory / f"{choice:.5g}mhz", seeds=seeds, progress=progress)
        tried[choice] = reached = core_mhz(here, built.report)
        if best is None or built.meets_timing:
            best = built
        # Of a chip that misses its clock it is known that this one is too fast for it.
        below = [mhz for mhz in possible if mhz <= reached and mhz not in tried
                 and (mhz > choice if built.meets_timing else mhz < choice)]
        if not built.meets_timing and (best.meets_timing or reached >= choice):
            break                       # slower ones are known to do, or would not help
        choice = max(below, default=None)
    assert best is not None
    bitstream = directory / best.bitstream.name
    write_atomic(bitstream, best.bitstream.read_bytes())
    best = replace(best, bitstream=bitstream)
    write_atomic(directory / "report.json",
                 json.dumps(summary(best, tried), indent=2).encode() + b"\n")
    return best, tried


def build(board: Board, directory: Path, *, seeds: int = 3,
          progress: Progress | None = None) -> Built:
    """Build a bitstream for the board's core clock.

    Parameters
    ----------
    board : Board
    directory : Path
        Gets the netlist, a directory a seed with nextpnr's log and report, and ``<board>.bit``.
    seeds : int
        Placements to try, one after the other, until one meets timing; the fastest is kept.
    progress : callable, optional
        Told the tools' steps.

    Raises
    ------
    UserError
        Synthesis is not installed, the board has no bitstream, PLL or SDRAM cannot have its clock,
        no placement routes, or a tool failed.
    """
    tell = progress or (lambda line: None)
    tools, platform = tools_of(board), platform_of(board)
    if clocks(board):
        at_clock(board, board.clock_mhz)
    cells = synthesise(board, directory, progress)
    tried: dict[int, float | None] = {}
    best: tuple[int, Report] | None = None
    for seed in range(1, seeds + 1):
        tell(f"placing with seed {seed}")
        place = directory / f"seed{seed}"
        place.mkdir(exist_ok=True)
        shutil.copyfile(directory / "top.json", place / "top.json")
        try:
            report = tools.place_and_route(
                platform, place, seed=seed, freq_mhz=board.clock_mhz, pins=directory / tools.pins,
                memory_pins=board.chip.pins, progress=progress)
        except Unroutable as error:
            tell(f"seed {seed}: {error}")
            tried[seed] = None
            continue
        tried[seed] = core_mhz(board, report)
        if best is None or (met(board, report), tried[seed]) > (met(board, best[1]),
                                                                core_mhz(board, best[1])):
            best = seed, report
        if met(board, report):
            break
    if best is None:
        raise UserError(f"no placement of {seeds} routes: try more --seeds, or a smaller Config")
    seed, report = best
    tell("packing the bitstream")
    bitstream = directory / f"{board.name}.bit"
    beside = bitstream.with_suffix(".new")
    tools.pack(directory / f"seed{seed}", beside)
    write_atomic(bitstream, beside.read_bytes())
    beside.unlink()
    built = Built(board, bitstream, seed, directory / f"seed{seed}", report, tried, cells)
    write_atomic(directory / "report.json",
                 json.dumps(summary(built), indent=2).encode() + b"\n")
    return built


def gateware() -> str:
    """A digest of what a bitstream is made from here: the packages of gateware and boards."""
    import meadowlark_boards
    import meadowlark_hdl
    return digest(*(file for package in (meadowlark_hdl, meadowlark_boards)
                    for file in source_files(Path(package.__file__ or "").parent)))


def summary(built: Built, clocks_tried: dict[float, float] | None = None) -> dict[str, Any]:
    """What ``meadowlark build --json`` prints; ``clocks_tried``: see :func:`build_fastest`."""
    report, board = built.report, built.board
    memory, cells = board.chip.memory_mhz, tools_of(board).cells
    searched = {f"{mhz:.5g}": round(reached, 2) for mhz, reached in (clocks_tried or {}).items()}
    return {
        "board": board.name, "gateware": gateware(), "clock_mhz": round(board.clock_mhz, 3),
        **({"memory_mhz": round(memory, 3)} if memory else {}),
        "fmax_mhz": round(core_mhz(board, report), 2), "meets_timing": built.meets_timing,
        **({"clocks_tried": searched} if searched else {}),
        "clocks": {name: round(mhz, 2) for name, mhz in report.fmax_mhz.items()},
        **{name: report.used.get(cell, 0) for name, cell in cells.items()},
        "available": {name: report.available.get(cell, 0) for name, cell in cells.items()},
        "seed": built.seed, "tried": {str(k): v and round(v, 2) for k, v in built.tried.items()},
        "cells": built.cells, "critical_path": path_lines(report),
        "bitstream": str(built.bitstream)}


def flash(board: Board, bitstream: Path) -> None:
    """Load a bitstream into a board with ``openFPGALoader``.

    Raises
    ------
    UserError
        openFPGALoader or the bitstream is missing, or it failed.
    """
    tool = loader_tool()
    if not bitstream.exists():
        raise UserError(f"there is no {bitstream}: run `meadowlark build --board {board.name}` "
                        "first")
    done = subprocess.run([tool, "-b", board.chip.loader, str(bitstream)])
    if done.returncode:
        raise UserError(f"openFPGALoader failed with status {done.returncode}; check the cable and "
                        "that no other program holds the board")


def loader_tool() -> str:
    """openFPGALoader; :class:`UserError` unless it is installed."""
    tool = shutil.which("openFPGALoader")
    if tool is None:
        raise UserError("openFPGALoader is not installed: install it (Debian: openfpgaloader), or "
                        "load the bitstream with another tool")
    return tool
