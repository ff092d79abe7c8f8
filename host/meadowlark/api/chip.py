"""A model on what runs it: text in, text out."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..errors import UserError
from ..text.stopped import StoppedText
from ..threads import in_one_thread, one_thread
from .prompts import Taker
from .results import Completion, Message, Options, Prompt, Run, Step, Steps, TextOptions

if TYPE_CHECKING:
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image
    from ..run.classify import Classification, Classified
    from ..run.prepare import Source
    from ..run.targets import Check, Drafting, GoldenTarget, Target
    from ..run.timeline import Timeline
    from ..run.waves import Waves
    from ..text.chat import Conversation
    from .bench import Bench
    from .talk import Talk
    from .together import Text, Together


class Chip(Taker):
    """A model on what runs it; a context manager that frees it. Made by :meth:`LoadedModel.on`,
    and loaded there or with the first run.

    Runs come one after the other. Each takes only the part of its prompt that the KV cache does not
    hold from those before, so that a conversation goes on where it was.

    Attributes
    ----------
    board : Board
    image : Image
    last : Completion or None
        Of the latest run.
    """

    def __init__(self, target: Target, source: Source,
                 recorders: Sequence[Timeline | Waves] = ()) -> None:
        super().__init__(target, source)
        self._recorders, self._loaded = recorders, False
        self._run: Run | None = None
        self.last: Completion | None = None

    def __enter__(self) -> Chip:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the target: the simulation ends, the port is closed."""
        self._target.close()

    def load(self) -> None:
        """Load the model, unless it is.

        Raises
        ------
        UserError
            It does not fit the board.
        """
        if not self._loaded:
            with one_thread():
                self._target.load(self._source)
            self._loaded = True

    @property
    def counters(self) -> dict[str, int]:
        """Counters of the core for the latest run, see docs/registers.md."""
        return self._target.counters()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """Pieces of text as they come; options as :meth:`steps`."""
        return (step.text for step in self.steps(prompt, **options) if step.text)

    def steps(self, prompt: Prompt, *, max_tokens: int | None = None, temperature: float = 0.0,
              top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: str | Sequence[str] = (),
              ignore_eos: bool = False, draft: str | int = "auto") -> Steps:
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
                                 top_p=top_p, seed=seed, stop=stop, draft=draft)
        ids, talk = self._ids(prompt)
        return self._begin(ids, talk, draw, stops, self.drafting(draft, draw), max_tokens,
                           ignore_eos)

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
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
             seed: int | Sequence[int] = 0, draft: str | int = "auto",
             **options: Unpack[TextOptions]) -> list[Completion]:
        """How many texts go on, several in each pass of the chip: in order, each as
        :meth:`generate` gives it alone. ``counters`` are sums over all of them.

        Parameters
        ----------
        prompts : sequence of Prompt
        parallel : int, optional
            So many are in work at once; by default as many as a pass takes.
        seed : int, or a sequence with one for each prompt
        draft, options
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
            running = [texts.begin(prompt, seed=number, **options)
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
        drafts = self.drafting(draft)
        self.load()
        with one_thread():
            batch = Batch(self._target, self.image, parallel=parallel, drafts=drafts, count=True)
        return Together(batch, self.image, self.tokenizer, check=self.check, encode=self.encode)

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Completion:
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
        found = self.classification(*files)
        if found.check is not None and not found.check.bit_exact:
            raise UserError(f"the board differs from its golden model "
                            f"({found.check.first_difference}); load a bitstream of this version")
        return found.images

    def classification(self, *files: str | Path, check: bool = False) -> Classification:
        """As :meth:`classify`, with how fast it was, and whether the golden model says the same.

        check: compare with that in any case, and not only where a board tells no logits.
        """
        from ..run.classify import classify, opened
        source, names = self._source, list(map(str, files))
        source.check_reads(images=True)
        codes = opened(source, names)
        self.load()
        with self._recorded("classify"), one_thread():
            return classify(self._target, source, names, codes, always=check, progress=source.tell)

    def talk(self, system: str = "", *, keep: str = "recent", max_tokens: int | None = None,
             ignore_eos: bool = False, draft: str | int = "auto", temperature: float = 0.0,
             top_k: int = 0, top_p: float = 1.0, seed: int = 0,
             stop: str | Sequence[str] = ()) -> Talk:
        """A conversation, question by question, that goes on when the context is full.

        Parameters
        ----------
        system : str
            What the model is told before the first question.
        keep : str
            "recent" or "system": what stays when the context is full, see :class:`.talk.Talk`.
        max_tokens, ignore_eos, draft, temperature, top_k, top_p, seed, stop
            Of each answer, as of :meth:`steps`.

        Raises
        ------
        UserError
            The model came without a chat template; or as :meth:`steps`.
        """
        from .talk import Talk
        draw, stops = self.check(max_tokens=max_tokens, temperature=temperature, top_k=top_k,
                                 top_p=top_p, seed=seed, stop=stop, draft=draft)
        source = self._source
        source.check_reads(images=False)
        said, drafts = source.conversation(system), self.drafting(draft, draw)
        self.load()
        return Talk(source, said, partial(self._begin, draw=draw, stops=stops, drafts=drafts,
                                          max_tokens=max_tokens, ignore_eos=ignore_eos),
                    keep=keep, max_tokens=max_tokens)

    def bench(self, *, prompts: Sequence[int] = (128,), generates: Sequence[int] = (32,),
              positions: Sequence[int] = (0,), batches: Sequence[int] = (),
              texts: Sequence[str] | None = None, against_raw: bool = False) -> Bench:
        """Measure prefill and decode by the core's own counters.

        Parameters
        ----------
        prompts, generates : sequence of int, 1..
            Tokens of the prompt, and tokens to generate behind one: a test for each, with the names
            that llama-bench has, "pp128" and "tg32".
        positions : sequence of int, 0..
            Where the tests begin. Of a simulation the cache before it is filled directly.
        batches : sequence of int, 1..
            Sequences that generate together, a token each a pass: "b8 tg32".
        texts : sequence of str, optional
            Beginnings, or questions where the model has a chat template, that are gone on with,
            with drafts and without: "sg32" and "sg32 off".
        against_raw : bool
            Measure the weights as they are too, without packing and budget.

        Raises
        ------
        UserError
            The target counts no cycles, or cannot begin at a position; a test does not fit the
            context; there is none.

        >>> import meadowlark as ml
        >>> with ml.load("stories").on("sim") as chip:
        ...     found = chip.bench(prompts=[], generates=[2]).results["tg2"]
        >>> abs(found.cycles / found.predicted_cycles - 1) < 0.01
        True
        """
        from .bench import measure
        try:
            with one_thread():
                return measure(
                    self._target, self._source, load=self.load, recorded=self._recorded,
                    prompts=prompts, generates=generates, positions=positions, batches=batches,
                    texts=texts, against_raw=against_raw)
        finally:
            self._loaded = self._loaded and not against_raw

    def verify(self, text: Text | None = None) -> Check:
        """Compare a run with the golden model: every token, and every logit, by CRC where the
        target shows none.

        text: of :meth:`together`; by default the latest run that was one text alone.

        Raises
        ------
        UserError
            Nothing has run, or it was the golden model that did.
        """
        from ..run.targets import OFF, check
        run = self._run if text is None else text.run
        if run is None:
            raise UserError("there is nothing to compare yet; generate a text first")
        if self._target.name == "golden":
            raise UserError("the golden model has nothing to be compared with; run the model on "
                            "something else")
        golden, alone = self._golden, text is None
        with one_thread():
            return check(
                run.events, golden.generate(
                    run.prompt, run.sampling, max_new=run.max_tokens or self.image.context,
                    stop_ids=run.stop_ids, drafts=run.drafts or OFF),
                whole=not run.text.stopped and run.whole, progress=self._source.tell,
                counters=(run.counters, golden.counters) if alone else None)

    def bytes_per_token(self, done: Completion) -> float:
        """Useful bytes of a pass behind the prompt, averaged over a run; of the next one if it had
        none."""
        first, passes = done.prompt_tokens, max(len(done.tokens) - 1, 0)
        return sum(self.image.bytes_per_token(first + at + 1) for at in range(passes)) / passes \
            if passes else float(self.image.bytes_per_token(first))

    @property
    def target(self) -> Target:
        """What runs it."""
        return self._target

    @cached_property
    def _golden(self) -> GoldenTarget:
        """What others are compared with."""
        from ..run.targets import GoldenTarget
        golden = GoldenTarget(self.board, progress=self._source.tell)
        golden.load(self._source)
        return golden

    @contextmanager
    def _recorded(self, name: str, image: Image | None = None) -> Iterator[None]:
        """A run, for those who record it. image: what runs, if it is not this one's."""
        with ExitStack() as stack:
            for one in self._recorders:
                stack.enter_context(one.recording(self._target, image or self.image, name))
            yield

    def _begin(self, ids: list[int], talk: Conversation | None, draw: Sampling,
               stops: Sequence[str], drafts: Drafting, max_tokens: int | None,
               ignore_eos: bool = False) -> Steps:
        """Run a prompt; what comes."""
        self.load()
        self._source.tell("taking the prompt")
        run = Run(prompt=ids, sampling=draw, drafts=drafts, max_tokens=max_tokens,
                  stop_ids=() if ignore_eos else self.image.stop_ids,
                  text=StoppedText(self.tokenizer.stream(ids), stops),
                  comparable=self._target.name != "golden")
        self.last = run.end(cached=0, counters={})      # until it has begun
        return self._steps(run, talk)

    def _steps(self, run: Run, talk: Conversation | None) -> Steps:
        context, drafts = self.image.context, run.drafts
        assert drafts is not None
        most = min(run.max_tokens or context, context - len(run.prompt) + 1)
        events = self._target.generate(run.prompt, run.sampling, max_new=most, reuse=True,
                                       stop_ids=run.stop_ids, drafts=drafts)
        failed = True
        try:
            with self._recorded("generate"), closing(events):
                for event in in_one_thread(events):
                    step = run.push(event)
                    self._source.tell("generating", len(run.events), most)
                    yield step
                    if run.text.stopped:
                        break
            if rest := run.text.flush():
                yield Step(text=rest)
            run.whole, failed = True, False
        except (GeneratorExit, KeyboardInterrupt):      # the run has been ended, and counted
            failed = False
            raise
        finally:
            self._run = run
            self.last = run.end(cached=self._target.cached,
                                counters={} if failed else self._target.counters())
            if talk is not None:
                talk.answered(self.last.tokens, run.text.text if run.text.stopped else None)
