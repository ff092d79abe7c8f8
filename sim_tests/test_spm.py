"""tokenizer.model: the ids that SentencePiece gives, and what is refused."""
import io
import json

import numpy as np
import pytest
import sentencepiece
from random_model import random_model

from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.models.spm import read_spm
from meadowlark.run.evaluate import validation_text

#: Texts that few tokenizers take the same way.
ODD = ["  two  spaces ", " ", "", "a", "\u00e9 \ufb01 \u00bd caf\u00e9", "\u65e5\u672c a",
       "\U0001f642 x", "tab\tx", "new\nline", "UPPER Case!", "a\u3000b", "\u2581 under", "x" * 50,
       "\u200b zero"]


def trained(texts, **options):
    """The file of a tokenizer that was made from texts."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, minloglevel=2, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def texts():
    return validation_text()[:40]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids(tmp_path, seed, texts, kind):
    """As SentencePiece itself has them, with all that its normalizer does or leaves."""
    rng, file = np.random.default_rng([seed, len(kind)]), tmp_path / "tokenizer.model"
    for turn in range(4):
        fallback = bool(turn % 2)
        raw = trained(texts, model_type=kind, vocab_size=500 if fallback else 200,
                      byte_fallback=fallback, add_dummy_prefix=bool(rng.integers(2)),
                      remove_extra_whitespaces=bool(rng.integers(2)),
                      normalization_rule_name=("nmt_nfkc", "identity", "nfkc_cf", "nfkc")[turn])
        file.write_bytes(raw)
        want, got = sentencepiece.SentencePieceProcessor(model_proto=raw), read_spm(file)
        assert got.size == want.get_piece_size()
        for text in (*texts[:20], *ODD):
            ids = want.encode(text)
            assert got.encode(text, special=False) == ids, text
            if fallback and text in texts:     # else unknown ones are shown otherwise
                assert got.decode(ids) == want.decode(ids)
        assert got.opening == (want.bos_id() if kind == "bpe" else None)


def test_a_folder(tmp_path, seed, texts):
    """It stands in where there is no tokenizer.json, and one that is there goes before."""
    folder = random_model(tmp_path, seed=seed, vocab=200)
    (folder / "tokenizer.model").write_bytes(trained(texts, model_type="unigram", vocab_size=180))
    own = load_model(folder).tokenizer
    (folder / "tokenizer.json").unlink()
    model = load_model(folder)
    assert (model.tokenizer.size, model.bos_id) == (180, None) and own.size != 180
    assert model.tokenizer.decode(model.tokenizer.encode(texts[0])) == texts[0]
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}))
    model = load_model(folder)
    assert (model.bos_id, model.stop_ids) == (1, (1, 2))
    assert model.text_tokens("a")[0] == 1 == model.text_tokens("a")[-1]


def test_damaged(tmp_path, seed, texts):
    """Any change of a file: a tokenizer, or one sentence."""
    rng, file = np.random.default_rng(seed), tmp_path / "tokenizer.model"
    raw = trained(texts, model_type="unigram", vocab_size=180)
    refused = 0
    for turn in range(150):
        broken = bytearray(raw)
        if turn % 3 == 0:
            del broken[rng.integers(1, len(raw)):]
        else:
            for at in rng.integers(0, min(len(raw), 4000) if turn % 3 == 1 else len(raw), 5):
                broken[at] = rng.integers(256)
        file.write_bytes(bytes(broken))
        try:
            read_spm(file).encode("once upon a time")
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 1000
    assert refused > 20
    for content, message in ((b"", "no model of SentencePiece"), (b"\x0f\x00", "damaged"),
                             (trained(texts, model_type="char", vocab_size=60),
                              "its type of tokenizer is not supported")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_spm(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_spm(tmp_path)
