"""Where the array stands on an ECP5: sites for its multipliers, their adders and block RAMs.

A chip whose multipliers are nearly all in use leaves a placer little choice where they go, and the
analytic one of nextpnr takes them as they come: the columns of a lane end up all over the chip, and
all its wires with them. Here every lane gets a stretch of a multiplier row, its memories in the row
of block RAMs beside it, and the lanes lie in a ring in the order in which beats travel, around the
vector unit that takes their results. The block RAMs of a memory with a clock of its own stand
beside its pins, and draw the logic of that clock there. The rest is placed by nextpnr.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Hard blocks of a chip, in tiles: they stand in groups of four, each four in one row.

    columns: x of each group, the same for both kinds. multipliers, memories: y of their rows. Of
    four multipliers the first two have an adder, and the others.
    Read off placements by nextpnr that used every site.
    """
    columns: tuple[int, ...]
    multipliers: tuple[int, ...]
    memories: tuple[int, ...]


_85K = Sites(columns=(4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114),
             multipliers=(10, 34, 58), memories=(22, 46, 70, 82))
_45K = Sites(columns=(4, 13, 22, 31, 42, 51, 60, 69, 78), multipliers=(22, 46),
             memories=(10, 34, 58))
_25K = Sites(columns=(4, 13, 22, 33, 42, 51, 60), multipliers=(13,), memories=(25, 37))
#: By nextpnr's name of the device.
SITES = {"25k": _25K, "45k": _45K, "85k": _85K, "um-85k": _85K, "um5g-85k": _85K}

#: In the folder of a placement: the netlist with sites for hard blocks, where it has some.
PLANNED = "planned.json"

_LANE = re.compile(r"\bengine\.lane(\d+)\.(pair\d+\.|acts\.|softmax\.)")
#: Of the vector unit: in the middle of the ring. Of the tile buffer: beside the first lane.
_VECTOR = re.compile(r"\bvector\.")
_TILES = re.compile(r"\btiles\.beat\b")
_SCALES = re.compile(r"\btiles\.scales\b")
#: One address for all of it, so it stands together, in what is left of the weights' row.
_PROGRAM = re.compile(r"\bfetch\.program\b")
#: On the way to them, beside the tile buffer.
_WEIGHTS = re.compile(r"\b(decoder|reader|tiles)\.")
#: Of an SDRAM's side, nearest to its pins first.
_CONTROLLER, _CROSSING = re.compile(r"\bsdram\."), re.compile(r"\bcrossing\.")
_MULTIPLIER, _ADDER, _MEMORY = "MULT18X18D", "ALU54B", "DP16KD"


def plan(cells: Mapping[str, str], sites: Sites,
         pins: tuple[int, int] | None = None) -> dict[str, str]:
    """Sites for the hard blocks of a chip.

    Parameters
    ----------
    cells : mapping of str to str
        Name of each cell -> its type.
    sites : Sites
        Of the chip.
    pins : (x, y), optional
        Where the memory's pins are, in tiles, and its controller has to be: if one stretch of
        multipliers need not be used, it is that nearest to them, and the nearest block RAMs are
        those of an SDRAM's controller and crossing.

    Returns
    -------
    dict
        Name of a cell -> name of its site ("bel") in nextpnr. The array has none if it does not fit
        in such an order, or takes less than half of the multipliers: then nextpnr needs no help.
    """
    found_at = _array(cells, sites, pins)
    if pins is None:
        return found_at
    beside = sorted((math.dist((x + 2 * k, y), pins), f"X{x + 2 * k}/Y{y}/EBR{k}")
                    for x in sites.columns for y in sites.memories for k in range(4))
    taken = set(found_at.values())
    free = (bel for _, bel in beside if bel not in taken)
    for pattern in (_CONTROLLER, _CROSSING):
        found_at.update(zip(_some(cells, _MEMORY, pattern, found_at), free, strict=False))
    return found_at


def _some(cells: Mapping[str, str], kind: str, pattern: re.Pattern,
          but: Mapping[str, str]) -> list[str]:
    """Cells of a kind whose names match and that have no site."""
    return sorted((name for name, is_a in cells.items()
                   if is_a == kind and pattern.search(name) and name not in but), key=_natural)


def _array(cells: Mapping[str, str], sites: Sites,
           avoid: tuple[int, int] | None) -> dict[str, str]:
    """See :func:`plan`."""
    lanes: dict[int, dict[str, list[str]]] = {}
    for name, kind in cells.items():
        if kind in (_MULTIPLIER, _ADDER, _MEMORY) and (found := _LANE.search(name)):
            lanes.setdefault(int(found[1]), {}).setdefault(kind, []).append(name)
    products = [len(lane.get(_MULTIPLIER, ())) for lane in lanes.values()]
    have = 4 * len(sites.columns) * len(sites.multipliers)
    if not products or 2 * sum(products) < have:
        return {}
    groups = -(-max(products) // 4)
    slots = _ring(sites, groups, len(lanes), avoid)
    found_at: dict[str, str] = {}
    if slots is None:
        return found_at
    taken: set[str] = set()

    def fix(name: str, bel: str) -> None:
        found_at[name] = bel
        taken.add(bel)

    for (_, lane), (y, first) in zip(sorted(lanes.items()), slots, strict=True):
        for k, name in enumerate(sorted(lane[_MULTIPLIER], key=_natural)):
            fix(name, _multiplier(sites, y, 4 * first + k))
        # nextpnr takes a pair and its adder with a site each, or none of them.
        for k, name in enumerate(sorted(lane.get(_ADDER, ()), key=_natural)):
            fix(name, _adder(sites, y, 2 * first + k))
        memories = sorted(lane.get(_MEMORY, ()), key=_natural)
        columns = [name for name in memories if ".acts." in name]
        others = [name for name in memories if ".acts." not in name]
        row = min(sites.memories, key=lambda r: (_crowded(sites, taken, r, first, groups),
                                                 r < y, abs(r - y)))
        # Each memory below the columns that it feeds; what is left stands in the middle.
        step = 4 * groups / max(len(columns), 1)
        for k, name in enumerate(columns):
            fix(name, _memory(sites, row, 4 * first + int(k * step)))
        free = [s for s in range(4 * first, 4 * (first + groups))
                if _memory(sites, row, s) not in taken]
        middle = 4 * first + 2 * groups
        for name, site in zip(others, sorted(free, key=lambda s: abs(s - middle)), strict=False):
            fix(name, _memory(sites, row, site))

    def gather(pattern: re.Pattern, kind: str, bels: list[str]) -> None:
        """As many as there are free sites for; the rest is nextpnr's."""
        free = [bel for bel in bels if bel not in taken]
        for name, bel in zip(_some(cells, kind, pattern, found_at), free, strict=False):
            fix(name, bel)
    y = sites.multipliers[len(sites.multipliers) // 2]
    gather(_VECTOR, _MULTIPLIER,
           [_multiplier(sites, y, s) for s in range(4 * len(sites.columns))])
    # What brings weights lies beyond the lanes, where there is no multiplier; the tile buffer, in
    # which it ends, beside the first lane. Not every site, so that their wires have room.
    _, first = slots[0]
    beyond = max(sites.memories)
    row = [_memory(sites, beyond, s) for s in range(4 * len(sites.columns))]

    def around(middle: int) -> list[str]:
        return sorted(row, key=lambda bel: abs(row.index(bel) - middle))
    beside = row[4 * first:4 * (first + groups)]
    gather(_TILES, _MEMORY, beside[::2])
    gather(_SCALES, _MEMORY, beside[1::2])
    gather(_WEIGHTS, _MEMORY, around(4 * first + 2 * groups)[::2])
    gather(_PROGRAM, _MEMORY, around(len(sites.columns)))
    spare = len(sites.columns) % groups
    middle_of_chip = range(4 * (first - spare), 4 * (first + groups))
    gather(_VECTOR, _MEMORY, [
        _memory(sites, memories, s)
        for memories in sorted(sites.memories, key=lambda r: (abs(r - y), -r))
        if memories != beyond for s in middle_of_chip])
    return found_at


def place_hard_blocks(source: Path, target: Path, device: str,
                      pins: tuple[int, int] | None = None) -> int:
    """Copy a netlist (Yosys JSON) with a site for each cell that :func:`plan` names.

    Returns
    -------
    int
        How many cells got one; 0, and no copy, if the device is not known or there is no plan.
    """
    if device not in SITES:
        return 0
    netlist = json.loads(source.read_text())
    count = 0
    for module in netlist["modules"].values():
        cells = module.get("cells", {})
        sites = plan({name: cell["type"] for name, cell in cells.items()}, SITES[device], pins)
        for name, bel in sites.items():
            cells[name]["attributes"]["BEL"] = bel
        count += len(sites)
    if count:
        write_atomic(target, json.dumps(netlist).encode())
    return count


def placed(netlist: Path) -> dict[str, str]:
    """Sites that :func:`place_hard_blocks` has written into a netlist: name of a cell -> name
    of its site. None where there is no such file."""
    try:
        modules = json.loads(netlist.read_text())["modules"]
    except FileNotFoundError:
        return {}
    return {name: cell["attributes"]["BEL"] for module in modules.values()
            for name, cell in module.get("cells", {}).items()
            if "BEL" in cell.get("attributes", {})}


def _ring(sites: Sites, groups: int, lanes: int,
          avoid: tuple[int, int] | None) -> list[tuple[int, int]] | None:
    """(y, first group) of a stretch for each lane, neighbours side by side; None if they do not
    fit."""
    across = len(sites.columns) // groups
    spare = len(sites.columns) - across * groups
    # What is left over lies in the middle, where the vector unit is.
    starts = [groups * k + (spare if 2 * k + 1 >= across else 0) for k in range(across)]
    slots = [(y, start) for y in sites.multipliers for start in starts]
    if len(slots) < lanes:
        return None
    if avoid and len(slots) > lanes + 1:      # the one in the middle is the vector unit's
        def distance(slot: tuple[int, int]) -> float:
            x = (sites.columns[slot[1]] + sites.columns[slot[1] + groups - 1]) / 2
            return math.dist((x, slot[0]), avoid)
        slots.remove(min(slots, key=distance))
    middle_y = sum(sites.multipliers) / len(sites.multipliers)
    middle_x = (len(sites.columns) - groups) / 2

    def from_middle(slot: tuple[int, int]) -> tuple[float, float]:
        return (slot[0] - middle_y) / 24, (slot[1] - middle_x) / groups
    slots.sort(key=lambda slot: -math.hypot(*from_middle(slot)))
    slots = slots[:lanes]

    def angle(slot: tuple[int, int]) -> float:
        """From below the middle, where weights come in, all the way round."""
        dy, dx = from_middle(slot)
        return math.atan2(dx, dy) % math.tau
    return sorted(slots, key=angle)


def _crowded(sites: Sites, taken: set[str], row: int, first: int, groups: int) -> bool:
    """Another lane's memories stand in that stretch of the row."""
    return any(_memory(sites, row, s) in taken for s in range(4 * first, 4 * (first + groups)))


def _multiplier(sites: Sites, y: int, site: int) -> str:
    group, k = divmod(site, 4)
    at = (0, 1, 4, 5)[k]
    return f"X{sites.columns[group] + at}/Y{y}/MULT18_{at}"


def _adder(sites: Sites, y: int, site: int) -> str:
    group, k = divmod(site, 2)
    at = (3, 7)[k]
    return f"X{sites.columns[group] + at}/Y{y}/ALU54_{at}"


def _memory(sites: Sites, y: int, site: int) -> str:
    group, k = divmod(site, 4)
    return f"X{sites.columns[group] + 2 * k}/Y{y}/EBR{k}"


def _natural(name: str) -> list:
    """mul2 before mul10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
