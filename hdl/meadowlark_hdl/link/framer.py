"""Frames of the host link: bytes to buffered frames, frames to bytes, two senders on one wire."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, Signature

from ..lib.collisions import NO_RW_CHECK
from ..lib.countdown import Countdown
from ..lib.queues import Queue
from .protocol import CRC_BYTES, MAX_PAYLOAD, SLOTS, SYNC

#: What stands before a payload. length: 0..MAX_PAYLOAD bytes.
FrameHeader = data.StructLayout({"type": 8, "seq": 8, "length": range(MAX_PAYLOAD + 1)})


class FramePort(Signature):
    """A sender of frames: a header, then exactly ``length`` payload bytes."""

    def __init__(self) -> None:
        super().__init__({"header": Out(stream.Signature(FrameHeader)),
                          "payload": Out(stream.Signature(8))})


class ReceivedFrames(Signature):
    """Frames that have come, one at a time.

    valid: a frame waits; header holds until ``pop``. payload: its ``length`` bytes, to be taken
    before ``pop``. pop: pulse, the frame is done with, its slot is free.
    """

    def __init__(self) -> None:
        super().__init__({"valid": Out(1), "header": Out(FrameHeader),
                          "payload": Out(stream.Signature(8)), "pop": In(1)})


class FrameParser(wiring.Component):
    """Bytes to the fields of frames, checked.

    Timing: a payload byte 1 cycle after it came, ``good`` or ``damaged`` 3 cycles after the frame's
    last byte; ``header`` holds until then.

    Members
    -------
    i : In(stream of 8)             Always ready.
    byte : Out(stream of 8)         Of the payload of a frame that may turn out to be damaged.
    at : Out(8)                     Its index.
    header : Out(FrameHeader)
    good, damaged : Out(1)          Pulse: a frame has ended, and its CRC was right; or it was not,
                                    or the length is beyond MAX_PAYLOAD.
    """

    def __init__(self) -> None:
        super().__init__({
            "i": In(stream.Signature(8, always_ready=True)),
            "byte": Out(stream.Signature(8, always_ready=True)), "at": Out(range(MAX_PAYLOAD)),
            "header": Out(FrameHeader), "good": Out(1), "damaged": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = catalog.CRC32_ISO_HDLC(8).create()

        # The input is registered, so that a UART's or pad's output meets no logic here.
        byte = Signal(8, reset_less=True)
        byte_valid = Signal()
        m.d.sync += [byte.eq(self.i.payload), byte_valid.eq(self.i.valid)]

        header = Signal(FrameHeader, reset_less=True)
        at = Signal(range(MAX_PAYLOAD), reset_less=True)     # payload byte to come
        last = Signal(range(MAX_PAYLOAD), reset_less=True)   # length - 1
        tail = Signal(range(CRC_BYTES))
        ended = Signal()                # the last CRC byte went into the CRC a cycle ago
        overlong = Signal()
        m.d.comb += [crc.data.eq(byte), self.byte.payload.eq(byte), self.at.eq(at),
                     self.header.eq(header)]
        m.d.sync += [ended.eq(0), overlong.eq(0), self.good.eq(ended & crc.match_detected),
                     self.damaged.eq(ended & ~crc.match_detected | overlong)]
        with m.FSM():
            with m.State("HUNT"):
                m.d.comb += crc.start.eq(1)
                with m.If(byte_valid & (byte == SYNC)):
                    m.next = "TYPE"
            for state, field, following in (("TYPE", header.type, "SEQ"),
                                            ("SEQ", header.seq, "LENGTH_LOW"),
                                            ("LENGTH_LOW", header.length, "LENGTH_HIGH")):
                with m.State(state):
                    m.d.comb += crc.valid.eq(byte_valid)
                    with m.If(byte_valid):
                        m.d.sync += field.eq(byte)
                        m.next = following
            with m.State("LENGTH_HIGH"):
                m.d.comb += crc.valid.eq(byte_valid)
                m.d.sync += [at.eq(0), tail.eq(0)]
                with m.If(byte_valid):
                    # 256 is the only length with a high byte; 256 - 1 wraps to 255 in 8 bits.
                    m.d.sync += [header.length[8].eq(byte[0]), last.eq(header.length[:8] - 1)]
                    with m.If((byte > 1) | ((byte == 1) & (header.length[:8] != 0))):
                        m.d.sync += overlong.eq(1)
                        m.next = "HUNT"
                    with m.Elif((byte == 0) & (header.length[:8] == 0)):
                        m.next = "CRC"
                    with m.Else():
                        m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += [crc.valid.eq(byte_valid), self.byte.valid.eq(byte_valid)]
                with m.If(byte_valid):
                    m.d.sync += at.eq(at + 1)
                    with m.If(at == last):
                        m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += crc.valid.eq(byte_valid)
                with m.If(byte_valid):
                    m.d.sync += tail.eq(tail + 1)
                    with m.If(tail == CRC_BYTES - 1):
                        m.d.sync += ended.eq(1)
                        m.next = "HUNT"
        return m


class RxFramer(wiring.Component):
    """Bytes to frames. Takes a byte every cycle, whatever happens downstream.

    A frame is received into a free slot and counts only once its CRC is right; a damaged one is
    overwritten by the next. Of ``slots`` slots one is always being received into, so ``slots`` - 1
    frames wait at most; a good frame that would be one too many is dropped (the sender repeats it).

    Timing: a frame is offered 5 cycles after its last byte if none waits before it; its payload
    follows at one byte a cycle. The next frame is offered 2 cycles after ``pop``.

    Parameters
    ----------
    slots : int, power of two, 2..16
        Frame buffers of MAX_PAYLOAD bytes; 8 fill one block RAM.

    Members
    -------
    i : In(stream of 8)             Always ready.
    o : Out(ReceivedFrames)
    bad, dropped : Out(16)          Damaged frames, frames without a free slot; modulo 65536.
    """

    def __init__(self, *, slots: int = SLOTS):
        if slots not in (2, 4, 8, 16):
            raise ValueError(f"slots must be 2, 4, 8 or 16, not {slots!r}")
        self.slots = slots
        super().__init__({"i": In(stream.Signature(8)), "o": Out(ReceivedFrames()), "bad": Out(16),
                          "dropped": Out(16)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.parser = parser = FrameParser()
        m.submodules.ram = ram = Memory(shape=8, depth=self.slots * MAX_PAYLOAD, init=[],
                                       attrs=NO_RW_CHECK)       # a slot is written, then read
        m.submodules.headers = headers = Memory(shape=FrameHeader, depth=self.slots, init=[])
        w_slot, r_slot = Signal(range(self.slots)), Signal(range(self.slots))
        level = Signal(range(self.slots))       # frames waiting, up to slots - 1
        o, pop = self.o, self.o.pop

        # Commit, two cycles after the last byte: the earliest next payload byte comes 6 cycles
        # later, so it already goes to the next slot.
        good, room = parser.good, Signal()
        w_ram, w_header = ram.write_port(), headers.write_port()
        m.d.comb += [
            self.i.ready.eq(1), parser.i.valid.eq(self.i.valid),
            parser.i.payload.eq(self.i.payload), w_ram.addr.eq(Cat(parser.at, w_slot)),
            w_ram.data.eq(parser.byte.payload), w_ram.en.eq(parser.byte.valid),
            room.eq(level != self.slots - 1), w_header.addr.eq(w_slot),
            w_header.data.eq(parser.header), w_header.en.eq(good & room)]
        with m.If(good & room):
            m.d.sync += w_slot.eq(w_slot + 1)
        with m.If(good & ~room):
            m.d.sync += self.dropped.eq(self.dropped + 1)
        with m.If(parser.damaged):
            m.d.sync += self.bad.eq(self.bad + 1)
        m.d.sync += level.eq(level + (good & room) - pop)
        # The front header takes two cycles, address to register: LUT RAM, then o.header.
        r_header = headers.read_port(domain="comb")
        m.d.comb += r_header.addr.eq(r_slot)
        with m.If(pop):
            m.d.sync += [o.valid.eq(0), r_slot.eq(r_slot + 1)]
        with m.Elif(~o.valid):
            m.d.sync += [o.valid.eq(level != 0), o.header.eq(r_header.data)]

        # Payload of the front frame: reads are issued as far ahead as the FIFO has reserved room.
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=8)
        reserve = Signal(range(fifo.depth + 1), init=fifo.depth)
        count = Signal(range(MAX_PAYLOAD + 1))          # bytes asked for
        issue, issued, arrived, back = (Signal() for _ in range(4))
        arriving = Signal(8, reset_less=True)           # the RAM's output register
        r_ram = ram.read_port()
        m.d.comb += [issue.eq(o.valid & (count != o.header.length) & (reserve != 0)),
                     r_ram.addr.eq(Cat(count[:8], r_slot)), r_ram.en.eq(1),
                     fifo.w_en.eq(arrived), fifo.w_data.eq(arriving),
                     o.payload.valid.eq(fifo.r_rdy), o.payload.payload.eq(fifo.r_data),
                     fifo.r_en.eq(o.payload.ready)]
        m.d.sync += [issued.eq(issue), arrived.eq(issued), arriving.eq(r_ram.data),
                     back.eq(fifo.r_en & fifo.r_rdy), reserve.eq(reserve - issue + back)]
        with m.If(pop):
            m.d.sync += count.eq(0)
        with m.Elif(issue):
            m.d.sync += count.eq(count + 1)
        return m


class FrameMux(wiring.Component):
    """Two senders of frames on one line, a frame at a time; they take turns when both have one.

    Timing: a cycle between frames; nothing is added to a byte's way.

    Members
    -------
    a, b : In(FramePort)
    o : Out(FramePort)
    """

    def __init__(self) -> None:
        super().__init__({"a": In(FramePort()), "b": In(FramePort()), "o": Out(FramePort())})

    def elaborate(self, platform):
        m = Module()
        turn = Signal()                                     # 1: b has the line, or had it last
        left = Countdown(m, range(MAX_PAYLOAD + 1), name="left", reset=False, reset_flags=False)
        m.d.comb += [
            self.o.header.payload.eq(Mux(turn, self.b.header.payload, self.a.header.payload)),
            self.o.payload.payload.eq(Mux(turn, self.b.payload.payload, self.a.payload.payload))]
        with m.FSM():
            with m.State("FREE"):
                with m.If(Mux(turn, self.a.header.valid, self.b.header.valid)):
                    m.d.sync += turn.eq(~turn)
                    m.next = "HEADER"
                with m.Elif(Mux(turn, self.b.header.valid, self.a.header.valid)):
                    m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += [self.o.header.valid.eq(1),
                             self.a.header.ready.eq(self.o.header.ready & ~turn),
                             self.b.header.ready.eq(self.o.header.ready & turn)]
                m.d.sync += left.load(self.o.header.payload.length)
                with m.If(self.o.header.ready):
                    m.next = "PAYLOAD"
                    with m.If(self.o.header.payload.length == 0):
                        m.next = "FREE"
            with m.State("PAYLOAD"):
                m.d.comb += [
                    self.o.payload.valid.eq(Mux(turn, self.b.payload.valid, self.a.payload.valid)),
                    self.a.payload.ready.eq(self.o.payload.ready & ~turn),
                    self.b.payload.ready.eq(self.o.payload.ready & turn)]
                with m.If(self.o.payload.valid & self.o.payload.ready):
                    m.d.sync += left.step()
                    with m.If(left.last):
                        m.next = "FREE"
        return m


class TxFramer(wiring.Component):
    """Frames to bytes: adds sync and CRC.

    Timing: one byte a cycle, three cycles between the last byte of the payload and the CRC. A frame
    may be given before the one before it has left.

    Members
    -------
    i : In(FramePort)           To queues: ready comes from registers.
    o : Out(stream of 8)        From a 16-byte queue: its ready reaches no logic of the sender.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(FramePort()), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = catalog.CRC32_ISO_HDLC(8).create()
        m.submodules.headers = headers = Queue(FrameHeader, depth=2)
        m.submodules.payload = payload = Queue(8, depth=2)
        m.submodules.bytes = queue = Queue(8, depth=16)
        wiring.connect(m, wiring.flipped(self.i.header), headers.i)
        wiring.connect(m, wiring.flipped(self.i.payload), payload.i)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        # One register before the queue and the CRC. ``go``: it is free or being emptied.
        byte = Signal(8, reset_less=True)
        valid, counted = Signal(), Signal()         # counted: the byte belongs to the CRC
        go, start = Signal(), Signal()
        m.d.comb += [go.eq(queue.i.ready), queue.i.valid.eq(valid), queue.i.payload.eq(byte)]
        m.d.sync += [crc.data.eq(byte), crc.valid.eq(valid & counted & go), crc.start.eq(start)]
        shift = Signal(8 * 4, reset_less=True)      # header bytes to come, then CRC bytes
        left = Countdown(m, range(MAX_PAYLOAD + 1), name="left", reset=False, reset_flags=False)
        tail = Signal(2)
        with m.If(go):
            m.d.sync += valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += headers.o.ready.eq(go)
                header = headers.o.payload
                m.d.sync += tail.eq(0)
                with m.If(go & headers.o.valid):
                    m.d.sync += [byte.eq(SYNC), valid.eq(1), counted.eq(0),
                                 left.load(header.length),
                                 shift.eq(Cat(header.type, header.seq, header.length))]
                    m.next = "HEADER"
            with m.State("HEADER"):
                # The CRC is restarted while SYNC stands in the register, not counted.
                m.d.comb += start.eq(valid & ~counted)
                with m.If(go):
                    m.d.sync += [byte.eq(shift[:8]), valid.eq(1), counted.eq(1),
                                 shift.eq(shift >> 8), tail.eq(tail + 1)]
                    with m.If(tail == 3):
                        with m.If(~left.some):
                            m.next = "SETTLE"
                        with m.Else():
                            m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += payload.o.ready.eq(go)
                with m.If(go & payload.o.valid):
                    m.d.sync += [byte.eq(payload.o.payload), valid.eq(1), left.step()]
                    with m.If(left.last):
                        m.next = "SETTLE"
            with m.State("SETTLE"):
                with m.If(go):                      # the last counted byte goes to the CRC
                    m.next = "COUNTED"
            with m.State("COUNTED"):                # and enters it
                m.next = "LATCH"
            with m.State("LATCH"):
                m.d.sync += [shift.eq(crc.crc), tail.eq(0)]
                m.next = "CRC"
            with m.State("CRC"):
                with m.If(go):
                    m.d.sync += [byte.eq(shift[:8]), valid.eq(1), counted.eq(0),
                                 shift.eq(shift >> 8), tail.eq(tail + 1)]
                    with m.If(tail == 3):
                        m.next = "IDLE"
        return m
