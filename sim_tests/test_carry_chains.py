"""Carry chains: the same sums and carries with fewer cells."""
import copy
import json
import random
import subprocess
import sys

import pytest
from amaranth import Module
from amaranth.back import rtlil
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from meadowlark.chip.carry_chains import trim_carry_chains
from meadowlark.chip.ecp5 import synthesise


def chain(bits, cin, *, heard=(), inject="NO"):
    """A module with a chain of so many bits, each with a random function, of inputs a0, b0, ...;
    `heard` of its outputs are ports."""
    cells, cells_needed = {}, -(-bits // 2)
    for n in range(cells_needed):
        wires = {"CIN": [cin if n == 0 else f"c{n}"], "COUT": [f"c{n + 1}"]}
        init = {}
        for k in (0, 1):
            wires |= {f"{port}{k}": [f"{port.lower()}{2 * n + k}"] for port in "AB"}
            wires |= {f"C{k}": ["0"], f"D{k}": ["1"], f"S{k}": [f"s{2 * n + k}"]}
            init[f"INIT{k}"] = f"{random.getrandbits(16):016b}"
        cells[f"x{n}"] = {
            "type": "CCU2C", "connections": wires,
            "parameters": init | {"INJECT1_0": inject, "INJECT1_1": "NO"},
            "port_directions": {name: "output" if name[0] == "S" or name == "COUT" else "input"
                                for name in wires}}
    return {"cells": cells, "ports": {name: {"bits": [name]} for name in heard}}


def evaluate(module, values, unknown):
    """Value of each net, by the equations of a CCU2C; of what is not connected it is `unknown`."""
    known = dict(values) | {"0": 0, "1": 1}
    cells = list(module["cells"].values())
    while cells:
        cell = cells.pop(0)
        wires = cell["connections"]
        if cell["type"] == "LUT4":
            at = sum(known[wires[port][0]] << n for n, port in enumerate("ABCD"))
            known[wires["Z"][0]] = int(cell["parameters"]["INIT"], 2) >> at & 1
            continue
        carry = known.get(wires["CIN"][0]) if wires["CIN"] != ["x"] else unknown
        if carry is None:
            cells.append(cell)
            continue
        for k in (0, 1):
            a, b, c, d = (known[wires[f"{port}{k}"][0]] for port in "ABCD")
            init = int(cell["parameters"][f"INIT{k}"], 2)
            lut4, lut2 = init >> (a + 2 * b + 4 * c + 8 * d) & 1, init >> (a + 2 * b) & 1
            if wires[f"S{k}"] != ["x"]:
                known[wires[f"S{k}"][0]] = lut4 ^ carry
            carry = (1 - lut4) & lut2 | lut4 & carry
        if wires["COUT"] != ["x"]:
            known[wires["COUT"][0]] = carry
    return known


@pytest.mark.parametrize("cin", ["0", "1"])
@pytest.mark.parametrize("bits", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("others", ["", "c1", "carry"])
def test_what_is_heard_stays_the_same(bits, cin, others):
    """The same chain with fewer LUTs: two behind it, if nobody hears the carry; in front of it two
    if a bit is free, one if the first sum has to have a LUT."""
    even = bits + bits % 2
    carry = f"c{even // 2}" if others == "carry" else others
    heard = [f"s{n}" for n in range(bits)] + [carry] * bool(carry)
    before = chain(bits, cin, heard=heard)
    after = copy.deepcopy(before)
    out = others == "carry" or bits <= 2 and others == "c1"
    moved = bits % 2 and not carry
    assert trim_carry_chains(after) == (0 if out else 2) + (2 if moved else 1)
    assert after["ports"] == before["ports"]
    assert list(after["cells"]) == list(before["cells"]) + ["x0_FIRST"] * (not moved)
    for _ in range(50):
        values = {f"{port}{n}": random.getrandbits(1) for port in "ab" for n in range(even)}
        expected, unknown = evaluate(before, values, 0), random.getrandbits(1)
        found = evaluate(after, values, unknown)
        assert [found[name] for name in heard] == [expected[name] for name in heard]


def test_a_carry_alone_takes_no_lut():
    m = chain(4, "1", heard=["c2"])
    assert trim_carry_chains(m) == 2 and list(m["cells"]) == ["x0", "x1"]
    assert m["cells"]["x0"]["connections"]["CIN"] == ["x"]


def test_a_first_bit_of_more_than_two_inputs_needs_its_carry():
    m = chain(2, "1", heard=["s0", "s1", "c1"])
    m["cells"]["x0"]["connections"]["C0"] = ["add"]
    before = copy.deepcopy(m)
    assert trim_carry_chains(m) == 0 and m == before


def test_a_carry_from_elsewhere_needs_its_cell():
    m = chain(3, "c0", heard=["s0", "s1", "s2"])
    before = copy.deepcopy(m)
    assert trim_carry_chains(m) == 0 and m == before


def test_a_bit_that_does_not_add_stays_where_it_is():
    m = chain(3, "1", heard=["s0", "s1", "s2"], inject="YES")
    expected = copy.deepcopy(m)
    expected["cells"]["x1"]["connections"]["COUT"] = ["x"]
    assert trim_carry_chains(m) == 2 and m == expected


class Sums(wiring.Component):
    """Chains of even and of odd lengths, with and without a carry in front and behind."""

    def __init__(self):
        super().__init__({"a": In(9), "b": In(8), "sum": Out(10), "difference": Out(9),
                          "next": Out(9), "less": Out(1), "negative": Out(8), "lower": Out(7)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.sum.eq(self.a + self.b), self.difference.eq(self.a - self.b),
                     self.next.eq(self.a + 1), self.less.eq(self.a < self.b),
                     self.negative.eq(-self.b), self.lower.eq(self.b[:7] - self.a[:7])]
        return m


_PROVE = """
import sys
from pathlib import Path
from pyosys import libyosys
import pyosys
cells = next(Path(pyosys.__file__).parent.rglob("cells_sim_ecp5.v"))
design = libyosys.Design()
for command in (
        f"read_verilog -overwrite {cells}", "read_json gate.json", "hierarchy -top top",
        "proc", "flatten",
        "rename top gate", "read_rtlil gold.il", "rename top gold", "proc",
        "miter -equiv -flatten gold gate both", "hierarchy -top both",
        "sat -verify -prove trigger 0"):
    libyosys.run_pass(command, design)
"""


@pytest.mark.parametrize("dense", [False, True])
def test_synthesis(tmp_path, dense):
    """The netlist is proved to be the design, whatever the carries are that are not connected."""
    pytest.importorskip("pyosys", reason="make setup-synth")
    text = rtlil.convert(Sums(), name="top", emit_src=False)
    (tmp_path / "gold.il").write_text(text)
    synthesise(text, tmp_path, dense=dense)
    netlist = json.loads((tmp_path / "top.json").read_text())
    chains = [cell["connections"] for cell in netlist["modules"]["top"]["cells"].values()
              if cell["type"] == "CCU2C"]
    assert {"CIN", "COUT"} == {port for port in ("CIN", "COUT")
                               for wires in chains if wires[port] == ["x"]}
    for wires in chains:        # for Yosys an output at "x" would be one of two drivers
        wires |= {port: [] for port, bits in wires.items() if bits == ["x"]}
    (tmp_path / "gate.json").write_text(json.dumps(netlist))
    subprocess.run([sys.executable, "-c", _PROVE], cwd=tmp_path, check=True,
                   stdout=subprocess.DEVNULL)
