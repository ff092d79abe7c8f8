"""Logits that come close, of several tokens for each row, take turns."""
from amaranth import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..signatures import LogitPort, TurnPort


class Turns(wiring.Component):
    """Logits of a row of the head, one a cycle, become logits 4 cycles apart.

    Those of the first token of each row have turn 0, those of the next token turn 1. With one turn
    at most it is wires.

    Timing: with ``turns`` = 1 none; else a logit is given 2 cycles after it came, and each next one
    of its row 4 cycles later. Rows come at least 4 cycles apart, and 4 for each turn.

    Parameters
    ----------
    turns : int, 1..        Logits of a row, at most.

    Members
    -------
    start : In(1)           Pulse, at any time: forget all; a row comes next.
    last : In               Logits of a row, less 1; constant from ``start`` on.
    i : In(LogitPort())
    o : Out(TurnPort(turns))
    finish : In(1)          Pulse: with the last logit or later.
    finished : Out(1)       Pulse: with the last one that is given, or later.
    """

    def __init__(self, turns: int):
        self.turns = turns
        super().__init__({
            "start": In(1), "last": In(range(turns)), "i": In(LogitPort()),
            "o": Out(TurnPort(turns)), "finish": In(1), "finished": Out(1)})

    def elaborate(self, platform):
        m = Module()
        row = Signal.like(self.i.row, reset_less=True)
        first = Signal()                            # the row that is given is the pass's first
        if self.turns == 1:
            with m.If(self.start):
                m.d.sync += first.eq(1)
            with m.Elif(self.i.valid):
                m.d.sync += first.eq(0)
            m.d.comb += [self.o.valid.eq(self.i.valid), self.o.row.eq(self.i.row),
                         self.o.value.eq(self.i.value), self.o.first.eq(first),
                         self.finished.eq(self.finish)]
            return m
        m.submodules.ram = ram = memory.Memory(shape=self.i.value.shape(), depth=self.turns,
                                               init=[])
        write, read = ram.write_port(), ram.read_port(domain="comb")
        came, turn = Signal(range(self.turns)), Signal(range(self.turns))      # and given, of a row
        begins, going, held = Signal(), Signal(), Signal()
        phase = Signal(range(Config.LOGIT_CYCLES))
        gives = going & (phase == 0)
        m.d.comb += [write.addr.eq(came), write.data.eq(self.i.value), write.en.eq(self.i.valid),
                     begins.eq(self.i.valid & (came == 0)), read.addr.eq(turn),
                     self.finished.eq((self.finish | held)
                                      & ~(self.i.valid | going | self.o.valid))]
        m.d.sync += [phase.eq(phase + 1), self.o.valid.eq(gives), self.o.row.eq(row),
                     self.o.value.eq(read.data), self.o.turn.eq(turn), self.o.first.eq(first),
                     held.eq((self.finish | held) & ~self.finished)]
        with m.If(self.i.valid):
            m.d.sync += came.eq(came + 1)
            with m.If(came == self.last):
                m.d.sync += came.eq(0)
        with m.If(gives):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn == self.last):
                m.d.sync += [turn.eq(0), going.eq(0), first.eq(0)]
        with m.If(begins):
            m.d.sync += [row.eq(self.i.row), going.eq(1), phase.eq(0)]
        with m.If(self.start):
            m.d.sync += [came.eq(0), turn.eq(0), going.eq(0), first.eq(1), held.eq(0),
                         self.o.valid.eq(0)]
        return m
