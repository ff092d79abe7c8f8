"""Registers behind block RAMs: which ones become the RAM's own."""
import copy
import json

import pytest
from amaranth import Module, Signal
from amaranth.back import rtlil
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from meadowlark.chip.ecp5 import synthesise
from meadowlark.chip.ram_registers import fold_ram_registers
from meadowlark_hdl.lib.collisions import NO_RW_CHECK


def ff(q, di="d", **changes):
    wires = {"CLK": ["clk"], "DI": [di], "LSR": ["0"], "Q": [q]} | changes.pop("wires", {})
    return {"type": "TRELLIS_FF", "attributes": changes.pop("attributes", {}),
            "parameters": {"CEMUX": "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR"} | changes,
            "port_directions": {name: "output" if name == "Q" else "input" for name in wires},
            "connections": wires}


def ram(width=36, **outputs):
    wires = {"CLKA": ["clk"], "CLKB": ["clk"], "OCEA": ["0"], "OCEB": ["1"]} | {
        name: [bit] for name, bit in outputs.items()}
    return {"type": "DP16KD", "parameters": {
        "DATA_WIDTH_B": f"{width:032b}", "REGMODE_A": "NOREG", "REGMODE_B": "NOREG"},
        "port_directions": {name: "output" if name.startswith("DO") else "input"
                            for name in wires}, "connections": wires}


def module(cells, ports=()):
    return {"cells": cells, "ports": {name: {"bits": [name]} for name in ports}}


def test_a_wide_port_is_at_both():
    outputs = {"DOA3": "a", "DOB0": "b", "DOB1": "nobody"}
    m = module({"r": ram(**outputs), "x": ff("qa", "a"), "y": ff("qb", "b")})
    assert fold_ram_registers(m) == 2 and list(m["cells"]) == ["r"]
    r = m["cells"]["r"]
    assert r["connections"]["DOA3"] == ["qa"] and r["connections"]["DOB0"] == ["qb"]
    assert r["parameters"]["REGMODE_A"] == r["parameters"]["REGMODE_B"] == "OUTREG"
    assert r["connections"]["OCEA"] == r["connections"]["OCEB"] == ["1"]
    assert fold_ram_registers(m) == 0


def test_narrow_ports_are_apart():
    m = module({"r": ram(18, DOA3="a", DOB0="b"), "y": ff("qb", "b"),
                "l": {"type": "LUT4", "port_directions": {"A": "input"},
                      "connections": {"A": ["a"]}}})
    assert fold_ram_registers(m) == 1
    parameters = m["cells"]["r"]["parameters"]
    assert (parameters["REGMODE_A"], parameters["REGMODE_B"]) == ("NOREG", "OUTREG")


@pytest.mark.parametrize("other", [
    ff("q", "a", CEMUX="CE", wires={"CE": ["en"]}),
    ff("q", "a", CEMUX="INV", wires={"CE": ["en"]}), ff("q", "a", wires={"LSR": ["rst"]}),
    ff("q", "a", LSRMUX="INV"), ff("q", "a", wires={"CLK": ["other"]}), ff("q", "a", CLKMUX="INV"),
    ff("q", "a", attributes={"keep": "1"})],
    ids=["another enable", "inverted enable", "reset", "inverted reset", "another clock",
         "other edge", "kept"])
def test_only_plain_registers(other):
    m = module({"r": ram(DOA3="a", DOB0="b"), "x": other, "y": ff("qb", "b")})
    before = copy.deepcopy(m)
    assert fold_ram_registers(m) == 0 and m == before


def test_a_common_enable():
    change = {"CEMUX": "CE", "wires": {"CE": ["en"]}}
    m = module({"r": ram(DOA3="a", DOB0="b"), "x": ff("qa", "a", **copy.deepcopy(change)),
                "y": ff("qb", "b", **change)})
    assert fold_ram_registers(m) == 2
    assert m["cells"]["r"]["connections"]["OCEA"] == m["cells"]["r"]["connections"]["OCEB"] == [
        "en"]


@pytest.mark.parametrize("extra", ["register", "port"])
def test_nobody_else_hears(extra):
    cells = {"r": ram(DOA3="a"), "x": ff("q", "a")}
    if extra == "register":
        cells["z"] = ff("q2", "a")
    assert fold_ram_registers(module(cells, ["a"] if extra == "port" else [])) == 0


class Reader(wiring.Component):
    """A memory and the register behind it."""

    def __init__(self):
        super().__init__({"address": In(9), "data": In(32), "write": In(1), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=32, depth=512, init=[], attrs=NO_RW_CHECK)
        w, r = ram.write_port(), ram.read_port()
        m.d.comb += [w.addr.eq(self.address), w.data.eq(self.data), w.en.eq(self.write),
                     r.addr.eq(self.address)]
        found = Signal(32, reset_less=True)
        m.d.sync += found.eq(r.data)
        m.d.comb += self.o.eq(found)
        return m


def test_synthesis(tmp_path):
    pytest.importorskip("pyosys", reason="make setup-synth")
    cells = synthesise(rtlil.convert(Reader(), name="top", emit_src=False), tmp_path)
    assert cells["DP16KD"] == 1 and "TRELLIS_FF" not in cells
    netlist = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]["cells"]
    [ram] = [cell for cell in netlist.values() if cell["type"] == "DP16KD"]
    assert ram["parameters"]["REGMODE_B"] == "OUTREG"
