"""The one multiplier: 18 x 18 signed, three registers deep, a MULT18X18D on an ECP5."""
from __future__ import annotations

from collections.abc import Sequence

from amaranth import Array, ClockSignal, Instance, Module, Signal, Value, signed
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Multiplier(wiring.Component):
    """``p = a * b``.

    Timing: 3 cycles (input, pipeline and output register), one product a cycle, never stalls;
    without reset, so the first 3 products after power-up mean nothing.

    Parameters
    ----------
    dsp : str
        "generic": registers and ``*``. "ecp5": one MULT18X18D with all its registers in use
        (an inferred product leaves them out and costs 3.9 ns).

    Members
    -------
    a, b : In(signed(18))
    p : Out(signed(36))
    """

    LATENCY = 3

    def __init__(self, *, dsp: str = "generic"):
        if dsp not in ("generic", "ecp5"):
            raise ValueError(f"dsp must be generic or ecp5, not {dsp!r}")
        self.dsp = dsp
        super().__init__({"a": In(signed(18)), "b": In(signed(18)), "p": Out(signed(36))})

    def elaborate(self, platform):
        m = Module()
        if self.dsp == "generic":
            a = Signal(signed(18), reset_less=True)
            b = Signal(signed(18), reset_less=True)
            pipe = Signal(signed(36), reset_less=True)
            m.d.sync += [a.eq(self.a), b.eq(self.b), pipe.eq(a * b), self.p.eq(pipe)]
            return m
        registers = {f"p_REG_{r}_{what}": value for r in (
            "INPUTA", "INPUTB", "PIPELINE", "OUTPUT")
            for what, value in (("CLK", "CLK0"), ("CE", "CE0"), ("RST", "RST0"))}
        pins = {}
        for i in range(18):
            pins |= {f"i_A{i}": self.a[i], f"i_B{i}": self.b[i], f"i_C{i}": 0}
        for i in range(36):
            pins[f"o_P{i}"] = self.p[i]
        m.submodules.dsp = Instance(
            "MULT18X18D", p_REG_INPUTC_CLK="NONE", **registers,
            p_GSR="DISABLED", p_RESETMODE="SYNC", p_SOURCEB_MODE="B_SHIFT",
            i_CLK0=ClockSignal(), i_CLK1=0, i_CLK2=0, i_CLK3=0,
            i_CE0=1, i_CE1=1, i_CE2=1, i_CE3=1, i_RST0=0, i_RST1=0, i_RST2=0, i_RST3=0,
            i_SIGNEDA=1, i_SIGNEDB=1, i_SOURCEA=0, i_SOURCEB=0, **pins)
        return m


class ProductPort(wiring.Signature):
    """A block -> the multiplier that it shares with others.

    ``p = a * b``, ``SHARED_LATENCY`` cycles later; the names are those of :class:`Multiplier`.
    """

    def __init__(self) -> None:
        super().__init__({"a": Out(signed(18)), "b": Out(signed(18)), "p": In(signed(36))})


#: Of a multiplier behind :func:`share`: the choice of its factors is a register of its own.
SHARED_LATENCY = Multiplier.LATENCY + 1


def product_latency(shared: bool) -> int:
    """Cycles of :func:`product`."""
    return SHARED_LATENCY if shared else Multiplier.LATENCY


def product_ports(shared: bool, *names: str) -> dict:
    """Members of a block that multiplies by :func:`product`: none if it has multipliers."""
    return {name: Out(ProductPort()) for name in names} if shared else {}


def product(m: Module, block, name: str, a: ValueLike, b: ValueLike) -> Value:
    """``a * b``, ``product_latency(block.shared)`` cycles later.

    Parameters
    ----------
    m : Module
        Of ``block``.
    block : wiring.Component
        Not ``shared``: gets a :class:`Multiplier` as submodule ``name``, with its ``dsp``. Else the
        product comes from its port ``name``, see :func:`product_ports`.
    a, b : signed(18)

    Returns
    -------
    signed(36)
    """
    if block.shared:
        multiplier = getattr(block, name)
    else:
        m.submodules[name] = multiplier = Multiplier(dsp=block.dsp)
    m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
    return multiplier.p


def share(m: Module, name: str, select: ValueLike, users: Sequence, *, dsp: str) -> None:
    """One multiplier for ports of which one is in use at a time.

    ``SHARED_LATENCY`` cycles, one product a cycle. All users see the product, those whose turn it
    was not with factors that are not theirs.

    Parameters
    ----------
    m : Module
        Gets the multiplier as submodule ``name``.
    select : value
        Index of the user whose factors are taken.
    users : sequence of ProductPort interfaces
        One for each value of ``select``; the same one may stand for several.
    dsp : str
        As for :class:`Multiplier`.
    """
    m.submodules[name] = multiplier = Multiplier(dsp=dsp)
    for factor in ("a", "b"):
        chosen = Signal(signed(18), name=f"{name}_{factor}", reset_less=True)
        m.d.sync += chosen.eq(Array(getattr(user, factor) for user in users)[select])
        m.d.comb += getattr(multiplier, factor).eq(chosen)
    for user in {id(user): user for user in users}.values():
        m.d.comb += user.p.eq(multiplier.p)
