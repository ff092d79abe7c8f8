"""When lots are drained, and what that takes from SV: the walker Drain beside the walker Keys."""
from __future__ import annotations

from collections import deque

from meadowlark_hdl.compute.lane import DRAIN_LATER
from meadowlark_hdl.config import Config
from meadowlark_hdl.issue.drain import Drain, sum_row
from meadowlark_hdl.issue.keys import Keys


class Drains:
    """Times are cycles in which something is presented.

    Parameters
    ----------
    config : Config
    sum_gap : int
        See :class:`meadowlark_hdl.issue.drain.Drain`.

    Attributes
    ----------
    last : int
        Cycle of the latest row that is known of.
    """

    def __init__(self, config: Config, sum_gap: int) -> None:
        self.period, self.gap = config.row_cycles, sum_row(config, sum_gap)
        self.last = -(1 << 30)          # long ago
        #: Rows that take cycles still: of sums, of the first element and of the last one.
        self._rows: deque[tuple[int, int, int]] = deque()
        self._ends: list[int] = []      # last rows of the lots of this SV, in their order

    def begin(self) -> None:
        """An SV begins: all lots before it are drained."""
        self._ends.clear()

    def shift(self, cycles: int) -> None:
        """All is as much later."""
        self.last += cycles
        self._rows = deque((a + cycles, b + cycles, c + cycles) for a, b, c in self._rows)

    def lot(self, beat: int, elements: int) -> None:
        """The last beat of a lot with so many elements a head is presented in this cycle."""
        sums = max(beat + Drain.FIRST, self.last + self.period)
        first = sums + self.gap
        self.last = first + (elements - 1) * self.period
        self._rows.append((sums, first, self.last))
        self._ends.append(self.last)

    def room(self, lot: int) -> int:
        """From this cycle on a lot may have its first beat: this one, of all before it, is
        drained."""
        return self._ends[lot] + Keys.ROOM

    def beats(self, first: int, count: int) -> int:
        """The cycle after the last of so many beats of SV, of which the first is due in cycle
        ``first``."""
        while self._rows and self._rows[0][2] + DRAIN_LATER < first:
            self._rows.popleft()
        end = first + count
        while end < (later := first + count + self._taken(first, end)):
            end = later
        return end

    def _taken(self, begin: int, end: int) -> int:
        """Cycles of begin..end-1 that are not SV's."""
        def before(t: int, first: int, last: int) -> int:
            return min(max(-(-(t - first) // self.period), 0), (last - first) // self.period + 1)
        return sum((begin <= sums < end) + before(end, first + DRAIN_LATER, last + DRAIN_LATER)
                   - before(begin, first + DRAIN_LATER, last + DRAIN_LATER)
                   for sums, first, last in self._rows)
