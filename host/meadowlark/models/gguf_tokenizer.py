"""The tokenizer of a GGUF file, made anew from its metadata.

A file has the vocabulary and either the merges (gpt2: byte-level BPE) or scores (llama: BPE of
SentencePiece, t5: its unigram), but not the rules by which gpt2 first cuts a text into words:
``tokenizer.ggml.pre`` names them, and they are the ones llama.cpp has under that name.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import UserError, brief
from ..text.stops import end_tokens, stop_ids
from ..text.tokenizer import Tokenizer
from .metadata import Metadata

#: Longest token, in characters; the longest of known vocabularies are runs of 128 or 256 spaces.
MAX_TOKEN = 1024

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# Capitals, then small letters. llama.cpp tells only those of ASCII apart.
_CASED = r"[^\r\n\p{L}\p{N}]?(?:[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*)"
_TEKKEN = _CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _TEKKEN.replace(_CASED, _CASED + "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace(
    r"|\p{N}|", r"|\p{N}{1,3}|")
#: Those whose words are looked up whole before they are put together, and whose bos is the rule.
_LLAMA3_LIKE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
                "lfm2", "jina-v5-nano", "tekken")
#: tokenizer.ggml.pre -> patterns; each cuts the pieces before it into its matches and the rest.
#: Many names stand for one rule in llama.cpp.
PRE = {
    **dict.fromkeys((
        "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jais", "trillion", "granite-docling", "exaone4",
        "gigachat", "a.x-4.0", "mellum", "modern-bert", "jina-es", "jina-de", "jina-v2-es",
        "jina-v2-de"), (_GPT2,)),
    **dict.fromkeys((
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
        "mellum2"), (r"\p{N}", _GPT2)),
    **dict.fromkeys((*_LLAMA3_LIKE, "smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    **dict.fromkeys((
        "qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan",
        "solar-open", "grok-2"), (_QWEN2,)),
    "seed-coder": (_QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+"),),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,)),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens.

    tokens: texts, index = id. kinds: int[len(tokens)], values of ``gguf.TokenType``. bos_id: id
    that stands before each text, None if the model takes texts without. stop_ids: at most 8, that
    of training first. bos, eos: texts of the tokens for chat templates, "" where there is none.
    """
    tokens: list[str]
    kinds: np.ndarray
    bos_id: int | None
    stop_ids: tuple[int, ...]
    bos: str
    eos: str


def read_vocabulary(meta: Metadata) -> Vocabulary:
    """Tokens, their kinds and the special ids.

    Raises
    ------
    UserError
        Missing, of the wrong type, of different lengths, or an id outside the vocabulary.
    """
    tokens = meta.texts("tokenizer.ggml.tokens")
    kinds = meta.numbers("tokenizer.ggml.token_type", len(tokens), TokenType.NORMAL).copy()
    if len(set(tokens)) != len(tokens):
        raise meta.refuse("tokenizer.ggml.tokens has the same token twice")
    if max(map(len, tokens)) > MAX_TOKEN:
        raise meta.refuse(f"a token has {max(map(len, tokens)):,} characters")

    def special(name: str) -> int | None:
        return next(iter(meta.ids(f"tokenizer.ggml.{name}_token_id", len(tokens))), None)

    bos, eos = special("bos"), special("eos")
    sentencepiece = meta.word("tokenizer.ggml.model") == "llama"
    put_bos = meta.flag("tokenizer.ggml.add_bos_token",
                        sentencepiece or meta.word("tokenizer.ggml.pre", "") in _LLAMA3_LIKE)
    ends = end_tokens({token: i for i, token in enumerate(tokens)}.get)
    kinds[ends] = TokenType.CONTROL
    return Vocabulary(tokens, kinds, bos if put_bos else None,
                      stop_ids([eos, special("eot"), special("eom")], ends),
                      "" if bos is None else tokens[bos], "" if eos is None else tokens[eos])


def build_tokenizer(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that cuts texts as the model was trained with.

    Special tokens in a text are one token each. Where the model wants a bos, ``encode`` puts it in
    front.

    Raises
    ------
    UserError
        A kind of tokenizer or of pre-tokenizer that is not known here, or merges and scores that
        do not belong to the vocabulary.
    """
    kind = meta.word("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise UserError(f"{meta.source}: tokenizer {kind!r} is not supported; use a model whose "
                        "tokenizer is of type gpt2 (byte-level BPE), llama (BPE of SentencePiece) "
                        "or t5 (unigram).")
    try:
        made = _KINDS[kind](meta, vocabulary)
        for special, which in ((True, (TokenType.CONTROL, TokenType.UNKNOWN)),
                               (False, (TokenType.USER_DEFINED,))):
            made.add_tokens([AddedToken(vocabulary.tokens[i], special=special, normalized=False)
                             for i in np.flatnonzero(np.isin(vocabulary.kinds, which))])
        if vocabulary.bos_id is not None:
            # A name of its own: in the token's text, "$" and ":" would mean something here.
            made.post_processor = processors.TemplateProcessing(
                single=["bos", "$A"], pair=["bos", "$A", "$B"],
                special_tokens=[("bos", vocabulary.bos_id)])
        text = made.to_str()
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as e:          # tokenizers raises bare Exceptions, and panics
        raise meta.refuse(f"its tokenizer does not hold together ({brief(e)})") from e
    return Tokenizer(text.encode(), f"the tokenizer in {meta.source}")


def _byte_level(meta: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    pre = meta.word("tokenizer.ggml.pre", "default")
    if pre not in PRE:
        raise UserError(f"{meta.source}: pre-tokenizer {pre!r} is not supported; use a model with "
                        f"one of {', '.join(PRE)}.")
    plain = (vocabulary.tokens[i] for i in np.flatnonzero(vocabulary.kinds == TokenType.NORMAL))
    merges = [] if all(len(t) == 1 for t in plain) else [
        (first, second) for first, _, second in
        (m.partition(" ") for m in meta.texts("tokenizer.ggml.merges"))]
    made = tokenizers.Tokenizer(models.BPE(
        vocab={t: i for i, t in enumerate(vocabulary.tokens)}, merges=merges,
        ignore_merges=pre in _LLAMA3_LIKE))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(p), "isolated") for p in PRE[pre]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(meta: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """BPE by scores: of all pairs that make a token, the one with the highest score first.

    The same as SentencePiece, but for a token that two pairs can make which overlap in a text (it
    then has to begin as it ends): which of them comes first is not by their places there.
    """
    tokens = vocabulary.tokens
    scores = meta.numbers("tokenizer.ggml.scores", len(tokens))
    unknown = next(iter(meta.ids("tokenizer.ggml.unknown_token_id", len(tokens))), 0)
    plain = {tokens[i] for i in np.flatnonzero(vocabulary.kinds == TokenType.NORMAL)}
    merges = [(-scores[i], i, token[:at], token[at:])
              for i, token in enumerate(tokens) if token in plain
              for at in range(1, len(token)) if token[:at] in plain and token[at:] in plain]
    return _spaced(meta, models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[m[2:] for m in sorted(merges)],
        unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True), trimmed=False)


def _unigram(meta: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The likeliest cut of a text, by scores that are logarithms (arXiv:1804.10959, section 3.2).
    """
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    scores = meta.numbers("tokenizer.ggml.scores", len(tokens))
    unknown = next(iter(meta.ids("tokenizer.ggml.unknown_token_id", len(tokens))), 0)
    return _spaced(meta, models.Unigram(
        list(zip(tokens, scores.astype(float).tolist())), unknown,
        bool((kinds == TokenType.BYTE).any())), trimmed=True)


def _spaced(meta: Metadata, model: Any, *, trimmed: bool) -> tokenizers.Tokenizer:
    """What both kinds of SentencePiece do with a text before, and with its pieces behind. trimmed:
    spaces at its ends and more than one are left out, if the file does not say."""
    made = tokenizers.Tokenizer(model)
    charsmap = meta.raw("tokenizer.ggml.precompiled_charsmap")
    before: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if meta.flag("tokenizer.ggml.remove_extra_whitespaces", trimmed):
        before += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    space = meta.flag("tokenizer.ggml.add_space_prefix", True)
    before += [normalizers.Prepend("▁")] if space else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if space else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), *after])
    return made


#: tokenizer.ggml.model -> what makes it.
_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
