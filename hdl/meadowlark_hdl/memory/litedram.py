"""A MemoryPort on the native port of a LiteDRAM core."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..signatures import MemoryPort, ReadCommand
from ..lib.queues import Queue, RamQueue


class NativePort(wiring.Signature):
    """LiteDRAM's native port, seen by the one who reads and writes.

    cmd: a read or write of one word. wdata_ready: the word of the oldest write is taken in this
    cycle; it has to be there, wdata_valid is not looked at. rdata_valid: the word of the oldest
    read; it has to be taken, rdata_ready is not looked at. One strobe a byte in wdata_we.
    """

    def __init__(self, *, native_bytes: int, address_bits: int) -> None:
        bits = 8 * native_bytes
        super().__init__({
            "cmd_valid": Out(1), "cmd_ready": In(1), "cmd_we": Out(1),
            "cmd_addr": Out(address_bits),
            "wdata_valid": Out(1), "wdata_ready": In(1), "wdata_we": Out(native_bytes),
            "wdata_data": Out(bits),
            "rdata_valid": In(1), "rdata_ready": Out(1), "rdata_data": In(bits)})


def Lanes(ratio: int) -> data.StructLayout:
    """first, last: bus words of a native word that are meant."""
    return data.StructLayout({"first": range(ratio), "last": range(ratio)})


class LiteDramPort(wiring.Component):
    """Bus words <-> the wider words of a LiteDRAM core, which come in order.

    A read becomes one command for each native word that it touches; what it did not ask for at
    both ends is left out. Writes are gathered to native words, the bytes between them kept by the
    strobes; they go, before reads, when a command has all its words or half of the room is taken.
    ``w_done`` comes when LiteDRAM has taken the last word: commands of a port to one address are
    in order there, so a later read sees it.

    Source: LiteDRAM's ``core/crossbar.py``: neither data channel can be stalled, so a read is
    asked for only when there is room for its word, and a write only when its word is there.
    Timing: a native command a cycle, 3 cycles after the port's command; a bus word a cycle,
    5 cycles from ``rdata_valid`` to the first of a word, all from registers.

    Parameters
    ----------
    config : Config
    native_bytes : int
        Width of the native port: bus_bytes times 2, 4 or 8.
    address_bits : int
        Of a native word; addresses wrap there.

    Members
    -------
    port : In(MemoryPort)
    enable : In(1)
        The memory is initialised; ``port.ready``.
    native : Out(NativePort)

    Raises
    ------
    ValueError
        A width that does not fit.
    """

    READS = 64      #: native words asked for and not yet handed on
    WRITES = 32     #: native words to be written

    def __init__(self, config: Config, *, native_bytes: int, address_bits: int):
        self.config, self.native_bytes = config, native_bytes
        self.ratio = native_bytes // config.bus_bytes
        if native_bytes % config.bus_bytes or self.ratio not in (2, 4, 8):
            raise ValueError("native_bytes must be bus_bytes times 2, 4 or 8, not "
                             f"{native_bytes!r} for {config.bus_bytes!r}")
        if not 1 <= address_bits <= 32:
            raise ValueError(f"address_bits must be in 1..32, not {address_bits!r}")
        self.address_bits = address_bits
        super().__init__({
            "port": In(MemoryPort(config)), "enable": In(1),
            "native": Out(NativePort(native_bytes=native_bytes, address_bits=address_bits))})

    def elaborate(self, platform):
        m = Module()
        c, port, native, ratio = self.config, self.port, self.native, self.ratio
        lane_bits, word_bits = exact_log2(ratio), 8 * c.bus_bytes
        m.d.comb += port.ready.eq(self.enable)

        m.submodules.r_cmd = r_cmd = Queue(ReadCommand(c), depth=4)
        m.submodules.w_cmd = w_cmd = Queue(ReadCommand(c), depth=4)
        for queue, command in ((r_cmd, port.r_cmd), (w_cmd, port.w_cmd)):
            m.d.comb += [queue.i.valid.eq(command.valid), queue.i.payload.eq(command.payload),
                         command.ready.eq(queue.i.ready)]

        # --- reads: one native word after the other, with what is meant of it ---------------------
        r_at = Signal(self.address_bits, reset_less=True)
        r_lane = Signal(range(ratio), reset_less=True)
        r_left = Signal(range(c.burst_words + 1), reset_less=True)  # bus words
        r_busy, room = Signal(), Signal(range(self.READS + 1), init=self.READS)
        m.submodules.lanes = lanes = Queue(Lanes(ratio), depth=self.READS)
        m.submodules.words = words = RamQueue(8 * self.native_bytes + Lanes(ratio).size,
                                              depth=self.READS)
        here = Signal(range(ratio + 1))                     # bus words of this native word
        final, r_ask, r_take = Signal(), Signal(), Signal()
        m.d.comb += [
            final.eq(r_left <= ratio - r_lane), here.eq(Mux(final, r_left, ratio - r_lane)),
            r_ask.eq(r_busy & (room != 0)), lanes.i.valid.eq(r_take),
            lanes.i.payload.first.eq(r_lane), lanes.i.payload.last.eq(r_lane + here - 1),
            r_cmd.o.ready.eq(~r_busy | (r_take & final))]
        with m.If(r_take):
            m.d.sync += [r_at.eq(r_at + 1), r_lane.eq(0), r_left.eq(r_left - here)]
        with m.If(r_cmd.o.ready):
            m.d.sync += [r_busy.eq(r_cmd.o.valid),
                         Cat(r_lane[:lane_bits], r_at).eq(r_cmd.o.payload.addr),
                         r_left.eq(r_cmd.o.payload.len + 1)]
        m.d.sync += room.eq(room + words.left - r_take)

        lane = Signal(range(ratio), reset_less=True)
        word = Signal(data.StructLayout({"data": 8 * self.native_bytes, "lanes": Lanes(ratio)}),
                      reset_less=True)
        held, next_word = Signal(), Signal()
        upcoming = Signal.like(word)
        m.d.comb += [
            native.rdata_ready.eq(1), lanes.o.ready.eq(native.rdata_valid),
            words.i_valid.eq(native.rdata_valid),
            words.i_data.eq(Cat(native.rdata_data, lanes.o.payload)),
            upcoming.eq(words.o.payload),
            next_word.eq(~held | (port.r_data.ready & (lane == word.lanes.last))),
            words.o.ready.eq(next_word), port.r_data.valid.eq(held),
            port.r_data.payload.eq(word.data.word_select(lane, word_bits))]
        with m.If(next_word):
            m.d.sync += [held.eq(words.o.valid), word.eq(upcoming), lane.eq(upcoming.lanes.first)]
        with m.Elif(port.r_data.ready):
            m.d.sync += lane.eq(lane + 1)

        # --- writes: gathered to native words -----------------------------------------------------
        w_at = Signal(self.address_bits, reset_less=True)
        w_lane = Signal(range(ratio), reset_less=True)
        w_left = Signal(range(c.burst_words), reset_less=True)      # bus words less one
        w_busy, w_last, whole = Signal(), Signal(), Signal()
        gathered = Signal(data.StructLayout({"data": 8 * self.native_bytes,
                                             "strb": self.native_bytes, "last": 1}))
        at, full = Signal(self.address_bits, reset_less=True), Signal()
        m.submodules.w_words = w_words = Queue(gathered.shape(), depth=self.WRITES)
        m.submodules.w_addrs = w_addrs = Queue(
            data.StructLayout({"addr": self.address_bits, "last": 1}), depth=self.WRITES)
        put, free = Signal(), Signal()
        m.d.comb += [
            # Both queues take a word at once; that of the words is never the emptier one.
            free.eq(~full | w_words.i.ready), put.eq(w_busy & port.w_data.valid & free),
            port.w_data.ready.eq(w_busy & free),
            w_last.eq(w_left == 0), whole.eq(w_last | (w_lane == ratio - 1)),
            w_words.i.valid.eq(full), w_words.i.payload.eq(gathered),
            w_addrs.i.valid.eq(full & w_words.i.ready), w_addrs.i.payload.addr.eq(at),
            w_addrs.i.payload.last.eq(gathered.last),
            w_cmd.o.ready.eq(~w_busy | (put & w_last))]
        with m.If(full & w_words.i.ready):
            m.d.sync += [full.eq(0), gathered.strb.eq(0)]
        with m.If(put):
            for k in range(ratio):
                with m.If(w_lane == k):
                    m.d.sync += [
                        gathered.data.word_select(k, word_bits).eq(port.w_data.payload.data),
                        gathered.strb.word_select(k, c.bus_bytes).eq(port.w_data.payload.strb)]
            m.d.sync += [at.eq(w_at), gathered.last.eq(w_last), full.eq(whole),
                         w_lane.eq(w_lane + 1), w_left.eq(w_left - 1)]
            with m.If(whole):
                m.d.sync += [w_at.eq(w_at + 1), w_lane.eq(0)]
        with m.If(w_cmd.o.ready):
            m.d.sync += [w_busy.eq(w_cmd.o.valid),
                         Cat(w_lane[:lane_bits], w_at).eq(w_cmd.o.payload.addr),
                         w_left.eq(w_cmd.o.payload.len)]

        # --- commands: a write that is whole goes before reads ------------------------------------
        complete = Signal(range(self.WRITES + 1))           # writes whose words are all queued
        queued, many = Signal(range(self.WRITES + 1)), Signal()
        writing, last_goes = Signal(), Signal()
        write_due, w_take = Signal(), Signal()
        free_command = Signal()
        m.d.comb += [
            write_due.eq(w_addrs.o.valid & (writing | (complete != 0) | many)),
            free_command.eq(~native.cmd_valid | native.cmd_ready),
            w_take.eq(free_command & write_due), r_take.eq(free_command & ~write_due & r_ask),
            w_addrs.o.ready.eq(w_take), last_goes.eq(w_take & w_addrs.o.payload.last)]
        m.d.sync += [complete.eq(complete + (w_addrs.i.valid & gathered.last) - last_goes),
                     queued.eq(queued + w_addrs.i.valid - w_take),
                     many.eq(queued >= self.WRITES // 2)]
        with m.If(w_take):
            m.d.sync += writing.eq(~w_addrs.o.payload.last)
        with m.If(free_command):
            m.d.sync += [native.cmd_valid.eq(w_take | r_take), native.cmd_we.eq(w_take),
                         native.cmd_addr.eq(Mux(w_take, w_addrs.o.payload.addr, r_at))]
        m.d.comb += [native.wdata_valid.eq(w_words.o.valid),
                     native.wdata_data.eq(w_words.o.payload.data),
                     native.wdata_we.eq(w_words.o.payload.strb),
                     w_words.o.ready.eq(native.wdata_ready)]
        m.d.sync += port.w_done.eq(native.wdata_ready & w_words.o.payload.last)
        return m
