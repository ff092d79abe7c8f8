"""Carry chains of an ECP5 without the cells that nextpnr would put before and behind them.

nextpnr gets a carry into a chain by a CCU2C of its own in front of it, constant or not, and out of
it by another one behind it, whether anybody hears of it or not. Each takes two LUTs.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import netlist

_INPUTS = "ABCD"
#: As a netlist says it: nextpnr fails where a port is left out.
_UNCONNECTED = ["x"]
_ONE = ["1"]


class Half(NamedTuple):
    """One bit of a chain: connections of its inputs and its sum, and their function, bit 15 first.

    With its inputs C and D at 1 and 0 in the first four bits of its function, nothing of what comes
    in goes on: the last four bits, of A and B, are what goes out.
    """
    inputs: list[list]
    sum: list
    init: str


def trim_carry_chains(module: dict) -> int:
    """Trim them in a module of a flat Yosys JSON netlist, in place.

    A carry out that nobody hears is not connected. A constant carry in becomes the first bit of its
    chain where the last cell has a bit to spare: all bits move up by one. Where it has none, the
    first bit only makes the carry that leaves it, and a LUT its sum.

    Returns
    -------
    int
        LUTs that a chip has more than without.
    """
    cells = {name: cell for name, cell in module["cells"].items() if cell["type"] == "CCU2C"}
    heard = netlist.users(module)
    carried = {cell["connections"]["CIN"][0]: cell for cell in cells.values()}
    spared = 0
    for name, first in cells.items():
        if first["connections"]["CIN"][0] not in ("0", "1"):
            continue
        chain = [first]
        while following := carried.get(chain[-1]["connections"]["COUT"][0]):
            chain.append(following)
        if not heard[chain[-1]["connections"]["COUT"][0]]:
            chain[-1]["connections"]["COUT"] = _UNCONNECTED
            spared += 2
        if any(cell["parameters"][f"INJECT1_{k}"] != "NO" for cell in chain for k in (0, 1)):
            continue
        if _move_up(chain, heard):
            spared += 2
        elif (lut := _only_carry(first)) is not None:
            spared += 2
            if heard[lut["connections"]["Z"][0]]:
                module["cells"][f"{name}_FIRST"] = lut
                spared -= 1
    return spared


def _move_up(chain: list[dict], heard: Mapping) -> bool:
    """Move the bits of a chain up by one, if nobody hears the last one, nor of the carries the one
    behind it and those between two cells: they would be others."""
    halves = [_half(cell, k) for cell in chain for k in (0, 1)]
    if chain[-1]["connections"]["COUT"] != _UNCONNECTED or heard[halves[-1].sum[0]] or any(
            heard[cell["connections"]["COUT"][0]] > 1 for cell in chain[:-1]):
        return False
    carry_in = chain[0]["connections"]["CIN"][0]
    carry = Half([_ONE] * 4, halves[-1].sum, (4 * carry_in).rjust(16, "0"))
    chain[0]["connections"]["CIN"] = _UNCONNECTED
    for number, half in enumerate([carry, *halves[:-1]]):
        _set_half(chain[number // 2], number % 2, half)
    return True


def _only_carry(cell: dict) -> dict | None:
    """Let the first bit of a chain make the carry alone, if it is one of A and B; a LUT4 for its
    sum, whose net it no longer drives."""
    (*ab, c, d), sum_, init = _half(cell, 0)
    if c[0] not in ("0", "1") or d[0] not in ("0", "1"):
        return None
    upper = 4 * int(c[0]) + 8 * int(d[0])
    carry_in = cell["connections"]["CIN"][0]
    of = init[::-1]                     # the value for inputs 0 first
    sums, carries = "", ""
    for at in range(4):
        half_sum = of[upper + at]
        sums += str(int(half_sum != carry_in))
        carries += carry_in if half_sum == "1" else of[at]
    cell["connections"]["CIN"] = _UNCONNECTED
    _set_half(cell, 0, Half([*ab, _ONE, _ONE], _UNCONNECTED, carries[::-1].rjust(16, "0")))
    wires = dict(zip(_INPUTS, [*ab, _ONE, _ONE], strict=True)) | {"Z": sum_}
    return netlist.cell(netlist.LUT, {"INIT": sums[::-1] * 4}, wires, output="Z")


def _half(cell: dict, k: int) -> Half:
    wires = cell["connections"]
    return Half([wires[f"{port}{k}"] for port in _INPUTS], wires[f"S{k}"],
                cell["parameters"][f"INIT{k}"])


def _set_half(cell: dict, k: int, half: Half) -> None:
    cell["connections"] |= {f"{port}{k}": bits
                            for port, bits in zip(_INPUTS, half.inputs, strict=True)}
    cell["connections"][f"S{k}"] = half.sum
    cell["parameters"][f"INIT{k}"] = half.init
