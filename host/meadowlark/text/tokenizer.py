"""The tokenizer of a model: text -> ids, and ids -> text as they come."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers

from ..errors import UserError, brief


class TextStream:
    """Token ids in, text out, a complete character at a time.

    A character of UTF-8 can be split over tokens, and some decoders treat the first token of a
    text specially (they drop its leading space); so each piece is the difference of two decodings
    that begin at the same earlier token. Of a model without a tokenizer nothing comes.
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
        if self._tokenizer.missing:
            return ""
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
        Contents of tokenizer.json; kept in :attr:`json`. Empty of a model without one, which knows
        ids and no text.
    name : str
        Where it came from, or should be, for messages.

    Raises
    ------
    UserError
        The bytes are not a tokenizer; :meth:`encode` and :meth:`decode`: there are none, or what
        they say of some token does not fit together.
    """

    def __init__(self, source: bytes, name: str = "tokenizer.json") -> None:
        self.json, self.name = bytes(source), name
        self._uncovering: tuple[dict[str, str], Any] = ({}, None)   # see encode_covered
        self._made: tokenizers.Tokenizer | None = None
        if self.missing:
            return
        with self._sound():
            self._made = tokenizers.Tokenizer.from_str(self.json.decode())
        self._made.no_truncation()      # a stored limit would silently cut prompts
        self._made.no_padding()

    @property
    def missing(self) -> bool:
        """The model came without one."""
        return not self.json

    @property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        if self._made is None:
            raise UserError(f"{self.name} is missing, so the model knows no text; get the file "
                            "from where the model came from, or give token ids")
        return self._made

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What the library makes of a damaged file, as one sentence."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, UserError):
            raise
        except BaseException as e:      # bare Exceptions, and panics, which are none
            raise UserError(f"{self.name} is not a tokenizer ({brief(e)}); get the file again "
                            "from where the model came from.") from e

    @property
    def size(self) -> int:
        """Number of ids, the added tokens included."""
        return 0 if self.missing else self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def base_size(self) -> int:
        """Number of ids without the added tokens that have ids of their own."""
        return 0 if self.missing else self._tokenizer.get_vocab_size(with_added_tokens=False)

    def id(self, token: str) -> int | None:
        """The id of a token, by its text."""
        try:
            return None if self.missing else self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:      # half a character
            return None

    def fingerprint(self, ids: int) -> str:
        """Of the texts of the first ids, in hexadecimal: equal where each stands for the same."""
        known = self._made
        texts = [known.id_to_token(i) if known is not None else None for i in range(ids)]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]

    def with_control(self, ids: Iterable[int]) -> Tokenizer:
        """One in which these are control tokens: a token wherever they stand in a text, and left
        out of texts."""
        if self.missing:
            return self
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
        if self.missing:
            return None
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
