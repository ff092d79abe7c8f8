"""Reports: one file each, whose figures are those of the results, and whose texts are no markup."""
import json
import re
from html.parser import HTMLParser

import pytest
from meadowlark import cli
from meadowlark.chip.floorplan import SITES, place_hard_blocks, placed
from meadowlark.report import chip as chip_report
from meadowlark.report.html import bars, document, table
from meadowlark.report.tests import report
from meadowlark.api.predicted import predicted
from meadowlark_boards import get_board
from test_floorplan import array

import meadowlark as ml

EVIL = '<script>alert("&")</script>'


class Text(HTMLParser):
    """The text, and the widths of rectangles; refuses what is not closed, or asks others."""

    def __init__(self, page):
        super().__init__()
        self.text, self.widths, self._open = [], [], []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert not {"src", "href", "onclick"} & set(found) and tag != "script"
        if tag != "meta":
            self._open.append(tag)
        if tag == "rect":
            self.widths.append(float(found["width"] or 0))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_texts_are_no_markup():
    page = document(EVIL, table([(EVIL,), (EVIL,)]), bars(EVIL, [(EVIL, [(1, EVIL)], EVIL)]))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert Text(page).text.count(EVIL) == 6         # title twice, table twice, name and behind


def test_bars_are_as_long_as_what_they_show():
    found = Text(bars("x", [("a", [(30, "#000"), (10, "#111")], ""), ("b", [(20, "#000")], "")]))
    a, a2, b = found.widths
    assert a == pytest.approx(3 * a2, abs=0.2) and b == pytest.approx((a + a2) / 2, abs=0.2)
    assert Text(bars("x", [("nothing", [(0, "#000")], "0")])).widths == [0]


@pytest.fixture(scope="module")
def results():
    model = ml.load("stories", packing="raw")
    return {name: predicted(model.predict(board="ulx3s_85f", **test), counted)
            for name, counted, test in (
                ("pp16", None, dict(prompt=16, generate=1)),
                ("tg4", 2_000_000, dict(prompt=1, generate=4)))}


def test_tests(results):
    found = Text(report(results, EVIL, get_board("ulx3s_85f"),
                        stalls={"tg4": {"no_tile": 12_345}}))
    text = " ".join(found.text)
    assert EVIL in text and "-" in found.text and "2,000,000" in text and "12,345" in text
    for one in results.values():
        assert f"{one.cycles:,}" in text and f"{one.tokens_per_s:,.2f}" in text
        for part in (*one.layers, *one.operators):
            if part.cycles > 0:
                assert f"{part.cycles:,} ({part.bound})" in text and part.name in text
    alone = Text(report({"pp16": results["pp16"]}, "stories", get_board("ulx3s_85f")))
    assert "Predicted beside counted" not in alone.text and "nothing was run" in " ".join(
        alone.text)


def test_command(capsys, tmp_path):
    file = tmp_path / "report.html"
    assert cli.main(["predict", "-p", "8", "-n", "4", "--html", str(file), "--json", "-"]) == 0
    tests = json.loads(capsys.readouterr().out)["tests"]
    text = " ".join(Text(file.read_text()).text)
    assert all(name in text and f"{one['cycles']:,}" in text for name, one in tests.items())
    assert cli.main(["predict", "-n", "4", "--html", str(tmp_path)]) == 2
    assert "it is a folder" in capsys.readouterr().err


def test_bench(capsys, tmp_path):
    """What was counted stands beside what was predicted."""
    file = tmp_path / "report.html"
    assert cli.main(["bench", "-p", "8", "-n", "3", "--html", str(file), "--json", "-"]) == 0
    tests = json.loads(capsys.readouterr().out)["tests"]
    text = " ".join(Text(file.read_text()).text)
    for name, one in tests.items():
        assert name in text and f"{one['cycles']:,}" in text
        assert all(f"{n:,}" in text for n in one["stalls"].values())


SUMMARY = dict(board="ulx3s_85f", clock_mhz=88.889, memory_mhz=133.33, fmax_mhz=89.2,
               meets_timing=True, clocks={"core": 89.2, EVIL: 148.0}, clocks_tried={"88.889": 89.2},
               LUT4=42987, MULT18X18D=155, available={"LUT4": 83640, "MULT18X18D": 156}, seed=1,
               tried={"1": 89.2}, cells={}, critical_path=["0.5 ns logic", EVIL],
               bitstream="build/ulx3s_85f/ulx3s_85f.bit")


def test_chip(tmp_path):
    """The picture has each hard block that has a site, where that is."""
    source, target = tmp_path / "top.json", tmp_path / "planned.json"
    cells = {name: {"type": kind, "attributes": {}} for name, kind in array(8, 16).items()}
    source.write_text(json.dumps({"modules": {"top": {"cells": cells}}}))
    count = place_hard_blocks(source, target, "85k")
    found = placed(target)
    assert len(found) == count > 100 and placed(tmp_path / "none") == {}
    page = chip_report.report(SUMMARY, found)
    text = " ".join(Text(page).text)
    assert "Timing is met" in text and EVIL in text and "89.2 MHz" in text
    assert "51.4%" in text and "99.4%" in text and f"{count} multipliers" in text
    xs = [float(x) / 4 for x in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="3"', page)]
    assert len(xs) == count
    assert {min(SITES["85k"].columns, key=lambda c: abs(c - x)) for x in xs} \
        <= set(SITES["85k"].columns)
    assert min(xs) >= min(SITES["85k"].columns)
    bare = chip_report.report(SUMMARY | dict(meets_timing=False), {})
    assert "Timing is missed" in bare and "hard blocks" not in bare
