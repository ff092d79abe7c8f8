"""A Hugging Face folder -> :class:`meadowlark.models.checkpoint.Model`."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from meadowlark_hdl.run_table import STOP_IDS

from ..errors import UserError, brief
from ..files import foreign
from ..text.chat import ChatTemplate
from ..text.stops import end_tokens, stop_ids
from ..text.tokenizer import Tokenizer
from .checkpoint import Model
from .families import families
from .families.family import Family, read_weights
from .families.known import refusal
from .metadata import TAKE_OUT, Metadata
from .spm import read_spm

#: Entries of config.json that change nothing of what a trained model computes: where it came
#: from, training, defaults of generation, and how others run it.
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
    "original_max_position_embeddings", "max_window_layers", "max_length", "min_length",
    "max_new_tokens", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
    "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty", "*no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_*_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "*suppress_tokens", "summary_*", "n_ctx")
#: Entries that change nothing at this value.
NEUTRAL = {
    "partial_rotary_factor": 1, "rotary_pct": 1, "embedding_multiplier": 1,
    "residual_multiplier": 1, "logits_scaling": 1, "logit_scale": 1, "scale_emb": 1,
    "is_decoder": True, "is_causal": True, "num_experts": 0, "num_local_experts": 0,
    "n_routed_experts": 0, "n_shared_experts": 0, "num_nextn_predict_layers": 0}


def _family(config: Metadata) -> Family:
    """The family of a checkpoint. Raise for one that is not known."""
    kind = config.word("model_type", None)
    found = families().get(kind or "")
    if found is None:
        raise config.refuse(*refusal(kind))
    names = config.texts("architectures", list(found.classes))
    if not set(names) <= set(found.classes):
        raise config.refuse(f"architecture {brief(names)} of model_type {kind!r} is not supported",
                            f"use a checkpoint of {' or '.join(found.classes)}")
    if config.table("quantization_config").values:
        raise config.refuse("the checkpoint is already quantised (quantization_config)",
                            "use the float16, bfloat16 or float32 one")
    return found


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


#: Ends of names of tables that old checkpoints hold, and that are always the same.
_TABLES = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
           ".attention.masked_bias")


class _Tensors:
    """The tensors of a checkpoint, taken by name and shape."""

    def __init__(self, folder: Path, outline: bool, family: Family) -> None:
        self.folder, self.outline = folder, outline
        self.found: dict[str, Any] = {}
        for path in _tensor_files(folder):
            self.found.update((_outline_tensors if outline else _read_tensors)(path))
        embedding = family.tensor("embedding")
        if embedding not in self.found and embedding.removeprefix(family.prefix) in self.found:
            self.found = {family.prefix + name: value for name, value in self.found.items()}
        self.taken: dict[str, int] = {}     # name -> number of weights

    def has(self, name: str) -> bool:
        return name in self.found

    def need(self, name: str) -> None:
        """Raise if there is no such tensor."""
        if name not in self.found:
            raise UserError(f"{self.folder} has no tensor {name}; use a complete checkpoint whose "
                            "config.json belongs to it.")

    def take(self, name: str, *shape: int, heads: int = 0) -> tuple[np.ndarray, None]:
        """As :data:`meadowlark.models.families.family.Take` has it; no rows are interleaved."""
        assert not heads
        self.need(name)
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
        return value, None

    def same(self, name: str, other: str) -> bool:
        """Two tensors are equal. Their values are read, for an outline too: the answer decides how
        much memory a model takes."""
        found = self.found
        if self.outline:
            found = {}
            for path in _tensor_files(self.folder):
                found |= {n: v for n, v in _read_tensors(path).items() if n in (name, other)}
        return np.array_equal(found[name], found[other])

    def unused(self) -> list[str]:
        """Names that were not taken, but for old tables of RoPE's angles and of masks."""
        return [n for n in self.found if n not in self.taken and not n.endswith(_TABLES)]


class _TokenizerConfig(Metadata):
    """tokenizer_config.json: what tools leave of a tokenizer; a folder may be without it."""

    def token(self, key: str) -> str:
        """The text of a special token, "" if there is none."""
        if isinstance(self.values.get(key), dict):
            return self.table(key).text("content", "")
        return self.text(key, "")

    def chat_template(self) -> ChatTemplate | None:
        """From chat_template.jinja, where newer tools put it, or from here."""
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


def load_folder(folder: Path, name: str | None = None, *, outline: bool = False) -> Model:
    """Read a Hugging Face folder.

    Parameters
    ----------
    folder : Path
        With config.json, model.safetensors or its shards, and tokenizer.json or tokenizer.model,
        without which a model knows no text.
        The family is one of :func:`meadowlark.models.families.families`; tensors are float32,
        float16 or bfloat16.
    name : str, optional
        Of the model; by default that of the folder.
    outline : bool
        See :func:`meadowlark.models.registry.load_model`.

    Raises
    ------
    UserError
        Anything missing, damaged, contradictory or not supported, by name.
    """
    if not (folder / "config.json").exists() and (files := sorted(folder.glob("*.gguf"))):
        raise UserError(f"{folder} is no Hugging Face folder; give a GGUF file in it, such as "
                        f"{files[0]}.")
    config = Metadata.from_json(folder / "config.json")
    family = _family(config)
    config.values = {**family.defaults, **config.values}
    made = family.from_config(config)
    vocab = made.vocab
    other = Metadata.from_json(folder / "generation_config.json", optional=True)
    named = [*other.ids("eos_token_id", vocab), *config.ids("eos_token_id", vocab)]
    neutral = {key: value for key, value in (NEUTRAL | dict(family.neutral)).items()
               if not any(fnmatchcase(key, pattern) for pattern in family.unused)}
    config.refuse_unread((*HARMLESS, *family.unused), neutral, TAKE_OUT)

    source = folder / "tokenizer.json"
    try:
        raw = source.read_bytes()
    except FileNotFoundError:
        raw = b""                       # a model that takes ids and knows no text
    except OSError as e:
        raise UserError(f"{source} cannot be read ({e.strerror}); get the file from where the "
                        "model came from.") from e
    else:
        if what := foreign(raw):
            raise UserError(f"{source} {what}.")
    spm = folder / "tokenizer.model"
    tokenizer = read_spm(spm) if not raw and spm.exists() else Tokenizer(raw, str(source))
    if tokenizer.base_size > vocab:
        raise UserError(f"{source} has {tokenizer.base_size} ids and config.json a vocab_size of "
                        f"only {vocab}; use the files of one checkpoint.")

    declared = _TokenizerConfig.from_json(folder / "tokenizer_config.json", optional=True)
    eos = tokenizer.id(declared.token("eos_token"))
    if eos is not None and eos < vocab:         # the model cannot give another
        named.append(eos)
    if (count := len(set(named))) > STOP_IDS:
        raise UserError(f"{folder} names {count} stop ids and a run can have {STOP_IDS}; "
                        "shorten eos_token_id in generation_config.json.")
    ends = [i for i in end_tokens(tokenizer.id) if i < vocab]
    bos, put_bos = tokenizer.opening, declared.flag("add_bos_token", None)
    if put_bos is not None:
        named_bos = tokenizer.id(declared.token("bos_token"))
        bos = None if not put_bos else named_bos if bos is None else bos
    tokenizer = tokenizer.with_control(ends)

    tensors = _Tensors(folder, outline, family)

    # Tied weights are one tensor, whichever of the two is there. Where both are and differ, the
    # flag is wrong, and both are used: transformers does so too.
    warnings, names = [], {}
    embedding, head = family.tensor("embedding"), family.tensor("head")
    if made.tied and tensors.has(head):
        if not tensors.has(embedding):
            names["embedding"] = head
        elif not tensors.same(embedding, head):
            made = replace(made, tied=False)
            warnings.append(f"{config.source} says that {head} is tied to the embedding, and "
                            f"{folder} has another one, which is used")
    tensors.need(family.tensor(family.last(made.layers)))
    graph = made.graph()
    weights, _ = read_weights(graph, lambda name: names.get(name) or family.tensor(name),
                              tensors.take, family=family, shapes=made.stored(graph))
    weights = {name: np.broadcast_to(np.float32(0), shape) for name, shape in graph.shapes.items()
               } if outline else made.made(weights)
    if made.tied and tensors.has(head):
        tensors.taken.setdefault(head, 0)
    if left := tensors.unused():
        more = f" and {len(left) - 1} more" if left[1:] else ""
        warnings.append(f"{folder} has tensors that no model of its config.json has, which are not "
                        f"used: {brief(min(left))}{more}")
    return Model(
        name=name or folder.resolve().name, family=family.name, graph=graph, weights=weights,
        context=made.context, tokenizer=tokenizer, bos_id=bos, stop_ids=stop_ids(named, ends),
        parameters=sum(tensors.taken.values()), chat=declared.chat_template(),
        pictures=made.pictures(folder),
        warnings=tuple(warnings))
