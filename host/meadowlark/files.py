"""What files are that people come with, and how files are written."""
from __future__ import annotations

import atexit
import errno
import lzma
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    import fcntl
except ImportError:         # Windows
    fcntl = None

#: What comes with this package: a model, texts, templates.
DATA = Path(__file__).parent / "data"
#: Longest text that is read, in bytes, uncompressed.
MAX_TEXT = 256 << 20


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


def read_text(path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, compressed if its name ends in .xz.

    Raises
    ------
    UserError
        It cannot be read, is damaged, is not UTF-8, or has more than :data:`MAX_TEXT` bytes.
    """
    try:
        with (lzma.open if str(path).endswith(".xz") else open)(path, "rb") as file:
            raw = file.read(MAX_TEXT + 1)
        if len(raw) > MAX_TEXT:
            raise UserError(f"the text {path} has more than {MAX_TEXT:,} bytes; give a part of it")
        return raw.decode().splitlines()
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the text {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the text {path} is not UTF-8; convert it") from error


#: Files and folders that are not done yet: :func:`remove_unfinished` takes them away.
_unfinished: set[Path] = set()


def write_atomic(path: str | Path, *content: Buffer) -> None:
    """Write a result, whatever is at its place.

    A file is replaced when its content is complete, and keeps its mode; a reader never sees half of
    it. A symbolic link stays, and what it leads to is written. A pipe or a device is written into,
    as is an open file that a name such as /dev/stdout or /dev/fd/63 stands for. Where the folder
    allows no replacing, or the file has other names, its content is replaced instead.

    Parameters
    ----------
    path : str or Path
        "-" is stdout.
    content : bytes, or what has the bytes
        Parts, one behind the other.

    Raises
    ------
    UserError
        It cannot be written there. No folder is made.
    """
    try:
        with _opened(path) as file:
            file.writelines(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def check_outputs(*outputs: str | None, inputs: Sequence[str | None] = ()) -> None:
    """Raise unless results can be written, for a command to call before its work.

    Parameters
    ----------
    outputs : str or None
        See :func:`write_atomic`; None: was not asked for.
    inputs : sequence of str or None
        Files that are read, and must not be overwritten.

    Raises
    ------
    UserError
        A folder is missing, a file may not be written or is a folder, or two are the same.
    """
    taken = {_identity(path): "is read by this command as well" for path in inputs
             if path is not None and os.path.isfile(path)}
    for path in outputs:
        if path is None:
            continue
        try:
            reason = _obstacle(path)
        except OSError as error:
            reason = error.strerror or str(error)
        reason = reason or taken.get(_identity(path))
        if reason:
            raise UserError(f"cannot write {'stdout' if path == '-' else path}: "
                            f"{'it ' if reason.startswith('is ') else ''}{reason}")
        if not _is_device(path):
            taken[_identity(path)] = "is another output of this command as well"


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for what becomes a result at once when it is complete; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        with _kept_in_mind(Path(name)) as folder:
            yield folder


def remove_at_end(path: Path) -> Path:
    """The path, of a file or folder that goes with the process."""
    _unfinished.add(path)
    return path


@atexit.register
def remove_unfinished() -> None:
    """Remove what half results are made in; a process that ends without ``atexit`` calls it."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def _kept_in_mind(path: Path) -> Iterator[Path]:
    _unfinished.add(path)
    try:
        yield path
    finally:
        _unfinished.discard(path)


def _descriptor(path: str | Path) -> int | None:
    """The open file that a name stands for: "-", or one that leads to /dev/fd."""
    name = os.fspath(path)
    if name == "-":
        return 1
    own = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(40):         # as many links as Linux follows
        folder, last = os.path.split(name)
        folder = os.path.realpath(folder or ".")
        if folder in own:
            return int(last) if last.isdigit() else None
        name = os.path.join(folder, last)
        if not os.path.islink(name):
            return None
        name = os.path.join(folder, os.readlink(name))
    return None


def _is_device(path: str) -> bool:
    """A character device, such as a terminal or /dev/null: takes any number of results."""
    try:
        return _descriptor(path) is None and stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _identity(path: str) -> object:
    """Equal for two names of one file, or of one open file."""
    number = _descriptor(path)
    if number is not None:
        return number
    try:
        found = os.stat(path)
        return found.st_dev, found.st_ino
    except OSError:
        return os.path.realpath(path)


def _obstacle(path: str) -> str | None:
    """Why it cannot be written, or None. OSError: for the reason that the system gives."""
    number = _descriptor(path)
    if number is not None:
        try:
            os.fstat(number)
            if fcntl and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                return "it is open for reading only"
        except OSError:
            return "there is no open file of this number"
        return None
    if not path:
        return "a name is missing"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        if path.endswith("/"):
            return "there is no such folder"
        if not os.path.isdir(folder):
            return f"there is no folder {folder}"
        return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None if os.access(path, os.W_OK) else os.strerror(errno.EACCES)


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """What :func:`write_atomic` writes into; it is at its place when the context ends."""
    number = _descriptor(path)
    if number is not None:
        with os.fdopen(os.dup(number), "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there and not stat.S_ISREG(there.st_mode):
        if stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # A terminal must not become the one that controls this process.
        with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), "wb") as file:
            yield file
        return
    with _beside(target, there) as file:
        yield file


@contextmanager
def _beside(target: Path, there: os.stat_result | None) -> Iterator[BinaryIO]:
    """A file that takes the place of the target's when the context ends."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", dir=target.parent)
    except OSError as error:
        if there is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        with target.open("wb") as file:     # the file may be written, its folder not
            yield file
        return
    with _kept_in_mind(Path(name)) as temporary:
        try:
            with os.fdopen(fd, "w+b") as file:
                yield file
                file.flush()
                os.fsync(fd)
                if there is None:
                    umask = os.umask(0)
                    os.umask(umask)
                    os.chmod(temporary, 0o666 & ~umask)     # mkstemp makes it private
                else:
                    with suppress(OSError, AttributeError):
                        os.chown(temporary, there.st_uid, there.st_gid)
                    os.chmod(temporary, stat.S_IMODE(there.st_mode))
                if there is None or there.st_nlink == 1:
                    try:
                        os.replace(temporary, target)
                        return
                    except OSError as error:
                        if there is None or error.errno != errno.EBUSY:     # a mount point
                            raise
                file.seek(0)
                with target.open("wb") as place:
                    shutil.copyfileobj(file, place)
        finally:
            temporary.unlink(missing_ok=True)
