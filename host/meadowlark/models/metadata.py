"""Checked look-ups in what a model says of itself: config.json and its like, metadata of GGUF."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import UserError, brief
from ..files import foreign

#: Longest name of a kind, in characters.
MAX_WORD = 255
#: Ids that stand for "none": -1, also where it was written as 32 unsigned bits.
NO_ID = (-1, (1 << 32) - 1)
#: What to do about an entry of config.json that :meth:`Metadata.refuse_unread` refuses.
TAKE_OUT = ("use another checkpoint, or take the entry out if you know that it changes nothing of "
            "what the model computes")
_REQUIRED: Any = object()


class Metadata:
    """Values by key; every complaint names the file, the key and the value, and says what to do.

    Parameters
    ----------
    source : Path
        The file, for messages.
    values : mapping of key to value
        From JSON (None is as good as absent), or :attr:`.gguf_file.GgufFile.metadata`: int, float,
        bool, str, list[str] or array.
    within : str
        Key of the object that has the values, if it stands in another; for messages.

    Each look-up takes a key and what to give where it is absent; without that, absence is an error.
    All raise :class:`UserError`. Which keys were looked up is noted for :meth:`refuse_unread`.
    """

    def __init__(self, source: Path, values: Mapping[str, Any], within: str = "") -> None:
        self.source, self.values, self._within = source, values, within
        self._read: set[str] = set()

    @classmethod
    def from_json(cls, path: Path, *, optional: bool = False) -> Self:
        """A JSON object from a file. optional: without a file, it has no values."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            if optional:
                return cls(path, {})
            raise UserError(f"{path} is missing; a model folder needs config.json, tokenizer.json "
                            "and model.safetensors.") from None
        except OSError as e:
            raise UserError(f"{path} cannot be read ({e.strerror}); check the file.") from e
        if what := foreign(raw):
            raise UserError(f"{path} {what}.")
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as e:       # not UTF-8, not JSON, or objects too deep
            raise UserError(f"{path} is not JSON ({brief(e)}); get the file again.") from e
        if not isinstance(values, dict):
            raise UserError(f"{path} does not hold a JSON object; get the file again.")
        return cls(path, values)

    def refuse(self, what: str, remedy: str = "get the file again") -> UserError:
        """The error to raise for a contradiction, or for what is not supported."""
        return UserError(f"{self.source}: {what}; {remedy}.")

    def named(self, key: str) -> str:
        """The key as messages show it."""
        return brief(f"{self._within}.{key}" if self._within else key)

    def _must(self, key: str, what: str, value: object) -> UserError:
        return self.refuse(f"{self.named(key)} must be {what}, not {_shown(value)}")

    def has(self, key: str) -> bool:
        """There is a value."""
        return self.values.get(key) is not None

    def _take(self, key: str, default: Any, what: str, kinds: type | tuple[type, ...]) -> Any:
        self._read.add(key)
        if not self.has(key):
            if default is _REQUIRED:
                raise self.refuse(f"{self.named(key)} is missing")
            return default
        value = self.values[key]
        if not isinstance(value, kinds) or isinstance(value, bool) and kinds is not bool:
            raise self._must(key, what, value)
        return value

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 1,
              most: int | None = None) -> Any:
        """A whole number, ``least`` at least and ``most`` at most."""
        what = f"a whole number from {least} {'on' if most is None else f'to {most:,}'}"
        value = self._take(key, default, what, int)
        if self.has(key) and not least <= value <= (value if most is None else most):
            raise self._must(key, what, value)
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, zero: bool = False) -> Any:
        """A positive finite number. zero: or 0."""
        what = f"a positive number{' or 0' if zero else ''}"
        value = self._take(key, default, what, (int, float))
        if not self.has(key):
            return value
        try:
            number = float(value)
        except OverflowError:           # a whole number of JSON has any length
            number = float("inf")
        if not isfinite(number) or number < 0 or not (number or zero):
            raise self._must(key, what, value)
        return number

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return self._take(key, default, "true or false", bool)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text of any length."""
        return self._take(key, default, "a text", str)

    def word(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text short enough to be shown."""
        value = self.text(key, default)
        if self.has(key) and len(value) > MAX_WORD:
            raise self.refuse(f"{self.named(key)} has {len(value):,} characters")
        return value

    def entries(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        """A list of whatever it holds."""
        return self._take(key, default, "a list", list)

    def texts(self, key: str, default: Any = _REQUIRED) -> list[str]:
        """A list of texts, one at least."""
        value = self._take(key, default, "a list of texts", list)
        if not value or not all(isinstance(text, str) for text in value):
            raise self._must(key, "a list of texts", value)
        return value

    def numbers(self, key: str, count: int, default: Any = _REQUIRED) -> np.ndarray:
        """array[count] of finite numbers; ``default`` is one number, for all of them."""
        value = self._take(key, default, "a list of numbers", np.ndarray)
        if not self.has(key):
            return np.full(count, value)
        if len(value) != count:
            raise self.refuse(f"{self.named(key)} has {len(value):,} entries for {count:,} tokens")
        if value.dtype == bool or not np.isfinite(value).all():
            raise self.refuse(f"{self.named(key)} must be a list of finite numbers")
        return value

    def raw(self, key: str) -> bytes:
        """An array of bytes; b"" where there is none."""
        value = self._take(key, np.zeros(0, np.uint8), "a list of bytes", np.ndarray)
        if value.dtype.kind not in "ui" or value.itemsize > 1:
            raise self._must(key, "a list of bytes", value)
        return value.tobytes()

    def flags(self, key: str, count: int, default: Any = _REQUIRED) -> list[bool]:
        """A list of true or false, or 1 or 0."""
        value = self._take(key, default, "a list of 0 and 1", list)
        if not self.has(key):
            return value
        if len(value) != count or not all(flag in (0, 1) for flag in value):
            raise self._must(key, f"a list of {count} times 0 or 1", value)
        return [bool(flag) for flag in value]

    def ids(self, key: str, vocab: int) -> list[int]:
        """A token id or a list of them, all below ``vocab``; [] where there is none."""
        given = self._take(key, [], "a token id or a list of them", (int, list))
        found = []
        for i in given if isinstance(given, list) else [given]:
            if i in NO_ID:
                continue
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab:
                raise self._must(key, f"a token id below {vocab:,}", i)
            found.append(i)
        return found

    def table(self, key: str) -> Metadata:
        """The object at a key; one without values if there is none."""
        return Metadata(self.source, self._take(key, {}, "an object", dict), self.named(key))

    def refuse_unread(self, harmless: Iterable[str], neutral: Mapping[str, object],
                      remedy: str, begins: str = "") -> None:
        """Raise for a key that was not looked up and may change what the model computes.

        Parameters
        ----------
        harmless : iterable of str
            Keys that change nothing, ``*`` stands for any text.
        neutral : mapping of key to value
            Keys that change nothing at this value. Any key is neutral where it is absent, false or
            empty.
        remedy : str
            What to do, with ``{key}`` where the key goes.
        begins : str
            Only keys that begin so are about what is computed.
        """
        harmless = tuple(harmless)
        for key, value in self.values.items():
            empty = value is None or value is False or \
                isinstance(value, (str, list, dict, np.ndarray)) and len(value) == 0
            if empty or key in self._read or not key.startswith(begins):
                continue
            known = any(fnmatchcase(key, pattern) for pattern in harmless)
            if key in neutral:
                known = isinstance(value, (int, float, str)) and value == neutral[key]
            if not known:
                raise self.refuse(f"{self.named(key)} = {_shown(value)} is not supported",
                                  remedy.replace("{key}", brief(key)))


def _shown(value: object) -> str:
    """A value, fit for a sentence."""
    if isinstance(value, (str, int, float)) or value is None:
        return brief(repr(value))[:80]
    if isinstance(value, (list, np.ndarray)):
        return f"a list of {len(value):,}"
    return "an object"
