#!/usr/bin/env python3
"""Make a release in build/release/VERSION: see docs/releasing.md."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import click
import meadowlark as ml
from meadowlark.chip.build import gateware
from meadowlark.files import temporary_folder
from meadowlark_boards import BOARDS, Board

ROOT = Path(__file__).resolve().parents[1]
#: Of which there are images.
MODEL = "stories"

Tell = Callable[[str], None]


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise ml.UserError("a release is made from a checkout of git: "
                           f"git {arguments[0]} failed ({done.stderr.strip()})")
    return done.stdout.strip()


def revision() -> tuple[str, int]:
    """The commit and its time in seconds; :class:`UserError` if the tree is another one."""
    if changed := _git("status", "--porcelain"):
        raise ml.UserError(f"{len(changed.splitlines())} files are not as in the commit, so nobody "
                           "could make this release again: commit them or take them away")
    return _git("rev-parse", "HEAD"), int(_git("show", "-s", "--format=%ct"))


def distributions(folder: Path, epoch: int) -> None:
    """The sdist, and the wheel from it; the same bytes for the same files and epoch."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder), str(ROOT)], text=True,
        capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)})
    if done.returncode:
        raise ml.UserError(f"the wheel was not built ({done.stderr.strip().splitlines()[-1:]}): "
                           "run `make setup-test`")


def images(folder: Path, boards: Mapping[str, Board], tell: Tell) -> dict[str, str]:
    """An image of the packaged model a board; returns why some have none."""
    missing = {}
    for name, board in boards.items():
        tell(f"compiling {MODEL} for {name}")
        try:
            ml.load(MODEL).compile(board, folder / f"{MODEL}-{name}.mlk")
        except ml.UserError as error:
            missing[name] = str(error)
    return missing


def bitstreams(folder: Path, boards: Mapping[str, Board], built: Path) -> dict[str, str]:
    """Bitstreams with their reports, of those in ``built`` that are of today's gateware and meet
    timing; returns why the others are missing."""
    missing = {}
    for name in (name for name, board in boards.items() if board.chip.platform):
        bitstream, report = built / name / f"{name}.bit", built / name / "report.json"
        try:
            said = json.loads(report.read_text())
            content = bitstream.read_bytes()
        except (OSError, ValueError):
            missing[name] = f"not built; `meadowlark build --board {name}` takes a while"
            continue
        if said.get("gateware") != gateware():
            missing[name] = "built from other gateware than this; build it again"
        elif not said["meets_timing"]:
            missing[name] = "timing is missed"
        else:
            (folder / f"{name}.bit").write_bytes(content)
            # Where it was built is nobody's business.
            (folder / f"{name}.json").write_text(json.dumps(
                said | {"bitstream": f"{name}.bit"}, indent=2) + "\n")
    return missing


def checksums(folder: Path) -> str:
    """Contents of SHA256SUMS, which `sha256sum -c` takes."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  "
                         f"{path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def make(target: Path, boards: Mapping[str, Board], built: Path, *, commit: str, epoch: int,
         tell: Tell) -> dict[str, dict[str, str]]:
    """The whole release, at its place when it is complete; returns what is missing, by kind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target.parent, f".{target.name}-") as work:
        made = work / "new"
        for name in ("images", "bitstreams"):
            (made / name).mkdir(parents=True)
        tell("making sdist and wheel")
        distributions(made, epoch)
        missing = {"images": images(made / "images", boards, tell),
                   "bitstreams": bitstreams(made / "bitstreams", boards, built)}
        (made / "release.json").write_text(json.dumps(
            {"version": target.name, "commit": commit, "model": MODEL, "missing": missing},
            indent=2) + "\n")
        (made / "SHA256SUMS").write_text(checksums(made))
        with suppress(FileNotFoundError):
            target.rename(work / "old")
        made.rename(target)
    return missing


@click.command()
@click.option("--build", "builds", is_flag=True,
              help="Build the bitstreams that are missing first, which takes hours.")
def main(builds: bool) -> None:
    """Make wheel, sdist, images, bitstreams and SHA256SUMS in build/release/VERSION."""
    try:
        commit, epoch = revision()
        built = ROOT / "build"
        if builds:
            with temporary_folder(built, ".missing-") as nothing:
                for name in bitstreams(nothing, BOARDS, built):
                    click.echo(f"release: building the bitstream of {name}", err=True)
                    subprocess.run([sys.executable, "-m", "meadowlark.cli", "build", "--board",
                                    name, "--clock", "recorded", "-o", str(built / name)])
        target = built / "release" / version()
        missing = make(target, BOARDS, built, commit=commit, epoch=epoch,
                       tell=lambda text: click.echo(f"release: {text}", err=True))
    except ml.UserError as error:
        click.echo(f"release: {error}", err=True)
        sys.exit(2)
    for kind, boards in missing.items():
        for name, why in boards.items():
            click.echo(f"missing in {kind}: {name}: {why}")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    click.echo(f"{os.path.relpath(target)}: {size / 1e6:.1f} MB, see SHA256SUMS")


if __name__ == "__main__":
    main()
