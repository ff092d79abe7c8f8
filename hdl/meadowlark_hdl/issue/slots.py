"""The tokens of a pass, one after the other: lanes of the resident blocks."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.hdl import ValueLike

from ..lib.countdown import Countdown
from ..lib.pipe import reg


class Slots:
    """Counts through token slots. Like :class:`.Countdown`, it gives statements.

    Parameters
    ----------
    m : Module
    lanes : int
        P, at least 3.

    Attributes
    ----------
    lane : Signal           Of the token.
    last_lane : Signal(1)   It is the block's last one: the next token is in the next block.
    last : Signal(1)        It is the last token.
    """

    def __init__(self, m: Module, lanes: int):
        self._lanes, self._left = lanes, Countdown(m, 13, name="tokens", behind=True, reset=False)
        self.lane, self.last_lane = reg(range(lanes), "token_lane"), Signal(name="last_lane")
        self.last = self._left.last

    def load(self, count: ValueLike) -> list:
        """So many tokens, 1.., from lane 0 of the first block on."""
        return [self._left.load_all(count), self.lane.eq(0), self.last_lane.eq(0)]

    def step(self) -> list:
        return [self._left.step(), self.lane.eq(Mux(self.last_lane, 0, self.lane + 1)),
                self.last_lane.eq(self.lane == self._lanes - 2)]
