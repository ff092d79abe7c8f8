"""READ: registers and counters."""
from amaranth import Cat, Const, Module
from amaranth.lib.wiring import Out

from ...config import Config
from ...lib.countdown import Countdown
from ..protocol import COUNTER_BASE, MAX_PAYLOAD, Result
from ..registers import ADDRESS_BITS, RegisterRead
from .handler import Handler

#: Words that fit an answer.
MOST = (MAX_PAYLOAD - 1) // 4


class ReadRegisters(Handler):
    """Registers from args[0] on, args[1] of them. The next one is read while one is sent.

    Timing: 3 cycles a word besides the register file's.

    Members
    -------
    port : In(HandlerPort)
    regs : Out(RegisterRead)
    hold : Out(1)               Counters are being read: keep what can be read unchanged.
    """

    def __init__(self, config: Config):
        super().__init__(config, {"regs": Out(RegisterRead()), "hold": Out(1)})

    def elaborate(self, platform):
        m = Module()
        port, regs = self.port, self.regs
        address, count = port.args
        self.refuse(m, ((port.rest != 0) | (count == 0) | (count > MOST), Result.BAD_LENGTH),
                    (address[ADDRESS_BITS:] != 0, Result.BAD_ADDRESS))
        m.d.comb += [self.answer(bytes=Cat(Const(0, 2), count[:MOST.bit_length()])),
                     port.words.payload.eq(regs.data)]
        left = Countdown(m, range(MOST + 1), name="words")
        m.d.sync += [self.hold.eq(left.some & (regs.addr >= COUNTER_BASE)), regs.go.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += regs.addr.eq(address)
                with m.If(port.execute):
                    m.d.sync += left.load(count)
                    m.next = "READ"
            with m.State("READ"):
                m.d.sync += regs.go.eq(1)
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(regs.valid):
                    m.next = "WORD"
            with m.State("WORD"):
                m.d.comb += port.words.valid.eq(1)
                with m.If(port.words.ready):
                    m.d.sync += [regs.addr.eq(regs.addr + 1), left.step()]
                    m.next = "READ"
                    with m.If(left.last):
                        m.next = "IDLE"
        return m
