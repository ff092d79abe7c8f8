"""Conversations that a model writes itself, to make a table of drafts from.

What a model writes repeats itself more than what it reads, so a table of its own answers drafts
best. Questions, or beginnings of texts, are drawn at temperature 1; answers as they will be.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .. import cache
from ..models.checkpoint import Model
from ..models.float_model import FloatModel
from ..progress import Progress
from ..text.chat import Conversation
from .conversations import Conversations

#: Conversations written at once: what is lost when the work is interrupted.
AT_ONCE = 32
#: Tokens of a question at most, and of the beginning of a text.
QUESTION, BEGINNING = 48, 8


def _frame(model: Model) -> tuple[list[int], list[int]] | None:
    """Ids that the chat template has before a question and behind it; None: no template."""
    if model.chat is None:
        return None
    talks = []
    for word in ("Apples", "one"):
        talk = Conversation(model.chat, model.tokenizer, bos=model.bos_id, stop_ids=model.stop_ids)
        talks.append(talk.ask(word))
    a, b = talks
    same = [x == y for x, y in zip(a, b)] + [False]
    behind = [x == y for x, y in zip(a[::-1], b[::-1])] + [False]
    return a[:same.index(False)], a[len(a) - behind.index(False):]


class _Writer:
    """One conversation: what comes next, given what the model says of it."""

    def __init__(self, model: Model, prompt: Sequence[int] | None,
                 frame: tuple[list[int], list[int]] | None, rng: np.random.Generator,
                 temp: float) -> None:
        self.model, self.rng, self.temp = model, rng, temp
        self.behind: list[int] = []
        self.asks = self.done = False
        if prompt is not None:
            self.tokens, self.to_draw = list(prompt), 0
        elif frame is not None:
            self.tokens, self.behind = list(frame[0]), frame[1]
            self.to_draw = QUESTION
        else:
            first = int(rng.integers(model.vocab)) if model.bos_id is None else model.bos_id
            self.tokens, self.to_draw = [first], BEGINNING
        self.given = len(self.tokens) if not self.to_draw else 0

    def _drawn(self, logits: np.ndarray, temp: float) -> int:
        if not temp:
            return int(logits.argmax())
        up_to = np.cumsum(np.exp((logits - logits.max()).astype(np.float64) / temp))
        return min(int((up_to < self.rng.random() * up_to[-1]).sum()), len(logits) - 1)

    def push(self, logits: np.ndarray) -> None:
        """Take the logits behind the last token."""
        if self.given:
            token = self._drawn(logits, self.temp)
            self.tokens.append(token)
            self.done = token in self.model.stop_ids
            return
        token = self._drawn(logits, 1.0)
        ends = token in self.model.stop_ids or token in self.behind[:1]
        if not ends:
            self.tokens.append(token)
            self.to_draw -= 1
        if ends or not self.to_draw:
            self.tokens += self.behind
            self.given = len(self.tokens)


def _written(model: Model, writers: Sequence[_Writer], length: int,
             progress: Callable[[int], None]) -> Conversations:
    """All of them, up to a length in tokens."""
    stepper = FloatModel(model).stepper(len(writers), length)
    for at in range(length - 1):
        logits = stepper.step(np.array([w.tokens[at] if at < len(w.tokens) else 0
                                        for w in writers]))
        for writer, of_it in zip(writers, logits, strict=True):
            if at + 1 == len(writer.tokens) and not writer.done:
                writer.push(of_it)
        progress(at + 1)
        if all(writer.done for writer in writers):
            break
    cut = [(w.tokens[:length], min(w.given or length, length)) for w in writers]
    return Conversations.of((tokens[:given], tokens[given:]) for tokens, given in cut)


def own(model: Model, count: int, *, prompts: Sequence[Sequence[int]] | None = None,
        length: int = 320, temp: float = 0.0, seed: int = 1, key: str | None = None,
        progress: Progress = lambda text, done, total: None) -> Conversations:
    """What a model writes, in float32.

    Parameters
    ----------
    model : Model
    count : int
        Conversations.
    prompts : sequence of sequences of ids, optional
        What they begin with, in turn. By default questions that the model draws in its chat
        template, or 8 tokens of a text that it draws where it has none.
    length : int
        Tokens of a conversation at most, prompt and answer.
    temp : float
        Temperature of answers; 0 takes the likeliest token.
    seed : int
    key : str, optional
        Digest of the model: parts that were written once are kept in the cache by it, and not
        written again.
    progress : callable, optional

    Returns
    -------
    Conversations
    """
    length = min(length, model.context)
    frame = None if prompts else _frame(model)
    parts = []
    for at in range(0, count, AT_ONCE):
        of = range(at, min(at + AT_ONCE, count))
        starts = [list(prompts[i % len(prompts)])[:length] for i in of] if prompts \
            else [None] * len(of)
        name = None if key is None else \
            f"draft-{cache.digest(key, starts, list(of), length, temp, seed)}.npz"
        kept = None if name is None else cache.find(name)
        if kept is not None:
            parts.append(Conversations.read(kept, model.vocab))
            continue
        writers = [_Writer(model, start, frame, np.random.default_rng((seed, i)), temp)
                   for i, start in zip(of, starts, strict=True)]
        text = f"writing conversations {of[0] + 1:,} to {of[-1] + 1:,} of {count:,}: token"
        parts.append(_written(model, writers, length,
                              lambda done, text=text: progress(text, done, length)))
        if name is not None:
            cache.keep(name, parts[-1].content())
    return Conversations.joined(parts)
