"""Sweeps: every point once, resumed without loss, and those that no other beats."""
import csv
from dataclasses import replace

import pytest
from meadowlark import cli
from meadowlark.api import explore
from meadowlark.compile.forecast import forecast
from meadowlark.compile.sketch import sketch
from meadowlark.errors import UserError
from meadowlark.api.explore import RESULTS, Space, check_sizes, pareto, sweep
from meadowlark_boards import get_board
from random_model import outlined, random_model

BOARD = get_board("virtual")


def space(**changes):
    given = dict(models=[outlined(hidden=64, layers=2, ffn=128, vocab=256)], boards=[BOARD],
                 sizes={"P": [4, 8], "W": [16, 12]}, mbytes=[100, 1600], prompt=9, generate=3)
    return Space(**{**given, **changes})


def test_a_sweep(tmp_path):
    """A point is what a forecast of that board says; what is no core says so."""
    where = space()
    rows = sweep(where, tmp_path / "s.csv")
    assert len(rows) == len(where) == 8
    assert [(r["P"], r["W"], r["mbytes_per_s"]) for r in rows[:3]] == [
        ("4", "16", "100"), ("4", "16", "1600"), ("4", "12", "100")]
    assert all(("no core: W must be" in r["why_not"]) == (r["W"] == "12") for r in rows)
    board = replace(BOARD, config=BOARD.config.replace(P=8), memory=replace(
        BOARD.memory, bytes_per_s=1e8))
    one = forecast(sketch(where.models[0], board), board, prompt=9, generate=3)
    row = next(r for r in rows if (r["P"], r["W"], r["mbytes_per_s"]) == ("8", "16", "100"))
    assert row["cycles"] == str(one.cycles) and row["multipliers"] == "128"
    assert float(row["prefill_tokens_per_s"]) == pytest.approx(9e8 / one.prefill_cycles, rel=1e-5)
    assert float(row["decode_tokens_per_s"]) == pytest.approx(2e8 / one.decode_cycles, rel=1e-5)


def test_what_does_not_fit_says_by_how_much(tmp_path):
    big = outlined(hidden=64, layers=2, vocab=1 << 18, ffn=128)
    board = replace(BOARD, memory=replace(BOARD.memory, size_bytes=1 << 20))
    row, = sweep(space(models=[big], boards=[board], sizes={}, mbytes=[]), tmp_path / "s.csv")
    assert "memory" in row["why_not"] and "at most 1,048,576" in row["why_not"]
    assert row["mbytes_per_s"] == f"{BOARD.bandwidth / 1e6:g}" and not row["cycles"]
    row, = sweep(space(sizes={"context": [8], "score_depth": [8]}, mbytes=[]), tmp_path / "t.csv")
    assert row["why_not"] == "the test takes 11 tokens, at most 8"


def test_a_sweep_goes_on(tmp_path, monkeypatch):
    """Killed anywhere, also within a line: the file is what it would have been."""
    where, whole, part = space(), tmp_path / "whole.csv", tmp_path / "part.csv"
    sweep(where, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    asked = []
    made = explore.results
    monkeypatch.setattr(explore, "results", lambda space, at, s: asked.append(at.place) or made(
        space, at, s))
    for cut in (lines[:4] + [lines[4][:9]], [lines[0][:7]], lines[:1], lines):
        asked.clear()
        part.write_bytes(b"".join(cut))
        rows = sweep(where, part)
        assert part.read_bytes() == whole.read_bytes()
        assert len(asked) == 8 - max(sum(line in lines[1:] for line in cut), 0)
        assert len(rows) == 8
    more = sweep(space(mbytes=[100, 1600, 50]), part)       # the same columns, further points
    assert len(more) == 12 and len(part.read_bytes().splitlines()) == 13


def test_several_processes(tmp_path):
    """The same file, whoever was quicker, and from where another one ended."""
    where, one, two = space(sizes={"P": [4, 8, 6], "W": [16]}), tmp_path / "1", tmp_path / "2"
    rows = sweep(where, one)
    two.write_bytes(b"".join(one.read_bytes().splitlines(keepends=True)[:2]))
    told = []
    assert sweep(where, two, lambda *args: told.append(args[1:]), jobs=2) == rows
    assert two.read_bytes() == one.read_bytes()
    assert told == [(k, 6) for k in range(1, 6)]


@pytest.mark.parametrize("text", ["a,b\n", "\xff\n", "\n"])
def test_another_file(tmp_path, text):
    (tmp_path / "s.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="has other columns than this sweep"):
        sweep(space(), tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == text.encode("latin-1")


def test_what_none_beats():
    def row(decode, prefill, multipliers, bandwidth, model="m"):
        return dict(zip(("decode_tokens_per_s", "prefill_tokens_per_s", "multipliers", "bandwidth",
                         "model"), (decode, prefill, multipliers, bandwidth, model)))
    best = [row("100", "9", "64", "1e9"), row("90", "9", "64", "1e8"), row("90", "8", "32", "1e8"),
            row("1", "1", "1024", "1e10", "n")]
    beaten = [row("90", "9", "64", "2e8"), row("90", "8", "64", "1e8"),
              row("99", "9", "128", "1e9")]
    missing = [row("", "", "16", "1e8")]
    assert pareto(beaten + best[::-1] + missing) == best
    assert pareto([best[0], best[0]]) == [best[0], best[0]]     # equals beat no one


def test_sizes():
    check_sizes(["W", "P", "packing"])
    with pytest.raises(UserError, match="a core has no size 'Q'; give one of W, P"):
        check_sizes(["W", "Q"])


def test_the_command(tmp_path, capsys):
    folder, file = random_model(tmp_path / "m", seed=1), tmp_path / "s.csv"
    args = ["explore", "-m", str(folder), "--set", "P=4,6", "--bandwidth", "100,200.5", "-p", "5",
            "-n", "2", "-o", str(file)]
    for _ in range(2):
        assert cli.main(args) == 0
        out, err = capsys.readouterr()
        assert "4 points, 4 of them fit" in err and "| model | board | P |" in out
    found = [*csv.DictReader(file.open())]
    assert len(found) == 4 and [*found[0]][-len(RESULTS):] == [*RESULTS]
    assert {r["mbytes_per_s"] for r in found} == {"100", "200.5"}


@pytest.mark.parametrize("args, sentence", [
    (["--set", "P"], "has no numbers; give some such as P=4,8"),
    (["--set", "P=x"], "has no numbers"), (["--set", "Q=1"], "has no size 'Q'"),
    (["--bandwidth", "0"], "not above 0"), (["--bandwidth", "a"], "give some such as 267,533"),
    (["--bits", "9"], "--bits must be from 1 to 8, not 9"), (["--board", "x"], "no board named"),
    (["-m", "no-model"], "there is no model")])
def test_refused(args, sentence, tmp_path, capsys):
    assert cli.main(["explore", "-o", str(tmp_path / "s.csv"), *args]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and not out
    assert not (tmp_path / "s.csv").exists()
