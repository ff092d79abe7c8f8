"""What ``make prove`` proves: a block, an environment that may do all its contract allows, claims.

Claims are ``Assert``, contracts ``Assume``. Blocks are small instances of the real ones: nothing in
a queue of 4 elements differs from one of 512 but how far it counts, and data of 1 bit is as good as
64, since no block looks at it.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

from amaranth import Array, ClockDomain, Elaboratable, Module, Mux, Signal, Value
from amaranth.hdl import Assert, Assume, Fragment
from meadowlark_hdl.config import Config
from meadowlark_hdl.memory import reader
from meadowlark_hdl.lib.queues import Queue, RamQueue
from meadowlark_hdl.memory.sdram import SdramController
from meadowlark_hdl.memory.sdram_commands import (ACTIVATE, MODE, NOP, PRECHARGE, READ, REFRESH,
                                                  STOP, WRITE)
from meadowlark_hdl.memory.sdram_part import SdramPart


class Claims(Elaboratable, ABC):
    """A module whose inputs may do anything: ``inputs`` says which signals they are."""

    def __init__(self) -> None:
        self.clk = Signal()
        self.inputs: list[Signal] = []
        self.m = Module()
        self.m.domains.sync = domain = ClockDomain(reset_less=True)
        domain.clk = self.clk
        self.claim()

    def any(self, width: int, name: str) -> Signal:
        """An input of so many bits."""
        self.inputs.append(Signal(width, name=name))
        return self.inputs[-1]

    @abstractmethod
    def claim(self) -> None:
        """Fill ``self.m``."""

    def in_order(self, put: Value, given: Value, take: Value, got: Value, *, most: int) -> Signal:
        """Any element that was put comes out as it was, behind those before it and never twice; at
        most ``most`` are inside. Returns how many are."""
        m, pick = self.m, self.any(1, "pick")
        count = Signal(range(most + 2))
        watching, before, value = Signal(), Signal(range(most + 2)), Signal(len(given))
        m.d.sync += count.eq(count + put - take)
        with m.If(put & pick & ~watching):
            m.d.sync += [watching.eq(1), before.eq(count - take), value.eq(given)]
        with m.If(watching & take):
            m.d.sync += before.eq(before - 1)
            with m.If(before == 0):
                m.d.comb += Assert(got == value)
                m.d.sync += watching.eq(0)
        m.d.comb += [Assert(count <= most), Assert(~(take & (count == 0)))]
        return count

    def elaborate(self, platform):
        return self.m


class QueueInOrder(Claims):
    """Keeps order, loses nothing, is full and empty when it says so."""

    def claim(self) -> None:
        m, depth = self.m, 4
        m.submodules.dut = dut = Queue(1, depth=depth)
        valid, given, ready = self.any(1, "valid"), self.any(1, "given"), self.any(1, "ready")
        m.d.comb += [dut.i.payload.eq(given), dut.i.valid.eq(valid), dut.o.ready.eq(ready)]
        count = self.in_order(valid & dut.i.ready, given, dut.o.valid & ready, dut.o.payload,
                              most=depth)
        m.d.comb += [Assert(dut.o.valid == (count != 0)), Assert(dut.i.ready == (count != depth))]


class SmallRamQueue(RamQueue):
    """Fewer credits are slower, and else the same."""
    CREDITS = 2


class RamQueueInOrder(Claims):
    """Its producer counts the room: nothing overtakes, nothing is lost, ``empty`` is true, and the
    credits are not more than the queue behind the RAM holds."""

    def claim(self) -> None:
        m, depth = self.m, 2
        m.submodules.dut = dut = SmallRamQueue(1, depth=depth)
        valid, given, ready = self.any(1, "valid"), self.any(1, "given"), self.any(1, "ready")
        room = Signal(range(depth + 1), init=depth)
        m.d.sync += room.eq(room - valid + dut.left)
        m.d.comb += [dut.i_data.eq(given), dut.i_valid.eq(valid), dut.o.ready.eq(ready),
                     Assume(~valid | (room != 0)), Assert(room <= depth)]
        count = self.in_order(valid, given, dut.o.valid & ready, dut.o.payload,
                              most=depth + SmallRamQueue.CREDITS)
        m.d.comb += Assert(~dut.empty | (count == 0))


class ReaderCredit(Claims):
    """Whatever jobs come and whenever memory answers: the FIFO has room for what was asked for, so
    it is used as :class:`RamQueueInOrder` wants."""

    CONFIG = Config(W=4, P=4, bus_bytes=4, fifo_words=8, burst_words=4, tile_beats=8)

    def elaborate(self, platform):
        with mock.patch.object(reader, "RamQueue", return_value=self.fifo):
            return Fragment.get(self.m, platform)

    def claim(self) -> None:
        m, c = self.m, self.CONFIG
        m.submodules.dut = dut = reader.Reader(c)
        self.fifo = fifo = RamQueue(8 * c.W, depth=c.fifo_words)
        answer, job, chunks = self.any(1, "answer"), self.any(1, "job"), self.any(3, "chunks")
        take_command, take_chunk, take_tag = (
            self.any(1, f"take_{what}") for what in ("command", "chunk", "tag"))
        command, owed, stored = dut.mem.r_cmd, Signal(8), Signal(8)
        m.d.comb += [
            dut.jobs.valid.eq(job), dut.jobs.payload.chunks.eq(chunks), Assume(chunks != 0),
            command.ready.eq(take_command), dut.tags.ready.eq(take_tag),
            dut.mem.r_data.valid.eq(answer), Assume(~answer | (owed != 0)),
            dut.chunks.ready.eq(take_chunk), Assert(dut.mem.r_data.ready),
            Assert(owed + stored <= c.fifo_words)]
        m.d.sync += [
            owed.eq(owed - answer + Mux(command.valid & take_command,
                                        command.payload.len + 1, 0)),
            stored.eq(stored + fifo.i_valid - fifo.left)]


class SdramRules(Claims):
    """Whatever is asked for: every command comes in its time and finds its bank as it must be,
    refreshes are never more than a group behind, and nobody drives against the chip."""

    #: Distances in cycles at 1 MHz, so long that a look-up of the row does not hide them.
    PART = SdramPart(name="long", row_bits=1, col_bits=3, bank_bits=1, data_bits=32, rcd_ns=5e3,
                     rp_ns=6e3, ras_ns=12e3, rc_ns=20e3, rrd_ns=14e3, rfc_ns=10e3, wr_ns=9e3,
                     clock_ns={3: 10.0}, access_ns=5.4, hold_ns=2.7, refreshes=8192,
                     refresh_ms=8192 * 60e-3, init_us=3)
    CONFIG = Config(W=4, P=4, bus_bytes=4, burst_words=8, tile_beats=8, fifo_words=16)
    GROUP = 2

    class Controller(SdramController):
        POWER_UP_REFRESHES = 2

    def claim(self) -> None:
        m, c, part = self.m, self.CONFIG, self.PART
        m.submodules.dut = dut = self.Controller(c, part, clock_mhz=1.0, group=self.GROUP)
        t, port, pins = dut.timing, dut.port, dut.pins
        read, write, put = self.any(1, "read"), self.any(1, "write"), self.any(1, "put")
        for command, valid, name in ((port.r_cmd, read, "read"), (port.w_cmd, write, "write")):
            m.d.comb += [
                command.valid.eq(valid & port.ready),
                command.payload.addr.eq(self.any(part.row_bits + part.bank_bits + part.col_bits,
                                                 f"{name}_addr")),
                command.payload.len.eq(self.any(3, f"{name}_len"))]
        m.d.comb += port.w_data.valid.eq(put)

        def since(event, most, name, *, clear=0):
            """Cycles since an event, ``most`` if there were as many or none; 1 in the next one."""
            count = Signal(range(most + 1), init=most, name=f"since_{name}")
            with m.If(event):
                m.d.sync += count.eq(min(1, most))
            with m.Elif(count != most):
                m.d.sync += count.eq(count + 1)
            return count
        code = Signal(3)
        m.d.comb += code.eq(pins.ras_n | pins.cas_n << 1 | pins.we_n << 2)
        is_ = {value: code == value for value in (NOP, STOP, READ, WRITE, ACTIVATE, PRECHARGE,
                                                  REFRESH, MODE)}
        opened = Array(Signal(name=f"open{b}") for b in range(2))
        all_banks = pins.a[10]
        for b in range(2):
            here = pins.ba == b
            closes = is_[PRECHARGE] & (all_banks | here)
            activated = since(is_[ACTIVATE] & here, t.ras + t.rp, f"activate{b}")
            closed = since(closes & opened[b], t.rp, f"precharge{b}")
            elsewhere = since(is_[ACTIVATE] & ~here, t.rrd, f"elsewhere{b}")
            with m.If(is_[ACTIVATE] & here):
                m.d.comb += [Assert(~opened[b]), Assert(closed == t.rp),
                             Assert(activated == t.ras + t.rp), Assert(elsewhere == t.rrd)]
                m.d.sync += opened[b].eq(1)
            with m.If(closes):
                m.d.sync += opened[b].eq(0)
                with m.If(opened[b]):
                    m.d.comb += Assert(activated >= t.ras)
            with m.If((is_[READ] | is_[WRITE]) & here):
                m.d.comb += [Assert(opened[b]), Assert(activated >= t.rcd)]
            with m.If(is_[REFRESH] | is_[MODE]):
                m.d.comb += [Assert(~opened[b]), Assert(closed == t.rp)]
            # The burst, and the last word written into this bank.
            bursting = Signal(name=f"burst{b}")
            with m.If(is_[READ] | is_[WRITE] | is_[STOP]):
                m.d.sync += bursting.eq(here & ~is_[STOP])
            with m.If(closes):
                m.d.comb += Assert(~bursting)
            written = since(pins.dq_oe & (bursting & ~is_[READ] & ~is_[WRITE] & ~is_[STOP]
                                          | is_[WRITE] & here), t.wr, f"write{b}")
            with m.If(closes & opened[b]):
                m.d.comb += Assert(written == t.wr)
        refreshed, mode = since(is_[REFRESH], t.rfc, "refresh"), since(is_[MODE], t.mrd, "mode")
        with m.If(~is_[NOP]):
            m.d.comb += [Assert(refreshed == t.rfc), Assert(mode == t.mrd)]

        # Data: what is driven belongs to a write, and comes not before the chip has let go.
        reading, writing = Signal(), Signal()
        with m.If(is_[READ] | is_[WRITE] | is_[STOP]):
            m.d.sync += [reading.eq(is_[READ]), writing.eq(is_[WRITE])]
        reads = is_[READ] | reading & ~is_[WRITE] & ~is_[STOP]
        last_read = since(reads, t.cas + 2, "read")
        m.d.comb += Assert(pins.dq_oe == (is_[WRITE] | writing & ~is_[READ] & ~is_[STOP]))
        with m.If(pins.dq_oe):
            m.d.comb += Assert(last_read == t.cas + 2)

        # The refresh budget, from the first one on: an interval is one more than the controller's.
        counting, clock, owed = Signal(), Signal(range(t.refresh + 1)), Signal(range(-8, 8))
        with m.If(is_[MODE]):
            m.d.sync += counting.eq(1)
        with m.If(counting):
            tick = Signal()
            m.d.comb += tick.eq(clock == t.refresh)
            m.d.sync += [clock.eq(Mux(tick, 0, clock + 1)), owed.eq(owed + tick - is_[REFRESH])]
        m.d.comb += [Assert(owed <= self.GROUP), Assert(owed > -8)]


@dataclass(frozen=True)
class Proof:
    """bounded: cycles after power-up that are looked at, or None: all."""
    claims: Callable[[], Claims]
    bounded: int | None


PROOFS = {
    "queue": Proof(QueueInOrder, None),
    "ram-queue": Proof(RamQueueInOrder, None),
    "reader": Proof(ReaderCredit, None),
    "sdram": Proof(SdramRules, 400),
}
