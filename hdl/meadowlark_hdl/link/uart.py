"""A UART, 8N1: the link's byte stream on two wires."""
from amaranth import Cat, Const, Module, Signal
from amaranth.lib import cdc, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown


def divisor(clock_hz: float, baud: int) -> int:
    """Cycles a bit.

    Raises
    ------
    ValueError
        A bit would be shorter than 8 cycles, or off by more than 1 %.
    """
    found = round(clock_hz / baud)
    if found < 8:
        raise ValueError(f"baud must be at most {clock_hz / 8:.0f}, an eighth of the clock, not "
                         f"{baud!r}")
    error = abs(clock_hz / found / baud - 1)
    if error > 0.01:
        raise ValueError(f"baud {baud!r} is missed by {100 * error:.1f} % with a clock of "
                         f"{clock_hz:.0f} Hz; choose a divisor of it")
    return found


class Uart(wiring.Component):
    """Bytes to and from a pair of pins; no flow control, the link's credits do without.

    A bit lasts ``divisor`` cycles, the nearest to ``clock_hz / baud``. The receiver samples each
    bit in its middle and takes the next start bit from half a stop bit on, so the other side may
    be off by 4 % less its own rounding. A byte whose stop bit is missing is dropped; the frames'
    CRC notices.

    Timing: 10 bits a byte each way, without a pause between bytes to be sent.

    Parameters
    ----------
    clock_hz : float
        Of the domain ``sync``.
    baud : int

    Members
    -------
    rx_pin : In(1), tx_pin : Out(1)
    rx : Out(stream of 8)       What was received, valid for one cycle; ``ready`` is not looked at,
                                as the link's receiver is always ready.
    tx : In(stream of 8)        What is to be sent.

    Raises
    ------
    ValueError
        See :func:`divisor`.
    """

    def __init__(self, *, clock_hz: float, baud: int):
        self.divisor = divisor(clock_hz, baud)
        super().__init__({
            "rx_pin": In(1, init=1), "tx_pin": Out(1, init=1),
            "rx": Out(stream.Signature(8)), "tx": In(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        last = self.divisor - 1

        # Sending: start bit, 8 bits, stop bit; the shift register ends with ones.
        shift = Signal(9, init=0x1FF)
        bits = Countdown(m, range(10), name="tx_bits", last=False)      # after this one
        bit = Countdown(m, range(self.divisor), name="tx_bit", last=False)
        m.d.comb += self.tx.ready.eq(~bits.some & ~bit.some)
        m.d.sync += self.tx_pin.eq(shift[0])
        with m.If(bit.some):
            m.d.sync += bit.step()
        with m.Elif(bits.some):
            m.d.sync += [shift.eq(Cat(shift[1:], Const(1, 1))), bits.step(), bit.load(last)]
        with m.Elif(self.tx.valid):         # the stop bit before is over
            m.d.sync += [shift.eq(Cat(Const(0, 1), self.tx.payload)), bits.load(9), bit.load(last)]

        # Receiving.
        pin = Signal(init=1)
        m.submodules.pin = cdc.FFSynchronizer(self.rx_pin, pin, init=1, stages=3)
        got = Signal(8, reset_less=True)
        more = Countdown(m, range(8), name="rx_bits", behind=True)
        wait = Countdown(m, range(self.divisor), name="rx_bit", behind=True)
        sample = wait.last
        m.d.sync += [self.rx.valid.eq(0), wait.step()]
        m.d.comb += self.rx.payload.eq(got)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [wait.load(last // 2), more.load_all(8)]
                with m.If(~pin):
                    m.next = "START"
            with m.State("START"):              # in the middle of the start bit
                with m.If(sample):
                    m.d.sync += wait.load(last)
                    m.next = "BITS"
                    with m.If(pin):             # a glitch
                        m.next = "IDLE"
            with m.State("BITS"):
                with m.If(sample):
                    m.d.sync += [got.eq(Cat(got[1:], pin)), more.step(), wait.load(last)]
                    with m.If(more.last):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(sample):
                    m.d.sync += self.rx.valid.eq(pin)
                    m.next = "IDLE"
                    with m.If(~pin):            # a break, or no frame: wait until it is over
                        m.next = "BREAK"
            with m.State("BREAK"):
                with m.If(pin):
                    m.next = "IDLE"
        return m
