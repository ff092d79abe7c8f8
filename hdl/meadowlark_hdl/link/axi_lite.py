"""The link's byte stream in a window of AXI4-Lite registers: for a host on the same chip."""
from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from ..memory.axi import ADDRESS_BITS
from ..lib.queues import Queue
from .axi_lite_table import (BASE_BYTES, LOAD_BYTES, WINDOW_ADDRESS, WINDOW_BITS, WINDOW_MAGIC,
                             WINDOW_VERSION)


class AxiLite(Signature):
    """An AXI4-Lite manager's port of 32 bits, under the names of the AMBA specification."""

    def __init__(self, address_bits: int) -> None:
        super().__init__({
            "awaddr": Out(address_bits), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "araddr": Out(address_bits), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
            "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1)})


class AxiLiteLink(wiring.Component):
    """Bytes to and from a host that loads and stores registers; see ``axi_lite_table.py``.

    Every access is answered, and with OKAY: on the processors this is for, an error response to a
    store ends the operating system. A store to ``data`` with the queue full waits for the next
    word to leave it, 4 cycles when ``rx`` is always ready.

    Source: AMBA AXI and ACE protocol specification, ARM IHI 0022, part B.
    Timing: a store acts 1 cycle after its address and data, is answered in the next, one every 2
    cycles; a load is answered after 2 cycles, one every 3. Bytes to the core leave one a cycle, 3
    cycles after their store; bytes of the core can be loaded 3 cycles after they came.

    Parameters
    ----------
    memory_bytes : int, multiple of 1024
        Told to the host.
    hold : int, at least 1
        Cycles after the reset in which nothing is sent to the core.

    Members
    -------
    bus : In(AxiLite)
    rx : Out(stream of 8)       What the host stored; from registers.
    tx : In(stream of 8)        What the host is to load.
    base : Out(ADDRESS_BITS)    Address of the memory; changes only while ``enable`` is low.
    enable : Out(1)             The host has said that the memory may be used.
    fault : In(1)               Shown to the host.
    irq : Out(1)                Bytes wait and the host wants to be told; level, from a register.
    """

    WORDS = 16      # stored and not yet sent to the core
    BYTES = 128     # that wait for the host

    def __init__(self, *, memory_bytes: int, hold: int):
        if memory_bytes % 1024:
            raise ValueError(f"memory_bytes must be a multiple of 1024, not {memory_bytes!r}")
        if hold < 1:
            raise ValueError(f"hold must be at least 1, not {hold!r}")
        self.memory_bytes, self.hold = memory_bytes, hold
        super().__init__({
            "bus": In(AxiLite(WINDOW_BITS)), "rx": Out(stream.Signature(8)),
            "tx": In(stream.Signature(8)), "base": Out(ADDRESS_BITS), "enable": Out(1),
            "fault": In(1), "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        index = {name: address >> 2 for name, address in WINDOW_ADDRESS.items()}
        drop = Signal()

        # To the core: words with their strobes, then a byte a cycle, those without a strobe too.
        words = Queue(data.StructLayout({"data": 32, "strb": 4}), depth=self.WORDS)
        m.submodules.words = ResetInserter(drop)(words)
        shift, left = Signal(32, reset_less=True), Signal(4)
        held_back, listens, step = Signal(range(self.hold + 1), init=self.hold), Signal(), Signal()
        with m.If(held_back != 0):
            m.d.sync += held_back.eq(held_back - 1)
        with m.Else():
            m.d.sync += listens.eq(1)
        m.d.comb += [
            self.rx.payload.eq(shift[:8]), self.rx.valid.eq(left[0] & listens),
            step.eq(~left[0] | (listens & self.rx.ready)),
            words.o.ready.eq(step & (left[1:] == 0))]
        with m.If(drop):
            m.d.sync += left.eq(0)
        with m.Elif(words.o.ready):
            m.d.sync += [shift.eq(words.o.payload.data),
                         left.eq(Mux(words.o.valid, words.o.payload.strb, 0))]
        with m.Elif(step):
            m.d.sync += [shift.eq(shift >> 8), left.eq(left >> 1)]

        # From the core: bytes gather in the word that the next load gives.
        queue = Queue(8, depth=self.BYTES)
        m.submodules.queue = ResetInserter(drop)(queue)
        wiring.connect(m, wiring.flipped(self.tx), queue.i)
        gathered, count = Signal(8 * LOAD_BYTES), Signal(range(LOAD_BYTES + 1))
        waiting = Signal(range(self.BYTES + LOAD_BYTES + 1))
        take = Signal()                         # the load of this cycle is one from ``data``
        m.d.comb += queue.o.ready.eq((count != LOAD_BYTES) & ~take)
        m.d.sync += [waiting.eq(waiting + (queue.i.valid & queue.i.ready) - Mux(take, count, 0))]
        with m.If(take):
            m.d.sync += [gathered.eq(0), count.eq(0)]
        with m.Elif(queue.o.valid & queue.o.ready):
            m.d.sync += [gathered.word_select(count, 8).eq(queue.o.payload), count.eq(count + 1)]
        with m.If(drop):
            m.d.sync += [gathered.eq(0), count.eq(0), waiting.eq(0)]

        # Stores. Address and data come in any order and are each held in a register.
        control, base = Signal(2), Signal(ADDRESS_BITS)
        interrupt = control[1]
        m.d.comb += [self.enable.eq(control[0]), self.base.eq(base)]
        m.d.sync += self.irq.eq(interrupt & (waiting != 0))
        to, to_held = Signal(WINDOW_BITS - 2, reset_less=True), Signal()
        value, strobes = Signal(32, reset_less=True), Signal(4, reset_less=True)
        value_held, to_data, store = Signal(), Signal(), Signal()
        m.d.comb += [
            bus.awready.eq(~to_held), bus.wready.eq(~value_held), to_data.eq(to == index["data"]),
            store.eq(to_held & value_held & (~bus.bvalid | bus.bready)
                     & (~to_data | words.i.ready)),
            words.i.valid.eq(store & to_data), words.i.payload.data.eq(value),
            words.i.payload.strb.eq(strobes), drop.eq(store & (to == index["drop"]))]
        with m.If(bus.awready):
            m.d.sync += [to_held.eq(bus.awvalid), to.eq(bus.awaddr[2:])]
        with m.If(bus.wready):
            m.d.sync += [value_held.eq(bus.wvalid), value.eq(bus.wdata), strobes.eq(bus.wstrb)]
        with m.If(store):
            m.d.sync += [to_held.eq(0), value_held.eq(0), bus.bvalid.eq(1)]
            with m.If((to == index["control"]) & strobes[0]):
                m.d.sync += control.eq(value)
            grid = exact_log2(BASE_BYTES)       # the bits below stay 0
            for name, first in (("base_low", 0), ("base_high", 32)):
                for byte in range(4):
                    low, high = max(first + 8 * byte, grid), min(first + 8 * byte + 8, ADDRESS_BITS)
                    if low < high:
                        with m.If((to == index[name]) & strobes[byte] & ~self.enable):
                            m.d.sync += base[low:high].eq(value[low - first:high - first])
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        # Loads.
        of, of_held = Signal(WINDOW_BITS - 2, reset_less=True), Signal()
        m.d.comb += [bus.arready.eq(~of_held & ~bus.rvalid),
                     take.eq(of_held & (of == index["data"]))]
        with m.If(bus.arready):
            m.d.sync += [of_held.eq(bus.arvalid), of.eq(bus.araddr[2:])]
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(of_held):
            m.d.sync += [of_held.eq(0), bus.rvalid.eq(1)]
            with m.Switch(of):
                for name, word in {
                        "id": WINDOW_MAGIC, "version": WINDOW_VERSION,
                        "memory_kib": self.memory_bytes >> 10, "control": control,
                        "status": Cat(listens, self.fault), "base_low": base[:32],
                        "base_high": base[32:], "waiting": waiting,
                        "data": Cat(gathered, Const(0, 24 - 8 * LOAD_BYTES), count)}.items():
                    with m.Case(index[name]):
                        m.d.sync += bus.rdata.eq(word)
                with m.Default():
                    m.d.sync += bus.rdata.eq(0)
        return m
