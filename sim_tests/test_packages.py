"""The host's packages: what each imports is the table in docs/architecture.md, and no circle."""
import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Modules by their names from ``meadowlark`` on: ("link", "driver"), ("sim",), ().
MODULES = {(path.parent if path.stem == "__init__" else path.with_suffix(""))
           .relative_to(ROOT / "host" / "meadowlark").parts: path
           for path in sorted((ROOT / "host" / "meadowlark").rglob("*.py"))}


def imports(name: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Modules that a module imports, wherever in it: within functions and for types too."""
    path, found = MODULES[name], set()
    here = ("meadowlark", *(name if path.stem == "__init__" else name[:-1]))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[:len(here) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
    own = {full[1:] for full in found if full[0] == "meadowlark"}
    return {full if full in MODULES else full[:-1] for full in own}


def package(name: tuple[str, ...]) -> str:
    """Of a module: the folder it is in; "" at the top."""
    return name[0] if name[1:] or name and MODULES[name].stem == "__init__" else ""


def table() -> dict[str, list[str]]:
    """Package -> what it imports, as docs/architecture.md has it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    return {name: re.findall(r"`(\w+)`", cell)
            for name, cell in re.findall(r"^\| `meadowlark\.?(\w*)` \|.*\|(.*)\|$", text, re.M)}


def test_packages_import_what_the_table_says():
    """Each only from rows above its own, and all of them the modules at the top."""
    rows, found = table(), {package(name): set() for name in MODULES}
    for name in MODULES:
        found[package(name)] |= {package(other) for other in imports(name)}
    assert {name: [p for p in rows if p in others - {name, ""}]
            for name, others in found.items()} == rows
    order = list(rows)
    for name, others in rows.items():
        assert set(others) <= set(order[:order.index(name)]), name


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name) for name in MODULES}
    assert all(others <= MODULES.keys() for others in graph.values())
    tuple(TopologicalSorter(graph).static_order())      # raises CycleError
