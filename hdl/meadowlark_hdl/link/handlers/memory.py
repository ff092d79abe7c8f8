"""READ_MEMORY, WRITE_MEMORY, CRC_MEMORY: what the memory window does for the host."""
from amaranth import Module, Signal
from amaranth.hdl import ValueLike
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ...config import Config
from ..protocol import MAX_PAYLOAD, Result
from ..window import WindowPort
from .handler import Handler, Sizes


class MemoryHandler(Handler):
    """What the three have in common: addresses and lengths are whole bus words, memory is ready.

    Members
    -------
    port : In(HandlerPort)
    window : Out(WindowPort)
    """

    def __init__(self, config: Config, members: dict, sizes: Sizes = Sizes()):
        self.low = exact_log2(config.bus_bytes)         # bits of an address within a word
        #: Bytes of the longest burst: a frame's, or memory's.
        self.most = min(MAX_PAYLOAD - 4, config.burst_words * config.bus_bytes) \
            // config.bus_bytes * config.bus_bytes
        super().__init__(config, {"window": Out(WindowPort()), **members}, sizes)

    def ask(self, m: Module, length: ValueLike, wrong: ValueLike) -> None:
        """Ask for ``length`` bytes at args[0] unless ``wrong``: a condition of the length."""
        port, window = self.port, self.window
        torn = (port.args[0] | length)[:self.low].any()
        self.refuse(m, (wrong | (length == 0) | torn, Result.BAD_LENGTH),
                    (~port.core.ready, Result.NOT_READY))
        m.d.comb += [window.addr.eq(port.args[0] >> self.low), window.words.eq(length >> self.low)]
        m.d.sync += window.go.eq(port.execute)

    def until_done(self, m: Module, *, bytes: int = 0) -> None:
        """Answer when the window is done."""
        working = Signal()
        with m.If(self.port.execute):
            m.d.sync += working.eq(1)
        with m.Elif(self.window.done):
            m.d.sync += working.eq(0)
        m.d.comb += self.answer(valid=~working, bytes=bytes)


class ReadMemory(MemoryHandler):
    """args[1] bytes of memory from address args[0] on, a burst at most.

    Members
    -------
    port : In(HandlerPort)
    window : Out(WindowPort)
    r : In(stream of bus words)
    """

    def __init__(self, config: Config):
        bus = config.bus_bytes
        super().__init__(config, {"r": In(stream.Signature(8 * bus))}, Sizes(word=bus))

    def elaborate(self, platform):
        m = Module()
        port, length = self.port, self.port.args[1]
        self.ask(m, length, (port.rest != 0) | (length > self.most))
        m.d.comb += [self.answer(bytes=length), port.words.valid.eq(self.r.valid),
                     port.words.payload.eq(self.r.payload), self.r.ready.eq(port.words.ready)]
        return m


class WriteMemory(MemoryHandler):
    """What is behind the argument to memory from address args[0] on, a burst at most; answered when
    it is there.

    Members
    -------
    port : In(HandlerPort)
    window : Out(WindowPort)
    w : Out(stream of bus words)
    """

    def __init__(self, config: Config):
        bus = config.bus_bytes
        super().__init__(config, {"w": Out(stream.Signature(8 * bus, always_ready=True))},
                         Sizes(unit=bus))

    def elaborate(self, platform):
        m = Module()
        port = self.port
        self.ask(m, port.rest, port.rest > self.most)
        self.until_done(m)
        m.d.sync += [self.w.valid.eq(port.unit.valid), self.w.payload.eq(port.unit.payload)]
        return m


class CrcMemory(MemoryHandler):
    """CRC-32 of args[1] bytes of memory from address args[0] on.

    Members
    -------
    port : In(HandlerPort)
    window : Out(WindowPort)
    crc : In(32)
    """

    def __init__(self, config: Config):
        super().__init__(config, {"crc": In(32)})

    def elaborate(self, platform):
        m = Module()
        port = self.port
        self.ask(m, port.args[1], port.rest != 0)
        self.until_done(m, bytes=4)
        m.d.comb += [port.words.valid.eq(1), port.words.payload.eq(self.crc)]
        return m
