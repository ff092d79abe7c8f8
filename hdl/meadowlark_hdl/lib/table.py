"""A small table of LUT RAM."""
from __future__ import annotations

from amaranth import Module
from amaranth.hdl import ShapeLike
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from .pipe import reg


class Table(wiring.Component):
    """Entries that are written one by one, and read from one place.

    Timing: ``now`` in the cycle of ``addr``, ``data`` ``LATENCY`` cycles later. Nothing reads an
    entry in the cycle in which it is written.

    Parameters
    ----------
    shape : shape of an entry
    depth : int

    Members
    -------
    en, at, entry : In      Write: in this cycle; where; what.
    addr, now, data : In, Out, Out      Read.
    """

    LATENCY = 1

    def __init__(self, shape: ShapeLike, depth: int):
        self.shape, self.depth = shape, depth
        super().__init__({"en": In(1), "at": In(range(depth)), "entry": In(shape),
                          "addr": In(range(depth)), "now": Out(shape), "data": Out(shape)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.entries = entries = memory.Memory(shape=self.shape, depth=self.depth, init=[])
        w, r = entries.write_port(), entries.read_port(domain="comb")
        data = reg(self.shape, "found")
        m.d.sync += data.eq(r.data)
        m.d.comb += [w.en.eq(self.en), w.addr.eq(self.at), w.data.eq(self.entry),
                     r.addr.eq(self.addr), self.now.eq(r.data), self.data.eq(data)]
        return m
