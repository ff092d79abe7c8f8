"""Nemotron from neural architecture search (arXiv:2411.19146, 2503.18908): Llama, some layers of
which have an MLP and no attention."""
from __future__ import annotations

from ..metadata import Metadata
from .decoder import Decoder, function, head_size
from .family import MAX_LAYERS
from .llama import Llama

#: Widths of an MLP are multiples of this.
_STEP = 256


class NemotronNas(Llama):
    """As Llama; ``block_configs`` says of each layer what it has. Layers whose shapes differ, and
    such without an MLP, are refused."""
    name = "nemotron-nas"
    classes = ("DeciLMForCausalLM",)
    arch = None

    def last(self, layers: int) -> str:
        return f"layers.{layers - 1}.norm2"

    def from_config(self, config: Metadata) -> Decoder:
        layers = config.whole("num_hidden_layers", most=MAX_LAYERS)
        blocks = config.entries("block_configs")
        if len(blocks) != layers or not all(isinstance(block, dict) for block in blocks):
            raise config.refuse(f"block_configs must have an object for each of {layers} layers")
        found = [Metadata(config.source, block, f"block_configs[{i}]")
                 for i, block in enumerate(blocks)]
        attentions, mlps = ([block.table(part) for block in found]
                            for part in ("attention", "ffn"))
        bare = {i for i, part in enumerate(attentions) if part.flag("no_op", False)}
        groups = {part.whole("n_heads_in_group") for i, part in enumerate(attentions)
                  if i not in bare}
        widths = {part.number("ffn_mult") for part in mlps}
        for part in (*attentions, *mlps):
            if part.flag("replace_with_linear", False) or part.has("window_length"):
                raise config.refuse("block_configs has layers with a matrix or a window in place "
                                    "of attention or MLP, which are not supported",
                                    "use another checkpoint")
        if len(groups) != 1 or len(widths) != 1 or any(part.flag("no_op", False) for part in mlps):
            raise config.refuse("block_configs has layers of different shapes or without an MLP, "
                                "which are not supported", "use another checkpoint")
        hidden, heads, _, head_dim = head_size(config, "hidden_size", "num_attention_heads",
                                               "head_dim")
        if heads % (group := groups.pop()):
            raise config.refuse(f"num_attention_heads {heads} is not a multiple of "
                                f"n_heads_in_group {group}")
        ffn = int(2 * widths.pop() * hidden / 3)
        return Decoder(
            hidden=hidden, heads=heads, kv_heads=heads // group, head_dim=head_dim, layers=layers,
            ffn=-(-ffn // _STEP) * _STEP, vocab=config.whole("vocab_size"),
            context=config.whole("max_position_embeddings", 2048),
            eps=config.number("rms_norm_eps", 1e-6), rope=self.rates(config, head_dim),
            fn=function(config, *self.act), bare=bare,
            tied=config.flag("tie_word_embeddings", False))
