"""STORE: has scratch memory send a row of each token to the cache."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Op
from ..lib.pipe import reg
from ..signatures import ScratchCommand
from .walker import Walker


class Stores(Walker):
    """Gives a command to scratch memory and goes on; knows whether one is under way.

    Timing: a cycle while there is room for commands, so that the turn of what follows a STORE is
    ``TURN`` cycles after its own.

    Members
    -------
    (beside those of :class:`Walker`)
    cmd : Out(stream of ScratchCommand)
    done : In(1)        One cycle for each command whose data is in memory; in a batch for each
                        token of it.
    spills : In(1)      Only with ``config.gemm``. One cycle for each SPILL, which is a command too.
    storing : Out(1)    From the cycle after a command is taken until two after the last ``done``.
    """

    TURN = 4
    PRESENTS = ("wait_store",)

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.STORE: 0},
                         cmd=Out(stream.Signature(ScratchCommand(config))), done=In(1),
                         storing=Out(1),
                         **({"spills": In(1)} if config.gemm else {}))

    def elaborate(self, platform):
        m = Module()
        instr, command = self.job.instr, self.cmd.payload
        m.d.comb += [command.addr.eq(instr.addr), command.word.eq(instr.x)]
        if self.config.tight_keys:
            m.d.comb += command.words.eq(instr.row_beats)
        else:       # of a power of two
            m.d.comb += command.log2_words.eq(Cat(
                Cat(instr.row_beats[n] for n in range(7) if n >> k & 1).any() for k in range(3)))

        # As they are done; more than can wait and be on their way.
        given, each, under_way = Signal(), reg(6, "each"), Signal(11)
        m.d.sync += [each.eq(Mux(self.job.pass_.batch, self.job.pass_.n, 1)),
                     under_way.eq(under_way + Mux(given, each, 0) - self.done),
                     self.storing.eq(given | under_way.any())]
        if self.config.gemm:
            with m.If(self.spills):
                m.d.sync += [under_way.eq(under_way + 1 - self.done), self.storing.eq(1)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                m.d.comb += [self.cmd.valid.eq(1), given.eq(self.cmd.ready),
                             self.control.wait_store.eq(~self.cmd.ready)]
                with m.If(self.cmd.ready):
                    m.d.sync += self.idle.eq(1)
                    m.next = "IDLE"
        return m
