"""What synthesis made of array and vector unit computes what the golden models say.

The netlist of issue stage and engine for an ECP5 (LUTs, carry chains, flip-flops, MULT18X18D,
ALU54B) goes through the bench of test_tiling_engine, dot and broadcast mode; that of the vector
unit through its own, as for a dense chip, with delay lines in distributed RAM. Their memories are
in distributed RAM: Yosys has no model of the block RAM. ``make setup-synth`` installs what this
needs, and Icarus Verilog runs it (Verilator compiles a netlist for many minutes).
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import test_tiling_engine
import test_vector_unit
from amaranth.back import rtlil

from array_bench import ArrayUnderTest
from bench import simulate
from cell_models import CELLS
from conftest import ICARUS, NO_ICARUS
from meadowlark.chip.ecp5 import synthesise
from meadowlark_hdl.compute.vector_unit import VectorUnit
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


def connect_only_wires(path: Path) -> None:
    """Outputs that nobody hears say "x" for nextpnr, which Yosys takes for a driver."""
    parts = json.loads(path.read_text())
    for cell in parts["modules"]["dut"]["cells"].values():
        cell["connections"] = {port: bits for port, bits in cell["connections"].items()
                               if cell["port_directions"][port] == "input" or bits != ["x"]}
    path.write_text(json.dumps(parts))


def netlist(component, directory: Path, *, dense: bool) -> tuple[str, dict[str, int]]:
    """Verilog of a component after synthesis, its cells replaced by what they do; their counts."""
    text = rtlil.convert(component, name="dut", platform=ECP5, emit_src=False)
    for block in ('\\ram_style "block"', "\\rom_block 1"):
        text = text.replace(f"  attribute {block}\n", "")
    cells = synthesise(text, directory, top="dut", options=["-nobram"], dense=dense)
    assert "$mul" not in json.dumps(cells)
    connect_only_wires(directory / "top.json")
    subprocess.run([sys.executable, "-c", FLATTEN], cwd=directory, check=True,
                   stdout=subprocess.DEVNULL)
    return (directory / "flat.v").read_text() + CELLS, cells


@pytest.mark.parametrize("dense", [False, True])
def test_array(dense, seed, tmp_path):
    assert ICARUS, NO_ICARUS
    config = test_tiling_engine.CONFIGS[CASE]
    text, cells = netlist(ArrayUnderTest(config), tmp_path, dense=dense)
    assert cells["MULT18X18D"] == 2 * cells["ALU54B"] == config.W * config.P
    for testcase in ("linear", "attention_of_heads"):
        simulate(ArrayUnderTest(config), test_tiling_engine.__name__, seed=seed, sim="icarus",
                 testcase=testcase, case=CASE, text=text)


def test_vector_unit_of_a_dense_chip(seed, tmp_path):
    """Most delay lines are here."""
    assert ICARUS, NO_ICARUS
    config = test_vector_unit.CONFIGS[CASE]
    text, cells = netlist(VectorUnit(config), tmp_path / "dense", dense=True)
    _, others = netlist(VectorUnit(config), tmp_path / "other", dense=False)
    assert cells["TRELLIS_FF"] < others["TRELLIS_FF"] - 500
    for testcase in ("embed_norm_and_residual", "plain_rows", "pairs_of_rows"):
        simulate(VectorUnit(config), test_vector_unit.__name__, seed=seed, sim="icarus", text=text,
                 config=CASE, testcase=testcase)
