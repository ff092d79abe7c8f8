"""The simulated board's byte queues as a transport of the host link."""
from __future__ import annotations

from .board import SimBoard

#: Silence after which an answer counts as lost, in cycles. Nothing gets lost here, and the slowest
#: answer (a checksum over all of memory) takes millions of cycles.
PATIENCE = 1 << 24


class SimTransport:
    """A :class:`meadowlark.link.transport.Transport` to a :class:`.SimBoard`.

    Its time is the simulation's: the clock runs only within :meth:`read`, and only until there is
    something to read.

    Parameters
    ----------
    sim : SimBoard
        Owned by the caller; :meth:`close` leaves it open.

    Attributes
    ----------
    timeout : float
        Simulated seconds.
    """

    def __init__(self, sim: SimBoard) -> None:
        self.sim = sim
        self.hz = sim.board.clock_mhz * 1e6
        self.timeout = PATIENCE / self.hz
        self._cycles = 0

    def now(self) -> float:
        """Simulated seconds that went by in :meth:`read`."""
        return self._cycles / self.hz

    def write(self, data: bytes) -> None:
        """Queue ``data``; it moves when the clock runs."""
        self.sim.push(data)

    def read(self, max: int, timeout: float) -> bytes:
        """1..``max`` bytes, or ``b""`` after ``timeout`` simulated seconds without one.

        With a timeout of 0 the clock runs just long enough for a frame on its way to end.
        """
        if not self.sim.waiting:
            self._cycles += self.sim.run(self.sim.quiet + int(timeout * self.hz), until_bytes=1,
                                         quiet=self.sim.quiet)
        return self.sim.pop(max)

    def close(self) -> None:
        """Nothing to free: the simulation belongs to whoever opened it."""
