"""Registers behind block RAMs of an ECP5 become those that the RAMs have themselves.

The output of a DP16KD comes 5.8 ns after the clock, that of its own output register after 0.95 ns
(speed grade 6). Yosys never uses it; here a netlist whose RAM outputs all go to plain flip-flops
loses these. Reading takes as many cycles as before.
"""
from __future__ import annotations

import collections
from collections.abc import Mapping

from .netlist import REGISTER, enable_of

_RAM = "DP16KD"
_DATA = {port: [f"DO{port}{k}" for k in range(18)] for port in "AB"}


def fold_ram_registers(module: dict) -> int:
    """Fold them in a module of a flat Yosys JSON netlist, in place.

    A port is changed if each of its outputs that anything hears is heard by one flip-flop alone,
    with the port's clock, without reset and with the same enable or none. A port of 36 bits has
    its data at both.

    Returns
    -------
    int
        Flip-flops that are gone.
    """
    cells = module["cells"]
    heard: dict[object, list[str | None]] = collections.defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    heard[bit].append(name if cell["type"] == REGISTER and port == "DI" else None)
    for port in module["ports"].values():
        for bit in port["bits"]:
            heard[bit].append(None)
    gone = 0
    for ram in [cell for cell in cells.values() if cell["type"] == _RAM]:
        wide = int(ram["parameters"]["DATA_WIDTH_B"], 2) == 36
        for ports in ("AB",) if wide else ("A", "B"):
            gone += _fold(ram, ports, cells, heard)
    return gone


def _fold(ram: dict, ports: str, cells: dict, heard: Mapping) -> int:
    """The flip-flops behind a port, or behind both."""
    wires, found = ram["connections"], {}
    enables = []
    for name in (name for port in ports for name in _DATA[port]):
        for bit in wires.get(name, []):
            users = heard.get(bit, [])
            if not users:
                continue
            register = cells.get(users[0]) if len(users) == 1 and users[0] else None
            if register is None or register["connections"]["CLK"] != wires[f"CLK{ports[-1]}"]:
                return 0
            enable = enable_of(register)
            if not enable:
                return 0
            found[name] = users[0]
            enables.append(enable)
    if not found or any(enable != enables[0] for enable in enables) or any(
            ram["parameters"][f"REGMODE_{port}"] != "NOREG" for port in ports):
        return 0
    for port in ports:
        ram["parameters"][f"REGMODE_{port}"] = "OUTREG"
        wires[f"OCE{port}"] = enables[0]
    for name, register in found.items():
        wires[name] = cells.pop(register)["connections"]["Q"]
    return len(found)
