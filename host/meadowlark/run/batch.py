"""Many sequences on one chip: which of them takes part in which pass. See docs/batches.md."""
from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, takewhile
from typing import TYPE_CHECKING

from meadowlark_hdl.run_table import STOP_IDS

from ..errors import UserError
from .targets import OFF, Drafting, Event, Target

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..compile.image import Image

#: Gets each event of a sequence as it comes; whether the sequence ends with it.
Watch = Callable[[Event], bool]
#: Blocks of P tokens of a chunk of a prompt, at most: about as many as keep the array busy while
#: memory brings the weights.
CHUNK_BLOCKS = 8
#: Passes that sequences go on for while others, which cannot join them, wait for their turn.
PASSES = 8


def most_sequences(image: Image, board: Board) -> int:
    """Sequences that a board has in work at once: whose caches its memory holds. One on a board
    without batches."""
    if not board.config.batches:
        return 1
    return image.sequences(board.memory.size_bytes)


def lanes_of(image: Image, board: Board) -> int:
    """Sequences that a pass takes."""
    return image.most_together(board.config.turns)


def check_together(image: Image, board: Board, sequences: int) -> None:
    """Raise :class:`UserError` unless a pass of the board takes so many sequences; 0: none."""
    most = min(lanes_of(image, board), most_sequences(image, board))
    if sequences > most or sequences and not board.config.batches:
        raise UserError(f"a pass of the board {board.name} takes at most {most} of {image.name}'s "
                        f"sequences, not {sequences}; give fewer to --batch, or leave it out")


class Running:
    """A sequence on its way; made by :meth:`Batch.submit`. Iterating gives its events as they come,
    and makes the chip work as long as there are none.

    Attributes
    ----------
    prompt : list of int
    events : list of Event
        All so far.
    ended : bool
        No more will come: it is complete, or was cancelled.
    cancelled : bool
        It ended before it was complete.
    cached : int
        Tokens at the front of its prompt that a cache held already.
    drafts : dict of int
        "drafted" and "accepted", if the batch counts.
    """

    def __init__(self, batch: Batch, prompt: list[int], sampling: Sampling, max_new: int,
                 stop_ids: Sequence[int], watch: Watch | None) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.stop_ids = frozenset(stop_ids)
        self.events: list[Event] = []
        self.ended, self.cancelled, self.cached = False, False, 0
        self.drafts = dict.fromkeys(("drafted", "accepted"), 0)
        self.cache = -1             # its number, once it has one
        self.taken = 0              # tokens whose keys the cache surely holds
        self.served = 0             # when it had its latest turn
        self._batch, self._max_new, self._watch = batch, max_new, watch

    def __iter__(self) -> Iterator[Event]:
        at = 0
        while True:
            while at < len(self.events):
                at += 1
                yield self.events[at - 1]
            if self.ended or not self._batch.step():
                return

    def cancel(self) -> None:
        """It ends with the pass under way at the latest; others go on."""
        self._batch.cancel(self)

    @property
    def text(self) -> list[int]:
        """Prompt and what has been drawn."""
        return [*self.prompt, *(event.token for event in self.events)]

    @property
    def left(self) -> int:
        """Tokens to come, at most."""
        return self._max_new - len(self.events)

    @property
    def ahead(self) -> list[int]:
        """Tokens whose keys are to come: of the prompt, or the one drawn last."""
        return self.text[self.taken:]

    def push(self, event: Event) -> None:
        """Take the next token. All before it are in the cache by then."""
        self.taken = len(self.prompt) + len(self.events)
        self.events.append(event)
        over = self._watch is not None and self._watch(event)
        self.ended = over or not self.left or event.token in self.stop_ids


class Batch:
    """Sequences that share a chip, and come and go between its passes.

    It works when it is asked to, in the caller's thread: :meth:`step`, or iterating a sequence.

    - A prompt is taken in chunks of a pass. Between two chunks the sequences that have begun go on
      by a pass.
    - A pass takes as many sequences as there are lanes, those that have waited longest, if they are
      drawn alike but for their seeds. Those that are drawn with top-k go on one by one.
    - Drafts have the lanes when one sequence is all there is.
    - A cache stays when its sequence ends. A new one takes the free one that begins most alike,
      and of its prompt only the tokens behind that.

    Each sequence has the tokens that it would have alone.

    Parameters
    ----------
    target : Target
        A model is loaded. Its caches are this one's from here on.
    image : Image
        That model's.
    parallel : int, 1.., optional
        Sequences in work at once, at most; by default as many as a pass takes. Others wait.
    drafts : Drafting
        Of a sequence that is alone; with top-k there are none.
    count : bool
        Ask for the counters after each run.

    Attributes
    ----------
    counted : Counter or None
        Sums of the core's counters over :attr:`runs`, if asked for.
    latest : list of (int, int)
        Of the latest pass that drew tokens, when its run ended: the cache and the position of each
        sequence's token before that.

    Raises
    ------
    UserError
        More sequences at once than the board's memory has caches for.
    """

    def __init__(self, target: Target, image: Image, *, parallel: int | None = None,
                 drafts: Drafting = OFF, count: bool = False) -> None:
        self.counted, self.runs = Counter[str]() if count else None, 0
        self._target, self._image, self._drafts = target, image, drafts
        board = target.board
        most, self._lanes = most_sequences(image, board), lanes_of(image, board)
        if parallel is not None and not 1 <= parallel <= most:
            raise UserError(f"the board {board.name} takes {most} sequences of {image.name} at "
                            f"once, not {parallel}; give a number from 1 to {most}")
        self._chunk = min(image.model_regs["blocks"], CHUNK_BLOCKS) * board.config.P
        self._waiting: deque[Running] = deque()
        self._active: list[Running] = []
        self._held: list[list[int]] = [[] for _ in range(parallel or min(self._lanes, most))]
        self._work: Generator[None, None, None] | None = None
        self._turn, self._prompts_next = 0, True
        self._ending = self._closed = False
        self.latest: list[tuple[int, int]] = []
        target.forget()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    @property
    def parallel(self) -> int:
        """Sequences in work at once, at most."""
        return len(self._held)

    @property
    def between_runs(self) -> bool:
        """No run is under way, so that :attr:`counted` is of all there was."""
        return self._work is None

    def submit(self, tokens: Sequence[int], sampling: Sampling, *, max_new: int,
               stop_ids: Sequence[int] = (), watch: Watch | None = None) -> Running:
        """Begin a sequence: as :meth:`.targets.Target.generate`, which gives the same tokens."""
        assert not self._closed and tokens, "a batch is open, and a prompt has tokens"
        most = min(max_new, self._image.context - len(tokens) + 1)
        made = Running(self, list(tokens), sampling, most, stop_ids, watch)
        made.ended = most < 1
        if not made.ended:
            self._waiting.append(made)
            if len(self._active) < self.parallel:
                self._interrupt()
        return made

    def cancel(self, sequence: Running) -> None:
        """See :meth:`Running.cancel`."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._active and not sequence.ended:
            self._interrupt()
        sequence.cancelled |= not sequence.ended
        sequence.ended = True

    def close(self) -> None:
        """Cancel all; the chip is ready for other runs."""
        for sequence in [*self._waiting, *self._active]:
            sequence.cancelled |= not sequence.ended
            sequence.ended = True
        self._waiting.clear()
        self._active.clear()
        self._closed = True
        if self._work is not None:
            self._work.close()
            self._work = None

    def step(self) -> bool:
        """Go on until something has happened, a token mostly; False: there is nothing to do."""
        if self._work is None:
            self._work, self._ending = self._next(), False
        if self._work is None:
            return False
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException:
            self.close()
            raise
        return True

    def _interrupt(self) -> None:
        """End the run under way, if there is one that has not been asked to end already."""
        if self._work is not None and not self._ending:
            self._ending = True
            self._target.end()

    # ---- What comes next

    def _next(self) -> Generator[None, None, None] | None:
        """The next run, if there is something to do."""
        self._active = [s for s in self._active if not s.ended]
        while self._waiting and len(self._active) < self.parallel:
            self._admit(self._waiting.popleft())
        self._turn += 1
        ready = [s for s in self._active if s.events]
        prompts = [s for s in self._active if not s.events]
        if not self._active:
            return None
        if len(self._active) == 1:
            only = self._active[0]
            return self._alone(only, only.left, OFF if only.sampling.top_k else self._drafts)
        if prompts and (self._prompts_next or not ready):
            self._prompts_next = False
            return self._prompt(min(prompts, key=_served))
        self._prompts_next = True
        some = self._alike(ready)
        passes = 1 if prompts else PASSES if len(some) < len(ready) else self._image.context
        passes = min(passes, *(s.left for s in some))
        if len(some) == 1:
            return self._alone(some[0], passes, OFF)
        return self._together(some, passes)

    def _admit(self, sequence: Running) -> None:
        """Give it a cache: of the free ones that which begins most alike."""
        taken = {s.cache for s in self._active}
        free = [k for k in range(self.parallel) if k not in taken]
        alike = {k: _alike(self._held[k], sequence.prompt[:-1]) for k in free}
        # Of equal ones that which holds least.
        sequence.cache = max(free, key=lambda k: (alike[k], -len(self._held[k])))
        sequence.taken = sequence.cached = alike[sequence.cache]
        sequence.served = self._turn
        self._active.append(sequence)

    def _alike(self, ready: list[Running]) -> list[Running]:
        """Those that a pass takes."""
        ready = sorted(ready, key=_served)
        first = ready[0].sampling
        if first.top_k:
            return ready[:1]
        same = [s for s in ready if not s.sampling.top_k and (
            s.sampling.inv_t_mant, s.sampling.inv_t_shift) == (
                first.inv_t_mant, first.inv_t_shift)]
        return same[:self._lanes]

    # ---- Runs

    def _prompt(self, s: Running) -> Generator[None, None, None]:
        """The next chunk of a prompt; with the last one comes the first token."""
        ahead = s.ahead
        last = len(ahead) <= self._chunk
        yield from self._single(s, ahead[:self._chunk], int(last), OFF)
        if not last:
            s.taken += self._chunk
            self._held[s.cache] = s.prompt[:s.taken]
            yield

    def _alone(self, s: Running, count: int, drafts: Drafting) -> Generator[None, None, None]:
        """All that a sequence has ahead, and as many tokens."""
        yield from self._single(s, s.ahead, count, drafts)

    def _single(self, s: Running, tokens: list[int], count: int,
                drafts: Drafting) -> Generator[None, None, None]:
        s.served = self._turn
        self._held[s.cache] = s.text[:s.taken]          # what follows may be overwritten
        stops = tuple(s.stop_ids)
        with closing(self._target.run(
                tokens, s.sampling, start_pos=s.taken, max_new=count, stop_ids=stops,
                drafts=drafts, cache=s.cache,
                before=s.text[:s.taken] if drafts.most else ())) as events:
            for event in events:
                self._push(s, event, stops)
                yield
        self._ended([s])
        counters = self._add()
        for name in s.drafts:
            s.drafts[name] += counters.get(name, 0)

    def _together(self, some: list[Running], passes: int) -> Generator[None, None, None]:
        """A token a pass of each."""
        for s in some:
            s.served = self._turn
            self._held[s.cache] = s.text[:s.taken]
        stops = sorted(set(chain.from_iterable(s.stop_ids for s in some)))[:STOP_IDS]
        with closing(self._target.run_together(
                [s.ahead[0] for s in some], [(s.cache, s.taken) for s in some],
                [s.sampling for s in some], max_new=passes, stop_ids=stops)) as events:
            for at, event in enumerate(events):
                self._push(some[at % len(some)], event, stops)
                yield
        self._ended(some)
        self._add()

    def _ended(self, some: Sequence[Running]) -> None:
        """A run of these sequences."""
        for s in some:
            self._held[s.cache] = s.text[:s.taken]
        self.latest = [(s.cache, s.taken - 1) for s in some if s.events] or self.latest

    def _push(self, s: Running, event: Event, stops: Collection[int]) -> None:
        """Nothing comes behind the end of a sequence. stops: what ends the run as well."""
        if not s.ended:
            s.push(event)
            if s.ended and s.left and event.token not in stops:
                self._interrupt()               # the chip does not know that

    def _add(self) -> dict[str, int]:
        """Counters of a run that has ended; none if they are not asked for."""
        if self.counted is None:
            return {}
        self.runs += 1
        counters = self._target.counters()
        self.counted.update(counters)
        return counters


def _served(s: Running) -> int:
    return s.served


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the front that are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
