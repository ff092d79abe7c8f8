"""A board's bitstream by the open toolchain: Yosys, nextpnr and ecppack."""
from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meadowlark_hdl.chips.ecp5_pll import dividers

from ..errors import UserError
from ..files import write_atomic
from .ecp5 import CELLS, Report, Unroutable, check_tools, path_lines, place_and_route, synthesise

if TYPE_CHECKING:
    from meadowlark_boards import Board

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A bitstream and what it is made of.

    bitstream: file. seed: the placement it comes from. report: of that placement. tried: core
    clock in MHz by seed, None if it did not route. cells: of the netlist, by type. wanted_mhz: what
    the board drives it with.
    """
    bitstream: Path
    seed: int
    report: Report
    tried: dict[int, float | None]
    cells: dict[str, int]
    wanted_mhz: float

    @property
    def meets_timing(self) -> bool:
        """Every clock reaches what it is driven with."""
        return all(mhz >= self.report.wanted_mhz.get(name, self.wanted_mhz)
                   for name, mhz in self.report.fmax_mhz.items())


def platform_of(board: Board) -> Any:
    """A new platform of ``amaranth_boards``.

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
    return getattr(importlib.import_module(module), name)()


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
    config = board.config.replace(dsp="ecp5")
    if board.ddr3 is not None:
        from meadowlark_hdl.chips.ddr3_top import Ddr3Top

        from .litedram import facts, generate
        assert directory is not None
        core, _ = generate(facts(board), directory / "litedram")
        top: Any = Ddr3Top(config, core, name=board.name, clock_mhz=board.clock_mhz,
                           clock_pin=board.ddr3.oscillator, baud=board.link.baud,
                           memory_bytes=board.memory.size_bytes, stand_in=stand_in)
    else:
        from meadowlark_hdl.chips.sdram_top import SdramTop
        assert board.sdram is not None
        top = SdramTop(config, board.sdram.part, name=board.name, clock_mhz=board.clock_mhz,
                       input_mhz=board.sdram.oscillator_mhz, clock_pin=board.sdram.oscillator,
                       baud=board.link.baud)
    plan = platform.prepare(top, "top", emit_src=False)
    files = {name: text.decode() if isinstance(text, bytes) else text
             for name, text in plan.files.items()}
    return files["top.il"], files["top.lpf"]


def modules(board: Board, directory: Path) -> list[Path]:
    """Verilog that :func:`design` only names."""
    return [directory / "litedram" / "litedram_core.v"] if board.ddr3 is not None else []


def build(board: Board, directory: Path, *, seeds: int = 3, stand_in: Any = None,
          progress: Progress | None = None) -> Built:
    """Build a bitstream.

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
    if board.sdram is not None:
        try:
            dividers(board.sdram.oscillator_mhz, board.clock_mhz)
            board.sdram.part.at(board.clock_mhz)
        except ValueError as error:
            raise UserError(str(error)) from None
    directory.mkdir(parents=True, exist_ok=True)
    tell("elaborating the chip")
    rtlil, pins = design(board, directory, stand_in=stand_in)
    (directory / "top.lpf").write_text(pins)
    cells = synthesise(rtlil, directory, verilog=modules(board, directory), progress=progress)
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
                                     avoid=board.ddr3.pins if board.ddr3 else None)
        except Unroutable as error:
            tell(f"seed {seed}: {error}")
            tried[seed] = None
            continue
        tried[seed] = report.core_mhz
        if best is None or report.core_mhz > best[1].core_mhz:
            best = seed, report
        if report.core_mhz >= board.clock_mhz:
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
    built = Built(bitstream, seed, report, tried, cells, board.clock_mhz)
    write_atomic(directory / "report.json",
                 json.dumps(summary(board, built), indent=2).encode() + b"\n")
    return built


def summary(board: Board, built: Built) -> dict[str, Any]:
    """What ``meadowlark build --json`` prints."""
    report = built.report
    return {
        "board": board.name, "fmax_mhz": round(report.core_mhz, 2),
        "wanted_mhz": board.clock_mhz, "meets_timing": built.meets_timing,
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
