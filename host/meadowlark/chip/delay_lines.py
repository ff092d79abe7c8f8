"""Long delay lines of flip-flops become distributed RAM, on an ECP5 that is short of flip-flops.

A chain of L flip-flops that hear nothing but each other is a RAM of N = L - 1 words and one
flip-flop: in each cycle the word of N cycles ago goes to the flip-flop, and the one that comes in
takes its place. Four chains are one TRELLIS_DPR16X4, which takes six LUTs, and lines of one length
and block share the counter of their address. Nothing is earlier or later than before, nor when the
chip starts: the RAM begins with what the flip-flops begin with.
"""
from __future__ import annotations

import collections
import itertools
from typing import NamedTuple

from . import netlist

#: Chains of a RAM, and the cycles that it can hold.
_WIDTH, _DEPTH = 4, 16
#: Shorter ones stay: below, a RAM has hardly fewer wires than what it takes the place of.
_SHORTEST = 6
#: RAMs that share a counter, so that its wires stay short.
_SHARE = 6
#: Attributes of a flip-flop that belongs to a pin.
_AT_A_PIN = {"ioff_dir", "syn_useioff"}
#: Parts of a hierarchical name, its own apart, that say where a chain is: lines of one RAM come
#: from one place.
_PLACE = 3


class Line(NamedTuple):
    """A chain: its clock, where it is, and the names of its flip-flops, first to last."""
    clock: object
    place: str
    registers: list[str]


def fold_delay_lines(module: dict) -> int:
    """Fold them in a module of a flat Yosys JSON netlist, in place.

    Returns
    -------
    int
        Flip-flops that are gone, less those of the new counters.
    """
    cells = module["cells"]
    lines = sorted(_lines(module), key=lambda line: (str(line.clock), line.place,
                                                     -min(len(line.registers), _DEPTH + 1),
                                                     line.registers))
    free = itertools.count(1 + max(
        (bit for cell in cells.values() for bits in cell["connections"].values()
         for bit in bits if isinstance(bit, int)), default=1))
    rams: collections.Counter[tuple] = collections.Counter()    # of a clock, place and length
    addresses: dict[tuple, list[int]] = {}
    before = sum(cell["type"] == netlist.REGISTER for cell in cells.values())
    for (clock, place), found in itertools.groupby(lines, lambda line: (line.clock, line.place)):
        for four in zip(*[iter(found)] * _WIDTH, strict=False):
            words = min(_DEPTH, *(len(line.registers) - 1 for line in four))
            key = clock, place, words
            if rams[key] % _SHARE == 0:
                addresses[key] = _counter(cells, clock, words, free)
            rams[key] += 1
            _fold(cells, four, words, addresses[key], free)
    return before - sum(cell["type"] == netlist.REGISTER for cell in cells.values())


def _lines(module: dict) -> list[Line]:
    """All chains that are long enough."""
    cells = module["cells"]
    heard = netlist.users(module)
    plain = {name: cell for name, cell in cells.items() if _plain(cell)}
    of_output = {cell["connections"]["Q"][0]: name for name, cell in plain.items()}
    before = {}
    for name, cell in plain.items():
        wire = cell["connections"]["DI"][0]
        source = of_output.get(wire)
        if source and heard[wire] == 1 and (
                cells[source]["connections"]["CLK"] == cell["connections"]["CLK"]):
            before[name] = source
    lines = []
    for last in plain.keys() - set(before.values()):
        chain = [last]
        while source := before.get(chain[-1]):
            chain.append(source)
        if len(chain) >= _SHORTEST:
            place = ".".join(last.split(".")[:-1][:_PLACE])
            lines.append(Line(cells[last]["connections"]["CLK"][0], place, chain[::-1]))
    return lines


def _plain(cell: dict) -> bool:
    """It takes its input at each rising edge of its clock, and does nothing else."""
    return (cell["type"] == netlist.REGISTER and netlist.enable_of(cell) == ["1"]
            and not _AT_A_PIN & cell["attributes"].keys())


def _counter(cells: dict, clock: object, words: int, free: itertools.count) -> list[int]:
    """Wires of a counter from 0 to ``words`` - 1, lowest bit first."""
    address = [next(free) for _ in range(4)]
    after = [(k + 1) % words if k < words else 0 for k in range(_DEPTH)]
    for bit, wire in enumerate(address):
        table = "".join(str(after[k] >> bit & 1) for k in reversed(range(_DEPTH)))
        following = next(free)
        cells[f"delay_count_{wire}_LUT"] = netlist.cell(
            netlist.LUT, {"INIT": table}, {"Z": [following]} | {
                port: [of] for port, of in zip("ABCD", address, strict=True)}, output="Z")
        cells[f"delay_count_{wire}"] = netlist.cell(
            netlist.REGISTER, {"CEMUX": "1 ", "CLKMUX": "CLK", "GSR": "DISABLED", "LSRMUX": "LSR",
                               "REGSET": "RESET", "SRMODE": "LSR_OVER_CE"},
            {"Q": [wire], "CLK": [clock], "DI": [following], "LSR": ["0"]}, output="Q")
    return address


def _fold(cells: dict, four: tuple[Line, ...], words: int, address: list[int],
          free: itertools.count) -> None:
    """The first ``words`` flip-flops of four chains become a RAM; the next one hears it."""
    inputs = [cells[line.registers[0]]["connections"]["DI"][0] for line in four]
    outputs = [next(free) for _ in four]
    states = [[_initial(cells[name]) for name in line.registers[:words]] for line in four]
    # Address 0 is read first: it holds what the last of the flip-flops holds.
    begins = "".join(states[k][words - 1 - word] if word < words else "x"
                     for word in reversed(range(_DEPTH)) for k in reversed(range(_WIDTH)))
    cells[f"{four[0].registers[0]}_delay"] = netlist.cell(
        netlist.DISTRIBUTED_RAM, {"INITVAL": begins, "WCKMUX": "WCK", "WREMUX": "WRE"},
        {"DO": outputs, "DI": inputs, "RAD": address, "WAD": address, "WCK": [four[0].clock],
         "WRE": ["1"]}, output="DO")
    for line, output in zip(four, outputs, strict=True):
        cells[line.registers[words]]["connections"]["DI"] = [output]
        for name in line.registers[:words]:
            del cells[name]


def _initial(register: dict) -> str:
    return "1" if register["parameters"].get("REGSET") == "SET" else "0"
