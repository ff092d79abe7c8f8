"""A MemoryPort on the native port of a LiteDRAM core."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

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


class NativeReads(wiring.Component):
    """Reads of bus words to reads of native words, one after the other.

    What a command did not ask for at the ends of its native words is left out.

    Timing: a native word a cycle, the first 2 cycles after the command; a bus word a cycle, the
    first of a native word 5 cycles after that came.

    Parameters
    ----------
    config : Config
    ratio : int             Bus words of a native word.
    address_bits : int      Of a native word.

    Members
    -------
    cmd : In(stream of ReadCommand)
    ask : Out(stream of address_bits)   There is room for its word.
    word_valid, word : In(1), In        The word of the oldest address taken; always taken.
    data : Out(stream of bus words)
    """

    WORDS = 64      #: native words asked for and not yet handed on

    def __init__(self, config: Config, *, ratio: int, address_bits: int):
        self.config, self.ratio, self.address_bits = config, ratio, address_bits
        self.bits = 8 * config.bus_bytes
        super().__init__({
            "cmd": In(stream.Signature(ReadCommand(config))),
            "ask": Out(stream.Signature(address_bits)), "word_valid": In(1),
            "word": In(self.bits * ratio), "data": Out(stream.Signature(self.bits))})

    def elaborate(self, platform):
        m = Module()
        c, ratio, ask = self.config, self.ratio, self.ask
        m.submodules.cmd = cmd = Queue(ReadCommand(c), depth=4)
        wiring.connect(m, wiring.flipped(self.cmd), cmd.i)
        at = Signal(self.address_bits, reset_less=True)
        first = Signal(range(ratio), reset_less=True)
        left = Signal(range(c.burst_words + 1), reset_less=True)    # bus words
        busy, room = Signal(), Signal(range(self.WORDS + 1), init=self.WORDS)
        m.submodules.lanes = lanes = Queue(Lanes(ratio), depth=self.WORDS)
        word = Signal(data.StructLayout({"data": len(self.word), "lanes": Lanes(ratio)}),
                      reset_less=True)
        m.submodules.words = words = RamQueue(word.shape().size, depth=self.WORDS)
        here = Signal(range(ratio + 1))                     # bus words of this native word
        final, take = Signal(), Signal()
        m.d.comb += [
            final.eq(left <= ratio - first), here.eq(Mux(final, left, ratio - first)),
            ask.valid.eq(busy & (room != 0)), ask.payload.eq(at), take.eq(ask.valid & ask.ready),
            lanes.i.valid.eq(take), lanes.i.payload.first.eq(first),
            lanes.i.payload.last.eq(first + here - 1), cmd.o.ready.eq(~busy | (take & final))]
        with m.If(take):
            m.d.sync += [at.eq(at + 1), first.eq(0), left.eq(left - here)]
        with m.If(cmd.o.ready):
            m.d.sync += [busy.eq(cmd.o.valid), Cat(first, at).eq(cmd.o.payload.addr),
                         left.eq(cmd.o.payload.len + 1)]
        m.d.sync += room.eq(room + words.left - take)

        lane = Signal(range(ratio), reset_less=True)
        held, next_word = Signal(), Signal()
        upcoming = Signal.like(word)
        m.d.comb += [
            lanes.o.ready.eq(self.word_valid), words.i_valid.eq(self.word_valid),
            words.i_data.eq(Cat(self.word, lanes.o.payload)), upcoming.eq(words.o.payload),
            next_word.eq(~held | (self.data.ready & (lane == word.lanes.last))),
            words.o.ready.eq(next_word), self.data.valid.eq(held),
            self.data.payload.eq(word.data.word_select(lane, self.bits))]
        with m.If(next_word):
            m.d.sync += [held.eq(words.o.valid), word.eq(upcoming), lane.eq(upcoming.lanes.first)]
        with m.Elif(self.data.ready):
            m.d.sync += lane.eq(lane + 1)
        return m


class NativeWrites(wiring.Component):
    """Bus words gathered to native words, the bytes between them kept by the strobes.

    A write is asked for when its command has all its words, or half of the room is taken.

    Timing: a bus word a cycle; ``ask`` 4 cycles after a command's last word.

    Parameters
    ----------
    config : Config
    ratio : int             Bus words of a native word.
    address_bits : int      Of a native word.

    Members
    -------
    cmd : In(stream of ReadCommand)
    data : In(stream of a bus word and its strobes)
    ask : Out(stream of address_bits)
    word : Out(stream of data, strb)    Of the oldest address taken; there before ``ask`` is.
    done : Out(1)                       Pulse: the last word of a command has been taken.
    """

    WORDS = 32      #: native words to be written

    def __init__(self, config: Config, *, ratio: int, address_bits: int):
        self.config, self.ratio, self.address_bits = config, ratio, address_bits
        word = data.StructLayout({"data": 8 * config.bus_bytes * ratio,
                                  "strb": config.bus_bytes * ratio})
        super().__init__({
            "cmd": In(stream.Signature(ReadCommand(config))),
            "data": MemoryPort(config).members["w_data"].flip(),
            "ask": Out(stream.Signature(address_bits)), "word": Out(stream.Signature(word)),
            "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        c, ratio, given = self.config, self.ratio, self.data
        m.submodules.cmd = cmd = Queue(ReadCommand(c), depth=4)
        wiring.connect(m, wiring.flipped(self.cmd), cmd.i)
        at = Signal(self.address_bits, reset_less=True)
        lane = Signal(range(ratio), reset_less=True)
        left = Signal(range(c.burst_words), reset_less=True)        # bus words less one
        busy, last, whole = Signal(), Signal(), Signal()
        gathered = Signal(data.StructLayout({"data": 8 * c.bus_bytes * ratio,
                                             "strb": c.bus_bytes * ratio, "last": 1}))
        address, full = Signal(self.address_bits, reset_less=True), Signal()
        m.submodules.words = words = Queue(gathered.shape(), depth=self.WORDS)
        m.submodules.addrs = addrs = Queue(
            data.StructLayout({"addr": self.address_bits, "last": 1}), depth=self.WORDS)
        put, free = Signal(), Signal()
        m.d.comb += [
            # Both queues take a word at once; that of the words is never the emptier one.
            free.eq(~full | words.i.ready), put.eq(busy & given.valid & free),
            given.ready.eq(busy & free), last.eq(left == 0),
            whole.eq(last | (lane == ratio - 1)),
            words.i.valid.eq(full), words.i.payload.eq(gathered),
            addrs.i.valid.eq(full & words.i.ready), addrs.i.payload.addr.eq(address),
            addrs.i.payload.last.eq(gathered.last), cmd.o.ready.eq(~busy | (put & last))]
        with m.If(full & words.i.ready):
            m.d.sync += [full.eq(0), gathered.strb.eq(0)]
        with m.If(put):
            for k in range(ratio):
                with m.If(lane == k):
                    m.d.sync += [
                        gathered.data.word_select(k, 8 * c.bus_bytes).eq(given.payload.data),
                        gathered.strb.word_select(k, c.bus_bytes).eq(given.payload.strb)]
            m.d.sync += [address.eq(at), gathered.last.eq(last), full.eq(whole),
                         lane.eq(lane + 1), left.eq(left - 1)]
            with m.If(whole):
                m.d.sync += [at.eq(at + 1), lane.eq(0)]
        with m.If(cmd.o.ready):
            m.d.sync += [busy.eq(cmd.o.valid), Cat(lane, at).eq(cmd.o.payload.addr),
                         left.eq(cmd.o.payload.len)]

        complete = Signal(range(self.WORDS + 1))            # commands whose words are all queued
        queued, many = Signal(range(self.WORDS + 1)), Signal()
        writing, take, last_goes = Signal(), Signal(), Signal()
        m.d.comb += [
            self.ask.valid.eq(addrs.o.valid & (writing | (complete != 0) | many)),
            self.ask.payload.eq(addrs.o.payload.addr), take.eq(self.ask.valid & self.ask.ready),
            addrs.o.ready.eq(take), last_goes.eq(take & addrs.o.payload.last),
            self.word.valid.eq(words.o.valid), self.word.payload.data.eq(words.o.payload.data),
            self.word.payload.strb.eq(words.o.payload.strb), words.o.ready.eq(self.word.ready)]
        m.d.sync += [complete.eq(complete + (addrs.i.valid & gathered.last) - last_goes),
                     queued.eq(queued + addrs.i.valid - take),
                     many.eq(queued >= self.WORDS // 2),
                     self.done.eq(self.word.ready & words.o.payload.last)]
        with m.If(take):
            m.d.sync += writing.eq(~addrs.o.payload.last)
        return m


class LiteDramPort(wiring.Component):
    """Bus words <-> the wider words of a LiteDRAM core, which come in order.

    Writes that :class:`NativeWrites` asks for go before reads. ``w_done`` comes when LiteDRAM has
    taken the last word: commands of a port to one address are in order there, so a later read sees
    it.

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
        port, native = self.port, self.native
        parts = dict(ratio=self.ratio, address_bits=self.address_bits)
        m.submodules.reads = reads = NativeReads(self.config, **parts)
        m.submodules.writes = writes = NativeWrites(self.config, **parts)
        for source, sink in ((wiring.flipped(port.r_cmd), reads.cmd),
                             (wiring.flipped(port.w_cmd), writes.cmd),
                             (wiring.flipped(port.w_data), writes.data),
                             (reads.data, wiring.flipped(port.r_data))):
            wiring.connect(m, source, sink)
        free, write, read = Signal(), Signal(), Signal()
        m.d.comb += [
            port.ready.eq(self.enable), port.w_done.eq(writes.done),
            native.rdata_ready.eq(1), reads.word_valid.eq(native.rdata_valid),
            reads.word.eq(native.rdata_data), native.wdata_valid.eq(writes.word.valid),
            native.wdata_data.eq(writes.word.payload.data),
            native.wdata_we.eq(writes.word.payload.strb), writes.word.ready.eq(native.wdata_ready),
            free.eq(~native.cmd_valid | native.cmd_ready), writes.ask.ready.eq(free),
            reads.ask.ready.eq(free & ~writes.ask.valid),
            write.eq(writes.ask.valid & writes.ask.ready),
            read.eq(reads.ask.valid & reads.ask.ready)]
        with m.If(free):
            m.d.sync += [native.cmd_valid.eq(write | read), native.cmd_we.eq(write),
                         native.cmd_addr.eq(Mux(write, writes.ask.payload, reads.ask.payload))]
        return m
