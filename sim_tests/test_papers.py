"""The report on the papers: its rows, its arithmetic, its command."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from meadowlark import cli
from meadowlark.compile.cycles import predict
from meadowlark.errors import UserError
from meadowlark.models.graph import Attend, Gate, Linear
from meadowlark.models.outline import outline_of
from meadowlark.papers import all as every
from meadowlark.papers import meadow_tables
from meadowlark.papers.lab import Lab, at_bandwidth
from meadowlark.papers.meadow import level_bytes
from meadowlark.papers.plot import mark, picture, shown
from meadowlark.papers.rows import PAPERS, Row, Value, dump, load, markdown, merged, number
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from meadowlark_hdl.isa import Op
from random_model import random_model


def row(paper="meadow", mechanism="m", on="o", unit="cycles", a=None, b=None, c=None, d=None,
        **more):
    return Row(paper=paper, mechanism=mechanism, on=on, unit=unit,
               without=Value(predicted=a, measured=c), with_=Value(predicted=b, measured=d), **more)


ROOT = Path(__file__).resolve().parents[1]

# ---- Rows

def test_worth_is_of_what_was_measured():
    assert row(a=30, b=10).worth == 3
    assert row(a=30, b=10, c=40, d=10).worth == 4
    assert row(a=30, b=10, c=40).worth == 3         # one side alone says nothing
    assert row(c=3, d=2).worth == 1.5
    assert row().worth is None and row(a=1, b=0).worth is None


def test_rows_are_merged():
    """By what names them; what was measured stays as long as its prediction does."""
    old = [row(a=30, b=10, c=31, d=11), row(on="p", a=1, b=1), row("etap")]
    same, other = row(a=30, b=10), row(a=30, b=12)
    assert merged(old, [same])[0].with_ == Value(predicted=10, measured=11)
    found = merged(old, [other])[0]
    assert found.without == Value(predicted=30, measured=31)
    assert found.with_ == Value(predicted=12)
    assert merged(old, [row(a=30, b=10, c=32, d=12)])[0].without.measured == 32
    assert [r.on for r in merged(old, [row(on="q"), row(unit="bytes")])] == ["o", "p", "q", "o",
                                                                             "o"]
    assert [r.paper for r in merged(old, [row("ffn-fusion"), row()])] == [
        "meadow", "meadow", "etap", "ffn-fusion"]


def test_rows_are_kept(tmp_path):
    rows = [row(a=30.5, b=10, c=31, remark="a", needs="b", published="2.5"), row("etap", unit="")]
    file = tmp_path / "p.json"
    assert load(file) == []
    file.write_bytes(dump(rows))
    assert load(file) == rows


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": [{"paper": "etap"}]}',
                                  '{"rows": [3]}', '{"rows": 3}', "\xff"])
def test_another_file(tmp_path, text):
    file = tmp_path / "p.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is no file of `meadowlark ablate`"):
        load(file)


@pytest.mark.parametrize("value, text", [
    (None, ""), (0, "0"), (3.0, "3"), (1234.6, "1,235"), (1.91982, "1.92"), (0.123456, "0.1235")])
def test_numbers(value, text):
    assert number(value) == text


def test_a_page():
    page = markdown([
        row(mechanism="packing", a=30, b=10, command="meadowlark x && meadowlark y", remark="well"),
        row(mechanism="packing", on="p", remark="well", a=1, b=1),
        row("etap", mechanism="lane pairs", unit="", needs="lanes")])
    assert ("| packing | o | cycles | 30 | 10 |  |  | 3.000 x |  | "
            "`meadowlark x`, `meadowlark y` |") in page
    assert page.count("well") == 1
    assert "- lane pairs: not measured: needs lanes." in page
    assert "## MEADOW" in page and "## FlashMLA-ETAP" in page and "## FFN Fusion" not in page
    assert "| 1.00001 x |" in markdown([row(a=100000, b=99999)])


# ---- Arithmetic

def test_levels_of_packing(seed):
    """Against sizes that are counted by hand, and each level is worth something where it should."""
    rng = np.random.default_rng(seed)
    few = rng.choice([-3, 0, 5], 16 * 64).astype(np.int8)
    # Three unique bytes: ids of 2 bits and a table of 3 bytes, or less in chunks.
    assert level_bytes([few], "naive") <= 3 + 16 * 64 // 4
    same = np.zeros(16 * 64, np.int8)
    assert level_bytes([same], "naive") == -(-min(8 * C + 1024 // C for C in (1, 2, 4)) // 8)
    # Frequent ones come late: packets alone have no use of it.
    skewed = np.concatenate([np.arange(-128, 128), np.full(1 << 14, 127)]).astype(np.int8)
    naive, packets, last = (level_bytes([skewed], level)
                            for level in ("naive", "packets", "re-indexed"))
    assert last < packets <= naive + 1 << 11
    assert last < naive
    assert level_bytes([few, skewed], "naive") == -(-(
        8 * level_bytes([few], "naive") + 8 * naive) // 8)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = random_model(tmp_path_factory.mktemp("m"), seed=3, layers=3, heads=4, kv_heads=2)
    return Source(str(folder), get_board("virtual"), draft="none", packing="raw").image


def test_one_half_is_slower(image):
    board = get_board("kv260")
    one, two = (predict(image, replace(board, config=get_board("virtual").config.replace(
        one_half=single)), prompt=20, generate=3).cycles for single in (True, False))
    assert one > two


def test_another_bandwidth():
    board = at_bandwidth(get_board("kv260"), 1.25)
    assert board.bytes_per_cycle == 1.25 and board.config == get_board("kv260").config


# ---- Models from shapes

@pytest.mark.parametrize("case", meadow_tables.CASES, ids=lambda case: case.name)
def test_models_of_the_tables(case):
    """As large as they are said to be."""
    model = case.model()
    millions = {"OPT-125M": 125.2, "OPT-1.3B": 1315.8, "DeiT-S": 22.1, "DeiT-B": 86.6}[case.name]
    # DeiT's patches come from pixels here, which are rows of a table in place of a matrix.
    assert model.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert not any(any(w.strides) for w in model.weights.values())
    assert len([*model.graph.of(Attend)]) == len([*model.graph.of(Gate)]) in (12, 24)


def test_an_encoder_sees_all_keys():
    case = next(case for case in meadow_tables.CASES if not case.tbt)
    _, image = meadow_tables._sketched(case, 12, 8.0)
    assert all(i["ahead"] == (i["op"] in (Op.QK, Op.SV)) for i in image.instructions)


def test_bytes_of_matrices():
    model = outline_of({"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 1,
                        "num_attention_heads": 4, "ffn_dim": 256, "vocab_size": 99,
                        "word_embed_proj_dim": 64}, "small")
    assert len([*model.graph.of(Linear)]) == 6
    # k, v and o have 64 inputs and outputs, up and down 64 and 256; q is attention's.
    assert meadow_tables._linear_bytes(model, 7) == 7 * (3 * 128 + 2 * 320)


# ---- The command

def test_every_paper_has_rows():
    assert [*every._ROWS] == [*PAPERS]


def test_ablate(tmp_path, capsys):
    """Rows of two papers by the cycle model, and a page; a second run finds the first one's."""
    folder = random_model(tmp_path / "m", seed=5, layers=5, head_dim=16)
    file, page = tmp_path / "p.json", tmp_path / "p.md"
    args = ["ablate", "-m", str(folder), "--drop-attention", "2-3", "--json", str(file),
            "-o", str(page)]
    assert cli.main([*args, "--paper", "ffn-fusion"]) == 0
    first = load(file)
    assert first and {r.paper for r in first} == {"ffn-fusion"}
    assert all(r.unit.startswith("cycles") and r.with_.measured is None for r in first)
    assert cli.main([*args, "--paper", "flash-former", "--paper", "etap"]) == 0
    found = load(file)
    assert [r for r in found if r.paper == "ffn-fusion"] == first
    assert {r.paper for r in found} == {"ffn-fusion", "flash-former", "etap"}
    assert all(r.worth > 1 for r in found if r.mechanism.startswith("run-ahead over"))
    assert page.read_text() == markdown(found)
    assert json.loads(file.read_text())["rows"]
    capsys.readouterr()
    assert cli.main(["ablate", "--paper", "etap"]) == 0
    assert "| lane pairs | 3 query heads a KV head | cycles a key, KV head and beat | 3 | 2 |" \
        in capsys.readouterr().out


@pytest.mark.parametrize("args, sentence", [
    (["--json", "-"], "--json needs a file"),
    (["--drop-attention", "3"], "names fewer than two layers"),
    (["--drop-attention", "x"], "names no layers"),
    (["--text", "no-such-file"], "cannot read the text"),
    (["--paper", "x"], "is not one of")])
def test_refused(args, sentence, capsys):
    assert cli.main(["ablate", *args]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and not out


def test_a_lab_keeps_what_it_made(tmp_path):
    lab = Lab(model=str(random_model(tmp_path / "name", seed=1)))
    board = get_board("virtual")
    assert lab.source(board) is lab.source(board) and lab.name == "name"
    assert lab.source(board, packing="raw") is not lab.source(board)
    assert lab.cycles(lab.source(board).image, board, (1, 2)).measured is None


# ---- Pictures

def test_pictures_are_of_what_the_page_says():
    """Those in docs/ are drawn again when rows change: `meadowlark ablate --json docs/papers.json
    --plots docs/images`."""
    rows = load(ROOT / "docs/papers.json")
    page = (ROOT / "docs/papers.md").read_text()
    for paper in PAPERS:
        file = ROOT / f"docs/images/papers-{paper}.svg"
        assert file.exists() == (f"images/{file.name}" in page) == bool(shown(rows, paper))
        if file.exists():
            assert mark(rows, paper) in file.read_text() and file.stat().st_size < 150_000


def test_pictures_are_drawn():
    rows = [row(mechanism="good", a=4, b=2), row(mechanism="bad", c=2, d=4), row(mechanism="no")]
    drawn = picture(rows, "meadow")
    assert drawn == picture(rows, "meadow") and mark(rows, "meadow").encode() in drawn
    text = drawn.decode()
    assert "good: o" in text and "bad: o" in text and "no: o" not in text
    assert " 2.00<" in text and " 0.50<" in text
    assert mark(rows[:1], "meadow") != mark(rows, "meadow")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib: run .*meadowlark\[plot\]"):
        picture([row(a=4, b=2)], "meadow")


def test_sweep_of_bandwidths(monkeypatch):
    """What TPHS gains shrinks with bandwidth: what GEMM spills is a share of ever less waiting."""
    monkeypatch.setattr(meadow_tables, "LANES", (8,))
    monkeypatch.setattr(meadow_tables, "GBPS", (6, 51))
    slow, quick = meadow_tables.sweep(Lab())
    assert slow.worth > quick.worth > 1 and slow.key != quick.key
    assert "8 lanes of 32, 6 Gbit/s" in slow.on
