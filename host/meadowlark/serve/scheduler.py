"""Who runs next: jobs of many clients, and the thread that owns the chip."""
from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..api.chip import Chip, Completion, Step
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
    """Of all jobs so far. seconds: that the chip was busy."""
    jobs: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    last: Completion | None = None
    last_seconds: float = 0.0


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


class OneByOne:
    """A chip that runs one job after the other, in the order they came.

    Parameters
    ----------
    chip : Chip
        Used by the scheduler's thread alone from here on, but for :meth:`.Chip.encode` and
        :meth:`.Chip.check`.
    waiting : int, 0..
        Jobs that wait beside the one that runs, at most.
    """
    slots = 1

    def __init__(self, chip: Chip, *, waiting: int = 64) -> None:
        self._chip, self._most = chip, waiting
        self.totals = Totals()
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._count, self._closed = 0, False
        self._thread = threading.Thread(target=self._work, name="chip", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[tuple[Job, Emit]]) -> list[Ticket]:
        """See :class:`Scheduler`."""
        with self._changed:
            if self._closed:
                raise Closed
            # The one that runs next does not wait.
            free = self._most + (self._running is None) - len(self._waiting)
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
            return [*([self._running] if self._running else []), *self._waiting]

    def close(self) -> None:
        """See :class:`Scheduler`."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._changed.notify_all()
        for ticket in waiting:
            self.cancel(ticket)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._running = ticket = self._waiting.popleft()
                ticket.state = "running"
            ended = self._run(ticket)
            with self._changed:
                ticket.state, self._running = "ended", None
                self._count_in(ticket, ended)
            ticket.emit(ended)

    def _run(self, ticket: Ticket) -> Ended:
        """Run a job to its end, or until it is cancelled; whatever goes wrong, the thread goes on.
        """
        began, error = time.monotonic(), ""
        self._chip.last = None
        try:
            for step in (steps := self._chip.steps(ticket.job.prompt, **ticket.job.options)):
                if ticket.cancelled:
                    break
                ticket.tokens += step.token is not None
                ticket.emit(step)
            steps.close()           # type: ignore[attr-defined]    # a generator
        except UserError as problem:
            error = str(problem)
        except Exception as problem:
            logging.getLogger("meadowlark").exception("a run failed")
            error = f"the run failed ({type(problem).__name__}); the server's log says more"
        return Ended(done=self._chip.last, error=error, seconds=time.monotonic() - began)

    def _count_in(self, ticket: Ticket, ended: Ended) -> None:
        totals, done = self.totals, ended.done
        totals.jobs += 1
        totals.cancelled += ticket.cancelled
        totals.failed += bool(ended.error)
        totals.seconds += ended.seconds
        if done is not None:
            totals.prompt_tokens += done.prompt_tokens
            totals.cached_tokens += done.cached_tokens
            totals.tokens += len(done.tokens)
            totals.last, totals.last_seconds = done, ended.seconds
