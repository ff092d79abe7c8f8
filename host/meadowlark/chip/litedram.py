"""LiteDRAM cores: generated at build time, nothing of them is kept in this project."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from meadowlark_hdl.memory.ddr3_init import LiteDramCore

from ..errors import UserError, how_to_add


def generate(wanted: dict[str, Any], directory: Path) -> tuple[LiteDramCore, Path]:
    """A core and its Verilog, module ``litedram_core``.

    Parameters
    ----------
    wanted : dict
        Of :meth:`meadowlark_boards.Chip.litedram`; for simulation with "sim": True, "sim_rows" (of
        a bank, so that it fits a computer) and "windows" (see ``litedram_core``).
    directory : Path
        Gets the Verilog, what it was made from, and ``litedram.log``.

    Raises
    ------
    UserError
        LiteDRAM is not installed, or failed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("litedram", "litex")):
        raise UserError("the generator of the DDR3 controller is not installed: run "
                        f"{how_to_add('synth')}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "facts.json").write_text(json.dumps(wanted, indent=1))
    done = subprocess.run([sys.executable, "-m", "meadowlark.chip.litedram_core", "facts.json",
                           "."], cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    (directory / "litedram.log").write_text(done.stdout)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or ["no message"]
        raise UserError(f"LiteDRAM's generator failed with status {done.returncode}: {said[-1]}; "
                        f"see {directory / 'litedram.log'}")
    return read_core(directory / "litedram_core.json"), directory / "litedram_core.v"


def read_core(path: Path) -> LiteDramCore:
    """What ``litedram_core`` wrote about the core it made."""
    raw = json.loads(path.read_text())
    raw["registers"] = {name: tuple(place) for name, place in raw["registers"].items()}
    raw["sequence"] = tuple(tuple(step) for step in raw["sequence"])
    return LiteDramCore(**raw)
