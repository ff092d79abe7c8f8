"""The size of the gateware's modules and methods, and the script that counts it."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import lines

MODULE, METHOD = 300, 100       # lines of code
#: What is beyond, and its lines of code today. Split one: take it out, or write what is left of it.
BEYOND: dict[str, int] = {}

TEXT = '''"""A module."""
import this
# a comment
class A:
    """Its docstring,
    two lines."""

    def f(self):
        """g within it counts."""
        def g():

            return """no docstring
            """
        return g    # the end
    x = 1
'''


def test_modules_and_methods_are_small():
    """Nothing beyond the limits but what is listed, no larger than listed, and still beyond."""
    found = {c.name: c.lines for module, methods in lines.counts().values()
             for c, most in [(module, MODULE), *((method, METHOD) for method in methods)]
             if c.lines > most}
    larger = {name: size for name, size in found.items() if size > BEYOND.get(name, 0)}
    assert not larger, f"split them: lines of code {larger}"
    assert not BEYOND.keys() - found.keys(), "these are small now: take them out of BEYOND"


def test_count():
    """Neither docstrings, comments nor empty lines; other strings and nested functions do."""
    module, methods = lines.count(TEXT, "a.py")
    assert module == ("a.py", 8)
    assert methods == [("a.py A.f", 5)]
    assert lines.count("", "b.py") == (("b.py", 0), [])


def test_page_has_the_table():
    """``--write`` finds its place in the page, and every folder is in the table."""
    text = lines.PAGE.read_text()
    assert text.count(lines.BEGIN) == text.count(lines.END) == 1
    folders = {path.parent.name for path in lines.HDL.glob("*/*.py")}
    rows = lines.table().splitlines()[2:]
    assert {row.split()[1].strip("`/") for row in rows} == folders | {"top", "all"}
