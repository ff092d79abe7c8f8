"""Hands words to the lanes in the order in which their steps ask for them."""
from functools import reduce
from operator import or_

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.fanout import APART
from ..lib.pipe import delay
from ..lib.queues import Queue
from .packing_golden import PIECE, ahead
from .preamble import COUNT_BITS
from .symbol_lane import pieces


class Refill(wiring.Component):
    """Words of a segment to lanes: some rounds in turn, then as asked.

    Requests of a step wait as a mask; one a cycle is served, lowest lane first. When no words are
    left requests are void. A word's K pieces go out a cycle apart, on the B buses in turn. Behind
    the requests of the last step of a tile service stops until ``resume``.

    Timing: B words in K cycles, unless two for a lane come within K cycles; 5 cycles from ``asks``
    to ``load`` at the least (4 where W is at most 8).

    Parameters
    ----------
    W : int
        Lanes, and bytes of a word.
    buses : int, power of two, at most K
        B.

    Members
    -------
    start : In(1), words : In(24)
        A segment begins; its words, lane data only.
    asks : In(W)
        Requests of a step.
    ends, final : In(1)
        With ``asks``: the step was the last of a tile, of the segment.
    room : Out(1)
        Steps may go on: room for the requests of this one and of those under way.
    drop : In(1)
        Take what is left of the words, for nobody; only while ``at_end``.
    i : In(stream of 8 * W bits)
    load : Out(W), buses : Out(16 bits * B)
        To the lanes.
    at_end, at_final : Out(1)
        All requests of a tile are served, it was the last of the segment; until resume or start.
    resume : In(1)
        One cycle while ``at_end``.
    over : Out(1), drained : Out(1)
        No words are left; as much later as the last one's first piece takes to its lane's queue.
    """

    DEPTH = 16
    SPARE = 7               #: steps that ``room`` may learn of too late

    def __init__(self, *, W: int, buses: int):
        self.W = W
        super().__init__({
            "start": In(1), "words": In(COUNT_BITS), "asks": In(W), "ends": In(1),
            "final": In(1), "room": Out(1), "drop": In(1),
            "i": In(stream.Signature(8 * W)), "load": Out(W),
            "buses": Out(data.ArrayLayout(PIECE, buses)), "at_end": Out(1),
            "at_final": Out(1), "resume": In(1), "over": Out(1, init=1),
            "drained": Out(1)})

    def elaborate(self, platform):
        m = Module()
        W, K, B = self.W, pieces(self.W), len(self.buses)
        m.submodules.masks = masks = Queue(
            data.StructLayout({"lanes": W, "ends": 1, "final": 1}), depth=self.DEPTH)
        waiting = Signal(range(self.DEPTH + 2))
        m.d.comb += [masks.i.valid.eq(self.asks.any() | self.ends | self.final),
                     masks.i.payload.eq(Cat(self.asks, self.ends, self.final))]
        # A mask that is taken counts a cycle longer: who takes it is known late in a cycle.
        gone = Signal()
        m.d.sync += [gone.eq(masks.o.valid & masks.o.ready),
                     waiting.eq(waiting + masks.i.valid - gone),
                     self.room.eq(waiting <= self.DEPTH - self.SPARE)]

        # One request at a time: the lowest of the mask.
        mask, lowest = Signal(W), Signal(W)
        rounds = Signal(range(ahead(W) + 1))
        request, asked, served = Signal(W), Signal(), Signal()
        ends, final = Signal(), Signal()                # flags of the mask
        rest = mask & ~lowest
        m.d.comb += lowest.eq(Cat(mask[k] & ~mask[:k].any() for k in range(W)))
        with m.If(~asked | served):
            m.d.sync += [request.eq(lowest), asked.eq(mask.any()), mask.eq(rest)]
            with m.If(~rest.any() & ~ends):
                with m.If(rounds != 0):
                    m.d.sync += [rounds.eq(rounds - 1), mask.eq((1 << W) - 1)]
                with m.Else():
                    m.d.comb += masks.o.ready.eq(1)
                    with m.If(masks.o.valid):
                        m.d.sync += Cat(mask, ends, final).eq(masks.o.payload)
        m.d.comb += [self.at_end.eq(ends & ~asked & ~mask.any()), self.at_final.eq(final)]
        with m.If(self.resume | self.start):
            m.d.sync += [ends.eq(0), final.eq(0)]

        left = Signal(COUNT_BITS, reset_less=True)
        free, taken = Signal(), Signal()
        crowded = Signal(attrs=APART)     # a word's last pieces keep the buses
        # Lanes that got a word in the last K - 1 cycles take none yet.
        recent = [request & (taken & ~self.drop).replicate(W)]
        for k in range(max(K - 2, 1)):
            given = Signal(W, name=f"given_{k}")
            m.d.sync += given.eq(recent[-1])
            recent.append(given)
        receiving = Signal(W)
        m.d.sync += receiving.eq(reduce(or_, recent[:K - 1]))
        m.d.comb += [free.eq(asked & ~(request & receiving).any() & ~crowded),
                     self.i.ready.eq((free | self.drop) & ~self.over),
                     taken.eq(self.i.valid & self.i.ready),
                     served.eq((taken & free) | self.over)]
        with m.If(taken):
            m.d.sync += left.eq(left - 1)
            with m.If(left == 1):
                m.d.sync += self.over.eq(1)
        with m.If(self.start):
            m.d.sync += [left.eq(self.words), self.over.eq(self.words == 0), rounds.eq(ahead(W))]

        # Piece k leaves k cycles after piece 0. To many lanes it is far: there is a register on the
        # way. With few the cycle would cost more than it brings, 1 % of their rate.
        far = W > 8
        m.d.sync += self.load.eq(recent[1] if far else recent[0])
        bus_domain = m.d.sync if far else m.d.comb
        # A lane that hears that no word comes goes on with what its queue holds. The last word's
        # pieces come as fast as it can use them, so that the first one being there is enough.
        m.d.comb += self.drained.eq(delay(m, self.over & ~self.start, 2 if far else 1,
                                          name="drained", reset=True))
        late, piece = self.i.payload, []
        for k in range(K):
            now = Signal(8 * W - PIECE * k, name=f"pieces_{k}", reset_less=True)
            m.d.sync += now.eq(late)
            piece.append(now[:PIECE])
            late = now[PIECE:]
        # Bus b takes pieces b, b + B, .. of words that began at other cycles, modulo B.
        moving, after = Signal(K), Signal(K)            # bit k: the word whose piece k goes now
        m.d.comb += after.eq(Cat(taken & ~self.drop, moving[:-1]))
        m.d.sync += moving.eq(after)
        if B == K:
            bus_domain += [self.buses[k].eq(piece[k]) for k in range(K)]
        else:
            m.d.sync += crowded.eq(after[B - 1:K - 1:B].any())
            for b in range(B):
                some = [piece[k] & moving[k].replicate(PIECE) for k in range(b, K, B)]
                bus_domain += self.buses[b].eq(reduce(or_, some))
        return m
