"""A release: the same bytes again, only bitstreams of today's gateware, nothing half written."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import release
from meadowlark import UserError
from meadowlark.chip.build import gateware
from meadowlark_boards import BOARDS

BOARD = BOARDS["ulx3s_25f"]
SMALL = replace(BOARD, memory=replace(BOARD.memory, size_bytes=1 << 12))
#: One that Vivado makes a bitstream for, elsewhere.
OTHER = BOARDS["kv260"]


@pytest.fixture
def built(tmp_path):
    """built(name, **said): a bitstream, and what its report says."""
    def add(name, **said):
        folder = tmp_path / "build" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.bit").write_bytes(b"bits of " + name.encode())
        (folder / "report.json").write_text(json.dumps(
            {"gateware": gateware(), "meets_timing": True, "bitstream": "/home/x.bit"} | said))
        return tmp_path / "build"
    return add


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(boards, built) -> what is missing, the folder; its wheel is made elsewhere."""
    monkeypatch.setattr(release, "distributions", lambda folder, epoch: (
        folder / "x.whl").write_text(f"wheel of {epoch}"))
    target = tmp_path / "release" / "1.2.3"

    def make(boards, built=tmp_path / "none"):
        return release.make(target, boards, built, commit="abc", epoch=7,
                            tell=lambda text: None), target
    return make


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_release_twice(made, built):
    """An image that runs, the bitstream with its report, sums that sha256sum takes; the second one
    takes the place of the first, and has the same bytes."""
    folder = built(BOARD.name)
    missing, target = made({BOARD.name: BOARD, "small": SMALL, OTHER.name: OTHER}, folder)
    first = contents(target)
    name = BOARD.name
    assert first.keys() == {
        "x.whl", "SHA256SUMS", "release.json", f"bitstreams/{name}.bit", f"bitstreams/{name}.json",
        f"images/stories-{name}.mlk", f"images/stories-{OTHER.name}.mlk"}
    assert missing["images"].keys() == {"small"} == missing["bitstreams"].keys()
    assert "memory" in missing["images"]["small"]
    assert missing["bitstreams"]["small"].startswith("not built; `meadowlark build --board small`")
    assert json.loads(first["release.json"]) == {
        "version": "1.2.3", "commit": "abc", "model": "stories", "missing": missing}
    assert b"/home" not in first[f"bitstreams/{name}.json"]
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=target, text=True,
                          capture_output=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(first) - 1
    (target / "left over").write_text("of another time")
    made({BOARD.name: BOARD, "small": SMALL, OTHER.name: OTHER}, folder)
    assert contents(target) == first
    assert [path.name for path in target.parent.iterdir()] == ["1.2.3"]


@pytest.mark.parametrize("said, why", [
    ({"gateware": "0123"}, "other gateware"), ({"gateware": None}, "other gateware"),
    ({"meets_timing": False}, "timing is missed")])
def test_bitstreams_that_are_left_out(built, tmp_path, said, why):
    folder, out = built(BOARD.name, **said), tmp_path / "out"
    out.mkdir()
    missing = release.bitstreams(out, {BOARD.name: BOARD}, folder)
    assert why in missing[BOARD.name] and not [*out.iterdir()]


def test_nothing_half_written(made, monkeypatch):
    """The release before stays whole where the next one fails."""
    _, target = made({})
    before = contents(target)

    def fail(*_):
        raise UserError("no")
    monkeypatch.setattr(release, "images", fail)
    with pytest.raises(UserError, match="^no$"):
        made({})
    assert contents(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["1.2.3"]


def test_of_a_commit_alone(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments],
                       cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="^a release is made from a checkout of git"):
        release.revision()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x", "--date", "2001-09-09T01:46:40Z")
    commit, epoch = release.revision()
    assert len(commit) == 40 and epoch > 1_000_000_000
    (tmp_path / "new").write_text("")
    with pytest.raises(UserError, match="^1 files are not as in the commit"):
        release.revision()
