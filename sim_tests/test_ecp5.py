"""Between Yosys and nextpnr: a bit a state, the first state back, the same netlist always; routes
without an end."""
import json

import pytest
from meadowlark.chip.ecp5 import canonical, converging, first_states, place_and_route
from meadowlark.chip.toolchain import Unroutable
from meadowlark.errors import UserError

CLOCKS = """Warning: net 'pll.o' does not exist in design, ignoring clock constraint
Info: constraining clock net 'clk25_0__io' to 25.00 MHz
Info: Generating derived timing constraints...
Info:     Input frequency of PLL 'pll.pll' is constrained to 25.0 MHz
Info:     Derived frequency constraint of 133.3 MHz for net a.sdram_clk
Info:     Derived frequency constraint of 88.9 MHz for net clk
"""
LOG = r"""Recoding FSM `$fsm$\dut.link.fsm_state$7' from module `\top' using `auto' encoding:
  mapping auto encoding to `one-hot' for this FSM.
  {first} -> -----{last}
  100 -> ----1-
"""


def test_first_states():
    assert first_states("nothing") == ["setattr -set init 0 a:amaranth_state"]
    assert first_states(LOG.format(first="000", last="1")) == [
        "setattr -set init 0 a:amaranth_state", "setattr -set init 1 w:dut.link.fsm_state"]


@pytest.mark.parametrize("first, last", [("010", "1"), ("000", "-")])
def test_another_first_state(first, last):
    with pytest.raises(UserError, match="another first state of dut.link.fsm_state than 0"):
        first_states(LOG.format(first=first, last=last))


def test_a_log_that_tells_something_else():
    with pytest.raises(UserError, match="does not tell how"):
        first_states(LOG.replace("one-hot", "binary"))


def test_a_netlist_does_not_tell_where_and_when_it_was_made():
    def made_in(folder, cells, alias):
        return {"modules": {"LUT4": {"attributes": {"src": folder}}, "top": {"cells": {
            name: {"attributes": {"keep": "1", "src": f"{folder}/{name}.v:1"},
                   "connections": {"CLK": [2], "D": [3]}} for name in cells}, "netnames": {
            name: {"bits": [bit], "attributes": {"src": folder} | attributes}
            for name, bit, attributes in ((alias, 3, {}), ("own", 4, {"keep": "1"}),
                                          ("pll.clk", 2, {}))}}}}
    here = made_in("/a", ["b", "a"], "data")
    there = made_in("/b/c", ["a", "b"], "the.same")
    canonical(here, "top")
    canonical(there, "top")
    assert json.dumps(here) == json.dumps(there)
    module = here["modules"]["top"]
    assert module["cells"]["a"]["attributes"] == {"keep": "1"}
    assert list(module["netnames"]) == ["own", "pll.clk"]


def test_a_route_that_will_not_end():
    seen: list[str] = []
    tell = converging(seen.append)

    def conflicts(count):
        tell(f"    iter={len(seen) + 1} wires=1000 overused={count} overuse={count} archfail=NA")
    for count in (24278, 744, 1588, 17, 134, 1, 102):           # these may still end
        conflicts(count)
    tell("Routing complete.")
    with pytest.raises(Unroutable, match=r"does not route \(103 wires in conflict, 1 at best\)"):
        conflicts(103)
    assert len(seen) == 9
    converging(None)("    iter=1 wires=1000 overused=5 overuse=5 archfail=NA")


def test_what_stays_late_does_not_route():
    tell = converging(None)

    def late(ends):
        tell(f"    iter=1 wires=1000 overused=0 overuse=0 tmgfail={ends} archfail=NA")
    for _ in range(3):
        for _ in range(60):
            late(7)
        late(0)
    for _ in range(60):
        late(9)
    with pytest.raises(Unroutable, match=r"for 61 rounds signals come late, now in 8 places"):
        late(8)


PLACED = {"modules": {"top": {"netnames": {
    "$glbnet$clk": {}, "clk": {}, "a.sdram_clk": {}, "other": {}}}}}


def test_the_router_is_told_what_each_clock_has_to_reach(tmp_path, monkeypatch):
    """What the placer derived for a PLL's outputs, rounded up, for the nets that are left; and
    the pins, whose file ends without a newline."""
    def run(command, directory, log, steps, progress):
        told.append(command)
        (directory / "placed.json").write_text(json.dumps(PLACED))
        (directory / "nextpnr.log").write_text(CLOCKS)
        (directory / "report.json").write_text(json.dumps({"utilization": {}, "fmax": {
            "$glbnet$clk": {"achieved": 100.0, "constraint": 88.95}}}))
    monkeypatch.setattr("meadowlark.chip.ecp5._run", run)
    monkeypatch.setattr("meadowlark.chip.ecp5._command", lambda *_: ["tool", "--json", "top.json"])
    (tmp_path / "board.lpf").write_text("# pins")
    for lpf, hold, pins in ((tmp_path / "board.lpf", True, "# pins"), (None, False, "")):
        told = []
        found = place_and_route(tmp_path, lpf=lpf, hold=hold)
        assert (found.fmax_mhz, found.wanted_mhz) == ({"clk": 100.0}, {"clk": 88.95})
        assert (tmp_path / "pins.lpf").read_text() == pins
        assert (tmp_path / "route.lpf").read_text() == (
            f'{pins}\nFREQUENCY NET "a.sdram_clk" 133.35 MHZ;\n'
            'FREQUENCY NET "$glbnet$clk" 88.95 MHZ;\n')
        assert ["--tmg-ripup" in command for command in told] == [False, hold]
        for command, name in zip(told, ("pins.lpf", "route.lpf"), strict=True):
            assert command[command.index("--lpf") + 1] == name
            assert ("--lpf-allow-unconstrained" in command) == (lpf is None)


@pytest.mark.parametrize("what, rounds", [("overused=1101 overuse=1101 tmgfail=0", 1),
                                         ("overused=0 overuse=0 tmgfail=3", 61)])
@pytest.mark.parametrize("ends", (1, 2, 3))
def test_a_placement_is_routed_once_more_before_it_is_given_up(tmp_path, monkeypatch, ends, what,
                                                               rounds):
    """Without holding the clocks, and with patience where wires stay in conflict."""
    tried = []

    def run(command, directory, log, steps, progress):
        if "--no-route" in command:
            (directory / "placed.json").write_text('{"modules": {"top": {"netnames": {}}}}')
            (directory / log).write_text(CLOCKS)
            return
        placed = json.loads((directory / "placed.json").read_text())
        growth = placed["modules"]["top"]["settings"]["router2/currCongWeightMult"]
        tried.append((float(growth), "--tmg-ripup" in command))
        progress("    iter=1 wires=1000 overused=500 overuse=500 archfail=NA")
        for _ in range(rounds if len(tried) < ends else 0):
            progress(f"    iter=2 wires=1000 {what} archfail=NA")
        (directory / "report.json").write_text('{"fmax": {}, "utilization": {}}')
    monkeypatch.setattr("meadowlark.chip.ecp5._run", run)
    monkeypatch.setattr("meadowlark.chip.ecp5._command", lambda *_: ["tool", "--json", "top.json"])
    if ends == 3:
        with pytest.raises(Unroutable):
            place_and_route(tmp_path)
    else:
        place_and_route(tmp_path)
    assert tried == [(0.5, True), (0.1 if rounds == 1 else 0.5, False)][:ends]
