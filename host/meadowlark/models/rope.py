"""How fast the pairs of a head turn: what files say of RoPE, and its scalings."""
from __future__ import annotations

from math import ceil, floor, log, pi, sqrt
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
#: Most that a scaling makes queries and keys larger or smaller; 1.1 is common.
MAX_TIMES = 1e3
#: Scalings that are known and not run where a GGUF file has them, and what each needs.
UNSUPPORTED = {
    "longrope": "two sets of rates, chosen by the length of the text, and a factor on queries and "
                "keys"}


def _plain(kind: str | None, factor: float | None) -> bool:
    return kind in ("none", "default") or factor == 1 and kind in (None, "linear") \
        or kind is factor is None


def _refuse(config: Metadata, kind: str | None, factor: float | None, where: str) -> UserError:
    if kind is None:
        return config.refuse(f"RoPE scaling by a factor of {factor:g}{where} has no type",
                             "add rope_type, such as linear, if you know it")
    needs = f"; it needs {UNSUPPORTED[kind]}" if kind in UNSUPPORTED else ""
    return config.refuse(f"RoPE scaling {kind!r}{where} is not supported{needs}",
                         "use a model without RoPE scaling, or with one that docs/models.md lists")


def _checked(source: Metadata, found: Rates) -> Rates:
    if not found.values.max() <= MAX_RATE:
        raise source.refuse(f"RoPE turns by {found.values.max():.3g} radians a position")
    _colder(source, found.longer)
    return found


def _colder(source: Metadata, times: float) -> float:
    """What queries, keys or scores are multiplied by, in a range that float32 has room for."""
    if not 1 / MAX_TIMES <= times <= MAX_TIMES:
        raise source.refuse(f"RoPE scaling makes queries and keys {times:.3g} times larger")
    return times


def llama3(plain: np.ndarray, *, factor: float, low: float, high: float, original: float,
           ) -> np.ndarray:
    """Rates of Llama 3.1: slow pairs by the factor slower, fast ones as they are.

    plain: float64[pairs]. A pair is slow if it turns less than ``low`` times within the
    ``original`` context, fast if more than ``high`` times, and mixed in proportion between them.
    """
    turns = original * plain / (2 * np.pi)
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (fast + (1 - fast) / factor)


def temperature(factor: float, times: float = 1.0) -> float:
    """YaRN's, for a text that is longer by a factor (arXiv:2309.00071, section 3.4)."""
    return 0.1 * times * log(factor) + 1 if factor > 1 else 1.0


def yarn(plain: np.ndarray, *, theta: float, factor: float, fast: float, slow: float,
         original: float, whole: bool = True) -> np.ndarray:
    """Rates of YaRN (arXiv:2309.00071, section 3.2): as :func:`llama3`, but pairs are mixed in
    proportion to their number.

    plain: float64[pairs], of a theta. A pair that turns ``fast`` times or more within the
    ``original`` context stays, one that turns ``slow`` times or fewer is slower by the factor.
    whole: these bounds are whole pairs.
    """
    pairs = len(plain)

    def pair(turns: float) -> float:
        return pairs * log(original / (turns * 2 * pi)) / log(theta)
    low, high = pair(fast), pair(slow)
    if whole:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    slower = np.clip((np.arange(pairs) - low) / ((high - low) or 0.001), 0, 1)
    return plain * (1 - slower + slower / factor)


def _yarn(rope: Metadata, plain: np.ndarray, theta: float, original: int, context: int) -> Rates:
    if theta <= 1:
        raise rope.refuse(f"rope_theta {theta:g} is not above 1, which yarn needs")
    factor = rope.number("factor", None) or context / original
    times, of_all = (rope.number(key, None) for key in ("mscale", "mscale_all_dim"))
    usual = temperature(factor) if not (times and of_all) else \
        temperature(factor, times) / temperature(factor, of_all)
    values = yarn(plain, theta=theta, factor=factor, fast=rope.number("beta_fast", None) or 32,
                  slow=rope.number("beta_slow", None) or 1, original=original,
                  whole=rope.flag("truncate", True))
    return Rates(values, rope.number("attention_factor", None) or usual)


def _yarn_of_gguf(meta: Metadata, arch: str, plain: np.ndarray, theta: float, factor: float,
                  ) -> tuple[np.ndarray, float]:
    """Rates, and what queries and keys are multiplied by, as llama.cpp has them."""
    at = f"{arch}.rope.scaling."
    if theta <= 1:
        raise meta.refuse(f"{arch}.rope.freq_base {theta:g} is not above 1, which yarn needs")
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        if (value := meta.number(f"{at}{key}", 1, zero=True)) != 1:
            raise meta.refuse(f"{at}{key} = {value:g} is not supported", "use another model")
    original = meta.whole(f"{at}original_context_length", None) or meta.whole(
        f"{arch}.context_length")
    values = yarn(plain, theta=theta, factor=factor, original=original,
                  fast=meta.number(f"{at}yarn_beta_fast", 32),
                  slow=meta.number(f"{at}yarn_beta_slow", 1))
    of_all = meta.number(f"{at}yarn_log_multiplier", 0, zero=True)
    return values, temperature(factor) / (temperature(factor, of_all) if of_all else 1)


def latent_temperature(config: Metadata) -> float:
    """What DeepSeek's scores are multiplied by besides, where RoPE is scaled."""
    found = 1.0
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.table(key)
        if rope.values:
            kind = rope.word("rope_type", None) or rope.word("type", None)
            times, factor = rope.number("mscale_all_dim", None), rope.number("factor", None)
            plain = kind in (None, "default") or not (times and factor)
            found = 1.0 if plain else latent_scores(config, factor, times)
    return found


def latent_scores(source: Metadata, factor: float, times: float) -> float:
    """What scores of DeepSeek are multiplied by besides, from its mscale_all_dim."""
    return _colder(source, temperature(factor, times))**2


def _longrope(rope: Metadata, plain: np.ndarray, original: int, context: int) -> Rates:
    """Of texts within the original context (arXiv:2402.13753): longer ones turn otherwise."""
    factor = rope.number("factor", None) or context / original
    short = rope.entries("short_factor")
    rope.entries("long_factor", [])
    if len(short) != len(plain) or not all(
            type(x) in (int, float) and 0 < x < float("inf") for x in short):
        raise rope.refuse(f"{rope.named('short_factor')} must be a list of {len(plain)} positive "
                          "numbers")
    usual = sqrt(1 + log(factor) / log(original)) if factor > 1 < original else 1.0
    longer = rope.number("attention_factor", None) or usual
    return Rates(plain / np.array(short, np.float64), longer, original)


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
    out = Rates(rates(_pairs(config, head_dim, part), outside))
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
        theta = rope.number("rope_theta", outside)
        plain = rates(_pairs(rope, head_dim, part_of(rope, part)), theta)
        context = config.whole("max_position_embeddings", 2048)
        # Of the file as a whole, it counts.
        original = config.whole("original_max_position_embeddings", None) or rope.whole(
            "original_max_position_embeddings", context)
        if _plain(scaling, factor) or scaling == "dynamic":     # changes beyond the context alone
            out = Rates(plain)
        elif scaling == "linear":
            out = Rates(plain / rope.number("factor"))
        elif scaling == "yarn":
            out = _yarn(rope, plain, theta, original, context)
        elif scaling in ("longrope", "su"):
            out = _longrope(rope, plain, original, context)
        elif scaling == "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise rope.refuse(f"{rope.named('low_freq_factor')} {low:g} is not below "
                                  f"high_freq_factor {high:g}")
            out = Rates(llama3(plain, factor=rope.number("factor"), low=low, high=high,
                               original=rope.number("original_max_position_embeddings")))
        else:
            raise _refuse(config, scaling, factor, f" ({key})")
        rope.refuse_unread(_OTHERS, _NEUTRAL, TAKE_OUT)
        if out.longer != 1 and 2 * len(out.values) != head_dim:
            raise config.refuse(f"RoPE scaling {scaling!r} of a part of a head ({key}) is not "
                                "supported", "use a model whose heads rotate as a whole")
    return _checked(config, out)


def from_gguf(meta: Metadata, arch: str, head_dim: int, tensors: Tensors,
              turning: int | None = None) -> Rates:
    """Rates as a GGUF file has them. turning: dimensions of a head that do, if not all."""
    pairs = (turning or head_dim) // 2
    theta, longer = meta.number(f"{arch}.rope.freq_base", 10000.0), 1.0
    out = rates(pairs, theta)
    # As in llama.cpp, a factor of 0 is none, and one without a type is linear.
    kind = meta.word(f"{arch}.rope.scaling.type", None)
    factor = meta.number(f"{arch}.rope.scaling.factor", None, zero=True)
    older = meta.number(f"{arch}.rope.scale_linear", 1, zero=True)
    factor = (older if factor is None else factor) or 1
    if tensors.has("rope_factors_long.weight"):
        kind = "longrope"               # the converter does not write it
    if kind not in (None, "none", "linear", "yarn"):
        raise _refuse(meta, kind, factor, "")
    if kind == "yarn":
        out, longer = _yarn_of_gguf(meta, arch, out, theta, factor)
        if longer != 1 and 2 * pairs != head_dim:
            raise meta.refuse("RoPE scaling 'yarn' of a part of a head is not supported",
                              "use a model whose heads rotate as a whole")
    elif kind != "none":
        out = out / factor
    # How much slower each pair turns: the converter's form of llama3.
    factors = tensors.factors("rope_freqs.weight", pairs)
    return _checked(meta, Rates(out if factors is None else out / factors, longer))
