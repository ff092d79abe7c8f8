"""Words from scratch memory -> bursts -> memory (KV cache)."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..signatures import ReadCommand, StoreCommand, WritePort
from ..lib.bursts import BurstCutter
from ..lib.countdown import Countdown
from ..lib.queues import Queue


class StoreUnit(wiring.Component):
    """Writes chunks of int8 values to memory.

    A command's chunks, from ``addr`` on, come in parts of ``store_bytes``. Parts may come before
    their command; one is taken ahead.

    Timing: ``BURST`` cycles from a command to its first burst, and from the end of a burst to the
    next; within a burst one bus word a cycle. Command and data are offered independently, so
    memory may take either first.

    Parameters
    ----------
    config : Config
        W, bus_bytes, store_bytes, burst_words.

    Members
    -------
    cmd : In(stream of StoreCommand)
    words : In(stream of 8 * store_bytes bits)
        Low byte first in memory.
    mem : Out(WritePort)
    done : Out(1)
        One cycle for each command whose data is in memory (its last ``w_done`` has come).
    pending : Out(range(COMMANDS + 1))
        Commands accepted and not yet done.
    flush : In(1)
        From the cycle after on commands and words are taken and dropped; a burst already offered
        is completed with strobe 0, the rest of its command is dropped. This goes on until all
        offered bursts are acknowledged, even if ``flush`` is low again. No ``done`` for what was
        dropped.
    idle : Out(1)
        Nothing in progress and all bursts acknowledged; after a flush as after reset.
    """

    BURST = 3
    BURSTS = 16     # bursts not yet acknowledged
    COMMANDS = BURSTS + 1

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "cmd": In(stream.Signature(StoreCommand())),
            "words": In(stream.Signature(8 * config.store_bytes)),
            "mem": Out(WritePort(config)),
            "done": Out(1), "pending": Out(range(self.COMMANDS + 1)),
            "flush": In(1), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        c = self.config
        shift, pieces = exact_log2(c.bus_per_chunk), c.store_bytes // c.bus_bytes
        drop = Signal()
        finals = Queue(1, depth=self.BURSTS)        # of each burst: it is its command's last
        m.submodules.finals = finals
        to_write = BurstCutter(m, most=c.burst_words, address_bits=32, left_bits=12 + shift,
                               name="to_write")
        owed = Countdown(m, range(c.burst_words + 1), name="owed", last=False)  # beats to form
        offered = Signal()
        command = Signal(ReadCommand(c), reset_less=True)
        m.d.comb += [self.mem.w_cmd.valid.eq(offered), self.mem.w_cmd.payload.eq(command),
                     finals.i.payload.eq(to_write.final), finals.o.ready.eq(self.mem.w_done)]
        with m.If(self.mem.w_cmd.ready):
            m.d.sync += offered.eq(0)

        accepted, done = Signal(), Signal()
        with m.FSM() as fsm:
            with m.State("COMMAND"):
                m.d.comb += [
                    self.cmd.ready.eq(Mux(drop, self.flush, self.pending != self.COMMANDS)),
                    accepted.eq(self.cmd.valid & self.cmd.ready & ~drop)]
                m.d.sync += to_write.load(self.cmd.payload.addr << shift,
                                          self.cmd.payload.chunks << shift)
                with m.If(accepted):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.sync += to_write.cut()
                m.next = "OFFER"
                with m.If(drop):
                    m.next = "COMMAND"
            with m.State("OFFER"):
                # None is offered and no beats are owed: what they are may change.
                m.d.sync += [command.addr.eq(to_write.address), command.len.eq(to_write.less_one),
                             owed.left.eq(to_write.length)]
                with m.If(drop):
                    m.next = "COMMAND"
                with m.Elif(finals.i.ready):
                    m.d.sync += [offered.eq(1), owed.some.eq(1)]
                    m.next = "COUNT"
            with m.State("COUNT"):              # apart from whether there was room for one more
                m.d.comb += finals.i.valid.eq(1)
                m.d.sync += to_write.advance()
                m.next = "BURST"
            with m.State("BURST"):
                with m.If(~owed.some & ~offered):
                    m.next = "LENGTH"
                    with m.If(to_write.final | drop):
                        m.next = "COMMAND"

        # A part, which of its bus words is next and how many are still to go; then beats, queued
        # for memory with their strobe, so that a flush cannot change a beat already offered.
        part = Signal(8 * c.store_bytes, reset_less=True)
        piece, some, one = Signal(range(pieces)), Signal(), Signal()    # some are to go, one is
        m.submodules.beats = beats = Queue(self.mem.w_data.payload.shape(), depth=4)
        wiring.connect(m, beats.o, wiring.flipped(self.mem.w_data))
        form, room, take = Signal(), Signal(), Signal()
        m.d.comb += [
            form.eq(owed.some & (drop | some) & beats.i.ready), beats.i.valid.eq(form),
            beats.i.payload.data.eq(part.word_select(piece, 8 * c.bus_bytes)),
            beats.i.payload.strb.eq(Mux(drop, 0, (1 << c.bus_bytes) - 1)),
            room.eq(~some | (form & one)), take.eq(self.words.valid & room),
            self.words.ready.eq(Mux(drop, self.flush, room))]
        with m.If(form):
            m.d.sync += [owed.step(), piece.eq(piece + 1),
                         some.eq(~one), one.eq(piece == pieces - 2)]
        with m.If(take):
            m.d.sync += [part.eq(self.words.payload), some.eq(1), one.eq(pieces == 1)]
        with m.If(drop):
            m.d.sync += [piece.eq(0), some.eq(0), one.eq(0)]

        at_rest = Signal()
        m.d.comb += done.eq(self.mem.w_done & finals.o.payload & ~drop)
        m.d.sync += [self.done.eq(done), self.pending.eq(self.pending + accepted - done),
                     at_rest.eq(fsm.ongoing("COMMAND") & ~finals.o.valid & ~beats.o.valid)]
        with m.If(self.flush):
            m.d.sync += drop.eq(1)
        with m.Elif(at_rest & fsm.ongoing("COMMAND")):
            m.d.sync += drop.eq(0)
        with m.If(drop & at_rest):
            m.d.sync += self.pending.eq(0)
        m.d.sync += self.idle.eq(
            at_rest & fsm.ongoing("COMMAND") & (self.pending == 0)
            & ~some & ~accepted & ~(take & ~drop))
        return m
