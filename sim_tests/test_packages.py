"""Packages of the host and of the gateware: what each imports is its table in
docs/architecture.md, and no circle."""
import ast
import re
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs" / "architecture.md").read_text()
Name = tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """An import package, ``folder/name``.

    Its table in the docs has a row for each folder in it, ``name.folder``, and one for the modules
    at its top, ``name``. A row ``name.module`` is for some of these: those that its middle cell
    begins with.
    """
    folder: str
    name: str

    @cached_property
    def modules(self) -> dict[Name, Path]:
        """By their names from the package on: ("link", "driver"), ("sim",), ()."""
        top = ROOT / self.folder / self.name
        return {(path.parent if path.stem == "__init__" else path.with_suffix(""))
                .relative_to(top).parts: path for path in sorted(top.rglob("*.py"))}

    @cached_property
    def rows(self) -> dict[str, tuple[list[str], list[str]]]:
        """Row -> modules at the top that are in it, rows that it imports."""
        found = re.findall(rf"^\| `{self.name}(?:\.(\w+))?` \| ((?:`\w+`(?:, |: ))*).*\|(.*)\|$",
                           DOC, re.M)
        return {row: (re.findall(r"\w+", own), re.findall(r"`(\w+)`", cell))
                for row, own, cell in found}

    @cached_property
    def imports(self) -> dict[Name, set[Name]]:
        """Modules that each imports, wherever in it: within functions and for types too."""
        return {name: self._imports(name) for name in self.modules}

    def _imports(self, name: Name) -> set[Name]:
        path, found = self.modules[name], set()
        here = (self.name, *(name if path.stem == "__init__" else name[:-1]))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                base = here[:len(here) + 1 - node.level] if node.level else ()
                base += tuple(node.module.split(".")) if node.module else ()
                found |= {(*base, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {tuple(alias.name.split(".")) for alias in node.names}
        own = {full[1:] for full in found if full[0] == self.name}
        return {full if full in self.modules else full[:-1] for full in own}

    def row(self, name: Name) -> str:
        """Of a module: the folder it is in; at the top, the row that names it, or ""."""
        if name[1:] or name and self.modules[name].stem == "__init__":
            return name[0]
        return next((row for row, (own, _) in self.rows.items() if name and name[0] in own), "")


HOST, HDL = Tree("host", "meadowlark"), Tree("hdl", "meadowlark_hdl")
both = pytest.mark.parametrize("tree", [HOST, HDL], ids=lambda tree: tree.name)


@both
def test_packages_import_what_the_table_says(tree):
    """Each only from rows above its own, the modules at the top too. The front is another thing:
    it hands out what is for users."""
    modules = [name for name in tree.modules if name]
    found: dict[str, set[str]] = {tree.row(name): set() for name in modules}
    for name in modules:
        found[tree.row(name)] |= {tree.row(other) for other in tree.imports[name]} - {
            tree.row(name)}
    order = list(tree.rows)
    assert {name: [row for row in order if row in others - {""}]
            for name, others in found.items()} == {
        row: imported for row, (_, imported) in tree.rows.items()}
    for name, others in found.items():
        assert others <= set(order[:order.index(name)]), name


def test_fronts():
    assert HOST.imports[()] == {("api",), ("errors",)} and not HDL.imports[()]


@both
def test_no_module_imports_itself_through_others(tree):
    assert all(others <= tree.modules.keys() for others in tree.imports.values())
    tuple(TopologicalSorter(tree.imports).static_order())       # raises CycleError


def test_golden_models_need_no_gateware():
    """Nor Amaranth, whatever they import."""
    seen, left = set(), [name for name in HDL.modules if name and name[-1].endswith("_golden")]
    while left:
        name = left.pop()
        seen.add(name)
        text = HDL.modules[name].read_text()
        assert not re.search(r"^(?:from|import) amaranth", text, re.M), name
        left += HDL.imports[name] - seen
    assert len(seen) > 10
