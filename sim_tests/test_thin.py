"""The commands are a thin layer on the Python API: which packages of ours each imports."""
import pytest
from test_packages import Tree

#: What any command may import: the API, and what is about files, words and threads alone.
FREE = {"api", "cli", "errors", "files", "text", "threads"}
#: What one of them may import beside that, and why.
ALLOWED = {
    ("ablate", "papers"): "rows of docs/papers.md, made for that page; they are no part of the API",
    ("bench", "report"): "results of the API as HTML",
    ("build", "report"): "results of the API as HTML",
    ("group", "sim"): "the one exception that ends a command with a status of its own",
    ("predict", "report"): "results of the API as HTML",
    ("serve", "serve"): "the server, itself on the API; the command waits and ends it"}
TREE = Tree("host", "meadowlark")
COMMANDS = [name[1] for name in TREE.modules if name[0:1] == ("cli",) and len(name) == 2]


def around(tree: Tree, command: str) -> set[str]:
    """Packages that a command imports, wherever in it, and that are not free to all."""
    return {name[0] if name else tree.name for name in tree.imports["cli", command]} - FREE


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_use_the_api(command):
    """What it is told to do is done by meadowlark.api, for Python's users too."""
    assert around(TREE, command) == {what for name, what in ALLOWED if name == command}


@pytest.mark.parametrize("line, found", [
    ("from ..run.targets import open_target", {"run"}), ("from .. import run", {"run"}),
    ("def f():\n    if True:\n        from ..run import targets", {"run"}),
    ("import json, meadowlark.run.targets as t", {"run"}),
    ("if TYPE_CHECKING:\n    from meadowlark.run.targets import Target", {"run"}),
    ("from .options import Asked\nfrom ..api.chip import Chip\nimport click", set())])
def test_ways_around_are_found(tmp_path, line, found):
    for name in ("run/targets.py", "run/__init__.py", "cli/options.py", "api/chip.py"):
        path = tmp_path / "meadowlark" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "meadowlark/cli/command.py").write_text(line)
    assert around(Tree(str(tmp_path), "meadowlark"), "command") == found
