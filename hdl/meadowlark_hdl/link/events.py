"""Token events: kept until the host has acknowledged them, re-sent from the first it lacks."""
from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..lib.countdown import Countdown
from ..signatures import TokenEvent
from .framer import FramePort
from .protocol import EVENT_BYTES, EVENT_RING, TOKEN


class EventRing(wiring.Component):
    """Events in, TOKEN frames out, go-back-N.

    An event is sent as soon as the line is free. When all have been sent, some are not acknowledged
    and no acknowledgement has moved on for ``resend`` cycles, sending starts again from the
    first that is not. With ``ring`` events unacknowledged, ``i`` takes one more and is
    then not ready.

    Timing: ``i`` takes an event every other cycle; a payload byte goes out every other
    cycle at most; between frames are 8 cycles.

    Parameters
    ----------
    ring : int, power of two, 4..64         Events kept.

    Members
    -------
    i : In(stream of TokenEvent)
    o : Out(FramePort)
    clear : In(1)           Pulse: a new run; drops all events, the next has index 0.
    run : In(16)            Number of the run; changes with ``clear``.
    credit, next_index : In(1), In(16)      Pulse: events below ``next_index`` have arrived.
    resend : In(32)         Cycles.
    count : Out(16)         Events since ``clear``.
    idle : Out(1)           None to send, none unacknowledged.
    """

    def __init__(self, *, ring: int = EVENT_RING):
        if ring not in (4, 8, 16, 32, 64):
            raise ValueError(f"ring must be a power of two in 4..64, not {ring!r}")
        self.ring = ring
        super().__init__({
            "i": In(stream.Signature(TokenEvent())), "o": Out(FramePort()), "clear": In(1),
            "run": In(16), "credit": In(1), "next_index": In(16), "resend": In(32),
            "count": Out(16), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Memory(shape=TokenEvent(), depth=self.ring, init=[],
                                       attrs=NO_RW_CHECK)     # READ waits until after a write
        # Indices count from the start of the run. 16 bits: a run has at most 4096 + 1 events.
        taken, acked, send = self.count, Signal(16), Signal(16)

        # An event waits in a register for its place: it comes from across the chip. Whether there
        # is one is known an event late, hence the margin: at most ``ring`` are kept.
        ready, waits = Signal(), Signal()
        newest = Signal(TokenEvent(), reset_less=True)
        held = Signal(range(self.ring + 1))
        m.d.comb += [held.eq(taken - acked),
                     self.idle.eq((taken == acked) & (send == acked) & ~waits)]
        m.d.sync += ready.eq(held < self.ring - 1)
        w_ram = ram.write_port()
        m.d.comb += [self.i.ready.eq(~waits), w_ram.en.eq(waits & ready),
                     w_ram.addr.eq(taken[:len(w_ram.addr)]), w_ram.data.eq(newest)]
        with m.If(~waits):
            m.d.sync += [newest.eq(self.i.payload), waits.eq(self.i.valid)]
        with m.If(w_ram.en):
            m.d.sync += [taken.eq(taken + 1), waits.eq(0)]

        # Acknowledgement: difference and window registered, then compared.
        index, ahead, window = (Signal(16, reset_less=True) for _ in range(3))
        credit, progress = Signal(), Signal()
        m.d.sync += [credit.eq(self.credit), index.eq(self.next_index),
                     ahead.eq(self.next_index - acked), window.eq(taken - acked), progress.eq(0)]
        with m.If(credit & (ahead != 0) & (ahead <= window)):
            m.d.sync += [acked.eq(index), progress.eq(1)]

        # One difference a register: what the sender has to do.
        behind, pending, waiting = Signal(), Signal(), Signal()
        m.d.sync += [behind.eq((send - acked)[15]), pending.eq(send != taken),
                     waiting.eq((send == taken) & (acked != taken))]
        timer = Signal(32, reset_less=True)     # no Countdown: expired is the register behind it
        expired = Signal()
        with m.If(~waiting | progress):
            m.d.sync += [timer.eq(self.resend), expired.eq(0)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += expired.eq(1)

        r_ram = ram.read_port()
        event = Signal(TokenEvent(), reset_less=True)       # the RAM's output register
        shift = Signal(8 * EVENT_BYTES, reset_less=True)
        left = Countdown(m, range(EVENT_BYTES), name="left", behind=True, reset=False,
                         reset_flags=False)
        seq = Signal(8, reset_less=True)
        wait = Signal(2)
        cleared = Signal()                  # while a frame of the run before was on its way out
        m.d.comb += [r_ram.addr.eq(send[:len(r_ram.addr)]), r_ram.en.eq(1),
                     self.o.header.payload.type.eq(TOKEN),
                     self.o.header.payload.seq.eq(seq),
                     self.o.header.payload.length.eq(EVENT_BYTES),
                     self.o.payload.payload.eq(shift[:8])]
        m.d.sync += event.eq(r_ram.data)
        with m.FSM():
            with m.State("SETTLE"):         # after every change: flags, RAM, its register
                m.d.sync += [wait.eq(wait + 1), cleared.eq(0)]
                with m.If((wait == 3) & ~self.clear):
                    m.next = "IDLE"
            with m.State("IDLE"):
                with m.If(self.clear):
                    m.next = "SETTLE"
                with m.Elif(behind | expired):
                    m.d.sync += [send.eq(acked), expired.eq(0), timer.eq(self.resend)]
                    m.next = "SETTLE"
                with m.Elif(pending):
                    m.next = "READ"
            with m.State("READ"):           # the event may have been written just before pending
                m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [left.load_all(EVENT_BYTES), seq.eq(send[:8]), shift.eq(Cat(
                    self.run, send, event.token, Const(0, 32 - len(event.token)), event.crc,
                    event.reason, Const(0, 8 - len(event.reason))))]
                # What was fetched belongs to the run before: not to be sent as the new one's.
                m.next = "HEADER"
                with m.If(cleared | self.clear):
                    m.next = "SETTLE"
            with m.State("HEADER"):
                m.d.comb += self.o.header.valid.eq(1)
                with m.If(self.o.header.ready):
                    m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += self.o.payload.valid.eq(1)
                with m.If(self.o.payload.ready):
                    m.next = "SHIFT"
            with m.State("SHIFT"):          # apart from ready: 104 flip-flops wait for it
                m.d.sync += [shift.eq(shift >> 8), left.step()]
                m.next = "PAYLOAD"
                with m.If(left.last):
                    with m.If(~cleared):
                        m.d.sync += send.eq(send + 1)
                    m.next = "SETTLE"
        with m.If(self.clear):
            m.d.sync += [taken.eq(0), waits.eq(0), acked.eq(0), send.eq(0), wait.eq(0),
                         cleared.eq(1)]
        return m
