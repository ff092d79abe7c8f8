"""Products of the vector unit: from a block's own multiplier, or from one that blocks share."""
from __future__ import annotations

from collections.abc import Sequence

from amaranth import Array, Module, Signal, Value, signed
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..tech.cells import FACTOR_BITS, Multiplier


class ProductPort(wiring.Signature):
    """A block -> the multiplier that it shares with others.

    ``p = a * b``, ``SHARED_LATENCY`` cycles later; the names are those of :class:`.Multiplier`.
    """

    def __init__(self) -> None:
        super().__init__({"a": Out(signed(FACTOR_BITS)), "b": Out(signed(FACTOR_BITS)),
                          "p": In(signed(2 * FACTOR_BITS))})


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
        Not ``shared``: gets a :class:`.Multiplier` as submodule ``name``. Else the product comes
        from its port ``name``, see :func:`product_ports`.
    a, b : signed(18)

    Returns
    -------
    signed(36)
    """
    if block.shared:
        multiplier = getattr(block, name)
    else:
        m.submodules[name] = multiplier = Multiplier()
    m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
    return multiplier.p


def share(m: Module, name: str, select: ValueLike, users: Sequence) -> None:
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
    """
    m.submodules[name] = multiplier = Multiplier()
    for factor in ("a", "b"):
        chosen = Signal(signed(FACTOR_BITS), name=f"{name}_{factor}", reset_less=True)
        m.d.sync += chosen.eq(Array(getattr(user, factor) for user in users)[select])
        m.d.comb += getattr(multiplier, factor).eq(chosen)
    for user in {id(user): user for user in users}.values():
        m.d.comb += user.p.eq(multiplier.p)
