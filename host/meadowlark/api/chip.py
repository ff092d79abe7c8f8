"""A model on what runs it: text in, text out."""
from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..threads import in_one_thread, one_thread
from .results import Completion, Message, Prompt, Step

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image
    from ..run.classify import Classified
    from ..run.prepare import Source
    from ..run.targets import Drafting, Event, Target
    from ..text.chat import Conversation
    from ..text.tokenizer import Tokenizer
    from .together import Together


class Chip:
    """A model on what runs it; a context manager that frees it. Made by :meth:`LoadedModel.on`.

    Runs come one after the other. Each takes only the part of its prompt that the KV cache does not
    hold from those before, so that a conversation goes on where it was.

    Attributes
    ----------
    board : Board
    image : Image
    last : Completion or None
        Of the latest run.
    """

    def __init__(self, target: Target, source: Source) -> None:
        self._target, self._source = target, source
        self._talk: Conversation | None = None
        self.last: Completion | None = None

    def __enter__(self) -> Chip:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the target: the simulation ends, the port is closed."""
        self._target.close()

    @property
    def board(self) -> Board:
        """The board it is."""
        return self._target.board

    @cached_property
    def image(self) -> Image:
        """The image that is loaded."""
        return self._source.image

    @property
    def counters(self) -> dict[str, int]:
        """Counters of the core for the latest run, see docs/registers.md."""
        return self._target.counters()

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Pieces of text as they come; options as :meth:`steps`."""
        return (step.text for step in self.steps(prompt, **options) if step.text)

    def steps(self, prompt: Prompt, *, max_tokens: int | None = None, temperature: float = 0.0,
              top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: str | Sequence[str] = (),
              ignore_eos: bool = False, draft: str | int = "auto") -> Iterator[Step]:
        """Tokens as they come, and their text; :attr:`last` has the whole when they end.

        Closing the iterator, or leaving the loop over it, ends the run.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of Message
            A text to go on with, the same as token ids, or a conversation that ends with a
            question.
        max_tokens : int, optional
            Most tokens to generate; by default until the model ends the text or the context is
            full.
        temperature, top_k, top_p, seed
            See :func:`meadowlark.quant.sampling.sampling`; 0, the default, takes the likeliest
            token.
        stop : str or sequence of str
            Texts before which the answer ends.
        ignore_eos : bool
            Go on after the model ends its text.
        draft : "off", "auto" or int
            Guesses of the next tokens that a pass checks; they change no token.

        Raises
        ------
        UserError
            The prompt is empty or does not fit, the model has no chat template, or an option is out
            of its range: at the call, before anything runs.
        """
        draw, stops = self.check(max_tokens=max_tokens, temperature=temperature, top_k=top_k,
                                 top_p=top_p, seed=seed, stop=stop)
        image, drafts = self.image, self.drafting(draft, draw)
        ids, talk = self._ids(prompt)
        most = min(max_tokens or image.context, image.context - len(ids) + 1)
        stop_ids = () if ignore_eos else image.stop_ids
        run = self._target.generate(ids, draw, max_new=most, stop_ids=stop_ids, reuse=True,
                                    drafts=drafts)
        return self._steps(run, ids, talk, stops, stop_ids, max_tokens)

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """How a text goes on, or the answer to a conversation; options as :meth:`steps`.

        >>> import meadowlark as ml
        >>> with ml.load("stories").on("golden") as chip:
        ...     chip.generate("Once upon a time", max_tokens=4).text
        ', there was a'
        """
        for _ in self.stream(prompt, **options):
            pass
        assert self.last is not None
        return self.last

    def many(self, prompts: Sequence[Prompt], *, parallel: int | None = None,
             seed: int | Sequence[int] = 0, max_tokens: int | None = None, ignore_eos: bool = False,
             draft: str | int = "auto", **options: Any) -> list[Completion]:
        """How many texts go on, several in each pass of the chip: in order, each as
        :meth:`generate` gives it alone. ``counters`` are sums over all of them.

        Parameters
        ----------
        prompts : sequence of Prompt
        parallel : int, optional
            So many are in work at once; by default as many as a pass takes.
        seed : int, or a sequence with one for each prompt
        max_tokens, ignore_eos, draft, options
            As of :meth:`steps`.

        Raises
        ------
        UserError
            As :meth:`steps`; or there are other seeds than prompts, or the chip does not take so
            many at once.

        >>> import meadowlark as ml
        >>> with ml.load("stories").on("golden") as chip:
        ...     [done.text for done in chip.many(["Once upon a time", "A cat"], max_tokens=3)]
        [', there was', ' named Bella lived']
        """
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}; give "
                            "one seed for all, or one for each")
        self._talk = None           # its answers are not told
        with self.together(parallel=parallel, draft=draft) as texts:
            running = [texts.begin(prompt, seed=number, max_tokens=max_tokens,
                                   ignore_eos=ignore_eos, **options)
                       for prompt, number in zip(prompts, seeds, strict=True)]
            while texts.step():
                pass
            counters = texts.counters
        done = [text.done for text in running if text.done is not None]
        return [replace(one, counters=counters) for one in done]

    def together(self, *, parallel: int | None = None, draft: str | int = "auto") -> Together:
        """Texts that come and go while the chip works, several in each of its passes. Until it is
        closed the chip takes no other runs.

        Parameters
        ----------
        parallel : int, optional
            So many are in work at once; by default as many as a pass takes.
        draft : "off", "auto" or int
            Of a text that is alone, as of :meth:`steps`; with top-k there are none.

        Raises
        ------
        UserError
            The chip does not take so many at once, or makes no such drafts.

        >>> import meadowlark as ml
        >>> with ml.load("stories").on("golden") as chip, chip.together() as texts:
        ...     cat = texts.begin("A cat", max_tokens=3)
        ...     while texts.step():
        ...         pass
        ...     cat.done.text
        ' named Bella lived'
        """
        from ..run.batch import Batch
        from .together import Together
        with one_thread():
            batch = Batch(self._target, self.image, parallel=parallel,
                          drafts=self.drafting(draft), count=True)
        return Together(batch, self.image, self.tokenizer, check=self.check, encode=self.encode)

    def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        """The answer to a conversation, whose last message is the user's; options as
        :meth:`steps`.

        Messages have a "role", system (the first one only), user or assistant, and a "content".
        """
        if isinstance(messages, str):
            raise UserError("a conversation is a list of messages such as "
                            "{'role': 'user', 'content': 'Hello'}; for a text use generate()")
        return self.generate(messages, **options)

    def classify(self, *files: str | Path) -> list[Classified]:
        """What is on images, PNG or JPEG, by an encoder of images, one run each.

        A board tells the class and a CRC of all logits; probabilities are then those of the golden
        model, which has the same.

        Raises
        ------
        UserError
            The model reads text, a file is no image, or the board's logits differ from those of the
            golden model.

        >>> import meadowlark as ml
        >>> with ml.load("models/digits-vit").on("golden") as chip:
        ...     [found.label for found in chip.classify("models/digits-vit/7.png")]
        ['7']
        """
        from ..run.classify import classify, opened
        source, names = self._source, list(map(str, files))
        source.check_reads(images=True)
        found, verdict = classify(self._target, source, names, opened(source, names))
        if verdict is not None and not verdict.bit_exact:
            raise UserError(f"the board differs from its golden model "
                            f"({verdict.first_difference}); load a bitstream of this version")
        return found

    def check(self, *, max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0,
              top_p: float = 1.0, seed: int = 0, stop: str | Sequence[str] = (),
              ) -> tuple[Sampling, list[str]]:
        """What options of :meth:`steps` ask of the sampler, and the stop texts; any thread may ask.

        Raises
        ------
        UserError
            One is out of its range.
        """
        from ..quant.sampling import sampling
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {max_tokens}")
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(stops):
            raise UserError("a stop text must not be empty")
        return sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                        max_top_k=self.board.config.topk), stops

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, whatever was said before; a text's begin with the model's bos. A run
        of them goes on where it can from what the KV cache holds.

        Raises
        ------
        UserError
            As :meth:`steps`.
        """
        self._source.check_reads(images=False)
        if (ids := self._given(prompt)) is not None:
            return ids              # any thread may ask
        before, self._talk = self._talk, None
        try:
            return self._ids(prompt)[0]
        finally:
            self._talk = before

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model: texts of its tokens."""
        return self._source.tokenizer

    @property
    def has_template(self) -> bool:
        """The model came with a chat template, so that it answers conversations."""
        return self._source.has_template

    @property
    def target(self) -> Target:
        """What runs it."""
        return self._target

    def drafting(self, draft: str | int, draw: Sampling | None = None) -> Drafting:
        """What an option ``draft`` of :meth:`steps` stands for.

        draw: how tokens are drawn, greedily by default; with top-k "auto" is none.

        Raises
        ------
        UserError
            The chip makes no such drafts, or not with this sampling.
        """
        from meadowlark_hdl.sampler.sampler_golden import Sampling

        from ..run.drafting import drafting, parse
        asked, draw = parse(str(draft)), draw or Sampling()
        if asked is None and not draw.top_k:
            return self._cheapest
        return drafting(asked, draw, self.image, self._target)

    @cached_property
    def _cheapest(self) -> Drafting:
        """What "auto" stands for; weighed once, as that may take seconds."""
        from meadowlark_hdl.sampler.sampler_golden import Sampling

        from ..run.drafting import drafting
        return drafting(None, Sampling(), self.image, self._target)

    def _given(self, prompt: Prompt) -> list[int] | None:
        """The ids of a prompt that is some."""
        given = [part for part in prompt if isinstance(part, int)]
        return self._source.given(given) if given and len(given) == len(prompt) else None

    def _ids(self, prompt: Prompt) -> tuple[list[int], Conversation | None]:
        """The prompt's ids, and the conversation that its answer belongs to."""
        source = self._source
        source.check_reads(images=False)
        if isinstance(prompt, str):
            return source.prompt(prompt), None
        if (ids := self._given(prompt)) is not None:
            return ids, None
        messages = [part for part in prompt if isinstance(part, Mapping)]
        if not messages or len(messages) != len(prompt) or messages[-1].get("role") != "user":
            raise UserError("a conversation ends with a message of the user, which is to be "
                            "answered; add one")
        if self._talk is None:
            self._talk = source.conversation()
        return source.fitting(self._talk.continued(messages), "the conversation",
                              "leave out the oldest messages"), self._talk

    def _steps(self, run: Generator[Event, None, None], ids: list[int], talk: Conversation | None,
               stop: Sequence[str], stop_ids: Sequence[int],
               max_tokens: int | None) -> Iterator[Step]:
        from ..text.stopped import StoppedText, why_ended
        text = StoppedText(self._source.tokenizer.stream(ids), stop)
        tokens: list[int] = []
        ended = "left"
        try:
            with closing(run) as events:
                for event in in_one_thread(events):
                    tokens.append(event.token)
                    over = event.token in stop_ids
                    yield Step(text="" if over else text.push(event.token), token=event.token,
                               logits=event.logits)
                    if text.stopped:
                        break
            if rest := text.flush():
                yield Step(text=rest)
            ended = why_ended(tokens, stop_ids, text.stopped, len(tokens) == max_tokens)
        finally:
            if talk is not None:
                talk.answered(tokens, text.text if text.stopped else None)
            self.last = Completion(
                text=text.text, tokens=tuple(tokens), ended=ended, prompt_tokens=len(ids),
                cached_tokens=self._target.cached, counters=self._target.counters())
