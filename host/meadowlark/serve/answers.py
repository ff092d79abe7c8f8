"""What clients get: steps of a run -> JSON of OpenAI's interface."""
from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..api.results import Completion, Step
from ..quant.quantise import LOGIT_FRAC
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text that is sure, and what is said of the token that came with it. likely: of that token, as
    :func:`likelihood` makes it, or None."""
    text: str
    likely: dict | None = None


def likelihood(step: Step, tokenizer: Tokenizer, most: int) -> dict | None:
    """The natural logarithm of a token's probability at temperature 1, and those of the ``most``
    likeliest ones, likeliest first; of a step without a token None."""
    if step.token is None or step.logits is None:
        return None
    logits = np.asarray(step.logits, np.float64) / 2.0 ** LOGIT_FRAC
    logits -= logits.max()
    logs = logits - np.log(np.exp(logits).sum())

    def entry(token: int) -> dict:
        text = tokenizer.decode([token], special=True)
        return {"token": text, "logprob": float(logs[token]),
                "bytes": None if "\ufffd" in text else list(text.encode())}
    order = np.argsort(-logs, kind="stable")[:most]
    return entry(step.token) | {"top_logprobs": [entry(int(k)) for k in order]}


@dataclass
class Choice:
    """An answer as it comes. finish: why it ended, for OpenAI's clients, or None."""
    text: str = ""
    likely: list[dict] = field(default_factory=list)
    finish: str | None = None

    def take(self, piece: Piece) -> None:
        """The next piece."""
        self.text += piece.text
        if piece.likely is not None:
            self.likely.append(piece.likely)


def finish_of(done: Completion | None) -> str:
    """Why an answer ended: by itself or at a stop text, or because there was no more room."""
    return "stop" if done is not None and done.ended in ("stop id", "stop text") else "length"


def usage_of(done: Sequence[Completion | None], prompts: int) -> dict:
    """Tokens of the answers. prompts: those of each question, counted once."""
    completion = sum(len(one.tokens) for one in done if one is not None)
    cached = sum(one.cached_tokens for one in done if one is not None)
    return {"prompt_tokens": prompts, "completion_tokens": completion,
            "total_tokens": prompts + completion,
            "prompt_tokens_details": {"cached_tokens": cached}}


class Form:
    """The form of an answer: of a conversation, or of a text that goes on.

    chat: which. model: its name. likely: logarithms of probabilities are shown.
    """

    def __init__(self, *, chat: bool, model: str, likely: bool) -> None:
        self.chat, self.model, self.likely = chat, model, likely
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def _frame(self, kind: str, choices: list[dict], **more: Any) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "choices": choices, **more}

    def whole(self, choices: Sequence[Choice], usage: dict) -> dict:
        """All answers at once."""
        found = []
        for at, one in enumerate(choices):
            text: dict = {"message": {"role": "assistant", "content": one.text, "refusal": None}} \
                if self.chat else {"text": one.text}
            found.append({"index": at, **text, "finish_reason": one.finish,
                          "logprobs": self._logs(one.likely)})
        return self._frame("chat.completion" if self.chat else "text_completion", found,
                           usage=usage)

    def piece(self, at: int, piece: Piece | None = None, finish: str | None = None, *,
              first: bool = False) -> dict:
        """Part of an answer. first: its beginning, which says who speaks."""
        text = "" if piece is None else piece.text
        likely = [piece.likely] if piece is not None and piece.likely is not None else []
        if self.chat:
            delta: dict = {"role": "assistant", "content": ""} if first else \
                {"content": text} if piece is not None else {}
            choice = {"index": at, "delta": delta}
        else:
            choice = {"index": at, "text": text}
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", [
            choice | {"finish_reason": finish, "logprobs": self._logs(likely) if likely else None}])

    def last(self, usage: dict) -> dict:
        """What it took, behind all pieces."""
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", [],
                           usage=usage)

    def _logs(self, likely: Sequence[dict]) -> dict | None:
        if not self.likely:
            return None
        if self.chat:
            return {"content": list(likely), "refusal": None}
        return {"tokens": [one["token"] for one in likely],
                "token_logprobs": [one["logprob"] for one in likely],
                "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]}
                                 for one in likely],
                "text_offset": list(_offsets(likely))}


def _offsets(likely: Sequence[dict]) -> Iterator[int]:
    """Where the text of each token begins, in characters."""
    at = 0
    for one in likely:
        yield at
        at += len(one["token"])


def event(data: dict | str) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
