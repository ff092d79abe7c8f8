"""Walks the lots of a QK or SV: query heads, and blocks of tokens inside."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .walker import Job


class Span(wiring.Component):
    """Knows of each lot its block, its head and where its query is, and where the next lots begin.

    Timing: two cycles after ``goes_on`` the lots may be walked, as often as there are tiles;
    outputs follow ``first`` and ``next`` in the next cycle.

    Parameters
    ----------
    config : Config

    Members
    -------
    job : In(Job)           Stands from ``goes_on`` on, its model always.
    goes_on : In(1)         Pulse: the lots of ``job.lots`` are the next ones. Without it they are
                            those of the last time.
    first, next : In(1)     To the first lot; to the next.
    last : Out(1)           There is no next one.
    block, position : Out(6), Out(14)   The lot's block, and the position of lane 0's token. If
                            lanes are heads, the token in place of the block.
    x : Out(13)             Word of its query.
    head : Out(12)          Beats of the heads before its own; 0 if lanes are heads.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "job": In(Job()), "goes_on": In(1), "first": In(1), "next": In(1), "last": Out(1),
            "block": Out(6), "position": Out(14), "x": Out(13), "head": Out(12)})

    def elaborate(self, platform):
        m = Module()
        config, instr, lots, first = self.config, self.job.instr, self.job.lots, self.job.first
        words, head_beats = self.job.model.block_words, reg(7, "head_beats")
        m.d.sync += head_beats.eq(1 << (self.job.model.head_log2 - exact_log2(config.W))[:3])
        heads = Countdown(m, 5, name="heads", behind=True, reset=False)
        blocks = Countdown(m, 5, name="blocks", behind=True, reset=False)
        block, position = reg(6, "block"), reg(14, "position")
        x, x_head, head = reg(13, "x"), reg(13, "x_head"), reg(12, "head")  # x_head: of its first
        # Of the first of these lots; of those that come behind them.
        block_0, position_0 = reg(6, "block_0"), reg(14, "position_0")
        x_0, head_0 = reg(13, "x_0"), reg(12, "head_0")
        next_block, next_position = reg(6, "next_block"), reg(14, "next_position")
        next_x, next_head = reg(13, "next_x"), reg(12, "next_head")
        of_first_head = Signal()
        # Tokens of a batch come as heads do, each with its query behind that of the one before.
        token = reg(5, "token")
        m.d.comb += [self.block.eq(Mux(instr.heads, token, block)), self.position.eq(position),
                     self.x.eq(x), self.head.eq(Mux(instr.heads, 0, head)),
                     self.last.eq(blocks.last & heads.last)]

        with m.If(self.goes_on):
            m.d.sync += token.eq(Mux(lots.begin, 0, token + 1))
            m.d.sync += [block_0.eq(next_block), position_0.eq(next_position), x_0.eq(next_x)]
            with m.If(lots.again):
                m.d.sync += [block_0.eq(first.block), head_0.eq(Mux(lots.begin, 0, next_head)),
                             position_0.eq(self.job.pass_.pos0 + first.tokens),
                             x_0.eq(instr.x + first.words)]
        # Behind heads before, a cycle later.
        behind = Signal()
        m.d.sync += behind.eq(self.goes_on & lots.again)
        with m.If(behind):
            m.d.sync += x_0.eq(x_0 + head_0)

        with m.If(self.first):
            m.d.sync += [block.eq(block_0), position.eq(position_0), x.eq(x_0), x_head.eq(x_0),
                         head.eq(head_0), of_first_head.eq(1), heads.load_all(lots.heads),
                         blocks.load_all(lots.blocks)]
        with m.If(self.next):
            m.d.sync += [block.eq(block + 1), position.eq(position + config.P), x.eq(x + words),
                         blocks.step()]
            with m.If(blocks.last):
                m.d.sync += [blocks.load_all(lots.blocks), heads.step(), of_first_head.eq(0),
                             block.eq(block_0), position.eq(position_0),
                             x.eq(x_head + head_beats), x_head.eq(x_head + head_beats),
                             head.eq(head + head_beats)]
                m.d.sync += next_head.eq(head + head_beats)
                with m.If(of_first_head):
                    m.d.sync += [next_block.eq(block + 1), next_position.eq(position + config.P),
                                 next_x.eq(x + words)]
        return m
