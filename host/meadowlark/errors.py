"""The one exception whose text is meant for the person at the keyboard."""
from __future__ import annotations

import sys


class UserError(Exception):
    """Something the user can put right.

    The message is one sentence that names what is wrong, with the value, and says what to do. The
    commands print it without a traceback and end with a status other than 0.
    """


def brief(error: object) -> str:
    """What others say, fit for a sentence: one line, short, without control characters."""
    text = " ".join(str(error)[:1000].split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def how_to_add(extra: str) -> str:
    """The command that installs an extra of this package (pyproject.toml), for a sentence."""
    return f'`{sys.executable} -m pip install "meadowlark[{extra}]"`'
