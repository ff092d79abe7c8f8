"""Carry chains of an ECP5 without the cells that nextpnr would put before and behind them.

nextpnr gets a carry into a chain by a CCU2C of its own in front of it, constant or not, and out of
it by another one behind it, whether anybody hears of it or not. Each takes two LUTs.
"""
from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import NamedTuple

_CHAIN = "CCU2C"
_INPUTS = "ABCD"
#: As a netlist says it: nextpnr fails where a port is left out.
_UNCONNECTED = ["x"]
#: Function of a half that makes a constant carry. With its inputs at 1 its LUT4 says 0, so it does
#: not hand on what comes in, and its LUT2, of bits 3..0, is what goes out.
_CARRY = {"0": f"{0:016b}", "1": f"{0b1111:016b}"}


class Half(NamedTuple):
    """One bit of a chain: connections of its inputs and its sum, and their function."""
    inputs: list[list]
    sum: list
    init: str


def trim_carry_chains(module: dict) -> int:
    """Trim them in a module of a flat Yosys JSON netlist, in place.

    A carry out that nobody hears is not connected. A constant carry in becomes the first bit of its
    chain where the last cell has a bit to spare: all bits move up by one.

    Returns
    -------
    int
        Cells that nextpnr does not need.
    """
    cells = {name: cell for name, cell in module["cells"].items() if cell["type"] == _CHAIN}
    heard: collections.Counter[object] = collections.Counter(
        bit for port in module["ports"].values() for bit in port["bits"])
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                heard.update(bits)
    carried = {cell["connections"]["CIN"][0]: cell for cell in cells.values()}
    spared = 0
    for first in cells.values():
        if first["connections"]["CIN"][0] not in _CARRY:
            continue
        chain = [first]
        while following := carried.get(chain[-1]["connections"]["COUT"][0]):
            chain.append(following)
        if heard[chain[-1]["connections"]["COUT"][0]]:
            continue
        chain[-1]["connections"]["COUT"] = _UNCONNECTED
        spared += 1 + _moved(chain, heard)
    return spared


def _moved(chain: list[dict], heard: Mapping) -> bool:
    """Move the bits of a chain up by one, if nobody hears the last one, nor of the carries those
    between two cells: they would be others."""
    halves = [half for cell in chain for half in _halves(cell)]
    if heard[halves[-1].sum[0]] or any(
            heard[cell["connections"]["COUT"][0]] > 1 for cell in chain[:-1]) or any(
            cell["parameters"][f"INJECT1_{k}"] != "NO" for cell in chain for k in (0, 1)):
        return False
    carry = Half([["1"] for _ in _INPUTS], halves[-1].sum,
                 _CARRY[chain[0]["connections"]["CIN"][0]])
    chain[0]["connections"]["CIN"] = _UNCONNECTED
    for number, half in enumerate([carry, *halves[:-1]]):
        cell, k = chain[number // 2], number % 2
        cell["connections"] |= {f"{port}{k}": bits
                                for port, bits in zip(_INPUTS, half.inputs, strict=True)}
        cell["connections"][f"S{k}"] = half.sum
        cell["parameters"][f"INIT{k}"] = half.init
    return True


def _halves(cell: dict) -> list[Half]:
    wires = cell["connections"]
    return [Half([wires[f"{port}{k}"] for port in _INPUTS], wires[f"S{k}"],
                 cell["parameters"][f"INIT{k}"]) for k in (0, 1)]
