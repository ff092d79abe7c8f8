"""Texts that end an answer: what comes is held back where one could begin."""
from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class Decoder(Protocol):
    """Tokens to text, as :class:`.tokenizer.TextStream`."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class StoppedText:
    """The text of tokens as they come, up to the first of the stop texts.

    Parameters
    ----------
    decoder : Decoder
    stop : sequence of str
        None of them empty.

    Attributes
    ----------
    text : str
        All so far, without a stop text and what is behind it.
    stopped : bool
        There was one.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop = decoder, stop
        self._given = 0
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; the text that is sure now. Nothing comes behind a stop text."""
        return "" if self.stopped else self._more(self._decoder.push(token), final=False)

    def flush(self) -> str:
        """No more tokens; the rest of the text."""
        return "" if self.stopped else self._more(self._decoder.flush(), final=True)

    def _more(self, piece: str, *, final: bool) -> str:
        self.text += piece
        found = [at for s in self._stop if (at := self.text.find(s)) >= 0]
        if found:
            self.stopped = True
            self.text = self.text[:min(found)]
        sure = len(self.text)
        if not final and not self.stopped:
            # The longest end of the text that begins a stop text.
            sure -= max((n for s in self._stop for n in range(1, len(s))
                         if self.text.endswith(s[:n])), default=0)
        new = self.text[self._given:sure]
        self._given = max(self._given, sure)
        return new


def why_ended(tokens: Sequence[int], stop_ids: Collection[int], stopped: bool, full: bool) -> str:
    """Why a text ended. stopped: a stop text is complete. full: there are as many tokens as were
    asked for."""
    if stopped:
        return "stop text"
    if tokens and tokens[-1] in stop_ids:
        return "stop id"
    return "number of tokens" if full else "context"
