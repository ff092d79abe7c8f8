"""Values that nobody expects, for files that are read with care."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from meadowlark.errors import UserError
from meadowlark.models.checkpoint import Model

#: Mutated files that a test tries; FUZZ= sets it.
MUTATIONS = int(os.environ.get("FUZZ") or 300)

_PLAIN = (None, True, False, 0, 1, -1, 2, 3, 7, 1.0, 0.5, -0.0, 1e-300, 1e308, float("inf"),
          float("-inf"), float("nan"), 2**31, 2**32 - 1, 2**63, 2**64, 10**400, "", "1", "linear",
          "default", "none", "yarn", "silu", "llama", "LlamaForCausalLM", "a\nb", "\ud800",
          "é" * 300, "x" * 100_000, "{{ 1/0 }}")
#: One of each kind, for an entry that is something else.
WRONG = ("linear", "", 7, -1, 0, 1.5, 1e400, True, [], [[]], ["x"], {}, {"a": 1}, {"content": []},
         10**400, "\ud800", None)
_KEYS = ("type", "rope_type", "factor", "rope_theta", "content", "name", "template", "x")


def value(rng: np.random.Generator, depth: int = 3) -> Any:
    """One of all kinds of JSON."""
    kind = rng.integers(0, 10) if depth else 0
    if kind < 6:
        return _PLAIN[rng.integers(0, len(_PLAIN))]
    if kind < 8:
        return [value(rng, depth - 1) for _ in range(rng.integers(0, 4))]
    return {str(rng.choice(_KEYS)): value(rng, depth - 1) for _ in range(rng.integers(0, 4))}


def changed(rng: np.random.Generator, values: dict[str, Any], more: tuple[str, ...]) -> dict:
    """A copy with a few entries changed, lost, or there under another's name; more: keys that may
    come in as well."""
    out = dict(values)
    for _ in range(rng.integers(1, 4)):
        key, other = map(str, rng.choice([*values, *more], 2))
        kind = rng.integers(0, 8)
        if kind == 0:
            out.pop(key, None)
        elif kind == 1:
            out[key] = out.get(other)
        elif kind == 2:
            number = out.get(key)
            if isinstance(number, (int, float)):
                out[key] = number * int(rng.choice([-1, 0, 2])) + int(rng.integers(-2, 3))
        else:
            out[key] = value(rng)
    return out


def refuses(load: Callable[[], Model]) -> bool:
    """A damaged model is read and used, or refused by a sentence fit to be shown; within seconds.

    Returns whether it was refused.
    """
    started, refused = time.process_time(), False
    try:
        model = load()
        model.tokenizer.decode(model.tokenizer.encode("Hello 12"))
        if model.chat:
            model.chat.render([{"role": "user", "content": "Hello"}])
    except UserError as error:
        refused = True
        assert str(error).isprintable() and len(str(error)) < 2000
    assert time.process_time() - started < 5
    return refused
