"""A board's bitstream by the open toolchain: Yosys, nextpnr and ecppack."""
from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meadowlark_hdl.tech.ecp5_pll import PHASE_DETECTOR_MHZ, beside, dividers, second_clocks
from meadowlark_hdl.link.uart import divisor

from ..errors import UserError
from ..files import write_atomic
from .ecp5 import CELLS, Report, Unroutable, check_tools, path_lines, place_and_route, synthesise

if TYPE_CHECKING:
    from meadowlark_boards import Board

Progress = Callable[[str], None]

#: Core clocks that may be asked for.
LEAST_MHZ, MOST_MHZ = 10, 200


@dataclass(frozen=True)
class Built:
    """A bitstream and what it is made of.

    board: with the core clock that it is driven with. bitstream: file. seed: the placement it comes
    from. report: of that placement. tried: what the core's clock reached in MHz by seed, None if it
    did not route. cells: of the netlist, by type.
    """
    board: Board
    bitstream: Path
    seed: int
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
    memory = board.sdram.clock_mhz if board.sdram else None
    others = [mhz for name, mhz in report.fmax_mhz.items()
              if memory is None
              or abs(report.wanted_mhz.get(name, board.clock_mhz) - memory) > 0.005 * memory]
    return min(others, default=report.core_mhz)


def clocks(board: Board) -> list[float]:
    """Core clocks that the board's PLL makes and that suit SDRAM and UART, MHz, slowest first; none
    if the core's clock is not ours to choose."""
    if board.sdram is None:
        return []
    if board.sdram.clock_mhz is not None:
        made = set(second_clocks(board.sdram.oscillator_mhz, board.sdram.clock_mhz))
    else:
        made = {round(board.sdram.oscillator_mhz / clki * clkfb, 6)
                for clki in range(1, int(board.sdram.oscillator_mhz / PHASE_DETECTOR_MHZ[0]) + 1)
                for clkfb in range(1, 81)}
    return sorted(mhz for mhz in made if LEAST_MHZ <= mhz <= MOST_MHZ and not _fault(board, mhz))


def at_clock(board: Board, clock_mhz: float) -> Board:
    """The board with the core clock that its PLL makes next to one that is asked for.

    Raises
    ------
    UserError
        There is none, or SDRAM or UART cannot have it.
    """
    if board.ddr3 is not None:
        raise UserError(f"the clock of board {board.name} is its memory's; leave --clock out")
    if not LEAST_MHZ <= clock_mhz <= MOST_MHZ:
        raise UserError(f"--clock must be {LEAST_MHZ}..{MOST_MHZ} MHz, not {clock_mhz:g}")
    if fault := _fault(board, clock_mhz):
        raise UserError(fault)
    return board.at(_made(board, clock_mhz))


def _made(board: Board, clock_mhz: float) -> float:
    """What the PLL makes of it; ValueError if that is nothing near."""
    assert board.sdram is not None
    oscillator, memory = board.sdram.oscillator_mhz, board.sdram.clock_mhz
    if memory is not None:
        return round(beside(oscillator, memory, clock_mhz).second_mhz(oscillator), 6)
    return round(dividers(oscillator, clock_mhz).output_mhz(oscillator), 6)


def _fault(board: Board, clock_mhz: float) -> str:
    """Why a board cannot have a core clock, or nothing."""
    assert board.sdram is not None
    try:
        made = _made(board, clock_mhz)
        board.sdram.part.at(board.sdram.clock_mhz or made)
        divisor(made * 1e6, board.link.baud)
    except ValueError as error:
        return str(error)
    return ""


def platform_of(board: Board) -> Any:
    """A new platform of ``amaranth_boards``, with the board's technology.

    Raises
    ------
    UserError
        The board is a simulation only, or Vivado's.
    """
    if board.zynq is not None:
        raise UserError(f"board {board.name} is loaded by its own processor: run `meadowlark build "
                        f"--board {board.name}` and follow the README.md that it writes")
    if not board.platform or (board.sdram is None and board.ddr3 is None):
        raise UserError(f"board {board.name} has no bitstream: it exists in simulation only")
    module, _, name = board.platform.partition(":")
    platform = getattr(importlib.import_module(module), name)()
    platform.technology = board.technology
    return platform


def _chip(platform: Any) -> dict[str, Any]:
    """The platform's ECP5 in nextpnr's words."""
    return {"device": {"LFE5U-25F": "25k", "LFE5U-45F": "45k", "LFE5U-85F": "85k",
                       "LFE5UM5G-85F": "um5g-85k"}[platform.device],
            "package": platform.package.replace("BG", "CABGA"), "speed": int(platform.speed)}


def design(board: Board, directory: Path | None = None, *,
           stand_in: Any = None) -> tuple[str, str]:
    """The whole chip as RTLIL, and its pins as a constraint file (LPF).

    ``directory``: where the LiteDRAM core of a board with DDR3 goes, which :func:`modules` names.
    ``stand_in``: on such a board, what takes the core's place.
    """
    platform = platform_of(board)
    if board.ddr3 is not None:
        from meadowlark_hdl.chips.ddr3_top import Ddr3Top

        from .litedram import facts, generate
        assert directory is not None
        core, _ = generate(facts(board), directory / "litedram")
        top: Any = Ddr3Top(board.config, core, name=board.name, clock_mhz=board.clock_mhz,
                           clock_pin=board.ddr3.oscillator, baud=board.link.baud,
                           memory_bytes=board.memory.size_bytes, stand_in=stand_in)
    else:
        from meadowlark_hdl.chips.sdram_top import SdramTop
        assert board.sdram is not None
        top = SdramTop(board.config, board.sdram.part, name=board.name, clock_mhz=board.clock_mhz,
                       input_mhz=board.sdram.oscillator_mhz, clock_pin=board.sdram.oscillator,
                       baud=board.link.baud, memory_mhz=board.sdram.clock_mhz)
    plan = platform.prepare(top, "top", emit_src=False)
    files = {name: text.decode() if isinstance(text, bytes) else text
             for name, text in plan.files.items()}
    return files["top.il"], files["top.lpf"]


def modules(board: Board, directory: Path) -> list[Path]:
    """Verilog that :func:`design` only names."""
    return [directory / "litedram" / "litedram_core.v"] if board.ddr3 is not None else []


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


def build(board: Board, directory: Path, *, seeds: int = 3, stand_in: Any = None,
          progress: Progress | None = None) -> Built:
    """Build a bitstream for the board's core clock.

    Parameters
    ----------
    board : Board
    directory : Path
        Gets the netlist, a directory a seed with nextpnr's log and report, and ``<board>.bit``.
    seeds : int
        Placements to try, one after the other, until one meets timing; the fastest is kept.
    stand_in : Component, optional
        See :func:`design`.
    progress : callable, optional
        Told the tools' steps.

    Raises
    ------
    UserError
        Synthesis is not installed, the board has no bitstream, PLL or SDRAM cannot have its clock,
        no placement routes, or a tool failed.
    """
    tell = progress or (lambda line: None)
    chip = _chip(platform_of(board))
    check_tools()
    if board.sdram is not None and (fault := _fault(board, board.clock_mhz)):
        raise UserError(fault)
    directory.mkdir(parents=True, exist_ok=True)
    tell("elaborating the chip")
    rtlil, pins = design(board, directory, stand_in=stand_in)
    (directory / "top.lpf").write_text(pins)
    cells = synthesise(rtlil, directory, verilog=modules(board, directory), progress=progress)
    info = board.sdram or board.ddr3
    tried: dict[int, float | None] = {}
    best: tuple[int, Report] | None = None
    for seed in range(1, seeds + 1):
        tell(f"placing with seed {seed}")
        place = directory / f"seed{seed}"
        place.mkdir(exist_ok=True)
        shutil.copyfile(directory / "top.json", place / "top.json")
        try:
            report = place_and_route(place, **chip, seed=seed, freq_mhz=board.clock_mhz,
                                     lpf=directory / "top.lpf", progress=progress,
                                     memory_pins=info.pins if info else None)
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
    command = [str(Path(sys.executable).with_name("yowasp-ecppack")), "--compress",
               str(Path(f"seed{seed}") / "top.config"), beside.name]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"ecppack failed with status {done.returncode}: "
                        f"{(done.stderr or done.stdout).strip()[-300:]}")
    write_atomic(bitstream, beside.read_bytes())
    beside.unlink()
    built = Built(board, bitstream, seed, report, tried, cells)
    write_atomic(directory / "report.json",
                 json.dumps(summary(built), indent=2).encode() + b"\n")
    return built


def summary(built: Built, clocks_tried: dict[float, float] | None = None) -> dict[str, Any]:
    """What ``meadowlark build --json`` prints; ``clocks_tried``: see :func:`build_fastest`."""
    report, board = built.report, built.board
    memory = board.sdram.clock_mhz if board.sdram else None
    searched = {f"{mhz:.5g}": round(reached, 2) for mhz, reached in (clocks_tried or {}).items()}
    return {
        "board": board.name, "clock_mhz": round(board.clock_mhz, 3),
        **({"memory_mhz": round(memory, 3)} if memory else {}),
        "fmax_mhz": round(core_mhz(board, report), 2), "meets_timing": built.meets_timing,
        **({"clocks_tried": searched} if searched else {}),
        "clocks": {name: round(mhz, 2) for name, mhz in report.fmax_mhz.items()},
        **{name: report.used.get(cell, 0) for name, cell in CELLS.items()},
        "available": {name: report.available.get(cell, 0) for name, cell in CELLS.items()},
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
    done = subprocess.run([tool, "-b", _loader(board), str(bitstream)])
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


def _loader(board: Board) -> str:
    """The board's name in openFPGALoader."""
    info = board.sdram or board.ddr3
    return info.loader if info else board.name
