"""What leaves the house: the wheel works where there is no checkout, and the sdist is all of it."""
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"hdl": "meadowlark_hdl", "host": "meadowlark", "boards": "meadowlark_boards"}


def ran(*command, cwd, **environment):
    """stdout of a command that does not know of the checkout."""
    left = {name: value for name, value in os.environ.items()
            if name != "VIRTUAL_ENV" and not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=left | environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT, cwd=folder)
    sdist, wheel = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return next(sdist), next(wheel)


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """bin of a new environment with the wheel. Its dependencies are those of this one, by a .pth
    file, so that no network is needed: a .pth file of a folder that is named by one is not read,
    so the checkout, which this environment may have by one, stays out."""
    folder = tmp_path_factory.mktemp("installed")
    ran(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    bin = folder / "venv" / "bin"
    site = Path(ran(bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                    cwd=folder).strip())
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ran(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python",
        bin / "python", "install", "--no-deps", "--no-index", made[1], cwd=folder)
    where = ran(bin / "python", "-c", "import meadowlark, meadowlark_hdl, meadowlark_boards as b; "
                "print(meadowlark.__file__, meadowlark_hdl.__file__, b.__file__)", cwd=folder)
    assert [Path(x).parent.parent for x in where.split()] == 3 * [site]
    return bin


def of_git(*folders):
    """Files that the project has in them."""
    found = subprocess.run(["git", "ls-files", "-z", "--", *folders], cwd=ROOT, text=True,
                           capture_output=True)
    if found.returncode:
        pytest.skip("not a checkout of git: nothing says which files are the project's")
    # What is deleted and not yet committed is listed as well.
    return {name for name in found.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_sdist_is_the_whole_project(made):
    """Tests and documents too; nothing that was built."""
    with tarfile.open(made[0]) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert of_git() <= found
    top = {name.partition("/")[0] for name in found}
    assert top - {name.partition("/")[0] for name in of_git()} == {"PKG-INFO"}


def test_the_wheel_is_the_packages(made):
    """All their files, data and C++ included, and nothing else but the licence and what pip
    reads."""
    with zipfile.ZipFile(made[1]) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        meta = {name.partition("/")[2]: file.read(name).decode("utf-8")
                for name in file.namelist() if ".dist-info/" in name}
    wanted = {name.partition("/")[2] for name in of_git(
        *(f"{folder}/{package}" for folder, package in PACKAGES.items()))}
    assert wanted <= found
    assert {name.partition("/")[0] for name in found} == set(PACKAGES.values())
    assert meta["licenses/LICENSE"] == (ROOT / "LICENSE").read_text()
    needed = re.findall(r"^Requires-Dist: (.*?)(?: ?;.*)?$", meta["METADATA"], re.M)
    plain = re.findall(r"^Requires-Dist: ([\w.-]+)[^;\n]*$", meta["METADATA"], re.M)
    assert len(plain) == len(PROJECT["dependencies"]) < len(needed)
    # What tests and makes it is no part of it.
    assert not {"pytest", "cocotb", "pytest-xdist", "hatchling", "build"} & {*plain}


def test_five_lines_of_the_readme(installed, tmp_path):
    """On the simulated chip: its sources are in the wheel."""
    code = textwrap.dedent(re.search(r"^ *```python\n(.*?)^ *```$",
                                     (ROOT / "README.md").read_text(), re.S | re.M)[1])
    assert len(code.splitlines()) == 5
    said = ran(installed / "python", "-c", code, cwd=tmp_path)
    golden = ran(installed / "python", "-c", code.replace('"sim"', '"golden"'), cwd=tmp_path)
    assert said == golden and len(said.split()) > 4
    assert not [*tmp_path.iterdir()]


def test_commands_from_the_wheel(installed, tmp_path):
    found = json.loads(ran(installed / "meadowlark", "generate", "Once upon a time", "-n", "8",
                           "--target", "golden", "--json", "-", cwd=tmp_path))
    assert len(found["tokens"]) == 8 and found["target"] == "golden"
    checks = json.loads(ran(installed / "meadowlark", "doctor", "--json", "-", cwd=tmp_path))
    works = {one["what"]: one["works"] for one in checks["checks"]}
    for name in ("Python", "golden model", "cache", "Verilator and Yosys", "C++ compiler"):
        assert works[name], checks
    facts = next(one["facts"] for one in checks["checks"] if one["what"] == "Python")
    assert str(installed) in facts and f"meadowlark {PROJECT['version']}" in facts
