"""When the lanes take a step: tiles in steps, segments in steps, and the pace."""
from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown
from ..lib.pipe import delay
from .modes import Packing
from .preamble import COUNT_BITS, Segment


def chunks_of_step(segment, packing: Packing):
    """C, the chunks that a step makes."""
    if Packing.MEADOW not in packing:
        return 1
    return Mux(segment.log2_c == 0, 1, Mux(segment.log2_c == 1, 2, 4))


class Steps(wiring.Component):
    """Tile after tile the steps that make its chunks, or zeros when something is wrong.

    A segment is read when a tile comes and none has steps left. Its tiles' steps have to be its
    own: a tile that is no whole number of steps, or has more than are left, is an error.

    Timing: a step in C cycles, or ``step_cycles`` if these are more, without a pause between tiles
    that wait; zeros two cycles each. Whether there may be a step is found out a cycle ahead.

    Parameters
    ----------
    most : int
        Chunks of a tile.
    step_cycles : int, 1 or 2
        Cycles from a step to the next one, at least.
    packing : Packing

    Members
    -------
    tiles : In(stream)
        Chunks of each tile.
    read : Out(1)
        One cycle: the next segment's preamble comes.
    done, wrong, segment : In
        What the reader of the preamble says.
    begin : Out(1)
        One cycle: a segment with steps begins.
    ready : In(1)
        Lanes and their requests are ready for a step, in the next cycle.
    room : In(1)
        There is room for its chunks.
    step, zero : Out(1)
        A step, or a chunk of zeros.
    chunks : Out(3)
        Which it gives.
    first : Out(1)
        A cycle after a step: it begins a packet.
    ends, final : Out(1)
        With a step: it is the last of a tile, of the segment (then of a tile as well).
    ended : In(1)
        See :class:`.SegmentEnd`; with steps left it says that the tile's chunks are none of this
        unpacker's yet.
    finished : In(1), damaged : In(1)
        One cycle, all of a segment has been taken; with it: its checksum was wrong.
    broken : Out(1)
        A segment was not sound; only a reset mends that.
    """

    def __init__(self, *, most: int, step_cycles: int, packing: Packing):
        self.most, self.step_cycles, self.packing = most, step_cycles, packing
        super().__init__({
            "tiles": In(stream.Signature(range(most + 1))), "read": Out(1), "done": In(1),
            "wrong": In(1), "segment": In(Segment), "begin": Out(1), "ready": In(1),
            "room": In(1), "step": Out(1), "zero": Out(1), "chunks": Out(3), "first": Out(1),
            "ends": Out(1), "final": Out(1), "ended": In(1), "finished": In(1), "damaged": In(1),
            "broken": Out(1)})

    def elaborate(self, platform):
        m = Module()
        segment, broken = self.segment, self.broken
        c = chunks_of_step(segment, self.packing)
        size, known = Signal(range(self.most + 1), reset_less=True), Signal()   # the next tile
        in_steps = (size & (c - 1)) == 0            # it is a whole number of them
        to_issue = Countdown(m, size.shape(), name="issue", reset=False)  # steps of this tile
        steps = Countdown(m, COUNT_BITS, name="steps")          # of the segment, to issue
        issue, next_tile = Signal(), Signal()
        stepping = Signal()             # in STEPS, and steps.some
        m.d.comb += self.tiles.ready.eq(~known)
        with m.If(self.tiles.valid & ~known):
            m.d.sync += [size.eq(self.tiles.payload), known.eq(1)]
        with m.If(issue):
            m.d.sync += to_issue.step()
        with m.If(next_tile):
            m.d.sync += [to_issue.load(size >> segment.log2_c), known.eq(0)]
        with m.FSM() as fsm:
            with m.State("REST"):
                with m.If(known & broken):
                    m.d.sync += [to_issue.left.eq(size), known.eq(0)]
                    m.next = "ZEROS"
                with m.Elif(known & steps.some):
                    m.d.comb += next_tile.eq(1)
                    m.d.sync += stepping.eq(1)
                    m.next = "STEPS"
                    with m.If(~in_steps):
                        m.d.sync += [to_issue.left.eq(size), broken.eq(1), stepping.eq(0)]
                        m.next = "ZEROS"
                with m.Elif(known & ~self.ended):
                    m.d.comb += self.read.eq(1)
                    m.next = "PREAMBLE"
            with m.State("PREAMBLE"):
                with m.If(self.done):
                    m.d.comb += self.begin.eq(~self.wrong)
                    m.d.sync += [broken.eq(self.wrong),
                                 steps.load(segment.steps, some=~self.wrong)]
                    m.next = "REST"
            with m.State("STEPS"):
                with m.If(~steps.some):                 # and there should be more
                    m.d.sync += [to_issue.left.eq(to_issue.left << segment.log2_c), broken.eq(1)]
                    m.next = "ZEROS"
                with m.If(issue & (to_issue.last | steps.last)):
                    m.d.sync += stepping.eq(0)
                with m.If(issue & to_issue.last):
                    m.next = "REST"
                    with m.If(steps.last):
                        m.next = "WORDS"
                    with m.Elif(known & in_steps):
                        m.d.comb += next_tile.eq(1)
                        m.d.sync += stepping.eq(1)
                        m.next = "STEPS"
            with m.State("WORDS"):                      # until they have all been taken
                with m.If(self.finished):
                    m.next = "REST"
            with m.State("ZEROS"):
                with m.If(to_issue.left == 0):
                    m.next = "REST"
        with m.If(self.finished):
            with m.If(self.damaged):
                m.d.sync += broken.eq(1)

        pace = Signal(2)                                # cycles until the next may come
        per_step = Mux(c < self.step_cycles, self.step_cycles, c)
        may, may_zero, starting = Signal(), Signal(), Signal()
        step = may & stepping
        m.d.sync += [
            starting.eq(self.begin),                    # and the lanes do not know it yet
            may.eq(self.ready & ~self.begin & ~starting & self.room
                   & Mux(step, per_step == 1, pace <= 1)),
            # Not while the last step still gives its chunks.
            may_zero.eq(fsm.ongoing("ZEROS") & (to_issue.left != 0) & self.room & ~may_zero
                        & (pace <= 1))]
        m.d.comb += [
            issue.eq(step | may_zero), self.step.eq(step), self.zero.eq(issue & ~stepping),
            self.chunks.eq(Mux(issue, Mux(stepping, c, 1), 0)),
            self.ends.eq(step & (to_issue.last | steps.last)), self.final.eq(step & steps.last)]
        packet, packet_end = Signal(7), Signal(7, reset_less=True)
        with m.If(step):
            m.d.sync += [steps.step(), pace.eq(per_step - 1),
                         packet.eq((packet + 1) & packet_end)]
        with m.Elif(pace != 0):
            m.d.sync += pace.eq(pace - 1)
        with m.If(self.begin):
            m.d.sync += packet.eq(0)
        m.d.sync += packet_end.eq((1 << segment.log2_n) - 1)
        m.d.comb += self.first.eq(delay(m, (packet == 0) & segment.meadow, 1, name="first",
                                        reset=True))
        return m
