"""What synthesis made of the array computes what the golden models say.

The netlist of issue stage and engine for an ECP5 (LUTs, carry chains, flip-flops, MULT18X18D,
ALU54B) goes through the bench of test_tiling_engine, dot and broadcast mode. Its memories are in
distributed RAM: Yosys has no model of the block RAM. ``make setup-synth`` installs what this needs,
and Icarus Verilog runs it (Verilator compiles a netlist for many minutes).
"""
import json
import subprocess
import sys
from pathlib import Path

import test_tiling_engine
from amaranth.back import rtlil

from array_bench import ArrayUnderTest
from bench import simulate
from cell_models import CELLS
from conftest import ICARUS, NO_ICARUS
from meadowlark.chip.ecp5 import synthesise
from meadowlark_hdl.tech.ecp5 import ECP5

CASE = "w4p3"
FLATTEN = """
from pyosys import libyosys
design = libyosys.Design()
for command in (
        "read_json top.json", "select dut", "write_verilog -noattr -selected netlist.v",
        "select -clear", "design -reset", "read_verilog -overwrite +/ecp5/cells_sim.v",
        "read_verilog -lib -overwrite +/ecp5/cells_bb.v", "read_verilog netlist.v",
        "hierarchy -top dut", "proc", "opt_clean",
        "write_verilog -noattr flat.v"):
    libyosys.run_pass(command, design)
"""


def netlist(component, directory: Path) -> str:
    """Verilog of a component after synthesis, its cells replaced by what they do."""
    text = rtlil.convert(component, name="dut", platform=ECP5, emit_src=False)
    cells = synthesise(text.replace('  attribute \\ram_style "block"\n', ""), directory, top="dut",
                       options=["-nobram"])
    assert cells["MULT18X18D"] == 2 * cells["ALU54B"] == component.config.W * component.config.P
    assert "$mul" not in json.dumps(cells)
    subprocess.run([sys.executable, "-c", FLATTEN], cwd=directory, check=True,
                   stdout=subprocess.DEVNULL)
    return (directory / "flat.v").read_text() + CELLS


def test_array(seed, tmp_path):
    assert ICARUS, NO_ICARUS
    config = test_tiling_engine.CONFIGS[CASE]
    text = netlist(ArrayUnderTest(config), tmp_path)
    for testcase in ("linear", "attention_of_heads"):
        simulate(ArrayUnderTest(config), test_tiling_engine.__name__, seed=seed, sim="icarus",
                 testcase=testcase, case=CASE, text=text)
