"""Tokenizers from metadata alone: against other ways of cutting the same texts."""
from pathlib import Path

import numpy as np
import pytest
from gguf import TokenType
from random_model import tokenizer_json
from tokenizers import pre_tokenizers

from meadowlark.errors import UserError
from meadowlark.models.gguf_tokenizer import MAX_TOKEN, PRE, build_tokenizer, read_vocabulary
from meadowlark.models.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER, BYTE = (int(getattr(TokenType, n)) for n in (
    "NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "BYTE"))
TEXTS = ["", "Hello world", " two  spaces\n\nand   lines \t", "Zoë says: 你好 ✓ 🦜!",
         "in 1999, 12345.67", "it's we'LL I'd", "x = a+b<|c|>; // ok?", "٣٤ Ⅳ ½",
         "\u00a0\u2003\r\nend  "]


def metadata(tokens, kinds=None, model="gpt2", **values):
    out = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens}
    if kinds is not None:
        out["tokenizer.ggml.token_type"] = np.array(kinds, np.int32)
    return Metadata(Path("x.gguf"), out | {
        f"tokenizer.ggml.{k}": np.array(v) if k == "scores" else v for k, v in values.items()
        if v is not None})


def made(meta):
    return build_tokenizer(meta, read_vocabulary(meta))


def byte_level(*more, pre="gpt-2", merges=None, kinds=(), **values):
    """All bytes behind <|bos|> and <|eos|>, then more tokens."""
    tokens = [*tokenizer_json(258)["model"]["vocab"], *more]
    kinds = [CONTROL, CONTROL, *[NORMAL] * 256, *(kinds or [NORMAL] * len(more))]
    return metadata(tokens, kinds, pre=pre, bos_token_id=0, eos_token_id=1, merges=merges, **values)


def words(tokenizer, text):
    """How the pre-tokenizer cuts a text; bytes as they are shown."""
    return [w for w, _ in tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(text)]


# ---- Byte-level BPE

@pytest.mark.parametrize("pre", PRE)
def test_round_trip(pre):
    tokenizer = made(byte_level(pre=pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre, reference", [
    ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
    ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False)])),
])
def test_words_of_known_tokenizers(pre, reference, seed):
    """The rules that GPT-2 and SmolLM2 have in their tokenizer.json."""
    tokenizer = made(byte_level(pre=pre))
    rng = np.random.default_rng(seed)
    drawn = ["".join(rng.choice(list(" \n'sreAzé12٣你.,-_\t"), 40)) for _ in range(50)]
    for text in TEXTS + drawn:
        assert words(tokenizer, text) == [w for w, _ in reference.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre, cut", [
    ("gpt-2", ["I", "'ll", "Ġadd", "Ġ12345", "ĊĊ"]),
    ("smollm", ["I", "'ll", "Ġadd", "Ġ", *"12345", "ĊĊ"]),
    ("llama-bpe", ["I", "'ll", "Ġadd", "Ġ", "123", "45", "ĊĊ"]),
    ("qwen2", ["I", "'ll", "Ġadd", "Ġ", *"12345", "ĊĊ"]),
    ("tekken", ["I", "'ll", "Ġadd", "Ġ", *"12345", "ĊĊ"]),
    ("gpt-4o", ["I'll", "Ġadd", "Ġ", "123", "45", "ĊĊ"]),
    ("default", ["I", "'", "ll", "Ġadd", "Ġ", "123", "45", "ĊĊ"]),
])
def test_words(pre, cut):
    assert words(made(byte_level(pre=pre)), "I'll add 12345\n\n") == cut


def test_words_in_capitals():
    """Where small letters end and capitals begin, tekken and its like cut; punctuation takes the
    slashes and line ends behind it."""
    for pre, end in (("tekken", ["'s"]), ("gpt-4o", [])):
        cut = words(made(byte_level(pre=pre)), "HTTPServer iPhone's a//\n/x")
        assert cut == ["HTTPServer", "Ġi", "Phone" if end else "Phone's", *end, "Ġa", "//Ċ/", "x"]


@pytest.mark.parametrize("pre, of", [
    ("falcon3", "llama-bpe"), ("lfm2", "llama-bpe"), ("pixtral", "llama-bpe"),
    ("deepseek-r1-qwen", "qwen2"), ("megrez", "qwen2"), ("exaone", "smollm"), ("mellum", "gpt-2"),
    ("llama4", "gpt-4o")])
def test_names_of_one_rule(pre, of):
    """The rule, the default for bos and whether words are looked up whole are the other's."""
    texts = [*TEXTS, "I'LL add 12345\n\n", "xyz"]
    tokenizers = [made(byte_level("xyz", "xq", pre=p, merges=["x q"])) for p in (pre, of)]
    for text in texts:
        assert words(tokenizers[0], text) == words(tokenizers[1], text)
        assert tokenizers[0].encode(text) == tokenizers[1].encode(text)


def test_merges():
    meta = byte_level("ab", "abc", "Ġa", merges=["a b", "ab c", "Ġ a"])
    assert made(meta).encode("abc ab a") == \
        [259, *(meta_id(meta, t) for t in ("Ġ", "ab", "Ġa"))]
    # Llama 3 looks words up whole first.
    for pre, length in (("gpt-2", 3), ("llama-bpe", 1)):
        tokenizer = made(byte_level("xyz", "xq", pre=pre, merges=["x q"], add_bos_token=False))
        assert len(tokenizer.encode("xyz")) == length


def meta_id(meta, token):
    return meta.values["tokenizer.ggml.tokens"].index(token)


def test_special_tokens():
    """Control and user-defined tokens are one token wherever they stand; only control ones are
    left out of a text."""
    meta = byte_level("<|im_start|>", "<tool>", kinds=[CONTROL, USER], add_bos_token=False)
    tokenizer = made(meta)
    assert tokenizer.encode("<|im_start|>a<tool>") == [258, meta_id(meta, "a"), 259]
    assert tokenizer.decode([258, meta_id(meta, "a"), 259]) == "a<tool>"
    assert tokenizer.size == 260


@pytest.mark.parametrize("values, bos", [
    (dict(), None), (dict(add_bos_token=True), 0), (dict(add_bos_token=False), None),
    (dict(pre="llama-bpe"), 0), (dict(pre="llama-bpe", add_bos_token=False), None)])
def test_bos(values, bos):
    meta = byte_level(**values)
    vocabulary = read_vocabulary(meta)
    assert vocabulary.bos_id == bos and (vocabulary.bos, vocabulary.eos) == ("<|bos|>", "<|eos|>")
    tokenizer, plain = build_tokenizer(meta, vocabulary), [meta_id(meta, "a")]
    assert tokenizer.encode("a") == ([] if bos is None else [bos]) + plain
    assert tokenizer.encode("a", special=False) == plain


def test_ids_of_none():
    """-1 is no id, in 32 unsigned bits as well."""
    for none in (-1, (1 << 32) - 1):
        vocabulary = read_vocabulary(metadata(["a"], bos_token_id=none, eos_token_id=none,
                                              eot_token_id=none, add_bos_token=True))
        assert (vocabulary.bos_id, vocabulary.stop_ids, vocabulary.bos) == (None, (), "")


def test_bos_of_any_text():
    """Signs that mean something in a template of the library are only text in a token."""
    for text in ("$A", "<:x>", "$1", "a:b:c"):
        tokenizer = made(metadata([text, "a"], [CONTROL, NORMAL], bos_token_id=0,
                                  add_bos_token=True))
        assert tokenizer.encode("a") == [0, 1]


# ---- SentencePiece

def sentencepiece(rng, pieces=80, alphabet="▁abcdefgh", **values):
    """A vocabulary of bytes, letters and pieces made of earlier ones, scores falling."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *alphabet]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(alphabet)]
    while len(tokens) < 259 + len(alphabet) + pieces:
        piece = "".join(rng.choice(tokens[259:], 2))
        # A piece that begins as it ends can overlap itself; see _sentencepiece.
        if piece not in tokens and not any(piece[:n] == piece[-n:] for n in range(1, len(piece))):
            tokens.append(piece)
            kinds.append(NORMAL)
    return metadata(tokens, kinds, "llama", scores=[-float(i) for i in range(len(tokens))],
                    bos_token_id=1, eos_token_id=2, **values)


def naive(meta, text):
    """SentencePiece as llama.cpp has it: merge the best pair, the leftmost of equals."""
    ids = {t: i for i, t in enumerate(meta.values["tokenizer.ggml.tokens"])}
    scores = meta.values["tokenizer.ggml.scores"]
    symbols = list(("▁" + text if text else "").replace(" ", "▁"))
    while True:
        pairs = [(scores[ids[a + b]], -at) for at, (a, b) in enumerate(zip(symbols, symbols[1:]))
                 if a + b in ids]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
    out = []
    for s in symbols:
        out += [ids[s]] if s in ids else [ids[f"<0x{b:02X}>"] for b in s.encode()]
    return out


def test_sentencepiece(seed):
    rng = np.random.default_rng(seed)
    meta = sentencepiece(rng)
    tokenizer = made(meta)
    texts = ["".join(rng.choice(list("abcdefgh  "), rng.integers(1, 60))) for _ in range(200)]
    for text in ["", "a", " a  b ", "Zoë 你好 🦜", *texts]:
        ids = tokenizer.encode(text)
        assert ids == [1, *naive(meta, text)], text
        assert tokenizer.decode(ids) == text


def test_sentencepiece_without_space(seed):
    meta = sentencepiece(np.random.default_rng(seed), add_space_prefix=False, add_bos_token=False)
    tokenizer = made(meta)
    assert tokenizer.encode("a") == [meta_id(meta, "a")]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_sentencepiece_special_tokens(seed):
    meta = sentencepiece(np.random.default_rng(seed))
    a = naive(meta, "a")
    assert made(meta).encode("a</s>a") == [1, *a, 2, *a]


# ---- SmolLM2

def test_smollm2(smollm2):
    model = smollm2
    tokenizer = model.tokenizer
    assert tokenizer.size == 49152
    assert tokenizer.encode("Hello world") == [19556, 905]
    assert tokenizer.encode("<|im_start|>user\n<|im_end|>") == [1, 4093, 198, 2]
    shown = [tokenizer._tokenizer.id_to_token(i) for i in tokenizer.encode("in 2024, 007")]
    assert shown == ["in", "Ġ", "2", "0", "2", "4", ",", "Ġ", "0", "0", "7"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert model.chat
    text = model.chat.render([{"role": "user", "content": "Hi"}])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(text, special=False)
    assert ids.count(1) == 3 and ids.count(2) == 2


# ---- What is refused

@pytest.mark.parametrize("meta, message", [
    (metadata(["a"], model="bert"), "tokenizer 'bert' is not supported"),
    (byte_level(pre="viking"), "pre-tokenizer 'viking' is not supported"),
    (metadata(["a", "a"]), "same token twice"),
    (metadata([]), "tokens must be a list of texts, not a list of 0"),
    (metadata(["a" * (MAX_TOKEN + 1)]), "a token has 1,025 characters"),
    (metadata(["a"], [1, 1]), "token_type has 2 entries for 1 tokens"),
    (metadata(["a"], bos_token_id=1), "bos_token_id must be a token id below 1, not 1"),
    (metadata(["a"], eot_token_id=-2), "eot_token_id must be .*not -2"),
    (metadata(["a"], add_bos_token=1), "add_bos_token must be true or false, not 1"),
    (metadata(["a", "ab"]), "tokenizer.ggml.merges is missing"),
    (metadata(["a", "ab"], merges=["a b"]), "does not hold together"),
    (metadata(["a", "ab"], merges=["ab"]), "does not hold together"),
    (metadata(["a"], model="llama"), "tokenizer.ggml.scores is missing"),
    (metadata(["a"], model="llama", scores=[np.nan]), "list of finite numbers"),
    (metadata(["a"], model="llama", scores=[0.0], unknown_token_id=7),
     "unknown_token_id must be a token id below 1, not 7"),
])
def test_refused(meta, message):
    with pytest.raises(UserError, match=f"^x.gguf.*{message}"):
        made(meta)
