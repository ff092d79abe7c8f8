"""Texts that share a chip, and come and go between its passes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack

from ..text.stopped import StoppedText
from ..threads import one_thread
from .results import Completion, DrawingOptions, Prompt, Run, Step

if TYPE_CHECKING:
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image
    from ..run.batch import Batch, Running
    from ..run.targets import Event
    from ..text.tokenizer import Tokenizer

#: Gets the steps of a text as they come; must not block.
Take = Callable[[Step], None]


class Text:
    """A text on its way; made by :meth:`Together.begin`.

    Attributes
    ----------
    run : Run
        What was asked for, and what came of it so far.
    done : Completion or None
        Once it has ended, and the run that it ended with. Its counters are of the chip while the
        text was on its way, others with it; "drafted" and "accepted" are its own.
    """

    def __init__(self, run: Run, take: Take, before: dict[str, int]) -> None:
        self.done: Completion | None = None
        self.run, self._take, self._before = run, take, before
        self._running: Running

    @property
    def tokens(self) -> int:
        """How many there are so far."""
        return len(self.run.events)

    def cancel(self) -> None:
        """It ends with the pass under way at the latest; others go on."""
        self._running.cancel()

    def _push(self, event: Event) -> bool:
        """A token; whether the text ends with it."""
        self._take(self.run.push(event))
        return self.run.text.stopped

    def _finish(self, counted: dict[str, int]) -> None:
        """Nothing more comes. counted: by the chip, as ``before``."""
        if rest := self.run.text.flush():
            self._take(Step(text=rest))
        running = self._running
        self.run.whole = not running.cancelled
        counters = {name: n - self._before.get(name, 0) for name, n in counted.items()}
        self.done = self.run.end(cached=running.cached, counters=counters | running.drafts)


class Together:
    """Texts on one chip, each as it would be alone; see docs/batches.md. The chip works when it is
    asked to, in the caller's thread. Made by :meth:`.Chip.together`; a context manager that ends
    all.

    batch: open and empty. check, encode: as those of :class:`.Chip`.
    """

    def __init__(self, batch: Batch, image: Image, tokenizer: Tokenizer, *,
                 check: Callable[..., tuple[Sampling, list[str]]],
                 encode: Callable[[Prompt], list[int]]) -> None:
        self._batch, self._image, self._tokenizer = batch, image, tokenizer
        self._check, self._encode, self._texts = check, encode, list[Text]()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    @property
    def parallel(self) -> int:
        """Texts in work at once, at most; others wait."""
        return self._batch.parallel

    @property
    def runs(self) -> int:
        """Runs of the chip so far."""
        return self._batch.runs

    @property
    def counters(self) -> dict[str, int]:
        """Sums of the core's counters over all runs so far."""
        return dict(self._batch.counted or {})

    @property
    def latest(self) -> list[tuple[int, int]]:
        """Of the latest pass that drew tokens: the cache and the position of each sequence."""
        return list(self._batch.latest)

    def begin(self, prompt: Prompt, take: Take = lambda step: None, *, seed: int = 0,
              stop: str | Sequence[str] = (), ignore_eos: bool = False,
              **options: Unpack[DrawingOptions]) -> Text:
        """Begin a text, which may wait for a free cache.

        Parameters
        ----------
        prompt : Prompt
        take : callable
            Gets its steps, from :meth:`step`.
        seed, stop, ignore_eos, options
            As of :meth:`.Chip.steps`, but for ``draft``.

        Raises
        ------
        UserError
            As :meth:`.Chip.steps`.
        """
        draw, stops = self._check(seed=seed, stop=stop, **options)
        max_tokens = options.get("max_tokens")
        ids = self._encode(prompt)
        stop_ids = () if ignore_eos else self._image.stop_ids
        text = Text(Run(prompt=ids, sampling=draw, max_tokens=max_tokens, stop_ids=stop_ids,
                        text=StoppedText(self._tokenizer.stream(ids), stops)), take, self.counters)
        text._running = self._batch.submit(
            ids, draw, max_new=max_tokens or self._image.context, stop_ids=stop_ids,
            watch=partial(self._watch, text))
        self._texts.append(text)
        return text

    def step(self) -> bool:
        """Go on until something has happened, a token mostly; False: all texts have ended."""
        with one_thread():
            some = self._batch.step()
        if self._batch.between_runs:
            for text in [text for text in self._texts if text._running.ended]:
                self._texts.remove(text)
                text._finish(self.counters)
        return some

    def close(self) -> None:
        """End all; the chip is ready for other runs."""
        self._batch.close()
        for text in self._texts:
            text._finish(self.counters)
        self._texts.clear()

    def _watch(self, text: Text, event: Event) -> bool:
        return text._push(event)
