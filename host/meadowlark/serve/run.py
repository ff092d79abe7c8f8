"""The runs of one request: jobs in a scheduler, and their pieces in the server's loop."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from ..api.results import Step
from ..text.tokenizer import Tokenizer
from .answers import Piece, likelihood
from .requests import Bad
from .scheduler import Closed, Ended, Full, Job, Scheduler

#: Seconds after which a client that found the queue full may ask again.
RETRY = 5


class Runs:
    """Jobs of a request, and what they give, as it comes. Made in the server's loop.

    Parameters
    ----------
    scheduler : Scheduler
    jobs : sequence of Job
        One a choice, in order.
    tokenizer : Tokenizer
    stop_ids : sequence of int
        Tokens that end a text and are none of it.
    likely : int, optional
        See :class:`.requests.Asked`.
    seconds : float
        That all of them may take, waiting included; then they are ended as they are.

    Raises
    ------
    Bad
        The queue is full, or the server ends.
    """

    def __init__(self, scheduler: Scheduler, jobs: Sequence[Job], tokenizer: Tokenizer,
                 stop_ids: Sequence[int], *, likely: int | None, seconds: float) -> None:
        self._scheduler, self._count = scheduler, len(jobs)
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._got: asyncio.Queue[tuple[int, Piece | Ended]] = asyncio.Queue()

        def emit(at: int, item: Step | Ended) -> None:
            """In the scheduler's thread."""
            if isinstance(item, Step):
                shown = None if likely is None or item.token in stop_ids else \
                    likelihood(item, tokenizer, likely)
                item_: Piece | Ended = Piece(text=item.text, likely=shown)
                if not item.text and shown is None:
                    return
            else:
                item_ = item
            try:
                self._loop.call_soon_threadsafe(self._got.put_nowait, (at, item_))
            except RuntimeError:        # the loop is closed: nobody listens
                pass
        try:
            self._tickets = scheduler.submit([
                (job, lambda item, at=at: emit(at, item)) for at, job in enumerate(jobs)])
        except Full:
            raise Bad("the queue is full; ask again later", status=429, code="rate_limit_exceeded",
                      headers={"Retry-After": str(RETRY)}) from None
        except Closed:
            raise Bad("the server is ending; ask again later", status=503,
                      code="server_error") from None

    def cancel(self) -> None:
        """Nobody listens any more: free the sequences."""
        for ticket in self._tickets:
            self._scheduler.cancel(ticket)

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece | Ended], None]:
        """Pieces of each choice as they come, and an Ended of each. Leaving it frees what runs."""
        left = self._count
        try:
            while left:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        at, item = await self._got.get()
                except TimeoutError:
                    self.cancel()
                    self._deadline = float("inf")
                    continue
                left -= isinstance(item, Ended)
                yield at, item
        finally:
            self.cancel()
