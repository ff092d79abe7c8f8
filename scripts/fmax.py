#!/usr/bin/env python3
"""Place and route the core, or one block, for an ECP5-85F of speed grade 6; report Fmax and size.

`make fmax`, or for a block: `scripts/fmax.py --block meadowlark_hdl.tech.cells:Multiplier`.
The component stands between registers: a shift register feeds its inputs, its outputs are captured
and reduced to one pin, so nothing is pruned, no pin is timed, and every port counts as registered.
"""
from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import sys
import time
from pathlib import Path

import click
from amaranth import ClockDomain, ClockSignal, Const, Module, ResetSignal, Shape, Signal
from amaranth.back import rtlil
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from meadowlark.chip.ecp5 import CELLS, place, place_and_route, synthesise
from meadowlark.chip.toolchain import Report, block_of, path_lines
from meadowlark.errors import UserError
from meadowlark.files import write_atomic
from meadowlark_boards import get_board
from meadowlark_hdl.tech.ecp5 import ECP5
from sta import Timing, describe

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "fmax.md"


class Harness(wiring.Component):
    """A component between registers, with four pins.

    Parameters
    ----------
    component : wiring.Component
        In the clock domain ``sync``.

    Members
    -------
    clk, rst, i : In(1)
    o : Out(1)
    """

    def __init__(self, component):
        self.component = component
        super().__init__({"clk": In(1), "rst": In(1), "i": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        rst = Signal(reset_less=True)
        m.d.sync += rst.eq(self.rst)
        m.d.comb += [ClockSignal().eq(self.clk), ResetSignal().eq(rst)]
        m.submodules.dut = dut = self.component
        previous = self.i
        bits: list = []
        for path, member, value in dut.signature.flatten(dut):
            width = Shape.cast(member.shape).width
            if isinstance(value, Const):            # a stream that is always ready
                continue
            raw = value if isinstance(value, Signal) else value.as_value()
            name = "_".join(map(str, path))
            if width == 0:
                continue
            edge = Signal(width, name=f"edge_{name}", reset_less=True)
            if member.flow == wiring.In:
                m.d.sync += edge.eq((edge << 1) | previous)
                m.d.comb += raw.eq(edge)
                previous = edge[-1]
            else:
                m.d.sync += edge.eq(raw)
                bits += list(edge)
        bits.append(previous)
        while len(bits) > 1:            # one LUT4 between registers
            level = Signal((len(bits) + 3) // 4, name=f"fold{len(bits)}", reset_less=True)
            m.d.sync += [level[k].eq(_xor(bits[4 * k:4 * k + 4])) for k in range(len(level))]
            bits = list(level)
        m.d.sync += self.o.eq(bits[0])
        return m


def _xor(bits):
    folded = bits[0]
    for bit in bits[1:]:
        folded = folded ^ bit
    return folded


def load(block: str | None, board: str, changes: dict, parameters: dict):
    """The component to be measured."""
    config = get_board(board).config.replace(**changes)
    module, _, name = (block or "meadowlark_hdl.core:Core").partition(":")
    if not name:
        raise UserError(f"--block must be module:Class, not {block!r}")
    try:
        made_by = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--block {block}: {error}") from None
    accepted = inspect.signature(made_by).parameters
    arguments = ({"config": config} if "config" in accepted else {}) | parameters
    if "config" in accepted and accepted["config"].kind is not inspect.Parameter.KEYWORD_ONLY:
        return made_by(arguments.pop("config"), **arguments)
    return made_by(**arguments)


def summary(report: Report) -> dict:
    """What `--json` prints."""
    return {
        "fmax_mhz": round(report.core_mhz, 2),
        "clocks": {name: round(mhz, 2) for name, mhz in report.fmax_mhz.items()},
        **{key: report.used.get(kind, 0) for key, kind in CELLS.items()},
        "critical_path": path_lines(report),
    }


def table(what: str, config: str, found: dict, available: dict[str, int], minutes: float) -> str:
    """docs/fmax.md."""
    rows = "\n".join(
        f"| {key.upper()} ({kind}) | {found[key]} | {available.get(kind, 0)} | "
        f"{100 * found[key] / max(available.get(kind, 0), 1):.0f} % |"
        for key, kind in CELLS.items())
    path = "\n".join("    " + line for line in found["critical_path"])
    return f"""# Speed and size on an ECP5-85F

`make fmax ARGS=--write` writes this page. It places and routes {what} for an LFE5U-85F-6CABGA381
with Yosys (pyosys) and nextpnr from PyPI, seed {found["seed"]}, in {minutes:.0f} minutes. The
figures hold after routing. Every port stands behind a register, and these registers are counted.
Pins are not timed.

    {config}

**{found["fmax_mhz"]:.1f} MHz**

| cells | used | on the chip | share |
|---|---|---|---|
{rows}

Critical path:

{path}
"""


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--block", metavar="MODULE:CLASS", help="Measure this instead of the core.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE",
              help="A keyword argument of the block, as a Python literal.")
@click.option("--config", "configs", metavar="NAME=VALUE", multiple=True,
              help="Change a field of the Config.")
@click.option("--board", default="ulx3s_85f", show_default=True, help="Board whose Config is used.")
@click.option("--seed", default=1, show_default=True, help="Seed of the placer.")
@click.option("--freq", default=100.0, show_default=True, help="MHz to aim at.")
@click.option("--synth-only", is_flag=True, help="Stop after synthesis: cell counts only.")
@click.option("--placed", is_flag=True, help="Stop after placement: estimated paths, much sooner.")
@click.option("--write", is_flag=True, help="Store docs/fmax.md.")
@click.option("--json", "json_to", metavar="FILE", help="Results as one object; - for stdout.")
def main(block, params, configs, board, seed, freq, synth_only, placed, write, json_to) -> None:
    begun = time.monotonic()
    tty = sys.stderr.isatty()

    def progress(line: str) -> None:
        text = f"{time.monotonic() - begun:6.0f} s  {line[:80]}"
        print(f"\r\x1b[K{text}" if tty else text, end="" if tty else "\n", file=sys.stderr,
              flush=True)

    try:
        parameters, changes = ({key: ast.literal_eval(value) for key, _, value in
                                (item.partition("=") for item in items)}
                               for items in (params, configs))
        component = load(block, board, changes, parameters)
        what = block or "the core"
        progress(f"elaborating {what}")
        text = rtlil.convert(Harness(component), name="top", platform=ECP5, emit_src=False)
        directory = ROOT / "build" / "fmax" / f"{(block or 'core').replace(':', '.')}-{os.getpid()}"
        cells = synthesise(text, directory, progress=progress)
        if synth_only:
            found = {"cells": dict(sorted(cells.items()))}
        elif placed:
            timing = Timing(place(directory, seed=seed, freq_mhz=freq, progress=progress))
            found = {"estimated_fmax_mhz": round(timing.fmax_mhz, 2),
                     "slowest_paths": describe(timing, block_of)}
        else:
            report = place_and_route(directory, seed=seed, freq_mhz=freq, progress=progress,
                                     options=["--sdf", "routed.sdf"], hold=False)
            # What nextpnr reports leaves the ALU54B out.
            all_mhz = Timing(directory / "routed.sdf").fmax_mhz
            found = summary(report) | {"with_adders_mhz": round(all_mhz, 2), "seed": seed}
            if write:
                fields = get_board(board).config.as_dict()
                minutes = (time.monotonic() - begun) / 60
                write_atomic(TABLE, table(
                    what, ", ".join(f"{key}={value}" for key, value in fields.items()), found,
                    report.available, minutes).encode())
    except (UserError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if tty:
        print("\r\x1b[K", end="", file=sys.stderr)
    if json_to:
        out = json.dumps(found, indent=2)
        if json_to == "-":
            print(out)
        else:
            write_atomic(Path(json_to), f"{out}\n".encode())
    else:
        for key, value in found.items():
            if isinstance(value, list):
                print(f"{key}:", *value, sep="\n  ")
            else:
                print(f"{key}: {value}")
        print(f"files: {directory}")


if __name__ == "__main__":
    main()
