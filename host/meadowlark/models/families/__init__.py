"""Families of models: a module each. A new one is a new file; readers and passes know none."""
from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from gguf import MODEL_ARCH_NAMES

from .family import Family


@cache
def families() -> dict[str, Family]:
    """All of them, by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Family) and \
                    value.__module__ == module.__name__ and "name" in vars(value):
                found[value.name] = value()
    return dict(sorted(found.items()))


def by_architecture(arch: str) -> Family | None:
    """The one that GGUF files call so, or None."""
    return next((f for f in families().values()
                 if f.arch is not None and MODEL_ARCH_NAMES[f.arch] == arch), None)
