"""Technologies: a design gets the cells of the platform it is elaborated for, or generic ones."""
import re
from functools import partial
from types import SimpleNamespace

import pytest
from amaranth import Instance
from amaranth.back import rtlil
from meadowlark_boards import BOARDS
from meadowlark_hdl.config import Config
from meadowlark_hdl.core import Core
from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.generic import GENERIC, Technology, technology_of
from meadowlark_hdl.tech.ultrascale import ULTRASCALE

SMALL = Config(W=4, P=4, bus_bytes=4, act_words=64, residual_values=256, score_depth=64,
               rope_pairs=64, tile_beats=64, tile_rows=16, fifo_words=64, prog_depth=64, context=64,
               burst_words=16)


def test_a_platform_names_its_technology():
    assert technology_of(None) is technology_of(SimpleNamespace(device="any")) is GENERIC
    assert technology_of(SimpleNamespace(technology=ECP5)) is technology_of(ECP5) is ECP5


class OneCell(Technology):
    """A family that has a cell for products, and nothing else."""
    name = "one"

    def multiplier(self, m, cell):
        m.submodules.cell = Instance("PRODUCT", i_a=cell.a, i_b=cell.b, o_p=cell.p)


@pytest.mark.parametrize("technology, cells", [
    (None, set()), (OneCell(), {"PRODUCT"}), (ECP5, {"MULT18X18D", "ALU54B", "CCU2C"})],
    ids=["none", "one", "ecp5"])
def test_a_core_is_built_of_the_technology(technology, cells):
    text = rtlil.convert(Core(SMALL), name="top", platform=technology, emit_src=False)
    assert set(re.findall(r"^  cell \\([A-Z0-9]+) ", text, re.M)) == cells


def test_boards_name_their_technology():
    assert {board.technology for board in BOARDS.values()} == {GENERIC, ECP5, ULTRASCALE}
    for board in BOARDS.values():
        assert (board.technology is ECP5) == bool(board.chip.platform)
        assert repr(board).count(f"family={board.technology.name},") == 1   # caches go by it


def test_a_family_without_a_pll_says_so():
    assert GENERIC.pll_clocks(25) == []
    for make in (partial(GENERIC.pll, phase=0.5), GENERIC.pll_clock):
        with pytest.raises(ValueError, match="^no PLL of generic is known$"):
            make(input_mhz=25, output_mhz=100)
