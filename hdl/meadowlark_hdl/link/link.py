"""The host link: frames in, commands executed in order, answers and token events out."""
from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..config import Config
from .counters_table import COUNTER_BITS, COUNTER_SLOTS
from ..isa import INSTRUCTION_BITS, INSTRUCTION_BYTES
from ..signatures import MemoryPort, SequencerPort
from .dispatcher import Dispatcher, Form
from .events import EventRing
from .framer import FrameMux, RxFramer, TxFramer
from .handlers.fill import Fill
from .handlers.handler import Handler
from .handlers.memory import CrcMemory, ReadMemory, WriteMemory
from .handlers.read import ReadRegisters
from .handlers.run import Abort, Credit, Start
from .protocol import (COMMANDS, CONTROL_BASE, EVENT_RING, REGISTER_WORDS, RUN_BASE, Command)
from .registers import RegisterFile
from .window import MemoryWindow


class Link(wiring.Component):
    """Both directions of the host link; see ``docs/link.md`` for the protocol.

    Commands are executed one after the other in the order of arrival, each answered before the next
    is begun; token events go out between answers. Nothing here ever stalls ``rx``: a frame
    without a free buffer is dropped and repeated by the host.

    Timing: payload bytes are taken one a cycle; a command costs 40 cycles or so besides its bytes
    and those of its answer, WRITE_MEMORY also the memory's latency, READ 10 cycles a word.

    Parameters
    ----------
    config : Config
    board : str                 Name, up to 16 ASCII characters; the host shows it.
    clock_hz : int              Core clock, for the host's arithmetic. 0: unknown.
    memory_bytes : int          Size of the memory behind ``mem``. 0: unknown.
    ring : int                  Token events kept until acknowledged; only tests change it.
    resend_cycles : int         Cycles without an acknowledgement until events are sent again; the
                                host can change it (register ``resend_cycles``).

    Members
    -------
    rx : In(stream of 8)        From the transport; always ready.
    tx : Out(stream of 8)       To the transport.
    seq : Out(SequencerPort)
    mem : Out(MemoryPort)       Any address; one burst at a time, CRC_MEMORY bursts back to back.
    counter_index : Out(4)
    counter_data : In(40)       That counter, at most 4 cycles after the index changed.
    counter_hold : Out(1)       Counters are being read: keep what can be read unchanged.
    reset : Out(1)              Pulse: reset the core, all but this block. No command to the memory
                                is under way then.
    idle : Out(1)               Waits for a byte or an event, whatever the time; bytes may still be
                                on their way to ``tx``.
    """

    def __init__(self, config: Config, *, board: str = "", clock_hz: int = 0,
                 memory_bytes: int = 0, ring: int = EVENT_RING, resend_cycles: int = 1 << 20):
        self.config = config
        self.registers = RegisterFile(
            config, board=board, clock_hz=clock_hz, memory_bytes=memory_bytes,
            resend_cycles=resend_cycles)
        self.ring = EventRing(ring=ring)
        super().__init__({
            "rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)),
            "seq": Out(SequencerPort(config)), "mem": Out(MemoryPort(config)),
            "counter_index": Out(range(COUNTER_SLOTS)), "counter_data": In(COUNTER_BITS),
            "counter_hold": Out(1),
            "reset": Out(1), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, seq = self.config, self.seq
        m.submodules.rx_framer = rx = RxFramer()
        m.submodules.tx_framer = tx = TxFramer()
        m.submodules.mux = mux = FrameMux()
        m.submodules.registers = regs = self.registers
        m.submodules.ring = ring = self.ring
        m.submodules.window = window = MemoryWindow(config)

        # A handler each, and what it works on.
        read = ReadRegisters(config)
        write = Fill(config, unit=4, shape=32, depth=REGISTER_WORDS, first=CONTROL_BASE,
                     locked=RUN_BASE)
        program = Fill(config, unit=INSTRUCTION_BYTES, shape=INSTRUCTION_BITS,
                       depth=config.prog_depth)
        tokens = Fill(config, unit=4, shape=Config.TOKEN_BITS, depth=config.context)
        read_memory, write_memory = ReadMemory(config), WriteMemory(config)
        crc_memory = CrcMemory(config)
        start, abort, credit = Start(config), Abort(config), Credit(config)
        handlers: dict[Command, Handler] = {
            Command.READ: read, Command.WRITE: write, Command.READ_MEMORY: read_memory,
            Command.WRITE_MEMORY: write_memory, Command.CRC_MEMORY: crc_memory,
            Command.WRITE_PROGRAM: program, Command.WRITE_TOKENS: tokens, Command.START: start,
            Command.ABORT: abort, Command.CREDIT: credit}
        m.submodules.dispatcher = dispatcher = Dispatcher(config, {
            command: Form(len(COMMANDS[command].arguments), COMMANDS[command].answer is not None,
                          handler.sizes) for command, handler in handlers.items()})
        for port, (command, handler) in zip(dispatcher.handlers, handlers.items()):
            m.submodules[command.name.lower()] = handler
            connect(m, port, handler.port)
        connect(m, read_memory.window, window.read)
        connect(m, write_memory.window, window.write)
        connect(m, crc_memory.window, window.check)
        connect(m, window.r, read_memory.r)
        connect(m, write_memory.w, window.w)
        connect(m, read.regs, regs.r)
        connect(m, write.w, regs.w)
        connect(m, regs.places, flipped(seq.places))
        connect(m, regs.seeds, flipped(seq.seeds))
        m.d.comb += [
            crc_memory.crc.eq(window.crc), self.counter_hold.eq(read.hold),
            seq.prog_en.eq(program.w.en), seq.prog_addr.eq(program.w.addr),
            seq.prog_data.eq(program.w.data), seq.token_en.eq(tokens.w.en),
            seq.token_addr.eq(tokens.w.addr), seq.token_data.eq(tokens.w.data),
            seq.start.eq(start.start), seq.abort.eq(abort.abort), ring.clear.eq(start.start),
            ring.run.eq(start.run), ring.credit.eq(credit.credit),
            ring.next_index.eq(credit.next_index)]

        # Bytes in, bytes out.
        connect(m, flipped(self.rx), rx.i)
        connect(m, rx.o, dispatcher.frames)
        connect(m, dispatcher.o, mux.a)
        connect(m, ring.o, mux.b)
        connect(m, mux.o, tx.i)
        connect(m, tx.o, flipped(self.tx))

        # The core's state, registered here: it comes from far away.
        connect(m, window.mem, flipped(self.mem))
        connect(m, flipped(seq.events), ring.i)
        busy, ready = Signal(), Signal()
        m.d.sync += [busy.eq(seq.busy), ready.eq(self.mem.ready)]
        m.d.comb += [
            dispatcher.core.eq(Cat(busy, ready, start.run)), seq.model.eq(regs.model),
            seq.run.eq(regs.run), self.reset.eq(regs.reset),
            self.counter_index.eq(regs.counter_index), regs.counter_data.eq(self.counter_data),
            regs.live_status.eq(Cat(busy, ready)), regs.live_error.eq(seq.error),
            regs.live_error_pc.eq(seq.error_pc), regs.live_run.eq(start.run),
            regs.live_events.eq(ring.count), regs.live_frames_bad.eq(rx.bad),
            regs.live_frames_dropped.eq(rx.dropped), ring.resend.eq(regs.resend),
            self.idle.eq(dispatcher.idle & ring.idle)]
        return m
