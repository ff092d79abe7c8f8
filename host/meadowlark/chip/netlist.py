"""What every pass over a flat Yosys JSON netlist asks of it, and the cells that one adds."""
from __future__ import annotations

import collections
from collections.abc import Mapping

REGISTER, DISTRIBUTED_RAM, LUT = "TRELLIS_FF", "TRELLIS_DPR16X4", "LUT4"


def users(module: dict) -> collections.Counter:
    """Wire -> inputs of cells and ports of the module that it goes to."""
    found: collections.Counter[object] = collections.Counter(
        bit for port in module["ports"].values() for bit in port["bits"])
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                found.update(bits)
    return found


def enable_of(register: dict) -> list | None:
    """What enables a flip-flop, as a connection; None if it does more than take its input at each
    rising edge of its clock that is enabled, or has to be kept."""
    wires, options = register["connections"], register["parameters"]
    enable = {"1": ["1"], "CE": wires.get("CE")}.get(options.get("CEMUX", "").strip())
    plain = (options.get("CLKMUX", "CLK") == "CLK"
             and options.get("LSRMUX", "LSR") == "LSR" and wires.get("LSR", ["0"]) == ["0"]
             and not register.get("attributes", {}).get("keep"))
    return enable if plain else None


def cell(kind: str, parameters: Mapping, connections: Mapping, output: str) -> dict:
    """A cell as a netlist has it. output: the one port that is."""
    return {"hide_name": 0, "type": kind, "parameters": dict(parameters), "attributes": {},
            "port_directions": {port: "output" if port == output else "input"
                                for port in connections},
            "connections": dict(connections)}
