"""The floorplan of the array: every hard block on a site of its own, neighbours side by side."""
import json
import re

import pytest
from meadowlark.chip.floorplan import SITES, place_hard_blocks, plan

SITE = re.compile(r"X(\d+)/Y(\d+)/(MULT18_|ALU54_|EBR)(\d)")
OFFSETS = {"MULT18_": {0: 0, 1: 1, 4: 4, 5: 5}, "ALU54_": {3: 3, 7: 7},
           "EBR": {0: 0, 1: 2, 2: 4, 3: 6}}


def array(lanes, columns, memories=8):
    """Names of a core's hard blocks, and some others."""
    cells = {"dut.vector.square.dsp": "MULT18X18D", "dut.tiles.beat.0.0": "DP16KD"}
    for lane in range(lanes):
        name = f"dut.wired.engine.lane{lane}"
        cells |= {f"{name}.pair{k // 2}.mul{k % 2}": "MULT18X18D" for k in range(columns)}
        cells |= {f"{name}.pair{k}.alu": "ALU54B" for k in range(columns // 2)}
        cells |= {f"{name}.acts.0.{k}": "DP16KD" for k in range(memories)}
        cells |= {f"{name}.softmax.{what}.0.0": "DP16KD" for what in ("exp2", "scores")}
        cells |= {f"{name}.sum_{k}": "TRELLIS_FF" for k in range(3)}
    return cells


@pytest.mark.parametrize("lanes, columns, memories", [(8, 16, 8), (16, 8, 4), (3, 32, 16),
                                                      (5, 16, 8)])
def test_every_hard_block_of_the_array_has_its_site(lanes, columns, memories):
    cells, sites = array(lanes, columns, memories), SITES["85k"]
    found = plan(cells, sites)
    assert set(found) == {name for name, kind in cells.items() if kind != "TRELLIS_FF"}
    assert len(set(found.values())) == len(found)
    middle = []
    for lane in range(lanes):
        at = {}
        for name, bel in found.items():
            if f"lane{lane}." in name:
                site = SITE.fullmatch(bel)
                assert site is not None
                x, y, kind, k = site.groups()
                assert int(x) - OFFSETS[kind][int(k)] in sites.columns
                assert int(y) in (sites.memories if kind == "EBR" else sites.multipliers)
                at[name] = int(x), int(y)
        name = f"dut.wired.engine.lane{lane}"
        ours = [at[f"{name}.pair{k // 2}.mul{k % 2}"] for k in range(columns)]
        assert ours == sorted(ours) and len({y for _, y in ours}) == 1
        assert ours[-1][0] - ours[0][0] <= 3 * columns
        for k in range(columns // 2):       # where nextpnr wants the adder of two multipliers
            x, y = at[f"{name}.pair{k}.alu"]
            assert ours[2 * k:2 * k + 2] == [(x - 3, y), (x - 2, y)]
        for k in range(memories):           # below the columns that it feeds
            x, y = at[f"{name}.acts.0.{k}"]
            assert abs(x - ours[k * columns // memories][0]) <= 4 and abs(y - ours[0][1]) <= 36
        middle.append((ours[columns // 2][0], ours[0][1]))
    if (lanes, columns) == (8, 16):         # beats go from a lane to one beside it
        assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 50
                   for a, b in zip(middle, middle[1:]))


def test_tile_buffer_stands_beside_the_first_lane():
    """Though other memories on the way of the weights want the same row."""
    tiles = {f"dut.tiles.{what}$1.0.{k}": "DP16KD" for what in ("beat", "scales") for k in range(6)}
    others = {f"dut.{what}.0.{k}": "DP16KD" for what in (
        "reader.fifo.ram", "decoder.unpacker.lane0.symbols", "fetch.program") for k in range(6)}
    found = plan(array(8, 16) | tiles | others, SITES["85k"])
    assert len(set(found.values())) == len(found) and set(tiles | others) <= set(found)
    for name in tiles:
        site = SITE.fullmatch(found[name])
        assert site is not None and 49 <= int(site[1]) <= 84 and site[2] == "82"


def test_no_lane_where_much_else_has_to_be():
    """If it need not be there."""
    def at_pins(lanes, pins):
        return [bel for name, bel in plan(array(lanes, 16), SITES["85k"], pins).items()
                if "engine.lane" in name and (site := SITE.fullmatch(bel)) is not None
                and int(site[1]) < 40 and 58 <= int(site[2]) <= 82]
    assert len(at_pins(8, (0, 75))) == len(at_pins(8, None)) > 0
    assert len(at_pins(7, None)) > 0 and at_pins(7, (0, 75)) == []


@pytest.mark.parametrize("lanes", [8, 2])
def test_block_rams_of_an_sdram_stand_beside_its_pins(lanes):
    """The controller's nearest, whether the array has sites or not, and nobody else is moved."""
    core, pins = array(lanes, 16), (126, 55)
    names = ["sdram.writes.words.ram.0.0", "crossing.down.ram.0.0", "crossing.up.ram.0.0"]
    found = plan(core | dict.fromkeys(names, "DP16KD"), SITES["85k"], pins)
    assert [found.pop(name) for name in names] == (
        ["X120/Y46/EBR3", "X116/Y46/EBR1", "X120/Y70/EBR3"] if lanes == 8 else
        ["X120/Y46/EBR3", "X118/Y46/EBR2", "X116/Y46/EBR1"])
    assert found == plan(core, SITES["85k"], pins)


@pytest.mark.parametrize("device, multipliers, memories",
                         [("25k", 28, 56), ("45k", 72, 108), ("85k", 156, 208)])
def test_sites_of_a_device_are_all_that_it_has(device, multipliers, memories):
    """As many as Lattice's data sheet of the ECP5 says (FPGA-DS-02012, table 1.1)."""
    sites = SITES[device]
    assert 4 * len(sites.columns) * len(sites.multipliers) == multipliers
    assert 4 * len(sites.columns) * len(sites.memories) == memories


def test_no_plan_where_none_is_needed():
    assert plan(array(4, 4), SITES["85k"]) == {}
    assert plan({}, SITES["85k"]) == {}
    assert plan(array(3, 48), SITES["85k"]) != {} and plan(array(4, 48), SITES["85k"]) == {}


def test_netlist_gets_sites(tmp_path):
    source, target = tmp_path / "top.json", tmp_path / "planned.json"
    cells = {name: {"type": kind, "attributes": {}} for name, kind in array(8, 16).items()}
    source.write_text(json.dumps({"modules": {"top": {"cells": cells}}}))
    assert place_hard_blocks(source, target, "25k") == 0 and not target.exists()
    assert place_hard_blocks(source, target, "85k") == 8 * 34 + 2
    out = json.loads(target.read_text())["modules"]["top"]["cells"]
    assert sum("BEL" in cell["attributes"] for cell in out.values()) == 8 * 34 + 2
    assert out["dut.wired.engine.lane0.pair0.mul0"]["attributes"]["BEL"] == "X49/Y58/MULT18_0"
    assert out["dut.wired.engine.lane0.pair1.alu"]["attributes"]["BEL"] == "X56/Y58/ALU54_7"
