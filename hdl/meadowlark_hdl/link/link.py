"""The host link: frames in, commands executed in order, answers and token events out."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..config import Config
from ..lib.countdown import Countdown
from ..control.counters_table import COUNTER_BITS, COUNTER_SLOTS
from ..isa import INSTRUCTION_BYTES
from ..signatures import MemoryPort, SequencerPort
from .events import EventRing
from .framer import FrameMux, FramePort, RxFramer, TxFramer
from .protocol import (ANSWER, CONTROL_BASE, COUNTER_BASE, EVENT_RING, MAX_PAYLOAD,
                       REGISTER_WORDS, RUN_BASE, Command, Result)
from .registers import RegisterFile
from .window import MemoryWindow, WindowOp


def _log2(n: int) -> int:
    return n.bit_length() - 1


class Link(wiring.Component):
    """Both directions of the host link; see ``docs/link.md`` for the protocol.

    Commands are executed one after the other in the order of arrival, each answered before the next
    is begun; token events go out between answers. Nothing here ever stalls ``rx``: a frame
    without a free buffer is dropped and repeated by the host.

    Timing: payload bytes are taken one a cycle; a command costs 40 cycles or so besides its bytes
    and those of its answer, WRITE_MEMORY also the memory's latency, READ 16 cycles a word.

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
        bus = config.bus_bytes
        m.submodules.rx_framer = rx = RxFramer()
        m.submodules.tx_framer = tx = TxFramer()
        m.submodules.mux = mux = FrameMux()
        m.submodules.registers = regs = self.registers
        m.submodules.ring = ring = self.ring
        m.submodules.window = window = MemoryWindow(config)
        connect(m, flipped(self.rx), rx.i)
        connect(m, mux.o, tx.i)
        connect(m, tx.o, flipped(self.tx))
        connect(m, ring.o, mux.b)
        connect(m, window.mem, flipped(self.mem))
        answer = FramePort().create()
        connect(m, answer, mux.a)

        # State of the core, registered here: its sources are far away.
        busy, ready = Signal(), Signal()
        last_run = Signal(16)
        m.d.sync += [busy.eq(seq.busy), ready.eq(self.mem.ready)]
        m.d.comb += [
            seq.model.eq(regs.model), seq.run.eq(regs.run), self.reset.eq(regs.reset),
            self.counter_index.eq(regs.counter_index), regs.counter_data.eq(self.counter_data),
            regs.live_status.eq(Cat(busy, ready)), regs.live_error.eq(seq.error),
            regs.live_error_pc.eq(seq.error_pc), regs.live_run.eq(last_run),
            regs.live_events.eq(ring.count), regs.live_frames_bad.eq(rx.bad),
            regs.live_frames_dropped.eq(rx.dropped),
            ring.run.eq(last_run), ring.resend.eq(regs.resend)]
        connect(m, flipped(seq.events), ring.i)

        # Payload bytes gather in ``unit``: an argument, register, token, instruction or bus word.
        # Each byte is registered together with the enable of its place, so no enable fans out to
        # more than a byte. ``unit_done``: complete, two cycles after its last byte was taken; the
        # first byte of the next one arrives a cycle later.
        unit_bytes = max(INSTRUCTION_BYTES, bus)
        unit = Signal(8 * unit_bytes, reset_less=True)
        size_2 = Signal(range(-1, unit_bytes - 1), reset_less=True)     # of a unit, less 2
        at = Signal(range(unit_bytes), reset_less=True)
        left = Countdown(m, range(MAX_PAYLOAD + 1), name="payload", reset=False,
                         reset_flags=False)                     # bytes not taken
        byte = Signal(8, reset_less=True)
        place_of = Signal(unit_bytes)                           # one-hot, or nothing
        last_byte, unit_done = Signal(), Signal()
        take, taking = Signal(), Signal()
        # What the next byte depends on, compared a cycle ahead: it is its unit's last, it is the
        # payload's last, there is none.
        fills, none_left = Signal(reset_less=True), Signal(reset_less=True)
        m.d.comb += [taking.eq(take & rx.payload.valid), rx.payload.ready.eq(take)]
        m.d.sync += [byte.eq(rx.payload.payload), last_byte.eq(taking & fills),
                     unit_done.eq(last_byte)]
        for i in range(unit_bytes):
            m.d.sync += place_of[i].eq(taking & (at == i))
            with m.If(place_of[i]):
                m.d.sync += unit[8 * i:8 * i + 8].eq(byte)
        with m.If(taking):
            m.d.sync += [left.step(), none_left.eq(left.last)]
            with m.If(fills):
                m.d.sync += [at.eq(0), fills.eq(size_2 < 0)]
            with m.Else():
                m.d.sync += [at.eq(at + 1), fills.eq(at == size_2)]

        # Arguments and everything that is decided by them, each a register.
        command, frame_seq = Signal(8, reset_less=True), Signal(8, reset_less=True)
        arg0, arg1 = Signal(32, reset_less=True), Signal(32, reset_less=True)
        second = Signal(reset_less=True)                # arg1 is the one being read
        two = Signal(reset_less=True)                   # the command has two arguments
        own_run = Signal(reset_less=True)
        kind = Signal(4, reset_less=True)               # the command, 0 if there is none such
        assert max(Command) < 16
        low = _log2(bus)
        bad_count = Signal(reset_less=True)             # READ: count of registers
        bad_first = Signal(reset_less=True)             # READ: no such register
        bad_word = Signal(reset_less=True)              # WRITE: first word not for writing
        bad_grid = Signal(reset_less=True)              # memory: not whole bus words
        bad_burst = Signal(reset_less=True)             # READ_MEMORY: longer than a frame or burst
        bad_data = Signal(reset_less=True)              # WRITE_MEMORY: the same
        bad_stretch = Signal(reset_less=True)           # CRC_MEMORY: nothing, not whole bus words
        locked = Signal(reset_less=True)                # run and model registers during a run
        most = min(MAX_PAYLOAD - 4, config.burst_words * bus) // bus * bus
        m.d.sync += [
            two.eq((command == Command.READ) | (command == Command.READ_MEMORY)
                   | (command == Command.CRC_MEMORY)),
            kind.eq(Mux(command[4:] == 0, command[:4], 0)),
            own_run.eq(arg0[:16] == last_run),
            bad_count.eq((arg1 == 0) | (arg1 > (MAX_PAYLOAD - 1) // 4)),
            bad_first.eq(arg0[9:] != 0),
            bad_word.eq((arg0 < CONTROL_BASE) | (arg0 >= REGISTER_WORDS)),
            bad_grid.eq((arg0[:low] != 0) if low else 0),
            bad_burst.eq((arg1 == 0) | (arg1 > most) | ((arg1[:low] != 0) if low else 0)),
            bad_data.eq((left.left > most) | ((left.left[:low] != 0) if low else 0)),
            bad_stretch.eq((arg1 == 0) | ((arg1[:low] != 0) if low else 0)),
            locked.eq(busy & (arg0 >= RUN_BASE))]

        # Units to their destinations. ``place`` counts them; 18 bits cover every memory written so
        # (prog_depth < 2**17), one more bit of each tells that its end was passed.
        place = Signal(18, reset_less=True)
        far = Signal(reset_less=True)           # arg0 has bits beyond ``place``
        outside = Signal()                      # a unit fell beyond the end of its memory
        m.d.sync += far.eq(arg0[17:] != 0)
        to_regs, to_program, to_tokens, to_memory = (Signal() for _ in range(4))
        inside = Signal()
        limit = Mux(to_regs, place >> _log2(REGISTER_WORDS),
                    Mux(to_program, place >> _log2(config.prog_depth),
                        place >> _log2(config.context)))
        m.d.comb += inside.eq(limit == 0)
        m.d.sync += [
            regs.w_en.eq(unit_done & to_regs & inside), regs.w_addr.eq(place),
            regs.w_data.eq(unit[:32]),
            seq.prog_en.eq(unit_done & to_program & inside), seq.prog_addr.eq(place),
            seq.prog_data.eq(unit[:8 * INSTRUCTION_BYTES]),
            seq.token_en.eq(unit_done & to_tokens & inside), seq.token_addr.eq(place),
            seq.token_data.eq(unit[:32]),
            window.w.valid.eq(unit_done & to_memory), window.w.payload.eq(unit[:8 * bus])]
        with m.If(unit_done):
            m.d.sync += place.eq(place + 1)
            with m.If((to_regs | to_program | to_tokens) & ~inside):
                m.d.sync += outside.eq(1)

        m.d.comb += window.addr.eq(arg0 >> low)
        m.d.sync += [window.go.eq(0), seq.start.eq(0), seq.abort.eq(0), ring.clear.eq(0),
                     ring.credit.eq(0), regs.r_go.eq(0)]
        m.d.comb += ring.next_index.eq(arg0[16:])

        result = Signal(Result, reset_less=True)
        words = Signal(range(MAX_PAYLOAD + 1), reset_less=True)     # of the answer, to load
        no_words = Signal(reset_less=True)                          # words == 0, a cycle later
        m.d.sync += no_words.eq(words == 0)
        length = Signal(range(MAX_PAYLOAD + 1), reset_less=True)    # of the answer's payload
        out_bytes = max(4, bus)
        out = Signal(8 * out_bytes, reset_less=True)
        out_left = Signal(range(out_bytes), reset_less=True)        # bytes after this one
        address = Signal(9, reset_less=True)
        reading = Signal()                                          # registers, for an answer
        m.d.sync += self.counter_hold.eq(reading & (address >= COUNTER_BASE))
        m.d.comb += [
            regs.r_addr.eq(address),
            answer.header.payload.type.eq(command | ANSWER),
            answer.header.payload.seq.eq(frame_seq), answer.header.payload.length.eq(length)]

        settled = Signal(reset_less=True)           # nothing to do but to answer ``result``

        def end(value):
            m.d.sync += [result.eq(value), settled.eq(1)]

        def units(destination, of_size):
            m.d.sync += [destination.eq(1), size_2.eq(of_size - 2), at.eq(0),
                         fills.eq(of_size == 1)]
            m.next = "UNITS"

        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.sync += [
                    command.eq(rx.header.type), frame_seq.eq(rx.header.seq),
                    left.load(rx.header.length),
                    none_left.eq(rx.header.length == 0), at.eq(0), size_2.eq(2), fills.eq(0),
                    second.eq(0), outside.eq(0), words.eq(0), length.eq(1),
                    to_regs.eq(0), to_program.eq(0), to_tokens.eq(0), to_memory.eq(0)]
                with m.If(rx.valid):
                    m.next = "ARGUMENT"
            with m.State("ARGUMENT"):
                m.d.comb += take.eq(~none_left)
                m.d.sync += result.eq(Result.BAD_LENGTH)
                with m.If(none_left):
                    m.next = "DRAIN"
                with m.Elif(taking & fills):
                    m.next = "ARGUMENT_LAST"
            with m.State("ARGUMENT_LAST"):  # its last byte is registered
                m.next = "ARGUMENT_DONE"
            with m.State("ARGUMENT_DONE"):
                m.d.sync += [arg1.eq(unit[:32]), second.eq(1)]
                with m.If(~second):
                    m.d.sync += [arg0.eq(unit[:32]), place.eq(unit[:32])]
                with m.If(two & ~second):
                    m.next = "ARGUMENT"
                with m.Else():
                    m.next = "CHECK"
            with m.State("CHECK"):          # the registers above follow their sources
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [
                    result.eq(Result.OK), settled.eq(0),
                    window.op.eq(Mux(kind == Command.WRITE_MEMORY, WindowOp.WRITE,
                                     Mux(kind == Command.READ_MEMORY, WindowOp.READ,
                                         WindowOp.CRC))),
                    window.words.eq(Mux(kind == Command.WRITE_MEMORY, left.left, arg1) >> low)]
                m.next = "DISPATCH"
                with m.Switch(kind):
                    with m.Case(Command.READ):
                        with m.If(~none_left | bad_count):
                            end(Result.BAD_LENGTH)
                        with m.Elif(bad_first):
                            end(Result.BAD_ADDRESS)
                    with m.Case(Command.WRITE):
                        with m.If(none_left):
                            end(Result.BAD_LENGTH)
                        with m.Elif(bad_word):
                            end(Result.BAD_ADDRESS)
                        with m.Elif(locked):
                            end(Result.BUSY)
                    with m.Case(Command.READ_MEMORY):
                        with m.If(~none_left | bad_grid | bad_burst):
                            end(Result.BAD_LENGTH)
                        with m.Elif(~ready):
                            end(Result.NOT_READY)
                    with m.Case(Command.WRITE_MEMORY):
                        with m.If(none_left | bad_grid | bad_data):
                            end(Result.BAD_LENGTH)
                        with m.Elif(~ready):
                            end(Result.NOT_READY)
                    with m.Case(Command.CRC_MEMORY):
                        with m.If(~none_left | bad_grid | bad_stretch):
                            end(Result.BAD_LENGTH)
                        with m.Elif(~ready):
                            end(Result.NOT_READY)
                    with m.Case(Command.WRITE_PROGRAM, Command.WRITE_TOKENS):
                        with m.If(none_left):
                            end(Result.BAD_LENGTH)
                        with m.Elif(far):
                            end(Result.BAD_ADDRESS)
                        with m.Elif(busy):
                            end(Result.BUSY)
                    with m.Case(Command.START):
                        with m.If(~none_left):
                            end(Result.BAD_LENGTH)
                        with m.Elif(own_run):
                            end(Result.OK)          # repeated: the run is under way, or was
                        with m.Elif(busy):
                            end(Result.BUSY)
                        with m.Elif(~ready):
                            end(Result.NOT_READY)
                    with m.Case(Command.ABORT):
                        with m.If(~none_left):
                            end(Result.BAD_LENGTH)
                    with m.Case(Command.CREDIT):
                        pass
                    with m.Default():
                        end(Result.BAD_COMMAND)
            with m.State("DISPATCH"):
                with m.If(settled):
                    m.next = "DRAIN"
                with m.Else():
                    with m.Switch(kind):
                        with m.Case(Command.READ):
                            m.d.sync += [words.eq(arg1), address.eq(arg0), reading.eq(1),
                                         length.eq(Cat(Const(1, 2), arg1[:6]))]
                            m.next = "ANSWER"
                        with m.Case(Command.WRITE):
                            units(to_regs, 4)
                        with m.Case(Command.READ_MEMORY):
                            m.d.sync += [length.eq(arg1[:8] + 1), words.eq(arg1[low:8]),
                                         window.go.eq(1)]
                            m.next = "ANSWER"
                        with m.Case(Command.WRITE_MEMORY):
                            units(to_memory, bus)
                        with m.Case(Command.CRC_MEMORY):
                            m.d.sync += [length.eq(5), words.eq(1), window.go.eq(1)]
                            m.next = "WINDOW"
                        with m.Case(Command.WRITE_PROGRAM):
                            units(to_program, INSTRUCTION_BYTES)
                        with m.Case(Command.WRITE_TOKENS):
                            units(to_tokens, 4)
                        with m.Case(Command.START):
                            m.d.sync += [last_run.eq(arg0), seq.start.eq(1), ring.clear.eq(1)]
                            m.next = "DRAIN"
                        with m.Case(Command.ABORT):
                            # A late repetition must not hit the run after.
                            m.d.sync += seq.abort.eq(own_run & busy)
                            m.next = "DRAIN"
                        with m.Case(Command.CREDIT):
                            m.d.sync += ring.credit.eq(none_left & own_run)
                            m.next = "SILENT"
            with m.State("UNITS"):
                m.d.comb += take.eq(~none_left)
                with m.If(taking & left.last):
                    m.next = "LAST_BYTE"
            with m.State("LAST_BYTE"):
                m.next = "LAST_UNIT"
            with m.State("LAST_UNIT"):      # unit_done of the last unit falls here
                m.next = "UNITS_DONE"
            with m.State("UNITS_DONE"):
                with m.If(to_memory):
                    m.d.sync += window.go.eq(1)
                    m.next = "WINDOW"
                with m.Else():
                    with m.If(outside):
                        m.d.sync += result.eq(Result.BAD_ADDRESS)
                    with m.If(at != 0):
                        m.d.sync += result.eq(Result.BAD_LENGTH)
                    m.next = "ANSWER"
            with m.State("WINDOW"):
                with m.If(window.done):
                    m.next = "ANSWER"
            with m.State("DRAIN"):
                m.d.comb += take.eq(~none_left)
                with m.If(none_left):
                    m.next = "ANSWER"
            with m.State("SILENT"):
                m.d.comb += take.eq(~none_left)
                with m.If(none_left):
                    m.d.comb += rx.pop.eq(1)
                    m.next = "POPPED"

            with m.State("ANSWER"):
                m.d.comb += answer.header.valid.eq(1)
                m.d.sync += [out.eq(result), out_left.eq(0)]
                with m.If(answer.header.ready):
                    m.d.comb += rx.pop.eq(1)
                    m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += [answer.payload.valid.eq(1), answer.payload.payload.eq(out[:8])]
                with m.If(answer.payload.ready):
                    m.d.sync += [out.eq(out >> 8), out_left.eq(out_left - 1)]
                    with m.If(out_left == 0):
                        m.next = "NEXT_WORD"
            with m.State("NEXT_WORD"):
                m.d.sync += words.eq(words - 1)
                with m.If(no_words):
                    m.d.sync += reading.eq(0)
                    m.next = "IDLE"
                with m.Elif(command == Command.READ):
                    m.d.sync += regs.r_go.eq(1)
                    m.next = "LOAD_REGISTER"
                with m.Elif(command == Command.READ_MEMORY):
                    m.next = "LOAD_MEMORY"
                with m.Else():
                    m.d.sync += [out.eq(window.crc), out_left.eq(3)]
                    m.next = "BYTES"
            with m.State("LOAD_REGISTER"):
                m.d.sync += [out.eq(regs.r_data), out_left.eq(3)]
                with m.If(regs.r_valid):
                    m.d.sync += address.eq(address + 1)
                    m.next = "BYTES"
            with m.State("LOAD_MEMORY"):
                m.d.comb += window.r.ready.eq(1)
                m.d.sync += [out.eq(window.r.payload), out_left.eq(bus - 1)]
                with m.If(window.r.valid):
                    m.next = "BYTES"
            with m.State("POPPED"):         # rx.valid falls the cycle after pop
                m.next = "IDLE"
        m.d.comb += self.idle.eq(fsm.ongoing("IDLE") & ~rx.valid & ring.idle)
        return m
