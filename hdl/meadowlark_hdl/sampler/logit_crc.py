"""CRC-32 of the logits: what the host compares."""
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown
from ..signatures import LogitPort


class LogitCrc(wiring.Component):
    """CRC-32 (ISO-HDLC, as zlib) of logits as little-endian int32, a byte a cycle.

    Golden: :func:`.sampler_golden.logits_crc`.
    Timing: logits at least 4 cycles apart; ``crc`` 6 cycles after the last one.

    Members
    -------
    start : In(1)       Pulse, at any time: begins anew.
    logit : In(LogitPort())
    crc : Out(32)
    """

    def __init__(self):
        super().__init__({"start": In(1), "logit": In(LogitPort()), "crc": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        rest = Signal(32, reset_less=True)
        bytes_ = Countdown(m, range(5), name="bytes", last=False)
        m.d.sync += rest.eq(rest >> 8)
        with m.If(bytes_.some):
            m.d.sync += bytes_.step()
        with m.If(self.logit.valid):
            m.d.sync += [rest.eq(self.logit.value), bytes_.load(4)]
        with m.If(self.start):
            m.d.sync += bytes_.load(0)
        m.d.comb += [crc.start.eq(self.start), crc.valid.eq(bytes_.some & ~self.start),
                     crc.data.eq(rest[:8]), self.crc.eq(crc.crc)]
        return m
