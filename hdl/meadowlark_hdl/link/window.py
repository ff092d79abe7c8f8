"""The host's window to the external memory: one burst in or out, or a CRC over any stretch."""
from enum import IntEnum

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out, Signature

from ..config import Config
from ..lib.bursts import BurstCutter
from ..lib.queues import RamQueue
from ..signatures import MemoryPort
from .protocol import MAX_PAYLOAD


class WindowPort(Signature):
    """What asks for one of the window's three jobs.

    go: pulse. addr, words: in bus words, words >= 1; they hold from go for a cycle. done: pulse,
    whatever the job was.
    """

    def __init__(self) -> None:
        super().__init__({"go": Out(1), "addr": Out(32), "words": Out(32), "done": In(1)})


class WindowOp(IntEnum):
    READ = 0
    WRITE = 1
    CRC = 2


class MemoryWindow(wiring.Component):
    """Reads or writes one burst through a buffer, or streams a CRC.

    The buffer holds a whole frame: a burst is asked for only when its data is complete (write) or
    has room (read), so the memory bus never waits for the link.

    Timing: CRC: one bus word a cycle, bursts asked for back to back. ``done``: the written burst is
    in memory, or the CRC is complete; a read has no ``done``, its words come out of ``r``. One job
    at a time.

    Parameters
    ----------
    config : Config

    Members
    -------
    read, write : In(WindowPort)    A burst: words at most burst_words and what MAX_PAYLOAD bytes
                                    hold. ``w`` has taken those of ``write`` before.
    check : In(WindowPort)          A CRC.
    w : In(stream of bus words)     Only before a ``write``; always ready for a frame.
    r : Out(stream of bus words)
    crc : Out(32)                   CRC-32 (ISO-HDLC), bytes in the order of their addresses.
    mem : Out(MemoryPort)
    """

    def __init__(self, config: Config):
        self.config = config
        bits = 8 * config.bus_bytes
        super().__init__({
            "read": In(WindowPort()), "write": In(WindowPort()), "check": In(WindowPort()),
            "w": In(stream.Signature(bits, always_ready=True)), "r": Out(stream.Signature(bits)),
            "crc": Out(32), "mem": Out(MemoryPort(config))})

    def elaborate(self, platform):
        m = Module()
        config, mem = self.config, self.mem
        bits = 8 * config.bus_bytes
        m.submodules.engine = engine = catalog.CRC32_ISO_HDLC(bits).create()
        m.submodules.fifo = fifo = RamQueue(bits, depth=max(MAX_PAYLOAD // config.bus_bytes, 8))
        op = Signal(2, reset_less=True)
        stretch = BurstCutter(m, most=config.burst_words, address_bits=32, left_bits=32,
                              name="stretch")
        due = Signal(32, reset_less=True)           # words to come (CRC)

        # Arriving words: one register, then the buffer or the CRC.
        word = Signal(bits, reset_less=True)
        arrived = Signal()
        m.d.comb += mem.r_data.ready.eq(1)
        m.d.sync += [word.eq(mem.r_data.payload), arrived.eq(mem.r_data.valid)]
        # One more before the CRC, whose logic is deep.
        checked, check, start = Signal(bits, reset_less=True), Signal(), Signal()
        m.d.sync += [checked.eq(word), check.eq(arrived & (op == WindowOp.CRC)),
                     start.eq(self.check.go)]
        m.d.comb += [engine.data.eq(checked), engine.valid.eq(check), engine.start.eq(start),
                     self.crc.eq(engine.crc)]

        reading = Signal()
        m.d.sync += [reading.eq(op == WindowOp.READ),
                     fifo.i_valid.eq(self.w.valid | arrived & reading),
                     fifo.i_data.eq(Mux(self.w.valid, self.w.payload, word))]

        # Leaving words.
        out = Signal(bits, reset_less=True)
        out_valid, taken, to_memory = Signal(), Signal(), Signal()
        m.d.comb += [
            to_memory.eq(op == WindowOp.WRITE),
            mem.w_data.payload.data.eq(out), mem.w_data.payload.strb.eq(~0),
            self.r.payload.eq(out), self.r.valid.eq(out_valid & ~to_memory),
            taken.eq(Mux(to_memory, mem.w_data.valid & mem.w_data.ready, self.r.ready)),
            fifo.o.ready.eq(~out_valid | taken)]
        with m.If(~out_valid | taken):
            m.d.sync += [out.eq(fifo.o.payload), out_valid.eq(fifo.o.valid)]

        m.d.comb += [command.payload[name].eq(value) for command in (mem.r_cmd, mem.w_cmd)
                     for name, value in (("addr", stretch.address), ("len", stretch.less_one))]
        sending = Signal()                  # write data may leave: never ahead of its command
        m.d.comb += mem.w_data.valid.eq(out_valid & sending)
        jobs = {WindowOp.READ: self.read, WindowOp.WRITE: self.write, WindowOp.CRC: self.check}
        done = Signal()
        m.d.comb += [job.done.eq(done) for job in jobs.values()]
        m.d.sync += done.eq(0)
        with m.If(engine.valid):
            m.d.sync += due.eq(due - 1)
        with m.FSM():
            with m.State("IDLE"):
                for kind, job in jobs.items():
                    with m.If(job.go):      # only then: words of a READ may still arrive
                        m.d.sync += [op.eq(kind), stretch.load(job.addr, job.words),
                                     due.eq(job.words)]
                        m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += stretch.cut()
                with m.If(op == WindowOp.WRITE):
                    m.next = "WRITE"
                with m.Else():
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += mem.r_cmd.valid.eq(1)
                with m.If(mem.r_cmd.ready):
                    m.next = "COUNT"
            with m.State("COUNT"):              # apart from ready, which comes from far
                m.d.sync += stretch.advance()
                m.next = "SIZE"
                with m.If(op == WindowOp.READ):
                    m.next = "IDLE"
                with m.Elif(stretch.final):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(due == 0):
                    m.d.sync += done.eq(1)
                    m.next = "IDLE"
            with m.State("WRITE"):
                m.d.comb += mem.w_cmd.valid.eq(1)
                with m.If(mem.w_cmd.ready):
                    m.d.sync += sending.eq(1)
                    m.next = "DATA"
            with m.State("DATA"):
                with m.If(mem.w_done):
                    m.d.sync += [sending.eq(0), done.eq(1)]
                    m.next = "IDLE"
        return m
