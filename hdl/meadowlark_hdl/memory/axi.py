"""An AXI4 memory behind a MemoryPort: for chips whose memory belongs to a processor system."""
from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from ..config import Config
from ..signatures import MemoryPort, ReadCommand
from ..lib.bursts import BurstCutter
from ..lib.countdown import Countdown
from ..lib.queues import Queue

ADDRESS_BITS = 40       #: of AXI addresses, as the ports of an UltraScale+ have them
PAGE_BYTES = 4096       #: no burst may leave one
BURST_WORDS = 256       #: most words of a burst


class Axi4(Signature):
    """An AXI4 manager's port under the names of the AMBA specification (IHI 0022), signals that
    are optional there apart; one ID."""

    def __init__(self, data_bits: int) -> None:
        address = {"id": Out(1), "addr": Out(ADDRESS_BITS), "len": Out(8), "size": Out(3),
                   "burst": Out(2), "cache": Out(4), "prot": Out(3), "valid": Out(1),
                   "ready": In(1)}
        super().__init__({
            **{f"{channel}{name}": member for channel in ("ar", "aw")
               for name, member in address.items()},
            "rid": In(1), "rdata": In(data_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1),
            "wdata": Out(data_bits), "wstrb": Out(data_bits // 8), "wlast": Out(1),
            "wvalid": Out(1), "wready": In(1),
            "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)})


def Burst() -> data.StructLayout:
    """addr in bytes. len: words less one. final: the last burst of its command."""
    return data.StructLayout({"addr": ADDRESS_BITS, "len": 8, "final": 1})


class Splitter(wiring.Component):
    """Commands of a MemoryPort -> bursts that stay in a page and below AXI's limit.

    Timing: a burst every 3 cycles at most, the first 4 cycles after its command.

    Parameters
    ----------
    config : Config
    memory_bytes : int
        As for :class:`AxiMaster`.

    Members
    -------
    i : In(stream of ReadCommand)
    base : In(ADDRESS_BITS)     Address of word 0, a multiple of PAGE_BYTES.
    o : Out(stream of Burst)    From registers.
    """

    def __init__(self, config: Config, *, memory_bytes: int):
        self.config, self.memory_bytes = config, memory_bytes
        super().__init__({"i": In(stream.Signature(ReadCommand(config))),
                          "base": In(ADDRESS_BITS), "o": Out(stream.Signature(Burst()))})

    def elaborate(self, platform):
        m = Module()
        c = self.config
        block = min(PAGE_BYTES // c.bus_bytes, BURST_WORDS)         # words; blocks tile a page
        # In words. Bursts end with a page and the memory with one, so here is where it wraps.
        command = BurstCutter(
            m, most=block, aligned=True, left_bits=c.burst_words.bit_length(),
            address_bits=exact_log2(self.memory_bytes // c.bus_bytes), name="command")
        o = self.o.payload
        m.d.comb += [o.len.eq(command.less_one), o.final.eq(command.final)]
        with m.FSM():
            with m.State("COMMAND"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += command.load(self.i.payload.addr, self.i.payload.len + 1)
                with m.If(self.i.valid):
                    m.next = "ROOM"
            with m.State("ROOM"):
                m.d.sync += command.measure()
                m.next = "CUT"
            with m.State("CUT"):
                m.d.sync += [command.cut(), self.o.valid.eq(1), o.addr.eq(
                    self.base + (command.address << exact_log2(c.bus_bytes)))]
                m.next = "OFFER"
            with m.State("OFFER"):
                with m.If(self.o.ready):
                    m.d.sync += [self.o.valid.eq(0), command.advance()]
                    m.next = "ROOM"
                    with m.If(command.final):
                        m.next = "COMMAND"
        return m


class AxiMaster(wiring.Component):
    """Reads and writes of the core as AXI4 bursts: incrementing, aligned, of the bus's full width.

    ``w_done`` comes with the write response, so a later read sees the data, as MemoryPort wants.
    Neither address nor data waits for the other's ready. One ID, so all answers come in order.

    Source: AMBA AXI and ACE protocol specification, ARM IHI 0022, sections A3 and A5.
    Timing: :class:`Splitter` for commands; data 1 cycle each way, a word a cycle; ``w_done`` 1
    cycle after the response.

    Parameters
    ----------
    config : Config
        bus_bytes is the width of the port; 4..128 bytes.
    memory_bytes : int, power of two, PAGE_BYTES..2**ADDRESS_BITS
        Addresses wrap there: nothing else is touched, whatever the core is told.

    Members
    -------
    port : In(MemoryPort)
        Ready while ``enable`` is high.
    base : In(ADDRESS_BITS)
        Where the core's memory begins, a multiple of PAGE_BYTES; constant while enabled.
    enable : In(1)
        The memory behind ``base`` may be used.
    fault : Out(1)
        A response was an error (SLVERR, DECERR) since the reset: the address is not memory.
    axi : Out(Axi4)

    Raises
    ------
    ValueError
        No AXI port is that wide, or no memory has that size.
    """

    WRITES = 16     # bursts written and not yet answered

    def __init__(self, config: Config, *, memory_bytes: int):
        self.config, self.memory_bytes = config, memory_bytes
        if not 4 <= config.bus_bytes <= 128:
            raise ValueError(f"bus_bytes must be in 4..128 for AXI, not {config.bus_bytes!r}")
        if memory_bytes & (memory_bytes - 1) or not PAGE_BYTES <= memory_bytes <= 1 << ADDRESS_BITS:
            raise ValueError("memory_bytes must be a power of two of at least "
                             f"{PAGE_BYTES}, not {memory_bytes!r}")
        super().__init__({
            "port": In(MemoryPort(config)), "base": In(ADDRESS_BITS), "enable": In(1),
            "fault": Out(1), "axi": Out(Axi4(8 * config.bus_bytes))})

    def elaborate(self, platform):
        m = Module()
        c, port, axi = self.config, self.port, self.axi
        m.d.comb += port.ready.eq(self.enable)
        m.submodules.reads = reads = Splitter(c, memory_bytes=self.memory_bytes)
        m.submodules.writes = writes = Splitter(c, memory_bytes=self.memory_bytes)
        for splitter, command in ((reads, port.r_cmd), (writes, port.w_cmd)):
            m.d.comb += splitter.base.eq(self.base)
            wiring.connect(m, wiring.flipped(command), splitter.i)
        for channel in ("ar", "aw"):
            m.d.comb += [
                getattr(axi, f"{channel}size").eq(exact_log2(c.bus_bytes)),
                getattr(axi, f"{channel}burst").eq(0b01),       # incrementing
                getattr(axi, f"{channel}cache").eq(0b0011)]     # bufferable, may be merged
        m.d.comb += [
            axi.arvalid.eq(reads.o.valid), axi.araddr.eq(reads.o.payload.addr),
            axi.arlen.eq(reads.o.payload.len), reads.o.ready.eq(axi.arready)]

        m.submodules.words = words = Queue(8 * c.bus_bytes, depth=4)
        m.d.comb += [words.i.payload.eq(axi.rdata), words.i.valid.eq(axi.rvalid),
                     axi.rready.eq(words.i.ready)]
        wiring.connect(m, words.o, wiring.flipped(port.r_data))

        # A burst to be written goes to the address channel, to the count of its words, and to the
        # list of responses to come; each takes it once, in its own time.
        m.submodules.addresses = addresses = Queue(Burst(), depth=2)
        m.submodules.lengths = lengths = Queue(8, depth=self.WRITES)
        m.submodules.finals = finals = Queue(1, depth=self.WRITES)
        takers = addresses.i, lengths.i, finals.i
        burst, everyone = writes.o.payload, Signal()
        m.d.comb += [
            everyone.eq(writes.o.valid & addresses.i.ready & lengths.i.ready & finals.i.ready),
            writes.o.ready.eq(everyone), *(taker.valid.eq(everyone) for taker in takers),
            addresses.i.payload.eq(burst), lengths.i.payload.eq(burst.len),
            finals.i.payload.eq(burst.final),
            axi.awvalid.eq(addresses.o.valid), axi.awaddr.eq(addresses.o.payload.addr),
            axi.awlen.eq(addresses.o.payload.len), addresses.o.ready.eq(axi.awready)]

        left = Countdown(m, 8, name="beats", behind=True, reset=False, reset_flags=False)
        busy = Signal()
        m.submodules.beats = beats = Queue(data.StructLayout({
            "data": 8 * c.bus_bytes, "strb": c.bus_bytes, "last": 1}), depth=4)
        moves = Signal()
        m.d.comb += [
            moves.eq(busy & port.w_data.valid & beats.i.ready),
            port.w_data.ready.eq(busy & beats.i.ready), beats.i.valid.eq(moves),
            beats.i.payload.data.eq(port.w_data.payload.data),
            beats.i.payload.strb.eq(port.w_data.payload.strb), beats.i.payload.last.eq(left.last),
            lengths.o.ready.eq(~busy | (moves & left.last)),
            axi.wvalid.eq(beats.o.valid), axi.wdata.eq(beats.o.payload.data),
            axi.wstrb.eq(beats.o.payload.strb), axi.wlast.eq(beats.o.payload.last),
            beats.o.ready.eq(axi.wready)]
        with m.If(lengths.o.ready):
            m.d.sync += [busy.eq(lengths.o.valid), left.load(lengths.o.payload)]
        with m.Elif(moves):
            m.d.sync += left.step()

        m.d.comb += [axi.bready.eq(1), finals.o.ready.eq(axi.bvalid)]
        m.d.sync += port.w_done.eq(axi.bvalid & finals.o.payload)
        with m.If((axi.bvalid & axi.bresp[1]) | (axi.rvalid & axi.rready & axi.rresp[1])):
            m.d.sync += self.fault.eq(1)
        return m
