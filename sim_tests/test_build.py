"""Bitstreams, as far as they go without the synthesis tools: netlist, pins, report, errors.
"""
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.back import rtlil
from meadowlark.chip.build import (TOOLS, Built, at_clock, build, build_fastest, clocks, core_mhz,
                                   design, flash, modules, platform_of, summary)
from meadowlark.chip.ecp5 import Ecp5Tools
from meadowlark.chip.litedram import read_core
from meadowlark.chip.toolchain import PathStep, Report, Unroutable, path_lines
from meadowlark.cli import main
from meadowlark.errors import UserError
from meadowlark.sim.pins import ROUND_TRIP_NS
from meadowlark_boards import BOARDS, SdramChip, get_board
from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.ecp5_pll import Pll, beside, dividers, second_clocks
from meadowlark_hdl.memory.sdram_part import PARTS

ULX3S = get_board("ulx3s_85f")
#: Core and SDRAM have one clock.
ONE_CLOCK = get_board("ulx3s_25f")
#: With its SDRAM as quick as its data sheet allows, and the core's clock between two others.
QUICK = replace(ULX3S, clock_mhz=800 / 9, chip=replace(ULX3S.chip, clock_mhz=400 / 3),
                memory=replace(ULX3S.memory, bytes_per_s=800e6 / 3))


@pytest.mark.parametrize("mhz", [50, 75, 80, 100, 120, 133, 200])
def test_dividers(mhz):
    d = dividers(25, mhz)
    assert abs(d.output_mhz(25) / mhz - 1) <= 0.005
    assert 400 <= d.output_mhz(25) * d.clkop <= 800 and 25 / d.clki >= 3.125


@pytest.mark.parametrize("mhz, phase", [(60, 3 / 4), (75, 3 / 4), (80, 1 / 8), (100, 0.0)])
def test_the_pll_makes_the_clock(mhz, phase):
    """As the data sheet counts it, fed back from its output, which begins with the input's edge;
    and the same later."""
    pll = Pll(input_mhz=25, output_mhz=mhz, phase=phase)
    text = rtlil.convert(pll, name="top", emit_src=False)
    value = dict(re.findall(r'parameter \\(\w+) "?(\w+)"?$', text, re.M))
    pins = dict(re.findall(r"connect \\(\w+) (\S+)", text))
    assert 25 / int(value["CLKI_DIV"]) * int(value["CLKFB_DIV"]) == pytest.approx(mhz, rel=0.005)
    assert 400 <= mhz * int(value["CLKOP_DIV"]) <= 800
    assert int(value["CLKOP_CPHASE"]) == int(value["CLKOP_DIV"]) - 1
    assert value["CLKOS2_DIV"] == value["CLKOP_DIV"] and pins["CLKOS2"] == r"\shifted"
    whole = int(value["CLKOS2_CPHASE"]) - int(value["CLKOP_CPHASE"])
    assert whole + int(value["CLKOS2_FPHASE"]) / 8 == phase * int(value["CLKOP_DIV"])
    assert value["FEEDBK_PATH"] == "CLKOP" and pins["CLKFB"] == pins["CLKOP"] == r"\o"
    assert pins["CLKI"] == r"\i" and pins["LOCK"] == r"\locked"
    assert pins["RST"] == pins["STDBY"] == pins["ENCLKOP"] == "1'0"


@pytest.mark.parametrize("core", [61.54, 66.67, 80, 83.33, 88.89, 95.24, 100, 106.67])
def test_the_pll_makes_three_clocks(core):
    """133.33 MHz, the same later by three eighths, and the core's; all from one VCO."""
    pll = Pll(input_mhz=25, output_mhz=core, memory_mhz=400 / 3, phase=3 / 8)
    text = rtlil.convert(pll, name="top", emit_src=False)
    value = {name: int(x) for name, x in re.findall(r'parameter \\(\w+) (\d+)$', text, re.M)}
    pins = dict(re.findall(r"connect \\(\w+) (\S+)", text))
    memory = 25 / value["CLKI_DIV"] * value["CLKFB_DIV"]
    vco = memory * value["CLKOP_DIV"]
    assert memory == pytest.approx(400 / 3) and 400 - 1e-6 <= vco <= 800 + 1e-6
    assert vco / value["CLKOS_DIV"] == pytest.approx(core, rel=1e-4)
    assert value["CLKOS2_DIV"] == value["CLKOP_DIV"] == value["CLKOP_CPHASE"] + 1
    late = value["CLKOS2_CPHASE"] - value["CLKOP_CPHASE"] + value["CLKOS2_FPHASE"] / 8
    assert late / value["CLKOP_DIV"] == 3 / 8
    assert pins["CLKFB"] == pins["CLKOP"] == r"\memory"
    assert pins["CLKOS"] == r"\o" and pins["CLKOS2"] == r"\shifted"


def test_second_clocks():
    found = second_clocks(25, 400 / 3)
    assert [round(x, 2) for x in found if 80 <= x <= 107] == [80, 83.33, 88.89, 95.24, 100, 106.67]
    for mhz, d in found.items():
        assert d.output_mhz(25) == pytest.approx(400 / 3)
        assert d.second_mhz(25) == pytest.approx(mhz)
        assert beside(25, 400 / 3, mhz) == d
    with pytest.raises(ValueError, match=r"^the PLL makes no 90 MHz beside 133.33 MHz; choose "
                                         r"another clock, such as 80, 83.333, 88.889, 95.238$"):
        beside(25, 400 / 3, 90)


def test_no_dividers():
    with pytest.raises(ValueError, match=r"^the PLL makes no 500 MHz of 25 MHz; choose another"):
        dividers(25, 500)


@pytest.mark.parametrize("board, nets", [
    (QUICK, {"o": 88_888_88, "memory": 133_333_33, "shifted": 133_333_33}),
    (ONE_CLOCK, {"o": 75_000_00, "shifted": 75_000_00})], ids=["two clocks", "one clock"])
def test_the_whole_chip_on_its_pins(board, nets):
    text, pins = design(board)
    ports = set(re.findall(r'LOCATE COMP "([^"]+)"', pins))
    assert sum(p.startswith("sdram_0__dq__io") for p in ports) == 16
    assert sum(p.startswith("sdram_0__a__io") for p in ports) == 13
    assert {"clk25_0__io", "uart_0__rx__io", "uart_0__tx__io", "sdram_0__clk__io"} <= ports
    found = re.findall(r'FREQUENCY NET "pll\.(\w+)" (\d+)', pins)
    assert [(net, int(hz) // 10) for net, hz in found] == list(nets.items())
    assert re.search(r"cell \\ODDRX1F \S+\n\s+connect \\SCLK \\shifted_clk", text)
    assert ("crossing" in text) is ("memory" in nets)
    for cell in ("EHXPLLL", "ODDRX1F", "OFS1P3DX", "IFS1P3DX", "MULT18X18D", "CCU2C"):
        assert f"cell \\{cell} " in text, cell


@pytest.mark.parametrize("board", [b for b in BOARDS.values() if isinstance(b.chip, SdramChip)],
                         ids=lambda board: board.name)
def test_the_times_of_an_sdram(board):
    """The board's file says what its chip takes at its clock, and every chip that an ULX3S has gets
    commands and words a nanosecond sooner and longer than its data sheet asks."""
    chip, mhz = board.chip, board.chip.clock_mhz or board.clock_mhz
    period, t = 1000 / mhz, chip.part.at(mhz)
    said = board.memory
    assert said.size_bytes == chip.part.size_bytes and said.page_bytes == chip.part.page_bytes
    assert said.bytes_per_s == pytest.approx(1e6 * mhz * chip.part.data_bits / 8)
    for ns, cycles in ((said.row_miss_ns, t.rp + t.rcd + 2), (said.turnaround_ns, 7),
                       (said.refresh_ns, 8 * t.rfc + t.rp + t.rcd + 8)):
        assert ns / period == pytest.approx(cycles, abs=0.01)
    for part in PARTS.values():
        least, most = part.round_trip(mhz, chip.phase)
        assert least + 1 <= ROUND_TRIP_NS <= most - 1
    assert chip.phase * period >= 1.5 + 1 and (1 - chip.phase) * period >= 0.8 + 1


def test_the_whole_chip_with_ddr3(tmp_path):
    pytest.importorskip("litedram")
    board = get_board("ecpix5_85f")
    small = replace(board, config=board.config.replace(W=8, P=4, tile_beats=256))
    netlist, pins = design(small, tmp_path)
    sites = dict(re.findall(r'LOCATE COMP "([^"]+)" SITE "([^"]+)"', pins))
    assert sites["ddr3_0__dqs__p[0]"] == "V4" and sites["ddr3_0__clk__p"] == "H3"
    assert sum(p.startswith("ddr3_0__dq__io") for p in sites) == 16
    assert sum(p.startswith("ddr3_0__a__io") for p in sites) == 15
    assert {"clk100_0__io", "uart_0__rx__io", "uart_0__tx__io", "ddr3_0__ras__io"} <= set(sites)
    assert 'FREQUENCY PORT "clk100_0__io" 100000000' in pins
    assert netlist.count("cell \\litedram_core ") == 1
    made, = modules(small, tmp_path)
    text = made.read_text()
    for cell in ("ECP5", "DQSBUFM", "DDRDLLA", "ECLKSYNCB", "CLKDIVF", "ODDRX2DQSB", "IDDRX2DQA"):
        assert cell in text, cell
    core = read_core(made.with_suffix(".json"))
    assert core.native_bytes == 16 and core.native_bytes << core.address_bits == 512 << 20
    assert [step[0] for step in core.sequence[:2]] == ["control", "control"]
    assert modules(get_board("ulx3s_85f"), tmp_path) == []


def test_ddr3_needs_its_generator(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="^the generator of the DDR3 controller is not installed: "):
        design(get_board("ecpix5_85f"), tmp_path)


def report_of(fmax, wanted):
    return Report(fmax_mhz=fmax, used={}, available={}, critical=[], wanted_mhz=wanted)


def test_timing_is_met_when_each_clock_is():
    def met(fmax, wanted, mhz=75.0):
        return Built(replace(get_board("ulx3s_25f"), clock_mhz=mhz), Path("a.bit"), 1, Path("s"),
                     report_of(fmax, wanted), {}, {}).meets_timing
    assert met({"core": 76.0}, {"core": 75.0})
    assert not met({"core": 74.0}, {"core": 75.0})
    assert met({"core": 76.0, "in": 101.0, "init": 30.0}, {"core": 75.0, "in": 100.0, "init": 25.0})
    assert not met({"core": 76.0, "in": 99.0}, {"core": 75.0, "in": 100.0})
    assert not met({"core": 76.0, "init": 24.0}, {"core": 75.0, "init": 25.0})
    assert not met({"core": 74.0}, {})


def test_which_clock_is_the_cores():
    board = QUICK
    found = report_of({"a": 140.0, "b": 91.0}, {"a": 133.33, "b": 88.89})
    assert core_mhz(board, found) == 91.0
    assert core_mhz(board, report_of({"a": 120.0, "b": 91.0}, {"a": 133.33, "b": 88.89})) == 91.0
    assert core_mhz(ONE_CLOCK, report_of({"a": 90.0, "b": 91.0}, {"a": 88.89})) == 90.0


def test_clocks_of_a_board():
    board = QUICK
    some = [round(mhz, 1) for mhz in clocks(board) if 80 <= mhz < 110]
    assert some == [80, 83.3, 88.9, 95.2, 100, 106.7]
    for name in ("ulx3s_85f", "ulx3s_45f", "ulx3s_25f"):
        listed = get_board(name)
        assert at_clock(listed, listed.clock_mhz).clock_mhz == pytest.approx(listed.clock_mhz)
    assert at_clock(board, 88.9).clock_mhz == pytest.approx(800 / 9)
    assert at_clock(board, 88.9).memory == board.memory
    one = replace(board, chip=replace(board.chip, clock_mhz=None), clock_mhz=100.0)
    assert {75.0, 80.0, 100.0} <= set(clocks(one))
    assert max(clocks(one)) <= 400 / 3 + 1e-3         # the SDRAM's
    assert at_clock(one, 80).memory.bytes_per_s == pytest.approx(0.8 * board.memory.bytes_per_s)
    assert clocks(get_board("ecpix5_85f")) == []
    with pytest.raises(UserError, match=r"^the PLL makes no 90 MHz beside 133.33 MHz; choose"):
        at_clock(board, 90)
    odd = replace(board, link=replace(board.link, baud=2_000_000))
    with pytest.raises(UserError, match=r"^baud 2000000 is missed by 1.0 % with a clock of 88888"):
        at_clock(odd, 88.9)
    assert 800 / 9 not in clocks(odd) and 80 in clocks(odd)


@pytest.mark.parametrize("limit, memory, want, order", [
    # The recorded clock is met, and one faster; the one after that is not.
    ({88.889: 97.0, 95.238: 101.0, 100.0: 98.0}, 140.0, 95.238, [88.889, 95.238, 100.0]),
    ({88.889: 93.0}, 140.0, 88.889, [88.889]),
    # It is missed: the fastest that it reached, and slower ones until one is met.
    ({88.889: 87.0, 83.333: 82.0, 80.0: 81.0}, 140.0, 80.0, [88.889, 83.333, 80.0]),
    # The SDRAM's clock is missed: another core clock does not help.
    ({88.889: 93.0}, 130.0, 88.889, [88.889]),
])
def test_the_fastest_clock_that_timing_allows(tmp_path, monkeypatch, limit, memory, want, order):
    def build_one(board, directory, **rest):
        directory.mkdir()
        (directory / "a.bit").write_text(f"{board.clock_mhz:.3f}")
        found = report_of({"a": limit[round(board.clock_mhz, 3)], "b": memory},
                          {"a": board.clock_mhz, "b": 133.33})
        return Built(board, directory / "a.bit", 1, directory, found, {}, {})
    monkeypatch.setattr("meadowlark.chip.build.build", build_one)
    built, tried = build_fastest(QUICK, tmp_path)
    assert [round(mhz, 3) for mhz in tried] == order
    assert built.board.clock_mhz == pytest.approx(want, abs=1e-3)
    assert built.bitstream == tmp_path / "a.bit"
    assert built.bitstream.read_text() == f"{want:.3f}"
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["clock_mhz"] == want and said["memory_mhz"] == 133.333
    assert list(said["clocks_tried"].values()) == list(limit.values())
    assert said["meets_timing"] is (memory > 133.34)


def test_the_next_placement_when_one_does_not_route(tmp_path, monkeypatch):
    reached = {1: None, 2: 65.0, 3: 67.0}
    seen = []

    class Tools(Ecp5Tools):
        def check(self):
            pass

        def synthesise(self, rtlil, directory, **rest):
            assert rest["dense"] is board.chip.dense is True
            (directory / "top.json").write_text("{}")
            return {}

        def place_and_route(self, platform, directory, *, seed, **rest):
            if reached[seed] is None:
                raise Unroutable("no route")
            (directory / "top.config").write_text(str(seed))
            return Report(fmax_mhz={"clk": reached[seed]}, used={}, available={}, critical=[])

        def pack(self, directory, bitstream):
            shutil.copyfile(directory / "top.config", bitstream)
    monkeypatch.setitem(TOOLS, ECP5, Tools())
    board = replace(get_board("ulx3s_25f"), clock_mhz=200 / 3)
    for seeds, bits, tried in ((3, "3", {1: None, 2: 65.0, 3: 67.0}), (2, "2", {1: None, 2: 65.0})):
        built = build(board, tmp_path, seeds=seeds, progress=seen.append)
        assert built.bitstream.read_text() == bits and built.tried == tried
        assert summary(built)["tried"]["1"] is None
    assert "seed 1: no route" in seen
    with pytest.raises(UserError, match="^no placement of 1 routes: try more --seeds"):
        build(board, tmp_path, seeds=1)


def test_boards_without_a_bitstream_say_so(tmp_path):
    for name, says in (("kv260", "is loaded by its own proces"), ("zcu102", "is loaded by its own"),
                       ("virtual", "has no bitstream: it exists")):
        with pytest.raises(UserError, match=f"^board {name} {says}"):
            platform_of(get_board(name))
    assert main(["build", "--board", "virtual", "-o", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["build", "--seeds", "0"]) == 2
    assert main(["build", "--clock", "1"]) == 2
    assert main(["build", "--board", "ecpix5_85f", "--clock", "60"]) == 2
    assert main(["build", "--clock", "199", "-o", str(tmp_path / "x")]) == 2    # not by that PLL
    assert main(["build", "--clock", "90", "-o", str(tmp_path / "x")]) == 2     # nor beside SDRAM's
    assert main(["build", "--clock", "quick", "-o", str(tmp_path / "x")]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["flash", "--board", "nothing"]) == 2


def test_flash_says_what_is_missing(tmp_path, monkeypatch):
    board = get_board("ulx3s_85f")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(UserError, match="^openFPGALoader is not installed: install it"):
        flash(board, tmp_path / "a.bit")
    monkeypatch.setattr("shutil.which", lambda tool: "/bin/true")
    with pytest.raises(UserError, match=r"^there is no .*a\.bit: run `meadowlark build"):
        flash(board, tmp_path / "a.bit")


def test_critical_path_in_names_of_blocks():
    """Cells become the blocks and signals they are part of; hops within one are joined."""
    def step(delay, sink):
        return PathStep(kind="logic", delay_ns=delay, source="", sink=sink)
    report = Report(fmax_mhz={}, used={}, available={}, critical=[
        step(0.5, "top.core.wired.issue.row_TRELLIS_FF_Q_3.Q"),
        step(1.0, "core.wired.engine.lane3.sum0_1_LUT4_Z_5.A"),
        step(0.25, "core.wired.engine.lane3.sum0_1_LUT4_Z_5.F"),
        step(2.0, "sdram.pads$123.D")])
    assert path_lines(report) == ["  0.50 ns   1 hops  issue.row", "  1.75 ns   2 hops  "
                                  "engine.lane3.sum0_1", "  3.75 ns   1 hops  sdram.pads"]
