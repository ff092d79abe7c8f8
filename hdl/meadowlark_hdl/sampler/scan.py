"""When the parts of the sampler do what: logits come, then their list is gone through."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown


class Scan(wiring.Component):
    """Waits for the last logit; with top-k then goes round the list, last entry first.

    Once to the largest entry, for its scaled value; with top-p once for the sum of the weights;
    then once for the draw. Use ``ResetInserter`` to begin anew.

    Timing: ``turn`` 2 cycles before the next entry, of which ``held`` then speaks; an entry that is
    fed stays for 5 cycles, and the next one is fed ``apart`` cycles later or more.

    Parameters
    ----------
    slots : int             Of the list.
    collected : int         Cycles from the last logit until list and pipeline are at rest.
    compared : int          Those until the largest logit is known, if nothing else is asked for.
    pipeline : int          Cycles from ``feed`` until an entry has left the pipeline.
    apart : int             Cycles between two entries in it, at least 6.
    product : int           Cycles from ``limiting`` until the limit can be taken.

    Members
    -------
    greedy, ranked, nucleus : In(1)
                                The largest logit; with top-k; and top-p. Constant from ``finish``
                                on, as ``top_k`` is.
    top_k : In(6)               1..slots
    finish : In(1)              Pulse: with the last logit or later.
    count : In                  Entries of the list.
    held : In(1)                The list shows one, and not an empty place.
    ring : Out(1)               The list is a ring.
    turn : Out(1)               Pulse: to the ring's next place.
    feed : Out(1)               Pulse: the entry goes through the pipeline, from the next cycle on.
    lead, sum, limit : Out(1)   Pulses for :class:`.nucleus.Nucleus`.
    limiting : Out(1)           The total of the weights is to be multiplied by ``top_p``.
    drawing : Out(1)            What leaves the pipeline is a draw.
    busy : Out(1)               Between ``finish`` and ``done``.
    given : Out(1)              From the cycle before ``done`` on.
    done : Out(1)               Pulse: the token is there.
    """

    def __init__(self, slots: int, *, collected: int, compared: int, pipeline: int, apart: int,
                 product: int):
        self.collected, self.compared = collected, compared
        self.pipeline, self.apart, self.product = pipeline, apart, product
        super().__init__({
            "greedy": In(1), "ranked": In(1), "nucleus": In(1), "top_k": In(6), "finish": In(1),
            "count": In(range(slots + 1)), "held": In(1), "ring": Out(1), "turn": Out(1),
            "feed": Out(1), "lead": Out(1), "sum": Out(1), "limit": Out(1), "limiting": Out(1),
            "drawing": Out(1), "busy": Out(1), "given": Out(1), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        wait = Countdown(m, range(max(self.collected, self.pipeline) + 1), name="wait", last=False)
        coming = Signal.like(self.count)            # entries that are still to come round
        turned, arrived, found = Signal(), Signal(), Signal()
        m.d.sync += [turned.eq(self.turn), arrived.eq(turned), self.done.eq(0)]
        m.d.comb += [found.eq(arrived & self.held), self.ring.eq(1), self.busy.eq(1)]
        with m.If(wait.some):
            m.d.sync += wait.step()
        with m.If(~self.ring):
            m.d.sync += coming.eq(self.count)
        with m.Elif(found):
            m.d.sync += coming.eq(coming - 1)
        with m.FSM(init="COLLECT"):
            with m.State("COLLECT"):
                m.d.comb += [self.ring.eq(0), self.busy.eq(0)]
                with m.If(self.finish):
                    m.d.sync += wait.load(Mux(self.greedy, self.compared, self.collected))
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += self.ring.eq(0)
                with m.If(~wait.some):
                    m.d.sync += wait.load(3)
                    m.next = "DONE"
                    with m.If(self.ranked):
                        m.next = "HEAD"
            with m.State("HEAD"):
                with m.If(~turned & ~wait.some):
                    with m.If(coming == found):
                        m.d.comb += self.feed.eq(1)
                        m.d.sync += [coming.eq(self.count), wait.load(self.pipeline)]
                        m.next = "SCALE"
                    with m.Else():
                        m.d.comb += self.turn.eq(1)
            with m.State("SCALE"):
                with m.If(~wait.some):
                    m.d.comb += self.lead.eq(1)
                    m.d.sync += self.drawing.eq(~self.nucleus)
                    m.next = "TURN"
            with m.State("TURN"):
                with m.If(found & (coming <= self.top_k)):
                    m.d.comb += self.feed.eq(1)
                    m.d.sync += wait.load(self.apart - 3)
                with m.Elif(~turned & ~wait.some):
                    with m.If(coming == 0):
                        m.d.sync += [coming.eq(self.count), wait.load(self.pipeline - self.apart)]
                        m.next = "SUM"
                        with m.If(self.drawing):
                            m.next = "DRAW"
                    with m.Else():
                        m.d.comb += self.turn.eq(1)
            with m.State("SUM"):
                with m.If(~wait.some):
                    m.d.comb += self.sum.eq(1)
                    m.d.sync += [self.limiting.eq(1), wait.load(self.product)]
                    m.next = "LIMIT"
            with m.State("LIMIT"):
                with m.If(~wait.some):
                    m.d.comb += self.limit.eq(1)
                    m.d.sync += [self.limiting.eq(0), self.drawing.eq(1)]
                    m.next = "TURN"
            with m.State("DRAW"):
                with m.If(~wait.some):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.given.eq(1)
                m.d.sync += self.done.eq(1)
                m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += [self.busy.eq(0), self.given.eq(1)]
        return m
