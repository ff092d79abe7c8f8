"""Boards: found in their folder, taken from a file; docs/add-a-board.md adds one that works."""
import json
import re
from pathlib import Path

import meadowlark_boards
import pytest
from meadowlark.chip.build import clocks, design
from meadowlark.cli import main
from meadowlark.compile.image import Image
from meadowlark_boards import BOARDS, Board, get_board
from random_model import random_model

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE, = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/add-a-board.md").read_text(),
                       re.M | re.S)


@pytest.fixture(autouse=True)
def listed():
    """Boards of files are forgotten behind each test."""
    before = dict(BOARDS)
    yield
    BOARDS.clear()
    BOARDS.update(before)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "icepi_zero.py"
    path.write_text(TEMPLATE)
    return path


def test_boards_are_found_by_their_files():
    folder = Path(meadowlark_boards.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if re.search("^BOARD = ", path.read_text(),
                                                                    re.M)}
    assert set(BOARDS) == files and next(iter(BOARDS)) == meadowlark_boards.DEFAULT


def test_the_template_is_a_board_by_one_file(file, tmp_path, capsys):
    """Told, compiled for, listed for models; its chip has pins, a PLL and the cells of its family.
    """
    assert main(["info", str(file), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["board"] == "icepi_zero"
    board = get_board(str(file))
    assert board is not None and BOARDS["icepi_zero"] == board == get_board("icepi_zero")
    model = random_model(tmp_path / "model", seed=1, hidden=32, ffn=64, layers=1, heads=2)
    image = tmp_path / "m.mlk"
    assert main(["compile", str(model), "--board", str(file), "-o", str(image)]) == 0
    assert Image.load(image).board == "icepi_zero"
    assert 75.0 in clocks(board)
    text, pins = design(board)
    assert 'LOCATE COMP "clk50_0__io" SITE "M1"' in pins
    assert sum(line.startswith('LOCATE COMP "sdram_0__dq__io') for line in pins.splitlines()) == 16
    for cell in ("EHXPLLL", "MULT18X18D", "ALU54B", "CCU2C"):
        assert f"cell \\{cell} " in text, cell


@pytest.mark.parametrize("change, says", [
    (("W=4", "W=5"), "ValueError: W must be 4, 8, 16 or 32, not 5"),
    (("BOARD =", "OTHER ="), "defines no BOARD: see docs/add-a-board.md"),
    (('name="icepi_zero"', 'name="other"'), "calls its board 'other'; both need one name"),
    (("import Config", "import Configuration"), "ImportError: cannot import name 'Configuration'")])
def test_a_file_that_is_no_board(file, capsys, change, says):
    file.write_text(TEMPLATE.replace(*change))
    assert main(["bench", "--board", str(file)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert says in said and "icepi_zero.py" in said and "icepi_zero" not in BOARDS


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none.py")]) == 2
    assert main(["build", "--board", str(tmp_path / "none.py")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_copy_of_a_board_takes_its_place(tmp_path):
    """Whoever changes a copy of a board and names it means that."""
    path = tmp_path / "virtual.py"
    text = Path(str(meadowlark_boards.__file__)).with_name("virtual.py").read_text()
    path.write_text(text.replace("from .board", "from meadowlark_boards").replace(
        "clock_mhz=100.0", "clock_mhz=90.0"))
    assert get_board(str(path)).clock_mhz == 90.0 == get_board("virtual").clock_mhz


def test_a_board_without_a_chip_says_so():
    board = get_board("virtual")
    assert isinstance(board, Board) and board.chip.core_clocks(board) == []
    for ask in (board.chip.top, board.chip.bench, board.chip.new_platform):
        with pytest.raises(ValueError, match="^board virtual has no "):
            ask(board)
