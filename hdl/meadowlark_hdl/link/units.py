"""Bytes of a payload, a unit at a time: an argument, a register, an instruction, a bus word."""
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown


class Units(wiring.Component):
    """Bytes gather to units, the first byte lowest.

    Each byte is registered together with the enable of its place, so no enable fans out to more
    than a byte.

    Timing: a byte a cycle; a unit comes ``LATENCY`` cycles after its last byte was taken, and stays
    until two cycles after the next byte was.

    Parameters
    ----------
    most : int
        Bytes of the largest unit.

    Members
    -------
    restart, size : In(1), In(range(most + 1))
        Pulse, without a byte: from now on units of so many bytes; a begun one is forgotten.
    i : In(stream of 8)
    last : Out(1)               The next byte is its unit's last; from a register.
    torn : Out(1)               A unit is begun and not complete.
    o : Out(stream of 8 * most) Valid for a cycle. Bytes beyond the unit mean nothing.
    """

    LATENCY = 2

    def __init__(self, most: int):
        self.most = most
        super().__init__({
            "restart": In(1), "size": In(range(most + 1)),
            "i": In(stream.Signature(8, always_ready=True)), "last": Out(1), "torn": Out(1),
            "o": Out(stream.Signature(8 * most, always_ready=True))})

    def elaborate(self, platform):
        m = Module()
        size = Signal.like(self.size, reset_less=True)
        left = Countdown(m, range(self.most), name="bytes", behind=True, reset=False,
                         reset_flags=False)
        place = Signal(self.most, init=1)           # of the next byte; one-hot
        byte, to = Signal(8, reset_less=True), Signal(self.most)
        complete = Signal()
        m.d.comb += [self.last.eq(left.last), self.torn.eq(~place[0])]
        m.d.sync += [byte.eq(self.i.payload), to.eq(place & self.i.valid.replicate(self.most)),
                     complete.eq(self.i.valid & left.last), self.o.valid.eq(complete)]
        for k in range(self.most):
            with m.If(to[k]):
                m.d.sync += self.o.payload[8 * k:8 * k + 8].eq(byte)
        with m.If(self.restart):
            m.d.sync += [size.eq(self.size), left.load_all(self.size), place.eq(1)]
        with m.Elif(self.i.valid):
            with m.If(left.last):
                m.d.sync += [left.load_all(size), place.eq(1)]
            with m.Else():
                m.d.sync += [left.step(), place.eq(place << 1)]
        return m
