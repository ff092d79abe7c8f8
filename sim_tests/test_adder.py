"""GatedAdder: right at the edges, and its ECP5 form equivalent to it."""
import importlib.util
import random
import subprocess
import sys

import cocotb
import pytest
from cocotb.triggers import Timer

from amaranth.back import rtlil
from bench import simulate
from meadowlark_hdl.tech.cells import GatedAdder
from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.generic import GENERIC


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sums(dut):
    width = len(dut.a)
    edges = [0, 1, -1, (1 << width - 1) - 1, -(1 << width - 1)]
    cases = [(a, b) for a in edges for b in edges]
    cases += [(random.randrange(1 << width), random.randrange(1 << width)) for _ in range(500)]
    for a, b in cases:
        for keep in (0, 1):
            a, b = a % (1 << width), b % (1 << width)
            dut.a.value, dut.b.value, dut.keep.value = a, b, keep
            await Timer(1, "ns")
            assert int(dut.o.value) == (a * keep + b) % (1 << width)


@pytest.mark.parametrize("width", [5, 36])
def test_adder(width, seed):
    simulate(GatedAdder(width), __name__, seed=seed)


#: Both forms, the vendor cell replaced by Yosys' model of it, proven equal by SAT.
PROOF = """
from pathlib import Path
import pyosys
from pyosys import libyosys
models = Path(pyosys.__file__).parent / "share/ecp5"
design = libyosys.Design()
for command in (
        f"read_verilog -D NO_INCLUDES {models}/common_sim.vh {models}/ccu2c_sim.vh",
        "read_rtlil generic.il", "read_rtlil ecp5.il", "setattr -mod -unset top *",
        "hierarchy", "proc", "flatten", "miter -equiv generic ecp5 both",
        "flatten both", "opt_clean both",
        "sat -verify -prove trigger 0 both"):
    libyosys.run_pass(command, design)
"""


@pytest.mark.parametrize("width", [5, 28, 45])
def test_ecp5_form_is_equivalent(width, tmp_path):
    if importlib.util.find_spec("pyosys") is None:
        pytest.skip("needs synthesis: make setup-synth")
    for technology in (GENERIC, ECP5):
        name = technology.name
        (tmp_path / f"{name}.il").write_text(
            rtlil.convert(GatedAdder(width), name=name, platform=technology, emit_src=False))
    done = subprocess.run([sys.executable, "-c", PROOF], cwd=tmp_path, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and "SAT proof finished" in done.stdout, done.stdout[-3000:]
