"""Conversations as token ids: what tables are made from, and what drafts are measured on."""
from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError, brief
from ..models.checkpoint import Model

_ARRAYS = ("tokens", "prompt_lengths", "answer_lengths")


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversations:
    """Prompts and their answers.

    tokens: int64[all], conversation after conversation, each a prompt and an answer.
    prompt_lengths, answer_lengths: int64[conversations]; one or both at least 1.
    """
    tokens: np.ndarray
    prompt_lengths: np.ndarray
    answer_lengths: np.ndarray

    @classmethod
    def of(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Conversations:
        """From prompts and answers."""
        pairs = [(prompt, answer) for prompt, answer in pairs if prompt or answer]
        return cls(tokens=np.array([i for pair in pairs for part in pair for i in part], np.int64),
                   prompt_lengths=np.array([len(prompt) for prompt, _ in pairs], np.int64),
                   answer_lengths=np.array([len(answer) for _, answer in pairs], np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Conversations]) -> Conversations:
        """One behind the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts])
                      for name in _ARRAYS})

    @classmethod
    def of_text(cls, model: Model, lines: Iterable[str], what: str) -> Conversations:
        """Texts as if the model had written them: all behind the first token is the answer. Each
        is cut into as many as the model's context asks for.

        Raises UserError where no line has two tokens, or the model does not know one.
        """
        pairs = []
        for line in lines:
            ids = model.text_tokens(line) if line.strip() else []
            for at in range(0, len(ids) - 1, model.context):
                part = ids[at:at + model.context]
                pairs.append((part[:1], part[1:]))
        if not pairs:
            raise UserError(f"the text {what} has no tokens; give one with at least a word in a "
                            "line")
        return cls.of(pairs)

    @classmethod
    def read(cls, path: str | Path, vocab: int) -> Conversations:
        """A file of NumPy (.npz) with the arrays ``tokens``, ``prompt_lengths`` and
        ``answer_lengths``, of integers.

        Raises
        ------
        UserError
            It cannot be read, is none of these, or has ids that a model of ``vocab`` tokens does
            not know.
        """
        try:
            return cls.parse(Path(path).read_bytes(), vocab)
        except OSError as error:
            raise UserError(f"cannot read the conversations {path}: {error.strerror or error}"
                            ) from error
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} holds no conversations ({brief(error)}); it needs the arrays "
                            f"{', '.join(_ARRAYS)} as numpy.savez writes them") from error

    @classmethod
    def parse(cls, content: bytes, vocab: int) -> Conversations:
        """As :meth:`read`, from a file's contents. ValueError, KeyError, EOFError, BadZipFile or
        zlib.error: they are not that."""
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array")
        arrays = {name: file[name] for name in _ARRAYS}
        for name, array in arrays.items():
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, not integers in "
                                 "one dimension")
        made = cls(**{name: array.astype(np.int64) for name, array in arrays.items()})
        prompts, answers = made.prompt_lengths, made.answer_lengths
        if len(prompts) != len(answers) or not len(prompts):
            raise ValueError(f"{len(prompts)} lengths of prompts and {len(answers)} of answers")
        if min(prompts.min(), answers.min()) < 0 or made.lengths.min() < 1 \
                or made.lengths.sum() != len(made.tokens):
            raise ValueError(f"the lengths do not add up to {len(made.tokens)} tokens")
        if made.tokens.min() < 0 or made.tokens.max() >= vocab:
            wrong = made.tokens[(made.tokens < 0) | (made.tokens >= vocab)][0]
            raise ValueError(f"token {wrong}, and the model knows {vocab}")
        return made

    def content(self) -> bytes:
        """The file that :meth:`parse` reads."""
        file = io.BytesIO()
        np.savez_compressed(file, **{
            "tokens": self.tokens.astype(np.uint32),
            "prompt_lengths": self.prompt_lengths, "answer_lengths": self.answer_lengths})
        return file.getvalue()

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def part(self, which: slice) -> Conversations:
        """Some of them, one behind the other."""
        kept = np.zeros(len(self), bool)
        kept[which] = True
        return Conversations(tokens=self.tokens[kept[self.conversation]],
                             prompt_lengths=self.prompt_lengths[which],
                             answer_lengths=self.answer_lengths[which])

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64[conversations]: prompt and answer."""
        return self.prompt_lengths + self.answer_lengths

    @cached_property
    def starts(self) -> np.ndarray:
        """int64[conversations]: where each begins in ``tokens``."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def conversation(self) -> np.ndarray:
        """int64[all]: which one a token is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def positions(self) -> np.ndarray:
        """int64[all]: tokens of its conversation before a token."""
        return np.arange(len(self.tokens)) - self.starts[self.conversation]

    @cached_property
    def drafted(self) -> np.ndarray:
        """bool[all]: tokens that a pass can draft: answers, without the first token of each, which
        comes with the prompt's last pass."""
        return self.positions > self.prompt_lengths[self.conversation]
