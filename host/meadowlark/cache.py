"""Results that take long to make, kept between runs.

A result's name says what it was made from, by :func:`digest`; its file's name adds a checksum of
the content, so that a file that was damaged or cut short is no result.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import UserError
from .files import remove_at_end, write_atomic

#: Bytes that all results may take: some ten of a model of 135 M parameters, and the boards.
MOST = 4 << 30
#: Names of results, those of earlier versions too.
_RESULT = re.compile(r"\w+-[0-9a-f]{24}(-[0-9a-f]{24})?\.(safetensors|pickle|npz|json|v|o|so)")

_log = logging.getLogger(__name__)


def _named() -> Path | None:
    """MEADOWLARK_CACHE, else XDG_CACHE_HOME/meadowlark, else ~/.cache/meadowlark; None: there is no
    home."""
    if named := os.environ.get("MEADOWLARK_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meadowlark"
    except RuntimeError:
        return None


@cache
def _writable(named: Path | None) -> Path:
    """The folder itself, or one that is removed at the end of the process."""
    try:
        if named is None:
            raise FileNotFoundError
        named.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=named):
            return named
    except OSError:
        _say(named)
    made = Path(tempfile.mkdtemp(prefix="meadowlark-"))
    return remove_at_end(made)


@cache
def _say(place: Path | None) -> None:
    """Once for a folder."""
    _log.warning("the cache folder%s cannot be written, so nothing is kept for the next time; make "
                 "room, or name another in MEADOWLARK_CACHE", f" {place}" if place else "")


def folder() -> Path:
    """Where results can be put: MEADOWLARK_CACHE, else XDG_CACHE_HOME/meadowlark, else
    ~/.cache/meadowlark; made if absent. Where that cannot be written, which is said once, another
    folder that is removed at the end of the process."""
    return _writable(_named())


def _paths(name: str) -> list[Path]:
    """Files of a result, of whatever content."""
    stem, dot, suffix = name.rpartition(".")
    named = _named()
    # Read where nothing can be written too: somebody may have filled it.
    places = dict.fromkeys(place for place in (named, folder()) if place is not None)
    return [path for place in places for path in sorted(place.glob(f"{stem}-*{dot}{suffix}"))]


def _checksum(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()[:24]
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def find(name: str) -> Path | None:
    """The result of a name, if it is kept and whole.

    Parameters
    ----------
    name : str
        Kind, digest and suffix: ``model-0123abcd.safetensors``.
    """
    for path in _paths(name):
        try:
            if path.stem.rpartition("-")[2] == _checksum(path):
                with suppress(OSError):
                    os.utime(path)      # it was of use today
                return path
            path.unlink()       # damaged
        except OSError:
            pass
    return None


def keep(name: str, content: bytes | Path) -> Path | None:
    """Keep a result.

    Parameters
    ----------
    name : str
        See :func:`find`.
    content : bytes or Path
        Path: of a file in :func:`folder`, which is moved.

    Returns
    -------
    Path or None
        Where it is; None if there is no room, which is said once.
    """
    stem, dot, suffix = name.rpartition(".")
    path = folder() / f"{stem}-{_checksum(content)}{dot}{suffix}"
    try:
        if isinstance(content, bytes):
            write_atomic(path, content)
        else:
            os.replace(content, path)
    except (OSError, UserError):
        _say(path.parent)
        return None
    _forget(path.parent)
    return path


def _forget(place: Path) -> None:
    """Remove the results that were of no use for longest, where all take more than :data:`MOST`."""
    files, total = [], 0
    for path in place.iterdir():
        with suppress(OSError):
            if _RESULT.fullmatch(path.name):
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    for n, (_, size, path) in enumerate(sorted(files, reverse=True)):
        total += size
        if n and total > MOST:
            path.unlink(missing_ok=True)


def digest(*parts: object) -> str:
    """Of bytes, of the contents of files (Path), and of what other objects are as text."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            h.update(f"\0{part.name}\0{part.stat().st_size}\0".encode())
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    h.update(block)
        else:
            raw = part if isinstance(part, bytes) else str(part).encode()
            h.update(f"\0\0{len(raw)}\0".encode() + raw)
    return h.hexdigest()[:24]


def source_files(package: Path) -> list[Path]:
    """All files of a package that an interpreter has not made."""
    return sorted(path for path in package.rglob("*")
                  if "__pycache__" not in path.parts and path.is_file())
