"""Who runs next: jobs of many clients, and the thread that owns the chip."""
from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..api.chip import Chip
from ..api.results import Completion, Step
from ..api.together import Text, Together
from ..errors import UserError


class Full(Exception):
    """The queue has no room for so many jobs."""


class Closed(Exception):
    """The scheduler takes no more jobs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run. prompt: ids. options: of :meth:`meadowlark.api.chip.Chip.steps`, sound."""
    prompt: Sequence[int]
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The last thing that a job gives. done: None if it never began. error: a sentence, if it ended
    by a fault of the chip. seconds: from its first step on the chip to its end."""
    done: Completion | None = None
    error: str = ""
    seconds: float = 0.0


#: Gets what a job gives, steps and then one Ended, from the scheduler's thread; must not block.
Emit = Callable[[Step | Ended], None]


@dataclass(eq=False)
class Ticket:
    """A job that was taken. number: of this scheduler, from 1 on. state: "waiting", "running" or
    "ended". tokens: generated so far."""
    number: int
    job: Job
    emit: Emit
    state: str = "waiting"
    tokens: int = 0
    cancelled: bool = False


@dataclass
class Totals:
    """Of all jobs so far. seconds: that the chip was busy. last_pass: as
    :attr:`.Together.latest`, at the end of the latest one."""
    jobs: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    last: Completion | None = None
    last_seconds: float = 0.0
    last_pass: list[tuple[int, int]] = field(default_factory=list)


class Scheduler(Protocol):
    """What the server needs of whoever runs jobs; any thread may call.

    totals: for reports. slots: sequences that run at once, at most.
    """
    totals: Totals
    slots: int

    def submit(self, jobs: Sequence[tuple[Job, Emit]]) -> list[Ticket]:
        """Take jobs, all or none. Raises :class:`Full` or :class:`Closed`."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """End a job and free its sequence; it gives :class:`Ended` soon. One that has ended stays
        as it is."""
        ...

    def tickets(self) -> list[Ticket]:
        """Those that run, then those that wait."""
        ...

    def close(self) -> None:
        """Take no more, end those that wait, finish those that run; returns when all have ended."""
        ...


class Shared:
    """A chip whose passes jobs share: each gets the steps that it would get alone.

    Jobs begin in the order they came, as many at once as a pass of the chip takes.

    Parameters
    ----------
    chip : Chip
        Used by the scheduler's thread alone from here on, but for :meth:`.Chip.encode` and
        :meth:`.Chip.check`.
    waiting : int, 0..
        Jobs that wait beside those that run, at most.
    parallel : int, optional
        Jobs that run at once, at most; by default as many as a pass takes.

    Raises
    ------
    UserError
        The chip does not take so many at once.
    """

    def __init__(self, chip: Chip, *, waiting: int = 64, parallel: int | None = None) -> None:
        self._chip, self._most, self._parallel = chip, waiting, parallel
        self._texts: Together | None = chip.together(parallel=parallel)
        self.slots, self.totals, self._busy_until = self._texts.parallel, Totals(), 0.0
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Ticket, _Run] = {}
        self._count, self._closed = 0, False
        self._thread = threading.Thread(target=self._work, name="chip", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[tuple[Job, Emit]]) -> list[Ticket]:
        """See :class:`Scheduler`."""
        with self._changed:
            if self._closed:
                raise Closed
            # Those that run next do not wait.
            free = self._most + self.slots - len(self._running) - len(self._waiting)
            if len(jobs) > free:
                raise Full
            tickets = []
            for job, emit in jobs:
                self._count += 1
                tickets.append(Ticket(self._count, job, emit))
            self._waiting += tickets
            self._changed.notify_all()
            return tickets

    def cancel(self, ticket: Ticket) -> None:
        """See :class:`Scheduler`."""
        with self._changed:
            ticket.cancelled = True
            if ticket.state != "waiting":
                return
            self._waiting.remove(ticket)
            ticket.state = "ended"
            self.totals.cancelled += 1
        ticket.emit(Ended())

    def tickets(self) -> list[Ticket]:
        """See :class:`Scheduler`."""
        with self._changed:
            return [*self._running, *self._waiting]

    def close(self) -> None:
        """See :class:`Scheduler`."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._changed.notify_all()
        for ticket in waiting:
            self.cancel(ticket)
        self._thread.join()

    # ---- The chip's thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closed)
                if not self._waiting and not self._running:
                    break
                begins = []
                while self._waiting and len(self._running) < self.slots:
                    ticket = self._waiting.popleft()
                    ticket.state = "running"
                    self._running[ticket] = run = _Run(ticket)
                    begins.append(run)
            self._step(begins)
            for run in [run for run in self._running.values() if run.ended is not None]:
                with self._changed:
                    del self._running[run.ticket]
                    run.ticket.state = "ended"
                    self._count_in(run)
                run.ticket.emit(run.ended or Ended())
        if self._texts is not None:
            self._texts.close()

    def _step(self, begins: Sequence[_Run]) -> None:
        """Begin jobs and go on with all; whatever goes wrong, the thread goes on."""
        try:
            if self._texts is None:
                self._texts = self._chip.together(parallel=self._parallel)
            for run in begins:
                job = run.ticket.job
                run.text = self._texts.begin(job.prompt, run.take, **job.options)
            for run in self._running.values():
                if run.ticket.cancelled and run.text is not None:
                    run.text.cancel()
            self._texts.step()
        except UserError as problem:
            self._fail(str(problem))
        except Exception as problem:
            logging.getLogger("meadowlark").exception("a run failed")
            self._fail(f"the run failed ({type(problem).__name__}); the server's log says more")

    def _fail(self, error: str) -> None:
        """All that run end so; the next ones begin anew."""
        for run in self._running.values():
            run.error = error
        texts, self._texts = self._texts, None
        if texts is not None:
            texts.close()

    def _count_in(self, run: _Run) -> None:
        totals, ended = self.totals, run.ended
        assert ended is not None, "a run is counted at its end"
        done = ended.done
        totals.jobs += 1
        totals.cancelled += run.ticket.cancelled
        totals.failed += bool(ended.error)
        # Seconds in which several run count once.
        totals.seconds += max(0.0, time.monotonic() - max(run.began, self._busy_until))
        self._busy_until = time.monotonic()
        if done is not None:
            totals.prompt_tokens += done.prompt_tokens
            totals.cached_tokens += done.cached_tokens
            totals.tokens += len(done.tokens)
            totals.last, totals.last_seconds = done, ended.seconds
            if self._texts is not None:
                totals.last_pass = self._texts.latest


class _Run:
    """A job on the chip."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.error, self.began = ticket, "", time.monotonic()
        self.text: Text | None = None

    def take(self, step: Step) -> None:
        """Give a step to whoever asked."""
        self.ticket.tokens += step.token is not None
        if not self.ticket.cancelled:
            self.ticket.emit(step)

    @property
    def ended(self) -> Ended | None:
        """What it ends with, once it has."""
        done = None if self.text is None else self.text.done
        if done is None and not self.error:
            return None
        return Ended(done=done, error=self.error, seconds=time.monotonic() - self.began)
