"""Delay lines: the same values in each cycle from fewer flip-flops."""
import copy
import itertools
import random
from collections import Counter

import pytest

from meadowlark.chip.delay_lines import fold_delay_lines

PLAIN = {"CEMUX": "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR"}


def register(d, q, *, clock="clk", set=0, **more):
    """A flip-flop; `more`: other connections, parameters in capitals or attributes."""
    parameters = PLAIN | {"REGSET": "SET" if set else "RESET"} | more.get("parameters", {})
    wires = {"CLK": [clock], "DI": [d], "LSR": ["0"]} | more.get("wires", {})
    return {"type": "TRELLIS_FF", "parameters": parameters,
            "attributes": dict.fromkeys(more.get("attributes", []), "1"),
            "connections": wires | {"Q": [q]},
            "port_directions": dict.fromkeys(wires, "input") | {"Q": "output"}}


def delays(lengths, *, place="core.wired.vector", clock="clk", first=0):
    """A module of chains of so many flip-flops each, from ports in0, in1, ... to out0, out1, ...;
    what they begin with is random."""
    wire = itertools.count(2 + 10_000 * first)
    cells, ports = {}, {}
    for n, length in enumerate(lengths, first):
        wires = [next(wire) for _ in range(length + 1)]
        ports |= {f"in{n}": {"bits": [wires[0]]}, f"out{n}": {"bits": [wires[-1]]}}
        for k, (d, q) in enumerate(itertools.pairwise(wires)):
            cells[f"{place}.x{n}[{k}]"] = register(d, q, clock=clock, set=random.getrandbits(1))
    return {"cells": cells, "ports": ports}


def simulate(module, inputs, cycles):
    """What the outputs are in each cycle: `inputs` are the ports', cycle by cycle."""
    cells = module["cells"].values()
    known = {cell["connections"]["Q"][0]: int(cell["parameters"]["REGSET"] == "SET")
             for cell in cells if cell["type"] == "TRELLIS_FF"}
    memory = {id(cell): list(cell["parameters"]["INITVAL"][::-1]) for cell in cells
              if cell["type"] == "TRELLIS_DPR16X4"}
    told = []
    for now in range(cycles):
        known |= {"0": 0, "1": 1} | {
            port["bits"][0]: inputs[name][now] for name, port in module["ports"].items()
            if name.startswith("in")}
        for cell in cells:
            wires = cell["connections"]
            if cell["type"] == "LUT4":
                at = sum(known[wires[port][0]] << n for n, port in enumerate("ABCD"))
                known[wires["Z"][0]] = int(cell["parameters"]["INIT"], 2) >> at & 1
            elif cell["type"] == "TRELLIS_DPR16X4":
                at = sum(known[bit] << n for n, bit in enumerate(wires["RAD"]))
                for n, bit in enumerate(wires["DO"]):
                    known[bit] = int(memory[id(cell)][4 * at + n])
        told.append([known[port["bits"][0]] for name, port in module["ports"].items()
                     if name.startswith("out")])
        for cell in cells:
            if cell["type"] == "TRELLIS_DPR16X4":
                wires = cell["connections"]
                at = sum(known[bit] << n for n, bit in enumerate(wires["WAD"]))
                for n, bit in enumerate(wires["DI"]):
                    memory[id(cell)][4 * at + n] = known[bit]
        known |= {cell["connections"]["Q"][0]: known[cell["connections"]["DI"][0]]
                  for cell in cells if cell["type"] == "TRELLIS_FF"}
    return told


def counts(module):
    return Counter(cell["type"] for cell in module["cells"].values())


@pytest.mark.parametrize("lengths, rams, counters, left", [
    ([6] * 4, 1, 1, 4), ([17] * 4, 1, 1, 4), ([18, 20, 17, 19], 1, 1, 10), ([5] * 8, 0, 0, 40),
    ([6, 7, 8, 16], 1, 1, 17), ([9] * 7, 1, 1, 4 + 27), ([9] * 30, 7, 2, 4 * 7 + 18),
    ([40] * 4, 1, 1, 96), ([6, 12] * 4, 2, 2, 8)])
def test_the_same_in_each_cycle(lengths, rams, counters, left):
    """A RAM has four lines, as long as the shortest; what is longer stays flip-flops. Six of one
    length share a counter."""
    before = delays(lengths)
    after = copy.deepcopy(before)
    gone = fold_delay_lines(after)
    found = counts(after)
    assert found["TRELLIS_DPR16X4"] == rams
    assert found["TRELLIS_FF"] == left + found["LUT4"]
    assert gone == sum(lengths) - found["TRELLIS_FF"]
    assert found["LUT4"] == 4 * counters
    inputs = {f"in{n}": [random.getrandbits(1) for _ in range(90)] for n in range(len(lengths))}
    assert simulate(after, inputs, 90) == simulate(before, inputs, 90)
    assert set(inputs) == {name for name in after["ports"] if name.startswith("in")}


def test_what_comes_out_is_late_by_the_length():
    """The bench itself: a line of n flip-flops is n cycles late."""
    module = delays([7] * 4)
    fold_delay_lines(module)
    inputs = {f"in{n}": [random.getrandbits(1) for _ in range(60)] for n in range(4)}
    told = simulate(module, inputs, 60)
    for n in range(4):
        assert [values[n] for values in told[7:]] == inputs[f"in{n}"][:53]


@pytest.mark.parametrize("more", [
    {"wires": {"LSR": ["reset"]}}, {"wires": {"CE": ["enable"]}, "parameters": {"CEMUX": "CE"}},
    {"parameters": {"CEMUX": "0 "}}, {"parameters": {"CLKMUX": "INV"}},
    {"parameters": {"LSRMUX": "INV"}}, {"attributes": ["keep"]}, {"attributes": ["ioff_dir"]},
    {"wires": {"CLK": ["other"]}}])
def test_a_flip_flop_that_does_more_parts_its_line(more):
    module = delays([10] * 4)
    for n in range(4):
        name = f"core.wired.vector.x{n}[5]"
        wires = module["cells"][name]["connections"]
        module["cells"][name] = register(wires["DI"][0], wires["Q"][0], **more)
    before = copy.deepcopy(module)
    assert fold_delay_lines(module) == 0 and module == before


@pytest.mark.parametrize("who", ["cell", "port"])
def test_who_hears_the_middle_parts_it(who):
    module = delays([10] * 4)
    for n in range(4):
        wire = module["cells"][f"core.wired.vector.x{n}[4]"]["connections"]["Q"][0]
        if who == "port":
            module["ports"][f"middle{n}"] = {"bits": [wire]}
        else:
            module["cells"][f"y{n}"] = {
                "type": "LUT4", "parameters": {"INIT": "0" * 16}, "attributes": {},
                "connections": {"A": [wire], "Z": [f"z{n}"]},
                "port_directions": {"A": "input", "Z": "output"}}
    before = copy.deepcopy(module)
    assert fold_delay_lines(module) == 0 and module == before


def test_enabled_always_is_not_enabled():
    module = delays([10] * 4)
    for cell in module["cells"].values():
        cell["parameters"]["CEMUX"] = "CE"
        cell["connections"]["CE"] = ["1"]
        cell["port_directions"]["CE"] = "input"
    assert fold_delay_lines(module) == 40 - 4 - 4


@pytest.mark.parametrize("other", [{"place": "core.wired.link"}, {"clock": "memory_clk"}])
def test_lines_of_another_place_or_clock(other):
    """Two and two lines make no RAM; four and four make two with a counter each."""
    for each in (2, 4):
        module, more = delays([10] * each), delays([10] * each, first=each, **other)
        module = {part: module[part] | more[part] for part in module}
        assert fold_delay_lines(module) == (2 * (40 - 4 - 4) if each == 4 else 0)


def test_a_ring_is_none():
    """Flip-flops that hear each other in a circle have no first one."""
    module = {"ports": {}, "cells": {
        f"r{k}": register(2 + k, 2 + (k + 1) % 8) for k in range(8)}}
    before = copy.deepcopy(module)
    assert fold_delay_lines(module) == 0 and module == before
