"""The cells that blocks are built of: what they compute and when, whatever chip they are on."""
from amaranth import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .generic import technology_of

#: Bits of a factor.
FACTOR_BITS = 18


class Multiplier(wiring.Component):
    """The one multiplier: ``p = a * b``.

    Timing: 3 cycles (input, pipeline and output register), one product a cycle, never stalls;
    without reset, so the first 3 products after power-up mean nothing.

    Members
    -------
    a, b : In(signed(18))
    p : Out(signed(36))
    """

    LATENCY = latency = 3

    def __init__(self) -> None:
        super().__init__({"a": In(signed(FACTOR_BITS)), "b": In(signed(FACTOR_BITS)),
                          "p": Out(signed(2 * FACTOR_BITS))})

    def elaborate(self, platform):
        m = Module()
        technology_of(platform).multiplier(m, self)
        return m


class ProductPair(wiring.Component):
    """Two multipliers and the adder behind them:
    ``r = a0 * b0 + (0 if broadcast else a1 * b1) + (c if keep else 0)``, modulo 2**36.

    Timing: ``LATENCY`` cycles, a result a cycle, never stalls; ``c`` comes ``C_CYCLE`` cycles after
    its factors. No reset: the first results after power-up mean nothing. Only a register should
    stand before ``c``, ``broadcast`` and ``keep`` and behind ``r``: a family may have no time for
    more, or no figure for it.

    Members
    -------
    a0, b0, a1, b1 : In(signed(18))
    broadcast, keep : In(1)     With the factors.
    c : In(signed(36))
    r : Out(signed(36))
    """

    LATENCY = Multiplier.LATENCY
    C_CYCLE = 1

    def __init__(self) -> None:
        super().__init__({name: In(signed(FACTOR_BITS)) for name in ("a0", "b0", "a1", "b1")} | {
            "broadcast": In(1), "keep": In(1), "c": In(signed(2 * FACTOR_BITS)),
            "r": Out(signed(2 * FACTOR_BITS))})

    def elaborate(self, platform):
        m = Module()
        technology_of(platform).product_pair(m, self)
        return m


class GatedAdder(wiring.Component):
    """An adder whose first operand can be left out, the heart of every accumulator:
    ``o = (a if keep else 0) + b``, modulo 2**width.

    Timing: combinational, one carry chain.

    Parameters
    ----------
    width : int
        Of a, b and o, two's complement.

    Members
    -------
    a, b : In(signed(width))
    keep : In(1)
    o : Out(signed(width))
    """

    def __init__(self, width: int):
        self.width = width
        super().__init__({"a": In(signed(width)), "b": In(signed(width)), "keep": In(1),
                          "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        technology_of(platform).gated_adder(m, self)
        return m
