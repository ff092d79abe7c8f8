"""A conversation that goes on and on, in a context that does not."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UserError
from ..run.prepare import check_text
from .results import Steps

if TYPE_CHECKING:
    from ..run.prepare import Source
    from ..text.chat import Conversation

#: What stays of a conversation when the context is full.
KEEP = ("recent", "system")


class Talk:
    """A conversation, question by question; made by :meth:`.Chip.talk`.

    When the context is full the past gives way to the question: with "recent" the oldest questions
    and their answers, until the prompt takes half of the context; with "system" all but the
    system message.

    Attributes
    ----------
    forgotten : int
        Questions that gave way to the latest one.
    """

    def __init__(self, source: Source, said: Conversation, run: Callable[..., Steps], *,
                 keep: str, max_tokens: int | None) -> None:
        if keep not in KEEP:
            raise UserError(f"what stays when the context is full is one of {', '.join(KEEP)}, "
                            f"not {keep!r}")
        self._source, self._said, self._run = source, said, run
        self._keep, self._max_tokens = keep, max_tokens
        self.forgotten = 0

    def ask(self, question: str) -> Steps:
        """The answer, as it comes; when it ends :attr:`.Chip.last` has the whole. What was answered
        until the iterator is closed is part of the conversation.

        Raises
        ------
        UserError
            At the call: it is no text, is empty or does not fit the context. The conversation then
            stays as it is.
        """
        check_text(question, "the question")
        if not question.strip():
            raise UserError("the question is empty; give at least one word")
        return self._run(self._fitting(question), self._said)

    def reset(self) -> None:
        """Begin a new conversation, with the same system message."""
        self._said.reset()

    def _fitting(self, question: str) -> list[int]:
        """The prompt with a question."""
        context = self._source.image.context
        ids, self.forgotten = self._said.ask(question), 0
        room = min(self._max_tokens or context, context // 4)      # for the answer
        if len(ids) + room - 1 <= context:
            return self._source.fitting(ids)
        shorter, forgotten = copy.copy(self._said), 0
        while (self._keep == "system" or len(ids) > context // 2) and shorter.forget():
            forgotten += 1
            ids = shorter.ask(question)
        self._source.fitting(ids, "the question", "ask a shorter one")
        self._said, self.forgotten = shorter, forgotten
        return ids
