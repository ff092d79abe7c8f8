"""How fast the pairs of a head turn: what files say of RoPE, and its scalings."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .graph import Rates, rates
from .metadata import TAKE_OUT, Metadata

if TYPE_CHECKING:
    from .families.family import Tensors

#: Kinds of attention in config.json.
FULL, SLIDING = "full_attention", "sliding_attention"
#: Fastest that a pair turns, in radians a position; 1 is common. Its angles have to be numbers.
MAX_RATE = 1e6
#: Scalings that are known and not run, and what each needs.
UNSUPPORTED = {
    "dynamic": "rates that change with the length of the text",
    "yarn": "rates by wavelength and a temperature of attention",
    "longrope": "two sets of rates, chosen by the length of the text, and a factor on queries and "
                "keys",
    "su": "two sets of rates, chosen by the length of the text, and a factor on queries and keys"}


def _plain(kind: str | None, factor: float | None) -> bool:
    return kind in ("none", "default") or factor == 1 and kind in (None, "linear") \
        or kind is factor is None


def _refuse(config: Metadata, kind: str | None, factor: float | None, where: str) -> UserError:
    if kind is None:
        return config.refuse(f"RoPE scaling by a factor of {factor:g}{where} has no type",
                             "add rope_type, such as linear, if you know it")
    needs = f"; it needs {UNSUPPORTED[kind]}" if kind in UNSUPPORTED else ""
    return config.refuse(f"RoPE scaling {kind!r}{where} is not supported{needs}",
                         "use a model without RoPE scaling, or with llama3 or linear")


def _checked(source: Metadata, values: np.ndarray) -> Rates:
    if not values.max() <= MAX_RATE:
        raise source.refuse(f"RoPE turns by {values.max():.3g} radians a position")
    return Rates(values)


def llama3(plain: np.ndarray, *, factor: float, low: float, high: float, original: float,
           ) -> np.ndarray:
    """Rates of Llama 3.1: slow pairs by the factor slower, fast ones as they are.

    plain: float64[pairs]. A pair is slow if it turns less than ``low`` times within the
    ``original`` context, fast if more than ``high`` times, and mixed in proportion between them.
    """
    turns = original * plain / (2 * np.pi)
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (fast + (1 - fast) / factor)


#: Entries beside a type of RoPE scaling that say how others scale.
_OTHERS = ("original_max_position_embeddings", "*_factor", "beta_*", "mscale*", "truncate",
           "finetuned")
#: Entries that change nothing at this value.
_NEUTRAL = {"partial_rotary_factor": 1, "rotary_pct": 1}


def _pairs(source: Metadata, head_dim: int, part: float | None) -> int:
    """Pairs of a head of which a part rotates, or all of it."""
    if part is None:
        return head_dim // 2
    turning = int(head_dim * min(part, 2))
    if turning % 2 or not 2 <= turning <= head_dim:
        raise source.refuse(f"{part:g} of heads of {head_dim} dimensions are no pairs for RoPE")
    return turning // 2


def from_config(config: Metadata, head_dim: int, *, part: float | None = None,
                base: float = 10000.0, kind: str | None = None) -> Rates:
    """Rates as config.json has them, in its older or newer form.

    part: of a head that rotates, where no partial_rotary_factor says; None: all of it, and none may
    say something else. base: where no rope_theta says; by default that of the original model. kind:
    of the layers that have these rates, where the newer form may tell kinds of layers apart; the
    older form is of those with full attention.
    """
    def part_of(source: Metadata, default: float | None) -> float | None:
        return default and source.number("partial_rotary_factor", default)
    outside = base if kind == SLIDING else config.number("rope_theta", base)
    part = part_of(config, part)
    out = rates(_pairs(config, head_dim, part), outside)
    # Files of transformers 5 have all of it in rope_parameters. Where there is rope_scaling too,
    # that counts.
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.table(key)
        if kind is not None and (rope.has(FULL) or rope.has(SLIDING)):
            rope.refuse_unread((FULL, SLIDING), {}, TAKE_OUT)
            rope = rope.table(kind)
        elif kind == SLIDING:
            continue
        if not rope.values:
            continue
        scaling = rope.word("rope_type", None) or rope.word("type", None)
        factor = rope.number("factor", None)
        plain = rates(_pairs(rope, head_dim, part_of(rope, part)),
                      rope.number("rope_theta", outside))
        if _plain(scaling, factor):
            out = plain
        elif scaling == "linear":
            out = plain / rope.number("factor")
        elif scaling == "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise rope.refuse(f"{rope.named('low_freq_factor')} {low:g} is not below "
                                  f"high_freq_factor {high:g}")
            out = llama3(plain, factor=rope.number("factor"), low=low, high=high,
                         original=rope.number("original_max_position_embeddings"))
        else:
            raise _refuse(config, scaling, factor, f" ({key})")
        rope.refuse_unread(_OTHERS, _NEUTRAL, TAKE_OUT)
    return _checked(config, out)


def from_gguf(meta: Metadata, arch: str, pairs: int, tensors: Tensors) -> Rates:
    """Rates as a GGUF file has them."""
    out = rates(pairs, meta.number(f"{arch}.rope.freq_base", 10000.0))
    # As in llama.cpp, a factor of 0 is none, and one without a type is linear.
    kind = meta.word(f"{arch}.rope.scaling.type", None)
    factor = meta.number(f"{arch}.rope.scaling.factor", None, zero=True)
    older = meta.number(f"{arch}.rope.scale_linear", 1, zero=True)
    factor = (older if factor is None else factor) or 1
    if tensors.has("rope_factors_long.weight"):
        kind = "longrope"               # the converter does not write it
    if kind not in (None, "none", "linear"):
        raise _refuse(meta, kind, factor, "")
    if kind != "none":
        out = out / factor
    # How much slower each pair turns: the converter's form of llama3.
    factors = tensors.factors("rope_freqs.weight", pairs)
    return _checked(meta, out if factors is None else out / factors)
