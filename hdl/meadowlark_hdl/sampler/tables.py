"""The sampler's three tables, in one block RAM: logarithm, its correction, and powers of two."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import enum, memory, wiring
from amaranth.lib.wiring import In, Out

from ..fixed import EXP2_TABLE
from .sampler_golden import LOG2_TABLE, TAIL_TABLE


class Table(enum.Enum, shape=2):
    """Those of :mod:`.sampler_golden`, and of :mod:`meadowlark_hdl.fixed`."""
    LOG2 = 0
    TAIL = 1
    EXP2 = 2


_ROM = [int(x) for table in (LOG2_TABLE, TAIL_TABLE, EXP2_TABLE) for x in table]
assert min(_ROM) >= 0 and max(LOG2_TABLE) < 1 << 12 and max(TAIL_TABLE) < 1 << 14


class Lookup(wiring.Signature):
    """Who wants a word -> the tables. en: in this cycle. value: ``Tables.LATENCY`` cycles later."""

    def __init__(self) -> None:
        super().__init__({"en": Out(1), "table": Out(Table), "index": Out(8), "value": In(16)})


class Tables(wiring.Component):
    """Words of three tables of 256 words of 16 bits.

    Timing: ``LATENCY`` cycles, a word a cycle, never stalls. ``urgent`` goes first; it is up to the
    two not to ask in the same cycle.

    Members
    -------
    urgent, other : In(Lookup())
    """

    LATENCY = 3         # address, RAM, register

    def __init__(self):
        super().__init__({"urgent": In(Lookup()), "other": In(Lookup())})

    def elaborate(self, platform):
        m = Module()
        m.submodules.rom = rom = memory.Memory(shape=16, depth=1024, init=_ROM)
        read = rom.read_port()
        address = Signal(10, reset_less=True)
        value = Signal(16, reset_less=True)
        first, second = (Cat(user.index, user.table) for user in (self.urgent, self.other))
        m.d.sync += [address.eq(Mux(self.urgent.en, first, second)), value.eq(read.data)]
        m.d.comb += [read.en.eq(1), read.addr.eq(address),
                     self.urgent.value.eq(value), self.other.value.eq(value)]
        return m
