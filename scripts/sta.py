"""Paths of a placed design: static timing analysis of the SDF file that nextpnr writes.

nextpnr names no path before it has routed, which takes hours for the whole core; estimates of a
placement are there in a tenth of that. `scripts/fmax.py --placed` calls this.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

_TRIPLE = r"\(-?\d+:-?\d+:(-?\d+)\)"
_WIRE = re.compile(rf"\s*\(INTERCONNECT (\S+)/(\S+) (\S+)/(\S+) {_TRIPLE} {_TRIPLE}\)")
_LOGIC = re.compile(rf"\s*\(IOPATH (\S+) (\S+) {_TRIPLE} {_TRIPLE}\)")
_SETUP = re.compile(rf"\s*\(SETUPHOLD \(\w+ (\S+)\) \(\w+ (\S+)\) {_TRIPLE}")
_TYPE = re.compile(r'\s*\(CELLTYPE "(\w+)"\)')
_INSTANCE = re.compile(r"\s*\(INSTANCE (\S*?)\)")

#: nextpnr has no timing of this cell, so its registers get that of a MULT18X18D's (speed grade 6,
#: ps): clock to output, and the setup of CE, the largest.
_ADDER, _ADDER_OUT, _ADDER_SETUP = "ALU54B", 735, 252

Pin = tuple[str, str]


def _name(text: str) -> str:
    return text.replace("\\", "")


class Timing:
    """Arrival times of all pins.

    Parameters
    ----------
    path : Path
        SDF; one clock without skew is assumed.
    """

    def __init__(self, path: Path) -> None:
        edges: dict[Pin, list[tuple[Pin, int]]] = defaultdict(list)
        into: dict[Pin, int] = defaultdict(int)
        setups: dict[Pin, int] = {}
        clocks: set[Pin] = set()
        cell = kind = ""
        adders: set[str] = set()
        with path.open() as lines:
            for line in lines:
                if found := _WIRE.match(line):
                    a, p, b, q, *ps = found.groups()
                    start, end, delay = (_name(a), p), (_name(b), q), max(map(int, ps))
                elif found := _LOGIC.match(line):
                    p, q, *ps = found.groups()
                    start, end, delay = (cell, p), (cell, q), max(map(int, ps))
                elif found := _SETUP.match(line):
                    p, clock, setup = found.groups()
                    pin = (cell, p)
                    setups[pin] = max(int(setup), setups.get(pin, 0))
                    clocks.add((cell, clock))
                    continue
                else:
                    if found := _TYPE.match(line):
                        kind = found[1]
                    elif found := _INSTANCE.match(line):
                        cell = _name(found[1])
                        if kind == _ADDER:
                            adders.add(cell)
                    continue
                edges[start].append((end, delay))
                into[end] += 1
        for start, ends in list(edges.items()):
            if start[0] in adders and start[1][0] == "R":
                clocks.add(clock := (start[0], "CLK0"))
                edges[clock].append((start, _ADDER_OUT))
                into[start] += 1
            setups |= {end: _ADDER_SETUP for end, _ in ends
                       if end[0] in adders and re.fullmatch(r"(C|OP)\d+", end[1])}
        self.setups, self.edges = setups, edges
        # A clock starts each path: neither what leads to it counts, nor constants.
        ready = [pin for pin in edges if not into[pin] or pin in clocks]
        self.at: dict[Pin, int] = {pin: 0 for pin in ready if pin in clocks}
        self.before: dict[Pin, Pin] = {}
        while ready:
            pin = ready.pop()
            for end, delay in edges.get(pin, ()):
                if end in clocks:
                    continue
                if pin in self.at and self.at[pin] + delay >= self.at.get(end, 0):
                    self.at[end], self.before[end] = self.at[pin] + delay, pin
                into[end] -= 1
                if not into[end]:
                    ready.append(end)

    def ends(self) -> list[tuple[int, Pin]]:
        """(ps of its slowest path, endpoint), slowest first."""
        return sorted(((self.at.get(pin, 0) + setup, pin) for pin, setup in self.setups.items()),
                      reverse=True)

    @property
    def fmax_mhz(self) -> float:
        return 1e6 / max(ps for ps, _ in self.ends())

    def path(self, end: Pin) -> list[Pin]:
        """Pins of the slowest path, from the clock of its register on."""
        pins = [end]
        while pins[-1] in self.before:
            pins.append(self.before[pins[-1]])
        return pins[::-1]


def describe(timing: Timing, block_of: Callable[[str], str], *, count: int = 20,
             limits=(8, 9, 10, 11, 12, 14, 16, 20, 30)) -> list[str]:
    """Lines: how many endpoints are slower than some limits in ns, then the slowest paths, each
    with other blocks at its ends (apart from their numbers).

    block_of: name of a cell and pin, joined by a dot -> name of its block.
    """
    def block(pin: Pin) -> str:
        return block_of(".".join(pin))

    ends = timing.ends()
    lines = [f"{sum(ps > 1000 * ns for ps, _ in ends)} endpoints above {ns} ns" for ns in limits]
    seen: set[tuple[str, ...]] = set()
    for ps, end in ends:
        pins = timing.path(end)
        kind = tuple(re.sub(r"\d+", "#", block(pin)) for pin in (pins[min(1, len(pins) - 1)], end))
        if kind in seen:
            continue
        seen.add(kind)
        lines.append(f"{ps / 1000:.2f} ns to {block(end)}.{end[1]}")
        for last, pin in zip(pins, pins[1:]):
            at, fan_out = timing.at[pin], len(timing.edges.get(pin, ()))
            lines.append(f"  {at / 1000:6.2f} +{(at - timing.at[last]) / 1000:5.2f} {block(pin)}"
                         f".{pin[1]}" + f"  to {fan_out}" * (fan_out > 8))
        if len(seen) == count:
            break
    return lines
