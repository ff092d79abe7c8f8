"""Llama (arXiv:2302.13971, 2307.09288, 2407.21783), and what others change of it."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gguf import MODEL_ARCH
from meadowlark_hdl.isa import Fn

from .. import rope
from ..graph import Builder, Graph, Rates
from ..metadata import Metadata
from .family import MAX_HEAD_DIM, MAX_LAYERS, Family, Hyperparameters, Tensors

#: Matrices of a layer, and what transformers calls them.
_MATRICES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
             "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}
#: Kinds of attention in config.json.
FULL, SLIDING = "full_attention", "sliding_attention"
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
#: What of queries and keys is normed together.
HEAD, PROJECTION = "head", "projection"


#: What config.json calls a function.
FUNCTION_NAMES = {"silu": Fn.SILU, "swish": Fn.SILU, "gelu": Fn.GELU, "gelu_new": Fn.GELU_TANH,
                  "gelu_pytorch_tanh": Fn.GELU_TANH, "gelu_fast": Fn.GELU_TANH, "relu": Fn.RELU,
                  "tanh": Fn.TANH}


@dataclass(frozen=True, kw_only=True)
class Decoder(Hyperparameters):
    """Norm, attention, norm and gated MLP, as many times as there are layers.

    ffn: width of the MLP. fn: of its gate. biases: parts of layers that have one, as
    ``layers.0.q``. unrotated: layers without RoPE. windows: layer -> how many positions it sees,
    where not all. divisor: of scores, the root of head_dim if None. positions: row of position 0
    in a table of learned ones, which are added to the embedding; None: there are none. The scales
    are those of
    :class:`meadowlark.models.graph.Embed`, ``Add`` and ``Head``. qk_norm: queries and keys are
    normed before they rotate, each :data:`HEAD` alone or all of a :data:`PROJECTION`; None: they
    are not. behind: attention and MLP are normed behind, too, before they are added.
    """
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    rope: Rates
    biases: Collection[str] = ()
    unrotated: Collection[int] = ()
    windows: dict[int, int] | None = None
    divisor: float | None = None
    positions: int | None = None
    fn: Fn = Fn.SILU
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    qk_norm: str | None = None
    behind: bool = False

    def graph(self) -> Graph:
        b = Builder()

        def linear(x: str, name: str, rows: int) -> str:
            return b.linear(x, name, rows, bias=name in self.biases)

        def add(r: str, y: str, norm: str) -> str:
            return b.add(r, b.norm(y, norm, self.eps) if self.behind else y,
                         scale=self.residual_scale)

        learned = {} if self.positions is None else dict(positions=self.context,
                                                         offset=self.positions)
        r = b.embed(self.vocab, self.hidden, scale=self.embedding_scale, **learned)
        for i in range(self.layers):
            at = f"layers.{i}"
            x = b.norm(r, f"{at}.norm1", self.eps)
            q = linear(x, f"{at}.q", self.heads * self.head_dim)
            k = linear(x, f"{at}.k", self.kv_heads * self.head_dim)
            v = linear(x, f"{at}.v", self.kv_heads * self.head_dim)
            if self.qk_norm is not None:
                alone = self.head_dim if self.qk_norm == HEAD else None
                q, k = (b.norm(y, f"{y}_norm", self.eps, head_dim=alone) for y in (q, k))
            if i not in self.unrotated:
                q, k = (b.rope(y, self.head_dim, self.rope) for y in (q, k))
            a = b.attend(q, k, v, f"{at}.attention", heads=self.heads, kv_heads=self.kv_heads,
                         head_dim=self.head_dim, divisor=self.divisor,
                         window=(self.windows or {}).get(i))
            r = add(r, linear(a, f"{at}.o", self.hidden), f"{at}.norm1_behind")
            x = b.norm(r, f"{at}.norm2", self.eps)
            gate, up = (linear(x, f"{at}.{part}", self.ffn) for part in ("gate", "up"))
            h = b.gate(gate, up, f"{at}.h", fn=self.fn)
            r = add(r, linear(h, f"{at}.down", self.hidden), f"{at}.norm2_behind")
        x = b.norm(r, "final_norm", self.eps)
        b.head(x, self.vocab, weight="embedding" if self.tied else "head", scale=self.logit_scale)
        return b.graph()


class Llama(Family):
    """Grouped queries, RoPE, RMSNorm, gated MLP; with or without biases; the head tied or
    not."""
    name = "llama"
    classes = ("LlamaForCausalLM",)
    arch = MODEL_ARCH.LLAMA
    names = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
             "layers.{}.norm1": "model.layers.{}.input_layernorm",
             "layers.{}.norm2": "model.layers.{}.post_attention_layernorm",
             **{f"layers.{{}}.{part}": f"model.layers.{{}}.{name}"
                for part, name in _MATRICES.items()}}
    interleaved = True

    def from_config(self, config: Metadata) -> Decoder:
        hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
        kv_heads = config.whole("num_key_value_heads", heads)
        head_dim = config.whole("head_dim", hidden // heads or None)
        if heads % kv_heads:
            raise config.refuse(f"num_attention_heads {heads} is not a multiple of "
                                f"num_key_value_heads {kv_heads}")
        if not config.has("head_dim") and hidden % heads:
            raise config.refuse(f"hidden_size {hidden} is not a multiple of num_attention_heads "
                                f"{heads} and head_dim is not given")
        if head_dim % 2:
            raise config.refuse(f"head_dim {head_dim} is odd, so RoPE has no pairs")
        if head_dim > MAX_HEAD_DIM:
            raise config.refuse(f"head_dim {head_dim} is beyond {MAX_HEAD_DIM}")
        act = config.word("hidden_act", "silu")
        if act not in FUNCTION_NAMES:
            raise config.refuse(f"activation hidden_act {act!r} is not supported",
                                f"use a checkpoint with one of {', '.join(FUNCTION_NAMES)}")
        layers = config.whole("num_hidden_layers", most=MAX_LAYERS)
        parts = (*(ATTENTION if config.flag("attention_bias", False) else ()),
                 *(MLP if config.flag("mlp_bias", False) else ()))
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=config.whole("intermediate_size"), vocab=config.whole("vocab_size"),
            context=config.whole("max_position_embeddings", 2048),
            eps=config.number("rms_norm_eps", 1e-6),
            rope=rope.from_config(config, head_dim // 2), fn=FUNCTION_NAMES[act],
            biases=of_layers(layers, parts),
            windows=self.windows(config, layers), tied=config.flag("tie_word_embeddings", False))

    def windows(self, config: Metadata, layers: int) -> dict[int, int]:
        """Layer -> how many positions it sees, where not all."""
        if set(config.texts("layer_types", [FULL])) != {FULL}:
            raise config.refuse("layer_types names layers without full attention, which are not "
                                "supported", f"use a plain {self.name} checkpoint")
        return {}

    def from_gguf(self, meta: Metadata, tensors: Tensors, vocab: int) -> Decoder:
        arch = self.gguf_name
        hidden = meta.whole(f"{arch}.embedding_length")
        heads = meta.whole(f"{arch}.attention.head_count")
        kv_heads = meta.whole(f"{arch}.attention.head_count_kv", heads)
        if heads % kv_heads:
            raise meta.refuse(f"{arch}.attention.head_count {heads} is not a multiple of "
                              f"{arch}.attention.head_count_kv {kv_heads}")
        if not meta.has(f"{arch}.attention.key_length") and hidden % heads:
            raise meta.refuse(f"{arch}.embedding_length {hidden} is not a multiple of "
                              f"{arch}.attention.head_count {heads}")
        head_dim = meta.whole(f"{arch}.attention.key_length", max(1, hidden // heads))
        for key in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
            if (length := meta.whole(key, head_dim)) != head_dim:
                raise meta.refuse(f"{key} is {length} and heads have {head_dim} dimensions, which "
                                  "is not supported", "use a model where both are equal")
        if head_dim % 2:
            raise meta.refuse(f"heads of {head_dim} dimensions have no pairs for RoPE")
        if head_dim > MAX_HEAD_DIM:
            raise meta.refuse(f"heads of {head_dim} dimensions are beyond {MAX_HEAD_DIM}")
        layers = meta.whole(f"{arch}.block_count", most=MAX_LAYERS)
        window = meta.whole(f"{arch}.attention.sliding_window", 0, least=0)
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers,
            ffn=meta.whole(f"{arch}.feed_forward_length"), vocab=vocab,
            context=meta.whole(f"{arch}.context_length"),
            eps=meta.number(f"{arch}.attention.layer_norm_rms_epsilon"),
            rope=rope.from_gguf(meta, arch, head_dim // 2, tensors),
            biases=frozenset(name for name in of_layers(layers, _MATRICES)
                             if tensors.has(self.gguf_tensor(f"{name}.bias"))),
            windows={i: window for i in range(layers)} if window else {},
            tied=not tensors.has(self.gguf_tensor("head")))


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
