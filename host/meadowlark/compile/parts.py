"""What the parts of a prediction take, by operator and by layer, and what bounds each."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .cycles import Prediction, Spent, kind_of

#: What can bound a part: memory's bus, the multipliers, results on their way out of the array, or
#: none of them, where each waits for the others.
BOUNDS = ("memory", "multipliers", "drain", "latency")
_LAYER = re.compile(r"\blayers\.(\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some instructions of a prediction together.

    name: of the operator, or the layer. count: instructions executed. cycles: of these work, drain,
    memory and overhead as :class:`.cycles.Spent` has them. bytes: over memory's bus, read and
    written. bound: of :data:`BOUNDS`, which is busy in the largest share of the cycles; "latency"
    where none is in half of them.
    """
    name: str
    count: int
    cycles: int
    work: int
    drain: int
    memory: int
    overhead: int
    bytes: int
    bound: str


def part(name: str, spent: Spent, prediction: Prediction) -> Part:
    """What was spent, as a part of a prediction."""
    moved = spent.words * prediction.config.bus_bytes
    busy = dict(zip(BOUNDS, (moved / prediction.bytes_per_cycle, spent.work, spent.drain)))
    most = max(busy, key=lambda bound: busy[bound])
    return Part(name=name, count=spent.count, cycles=spent.cycles, work=spent.work,
                drain=spent.drain, memory=spent.memory, overhead=spent.overhead, bytes=moved,
                bound=most if 2 * busy[most] >= spent.cycles else BOUNDS[-1])


def _grouped(prediction: Prediction, names: Sequence[str]) -> dict[str, Spent]:
    """By the name of each instruction; "passes" is what lies between those of two passes."""
    found: dict[str, Spent] = {}
    for pc, spent in prediction.by_pc.items():
        found.setdefault(names[pc], Spent()).add(spent)
    rest = prediction.cycles - sum(spent.cycles for spent in found.values())
    found["passes"] = Spent(count=len(prediction.passes), overhead=rest)
    return found


def whole(prediction: Prediction) -> Part:
    """All of a prediction."""
    total = Spent()
    for spent in _grouped(prediction, [""] * len(prediction.program)).values():
        total.add(spent)
    return part("all", total, prediction)


def operators(prediction: Prediction) -> list[Part]:
    """By operator, most cycles first."""
    found = _grouped(prediction, [kind_of(i) for i in prediction.program])
    return sorted((part(name, spent, prediction) for name, spent in found.items()),
                  key=lambda one: -one.cycles)


def layer_names(subjects: Sequence[str]) -> list[str]:
    """The layer of each instruction: "embedding", "layer 0" and so on, "head".

    subjects: what each works on, see :func:`.disassemble.subjects`.
    """
    names, before = list[str](), "embedding"
    for subject in subjects:
        if (found := _LAYER.search(subject)) is not None:
            before = f"layer {found[1]}"
        elif subject:
            before = subject.removeprefix("before ")
        names.append(before)
        if not subject and before == "head":    # END; behind it the other list begins
            before = "embedding"
    return names


def layers(prediction: Prediction, subjects: Sequence[str]) -> list[Part]:
    """By layer in the order of the program; subjects: as of :func:`layer_names`."""
    names = layer_names(subjects)
    found = _grouped(prediction, names)
    order = list(dict.fromkeys(names)) + ["passes"]
    return [part(name, found[name], prediction) for name in order if name in found]
