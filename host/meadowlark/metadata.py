"""Checked look-ups in the metadata of a GGUF file."""
from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

#: Longest name of a kind, in characters.
MAX_WORD = 255
_REQUIRED: Any = object()


class Metadata:
    """Values by key; every complaint names the file, the key and the value.

    Parameters
    ----------
    source : Path
        The file, for messages.
    values : mapping of key to int, float, bool, str, list[str] or array
        :attr:`meadowlark.gguf_file.GgufFile.metadata`.

    Each look-up takes a key and what to give where it is absent; without that, absence is an error.
    All raise :class:`UserError`.
    """

    def __init__(self, source: Path, values: Mapping[str, Any]) -> None:
        self.source, self.values = source, values

    def refuse(self, what: str) -> UserError:
        """The error to raise for a contradiction."""
        return UserError(f"{self.source} is not a sound model: {what}; get it again.")

    def _take(self, key: str, default: Any, what: str, kinds: type | tuple[type, ...]) -> Any:
        if key not in self.values:
            if default is _REQUIRED:
                raise self.refuse(f"it lacks {key}")
            return default
        value = self.values[key]
        if not isinstance(value, kinds) or isinstance(value, bool) and kinds is not bool:
            shown = repr(value) if isinstance(value, (int, float)) else type(value).__name__
            raise self.refuse(f"{key} must be {what}, not {shown}")
        return value

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> Any:
        """A whole number, ``least`` at least."""
        what = f"a whole number from {least} on"
        value = self._take(key, default, what, int)
        if key in self.values and value < least:
            raise self.refuse(f"{key} must be {what}, not {value}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive finite number."""
        value = self._take(key, default, "a positive number", (int, float))
        if not isfinite(value) or value <= 0:
            raise self.refuse(f"{key} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return self._take(key, default, "true or false", bool)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text of any length."""
        return self._take(key, default, "a text", str)

    def word(self, key: str, default: Any = _REQUIRED) -> str:
        """A text short enough to be shown."""
        value = self.text(key, default)
        if len(value) > MAX_WORD:
            raise self.refuse(f"{key} has {len(value):,} characters")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, one at least."""
        value = self._take(key, _REQUIRED, "a list of texts", list)
        if not value:
            raise self.refuse(f"{key} is empty")
        return value

    def numbers(self, key: str, count: int, default: Any = _REQUIRED) -> np.ndarray:
        """array[count] of finite numbers; ``default`` is one number, for all of them."""
        if key not in self.values and default is not _REQUIRED:
            return np.full(count, default)
        value = self._take(key, _REQUIRED, "a list of numbers", np.ndarray)
        if len(value) != count:
            raise self.refuse(f"{key} has {len(value):,} entries for {count:,} tokens")
        if value.dtype == bool or not np.isfinite(value).all():
            raise self.refuse(f"{key} must be a list of finite numbers")
        return value
