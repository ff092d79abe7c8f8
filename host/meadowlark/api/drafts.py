"""Tables of drafts: what a model often says, for a chip to guess the next tokens from."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import read_text
from ..threads import one_thread

if TYPE_CHECKING:
    from ..draft.conversations import Conversations
    from ..draft.replay import Replay
    from ..draft.table import DraftTable
    from ..models.checkpoint import Model
    from ..progress import Progress


class Drafts:
    """What a model says, and tables of drafts made from that; :attr:`.LoadedModel.drafts`. See
    docs/drafts.md.

    >>> import meadowlark as ml
    >>> drafts = ml.load("stories").drafts
    >>> said = drafts.said(["Once upon a time there was a cat. Once upon a time there was a dog."])
    >>> table = drafts.table(said, size=2000)
    >>> drafts.measure(said, table, most=3)["together"].tokens_per_pass > 1
    True
    """

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    @cached_property
    def _model(self) -> Model:
        """Without its weights."""
        from ..models.registry import load_model
        self._progress("reading the model", 0, 0)
        return load_model(self._name, outline=True)

    @property
    def model(self) -> str:
        """Its name."""
        return self._model.name

    def said(self, texts: Sequence[str]) -> Conversations:
        """Texts, as if the model had written them.

        Raises
        ------
        UserError
            They have no tokens, or one that the model does not know.
        """
        from ..draft.conversations import Conversations
        return Conversations.of_text(self._model, texts, "given")

    def read(self, path: str | Path, *, text: bool | None = None) -> Conversations:
        """What a file has: texts, one a line, or conversations, as :meth:`Conversations.content`
        gives them (.npz). text: which; by default the name says it.

        Raises
        ------
        UserError
            It has none.
        """
        from ..draft.conversations import Conversations
        if text is None:
            text = not str(path).endswith(".npz")
        if not text:
            return Conversations.read(path, self._model.vocab)
        return Conversations.of_text(self._model, read_text(path), str(path))

    def own(self, count: int, *, prompts: Sequence[str] | None = None, max_tokens: int = 320,
            temperature: float = 0.0, seed: int = 1) -> Conversations:
        """Conversations that the model writes itself, in float32. What was written once is kept.

        Parameters
        ----------
        count : int, 1..
        prompts : sequence of str, optional
            What they begin with: questions where the model has a chat template, else beginnings of
            texts. By default the model draws them too.
        max_tokens : int, 4..
            Tokens of each at most, the prompt's among them.
        temperature : float, 0..
            Of the answers.
        seed : int, 0..

        Raises
        ------
        UserError
            There are no prompts among the given ones, or one has a token that the model does not
            know.
        """
        from .. import cache
        from ..draft.own import own
        from ..models.registry import find_model, load_model, model_files
        begun = None if prompts is None else self._begun(prompts)
        with one_thread():
            return own(load_model(self._name), count, length=max_tokens, temp=temperature,
                       seed=seed, progress=self._progress, prompts=begun,
                       key=cache.digest(*model_files(find_model(self._name))))

    def table(self, *said: Conversations, size: int = 1_000_000, made_of: str = "") -> DraftTable:
        """A table of what is often said, of at most so many bytes. made_of: words about that, for
        people."""
        from ..draft.conversations import Conversations
        from ..draft.make import make
        from ..draft.table import DraftTable
        whole = Conversations.joined(said)
        with one_thread():
            entries, least = make(whole, size, lambda text: self._progress(text, 0, 0))
        of = f"{len(whole):,} conversations, {len(whole.tokens):,} tokens"
        return DraftTable.of(self._model, entries, least, f"{of}, by {made_of}" if made_of else of)

    @property
    def packaged(self) -> Path | None:
        """The file of the table that comes with the model, if any."""
        from ..draft.table import packaged
        return packaged(self._name)

    def load(self, path: str | Path) -> DraftTable:
        """A table in a file.

        Raises
        ------
        UserError
            The file is none, or for another vocabulary.
        """
        from ..draft.table import DraftTable
        table = DraftTable.load(path)
        table.check_for(self._model, str(path))
        return table

    def measure(self, said: Conversations, table: DraftTable | None = None, *,
                most: int = 7) -> dict[str, Replay]:
        """Tokens per pass, had the model said this: "context" of drafts from the text so far, and
        with a table "table" and "together", which comes first. most: drafts of a pass."""
        from ..draft.replay import measure
        self._progress("drafting", 0, 0)
        with one_thread():
            return measure(said, most, table.entries if table else None,
                           table.least if table else 2)

    def _begun(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts; empty ones are left out."""
        from ..text.chat import Conversation
        model, found = self._model, []
        for line in filter(str.strip, prompts):
            if model.chat is None:
                found.append(model.tokenizer.opened(line, model.bos_id))
            else:
                found.append(Conversation(model.chat, model.tokenizer, bos=model.bos_id,
                                          stop_ids=model.stop_ids).ask(line))
        if not found:
            raise UserError("all prompts are empty; give one to begin with")
        if (most := max(map(max, found))) >= model.vocab:
            raise UserError(f"{model.tokenizer.name} gives token {most} and the model knows "
                            f"{model.vocab}; leave the prompt with that token out")
        return found
