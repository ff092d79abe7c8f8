"""What decoders compute, as far as families share it, and how their files say it."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from math import sqrt

from meadowlark_hdl.isa import Fn

from ..graph import Builder, Graph, Rates
from ..metadata import Metadata
from ..rope import FULL, SLIDING
from .family import MAX_HEAD_DIM, Hyperparameters

ATTENTION, GATED, PLAIN = ("q", "k", "v", "o"), ("gate", "up", "down"), ("up", "down")
#: Smallest multiplier; 0.001 is common.
LEAST = 1e-6
#: What of queries and keys is normed together.
HEAD, PROJECTION = "head", "projection"
#: The norm of an MLP that reads the residual before attention: its own, or that of attention.
OWN, SHARED = "own", "shared"
#: What config.json calls a function.
FUNCTION_NAMES = {"silu": Fn.SILU, "swish": Fn.SILU, "gelu": Fn.GELU, "gelu_new": Fn.GELU_TANH,
                  "gelu_pytorch_tanh": Fn.GELU_TANH, "gelu_fast": Fn.GELU_TANH, "relu": Fn.RELU,
                  "tanh": Fn.TANH}


@dataclass(frozen=True, kw_only=True)
class Decoder(Hyperparameters):
    """Norm, attention, norm and MLP, as many times as there are layers.

    ffn: width of the MLP. fn: of its gate or, where it is not gated, of what up makes. centred:
    norms subtract the mean and have an offset. parallel: the MLP reads the residual that attention
    reads, with a norm that is its :data:`OWN` or :data:`SHARED`; None: it follows. biases: parts of
    layers that have one, as ``layers.0.q``, and "head". rope: None: there is none. local: that of
    layers with a window, where it is another. unrotated: layers without any. bare: layers with an
    MLP and no attention. windows: layer -> how many positions it sees, where not all. ahead:
    tokens see those behind them, too. divisor: of scores, the root of head_dim if None. positions:
    row of position 0 in a table of learned ones, which are added to the embedding; None: there are
    none. The scales are those of :class:`meadowlark.models.graph.Embed`, ``Add`` and
    ``Head``. qk_norm: queries and keys are normed before they rotate, each :data:`HEAD` alone or
    all of a :data:`PROJECTION`; None: they are not. behind: attention and MLP are normed behind,
    too, before they are added. before: they read the residual through a norm, else as it is.
    score_cap, logit_cap: soft caps of scores and logits, see
    :class:`meadowlark.models.graph.Attend`; None: there is none.
    """
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    rope: Rates | None
    local: Rates | None = None
    biases: Collection[str] = ()
    unrotated: Collection[int] = ()
    bare: Collection[int] = ()
    windows: dict[int, int] | None = None
    ahead: bool = False
    divisor: float | None = None
    positions: int | None = None
    fn: Fn = Fn.SILU
    gated: bool = True
    centred: bool = False
    parallel: str | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    qk_norm: str | None = None
    behind: bool = False
    before: bool = True
    score_cap: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        most = [table.most for table in (self.rope, self.local) if table and table.most]
        object.__setattr__(self, "context", min([self.context, *most]))

    def graph(self) -> Graph:
        b = Builder()
        linear = partial(self.linear, b)

        def norm(x: str, name: str) -> str:
            return b.norm(x, name, self.eps, beta=self.centred, centred=self.centred)

        def read(x: str, name: str) -> str:
            return norm(x, name) if self.before else b.read(x, name)

        def add(r: str, y: str, norm: str) -> str:
            return b.add(r, b.norm(y, norm, self.eps) if self.behind else y,
                         scale=self.residual_scale)

        r = self.begin(b)
        for i in range(self.layers):
            at = f"layers.{i}"
            if i in self.bare:
                y = read(r, f"{at}.norm2")
            else:
                x = read(r, f"{at}.norm1")
                y = read(r, f"{at}.norm2") if self.parallel == OWN else x
                r = add(r, linear(self.attend(b, x, i), f"{at}.o", self.hidden),
                        f"{at}.norm1_behind")
                if self.parallel is None:
                    y = read(r, f"{at}.norm2")
            parts = [linear(y, f"{at}.{part}", self.ffn)
                     for part in (("gate", "up") if self.gated else ("up",))]
            h = b.gate(parts[0], parts[1] if self.gated else None, f"{at}.h", fn=self.fn)
            r = add(r, linear(h, f"{at}.down", self.hidden), f"{at}.norm2_behind")
        b.head(self.end(b, norm(r, "final_norm")), self.vocab, scale=self.logit_scale,
               cap=self.logit_cap, weight="embedding" if self.tied else "head",
               bias="head" in self.biases)
        return b.graph()

    def begin(self, b: Builder) -> str:
        """The residual before the first layer."""
        learned = {} if self.positions is None else dict(positions=self.context,
                                                         offset=self.positions)
        return b.embed(self.vocab, self.hidden, scale=self.embedding_scale, **learned)

    def end(self, b: Builder, x: str) -> str:
        """What the head reads, of the last norm."""
        return x

    def linear(self, b: Builder, x: str, name: str, rows: int) -> str:
        """A matrix, with a bias if it has one."""
        return b.linear(x, name, rows, bias=name in self.biases)

    def attend(self, b: Builder, x: str, i: int) -> str:
        """The attention of layer i, up to what its last matrix reads."""
        at, linear = f"layers.{i}", partial(self.linear, b)
        q = linear(x, f"{at}.q", self.heads * self.head_dim)
        k = linear(x, f"{at}.k", self.kv_heads * self.head_dim)
        v = linear(x, f"{at}.v", self.kv_heads * self.head_dim)
        if self.qk_norm is not None:
            alone = self.head_dim if self.qk_norm == HEAD else None
            q, k = (b.norm(part, f"{part}_norm", self.eps, head_dim=alone) for part in (q, k))
        table, name = self.rope, "rope"
        if self.local is not None and i in (self.windows or {}):
            table, name = self.local, "local"
        divisor = self.divisor
        if table is not None and i not in self.unrotated:
            q, k = (b.rope(part, self.head_dim, table, name) for part in (q, k))
            if table.longer != 1:       # both are, so scores are twice
                divisor = (divisor or sqrt(self.head_dim)) / table.longer**2
        return b.attend(q, k, v, f"{at}.attention", heads=self.heads, kv_heads=self.kv_heads,
                        head_dim=self.head_dim, divisor=divisor,
                        window=(self.windows or {}).get(i), ahead=self.ahead,
                        cap=self.score_cap)


def of_layers(layers: int, parts: Collection[str]) -> frozenset[str]:
    """layers.0.q and the like, of all layers."""
    return frozenset(f"layers.{i}.{part}" for i in range(layers) for part in parts)


def sliding(config: Metadata, kinds: list[str], window: int | None) -> dict[int, int]:
    """Layer -> window, for a family that has some.

    kinds: of the layers, :data:`FULL` or :data:`SLIDING`, where the file has no layer_types.
    window: None if no layer has one.
    """
    found = config.texts("layer_types", kinds)
    if len(found) != len(kinds) or not set(found) <= {FULL, SLIDING}:
        raise config.refuse(f"layer_types must name {len(kinds)} layers {FULL} or {SLIDING}")
    return {} if window is None else \
        {i: window for i, kind in enumerate(found) if kind == SLIDING}


def function(config: Metadata, key: str, default: str) -> Fn:
    """What an entry of config.json names."""
    name = config.word(key, default)
    if name not in FUNCTION_NAMES:
        raise config.refuse(f"activation {key} {name!r} is not supported",
                            f"use a checkpoint with one of {', '.join(FUNCTION_NAMES)}")
    return FUNCTION_NAMES[name]


def head_size(source: Metadata, hidden: str, heads: str, given: str | None = None,
              kv: str | None = None, *, even: bool = True) -> tuple[int, int, int, int]:
    """(width, heads, KV heads, dimensions of a head), from entries of these names.

    given: that of the dimensions, else hidden over heads. kv: None: as many as there are heads.
    even: heads rotate, so they have pairs.
    """
    width, count = source.whole(hidden), source.whole(heads)
    kv_heads = source.whole(kv, count) if kv else count
    if count % kv_heads:
        raise source.refuse(f"{heads} {count} is not a multiple of {kv} {kv_heads}")
    if not (given and source.has(given)) and width % count:
        raise source.refuse(f"{hidden} {width} is not a multiple of {heads} {count}"
                            + (f" and {given} is not given" if given else ""))
    size = source.whole(given, max(1, width // count)) if given else width // count
    if even and size % 2:
        raise source.refuse(f"heads of {size} dimensions have no pairs for RoPE")
    if size > MAX_HEAD_DIM:
        raise source.refuse(f"heads of {size} dimensions are beyond {MAX_HEAD_DIM}")
    return width, count, kv_heads, size


def multiplier(source: Metadata, key: str, default: float) -> float:
    """A multiplier that float32 has room for; 0 only where that is the default."""
    value = source.number(key, default, zero=default == 0)
    if value and not LEAST <= value <= 1 / LEAST:
        raise source.refuse(f"{source.named(key)} must be from {LEAST:g} to {1 / LEAST:g}, not "
                            f"{value:g}")
    return value
