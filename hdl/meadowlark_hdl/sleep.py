"""Clocks that stand still for blocks with nothing to do: what makes a simulated chip quick.

Verilator works through every block that has a clock edge, and most blocks rest most of the time:
at a batch of one only the first token lane computes, the sampler works during the head, the link
for a few bytes a token. ``Core(sleep=True)`` gives such blocks a gated clock. Nothing that is
computed changes, nor the cycle in which it is, so the chip as it is synthesised, without gates,
behaves the same; sim_tests/test_chip.py runs both.
"""
from amaranth import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Signal
from amaranth.hdl import Elaboratable, ValueLike


def nap(m: Module, domain: str, awake: ValueLike, *, sleep: bool, linger: int = 0) -> str:
    """A clock domain that ticks only in cycles with ``awake``.

    Parameters
    ----------
    m : Module
        Where the domain is added; submodules see it as well.
    domain : str
        Its name.
    awake : value, 1 bit
        From registers of ``sync``. The edge that ends a cycle with ``awake`` is seen, so a block
        does not miss what arrives together with it.
    sleep : bool
        False: no gate, everything runs on ``sync``.
    linger : int
        Cycles the clock goes on after ``awake`` has fallen: the block's pipeline runs empty.

    Returns
    -------
    str
        The name of the domain to use: ``sync`` unless ``sleep``.
    """
    if not sleep:
        return "sync"
    if linger:
        left = Signal(range(linger + 1), init=linger, name=f"{domain}_linger")
        with m.If(awake):
            m.d.sync += left.eq(linger)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        awake = awake | (left != 0)
    # A latch that is open while the clock is low, so that the gate never cuts a pulse.
    m.domains += [ClockDomain(f"{domain}_low", clk_edge="neg", reset_less=True),
                  ClockDomain(domain)]
    enable = Signal(init=1, name=f"{domain}_enable")
    m.d[f"{domain}_low"] += enable.eq(awake)
    m.d.comb += [ClockSignal(f"{domain}_low").eq(ClockSignal()),
                 ClockSignal(domain).eq(ClockSignal() & enable),
                 ResetSignal(domain).eq(ResetSignal(allow_reset_less=True))]
    return domain


def napping(m: Module, block: Elaboratable, domain: str, awake: ValueLike, *, sleep: bool,
            linger: int = 0) -> Elaboratable:
    """``block``, all of it in a domain made by :func:`nap`; the parameters are that function's."""
    name = nap(m, domain, awake, sleep=sleep, linger=linger)
    return block if name == "sync" else DomainRenamer(name)(block)
