"""What follows a pass with logits: a token, whether the run ends with it, an event."""
from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..link.protocol import Reason
from ..run_table import STOP_IDS
from ..signatures import RunLayout, TokenEvent
from .sequencer_golden import context_limit
from .token_memory import TokenWrite


class Generation(wiring.Component):
    """Takes sampled tokens to the token memory and to the host; the last event ends a run.

    A token is at home in the token memory even if the run ends with it, so that a later run can go
    on from there. There is no place for one beyond the context. Until it is written a draft of it
    may stand there.

    Timing: ``sampled`` to the event ``EVENT`` cycles, ``end`` to it 1; ``done`` in the cycle in
    which it is taken.

    Parameters
    ----------
    config : Config

    Members
    -------
    run : In(RunLayout())
    begin : In(1)               Pulse, at rest: a run begins.
    sampled : In(1)             Pulse, at rest: a token, with its ...
    token, crc : In(19), In(32)
    position : In(13)           Where a token belongs; constant from ``sampled`` to ``done``.
    draft : In(19)              What the token memory has at ``position``, from 2 cycles after
                                ``sampled`` until it is written.
    more : In(1)                It is a token of a batch, and others of the same pass follow;
                                constant likewise. A stop id among them ends the run with the last.
    end, reason : In(1), In(3)  Pulse, at rest: the run ends so, without a token.
    memory : Out(TokenWrite)
    events : Out(stream of TokenEvent)
    done, last : Out(1)         Pulse: the event has been taken; it was the run's last.
    drafted : Out(1)            With ``done``: the token is its draft.
    """

    EVENT = 4

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "run": In(RunLayout()), "begin": In(1),
            "sampled": In(1), "token": In(Config.TOKEN_BITS), "crc": In(32), "position": In(13),
            "draft": In(Config.TOKEN_BITS), "more": In(1), "drafted": Out(1),
            "end": In(1), "reason": In(3), "memory": Out(TokenWrite(config)),
            "events": Out(stream.Signature(TokenEvent())), "done": Out(1), "last": Out(1)})

    def elaborate(self, platform):
        m = Module()
        run, valid, event = self.run, self.events.valid, self.events.payload
        generated = Signal(13)
        hit, stopped, counted, full = Signal(STOP_IDS), Signal(), Signal(), Signal()
        before = Signal()               # a token of the pass before this one was a stop id
        m.d.sync += [hit[i].eq((run.stop_ids[i] == event.token) & (i < run.stop_count))
                     for i in range(STOP_IDS)]
        m.d.sync += [stopped.eq(hit.any() | before), counted.eq(generated == run.max_new),
                     full.eq(self.position == context_limit(self.config))]
        m.d.comb += [self.memory.addr.eq(self.position), self.memory.data.eq(event.token)]
        with m.If(self.begin):
            m.d.sync += [generated.eq(0), before.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.sampled):
                    m.d.sync += [event.token.eq(self.token), event.crc.eq(self.crc),
                                 generated.eq(generated + ~self.more)]
                    m.next = "COMPARE"
                with m.If(self.end):
                    m.d.sync += [event.reason.eq(self.reason), valid.eq(1)]
                    m.next = "EVENT"
            with m.State("COMPARE"):
                m.next = "ANY"
            with m.State("ANY"):
                m.d.sync += self.drafted.eq(self.draft == event.token)
                m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += self.memory.en.eq(~full)
                m.d.sync += [before.eq(stopped & self.more), valid.eq(1), event.reason.eq(
                    Mux(self.more, Reason.RUNNING, Mux(stopped, Reason.STOP, Mux(
                        counted, Reason.MAX_NEW, Mux(full, Reason.CONTEXT, Reason.RUNNING)))))]
                m.next = "EVENT"
            with m.State("EVENT"):
                with m.If(self.events.ready):
                    m.d.comb += [self.done.eq(1), self.last.eq(event.reason != Reason.RUNNING)]
                    m.d.sync += valid.eq(0)
                    m.next = "IDLE"
        return m
