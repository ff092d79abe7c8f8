"""The command line: ``meadowlark generate``, ``chat``, ``classify``, ``compile``, ``draft``,
``eval``, ``bench``, ``ablate``, ``predict``, ``explore``, ``serve``, ``build``, ``flash`` and
``info``; a file a command."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..threads import one_thread_for_all


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0: done. 1: ``--check`` found a difference. 2: something the user can put right, told in one
    sentence on stderr. 130: interrupted, by Ctrl-C or a signal to end; tools run for us end too.

    args: of the process if not given, which then has its signals handled and ends when
    interrupted.
    """
    if args is not None:
        from .group import run
        return run(args)
    _open_standard_streams()
    one_thread_for_all()
    from . import interrupts
    try:
        interrupts.install()        # before the imports, which take longest
        from .group import run
        status = run(sys.argv[1:], interrupted=interrupts.leave)
        interrupts.finish()
        return status
    except BaseException:
        if interrupts.pending():    # whatever a library has made of it
            interrupts.leave()
        raise


def _open_standard_streams() -> None:
    """Put the null device where a standard stream was closed: Python has None there, and the next
    file that is opened would get its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # takes the lowest number that is free: this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
