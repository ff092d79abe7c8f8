"""What files are that people come with, and how files are written."""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def foreign(start: bytes) -> str | None:
    """What a file is that people come to have in place of one of a model, and what to do.

    Parameters
    ----------
    start : bytes
        How it begins, 64 bytes at least if it has so many.

    Returns
    -------
    The end of a sentence that begins with its name; None if it is none of these.
    """
    if not start:
        return "is empty; get it again"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository"
    if start[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        return "is a web page (HTML), not the file itself; use the page's link to download it"
    return None


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside ``path``, then rename: a reader never sees half a file.

    Raises
    ------
    UserError
        It cannot be written there.
    """
    temporary = None
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)     # mkstemp makes it private
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
