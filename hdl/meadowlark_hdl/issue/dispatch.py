"""Takes instructions one at a time and has each executed by a walker."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..signatures import (FetchedInstruction, InstructionLayout, LotsLayout, ModelLayout,
                          PassLayout)
from .walker import FirstBlock, Job


class Dispatch(wiring.Component):
    """Gives an instruction to the walker that knows its operator, and retires it when it is done.

    Done is: all walkers are idle, so many cycles have passed as the operator takes to settle, and
    the vector unit is not busy. QK and SV do not ask for the vector unit: it has what SV leaves to
    :class:`.Drain`. QK needs none of that and starts meanwhile; all others wait until Drain has
    settled and the vector unit is not busy. END has no walker. END, a SPILL, and an instruction
    with ``wait``, starts when no STORE is under way, so none is taken for one of the next pass.

    With ``last`` the walker begins at the last block of tokens, which is looked for before.

    Timing: ``req`` in the cycle after ``instr`` is taken, or when it need not wait any longer; with
    ``last`` a cycle later for each block before the last. From an instruction's turn to the first
    cycle of its walker ``START`` cycles; the next one's turn is ``SETTLE`` cycles after the last
    effect. One that waits for the drains has its walker's first cycle ``DRAINED`` cycles after
    their last effect.

    Parameters
    ----------
    config : Config
    settle : sequence of mapping of Op to int
        For each walker, see :class:`.Walker`.

    Members
    -------
    instr : In(stream of FetchedInstruction)
    pass_ : In(PassLayout), model : In(ModelLayout)     See :class:`.Issue`.
    job : Out(Job)                  Stands from the cycle of ``req`` on.
    req, idle : Out, In             A bit a walker.
    drained : In(1)                 Drain has settled.
    vector_busy : In(1)             Comes from across the chip and is looked at a cycle late.
    storing : In(1)                 A STORE is under way.
    wait_vector, wait_store : Out(1)    For the counters.
    lanes, attending, pass_end, retired, pc, bad_op : Out    See :class:`.Issue`; registers, but
                                    bad_op.
    """

    START, SETTLE, DRAINED = 3, 2, 4

    def __init__(self, config: Config, *, settle: Sequence[Mapping[Op, int]]):
        self.config, self.settle = config, settle
        super().__init__({
            "instr": In(stream.Signature(FetchedInstruction())),
            "pass_": In(PassLayout()), "model": In(ModelLayout), "job": Out(Job()),
            "req": Out(len(settle)), "idle": In(len(settle)), "vector_busy": In(1),
            "drained": In(1),
            "storing": In(1), "wait_vector": Out(1), "wait_store": Out(1),
            # Everything is in use until an instruction says otherwise, so also during a flush.
            "lanes": Out(range(config.P + 1), init=config.P), "attending": Out(1, init=1),
            "pass_end": Out(1), "retired": Out(1), "pc": Out(16), "bad_op": Out(1)})

    def elaborate(self, platform):
        m = Module()
        P = self.config.P
        instr = Signal(InstructionLayout, reset_less=True)
        pass_ = Signal(PassLayout(), reset_less=True)       # it comes from across the chip
        vector_busy = Signal()
        settle = Countdown(m, 6, name="settle", last=False)
        m.d.sync += [pass_.eq(self.pass_), vector_busy.eq(self.vector_busy),
                     self.pass_end.eq(0), self.retired.eq(0)]
        lots, first = reg(LotsLayout(), "lots"), reg(FirstBlock(), "first")
        skips = Countdown(m, 6, name="skips", behind=True, reset=False)     # blocks before it
        m.d.comb += [self.job.instr.eq(instr), self.job.pass_.eq(pass_), self.job.lots.eq(lots),
                     self.job.model.eq(self.model), self.job.first.eq(first)]

        waits = reg(1, "waits")         # for the drains: it is no QK
        stores = reg(1, "stores")       # for STOREs: it says so, or is END
        # What waits is copied until an instruction starts. ``idle`` is the state's name, once more.
        idle = Signal(init=1)
        with m.If(idle):
            m.d.sync += [instr.eq(self.instr.payload.instr), self.pc.eq(self.instr.payload.pc),
                         lots.eq(self.instr.payload.lots), first.eq(0),
                         skips.load_all(self.pass_.nb),
                         waits.eq(self.instr.payload.instr.op != Op.QK),
                         stores.eq(self.instr.payload.instr.wait
                                   | (self.instr.payload.instr.op == Op.END))]
            if self.config.gemm:        # the store unit is its own
                with m.If(self.instr.payload.instr.op == Op.SPILL):
                    m.d.sync += stores.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instr.ready.eq(1)
                with m.If(self.instr.valid):
                    m.d.sync += idle.eq(0)
                    m.next = "START"
            with m.State("START"):
                with m.If(stores & self.storing):
                    m.d.comb += self.wait_store.eq(1)
                with m.Elif(waits & ~(self.drained & ~vector_busy)):
                    m.d.comb += self.wait_vector.eq(1)
                with m.Elif(instr.last & ~skips.last & (instr.op != Op.END)):
                    m.d.sync += [
                        skips.step(), first.block.eq(first.block + 1),
                        first.words.eq(first.words + self.model.block_words),
                        first.tokens.eq(first.tokens + P)]
                with m.Else():
                    m.d.sync += [
                        self.lanes.eq(Mux(instr.heads | (pass_.n > P), P, pass_.n)),
                        self.attending.eq((instr.op == Op.QK) | (instr.op == Op.SV))]
                    if self.config.gemm:
                        with m.If((instr.op == Op.SPILL) | (instr.op == Op.FILL)):
                            m.d.sync += self.attending.eq(1)
                    with m.Switch(instr.op):
                        for k, operators in enumerate(self.settle):
                            for op, cycles in operators.items():
                                with m.Case(op):
                                    m.d.comb += self.req[k].eq(1)
                                    m.d.sync += settle.load(cycles)
                                    m.next = "RUN"
                        with m.Case(Op.END):
                            m.d.sync += [self.pass_end.eq(1), settle.load(0)]
                            m.next = "RUN"
                        with m.Default():
                            m.d.comb += self.bad_op.eq(1)   # stands until the watchdog or a flush
            with m.State("RUN"):
                with m.If(self.idle.all()):
                    m.d.comb += self.wait_vector.eq(1)
                    with m.If(settle.some):
                        m.d.sync += settle.step()
                    with m.Elif(~vector_busy | self.attending):
                        m.d.sync += [self.retired.eq(1), idle.eq(1)]
                        m.next = "IDLE"
        return m
