"""Products of the vector unit: from a block's own multiplier, or from one that blocks share."""
from collections.abc import Sequence

from amaranth import Array, Module, Signal, signed
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..lib.pipe import Pipe, Timed, mix
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


def product_ports(shared: bool, *names: str) -> dict:
    """Members of a block that multiplies by :func:`product`: none if it has multipliers."""
    return {name: Out(ProductPort()) for name in names} if shared else {}


def product(pipe: Pipe, block, name: str, a: Timed, b: Timed | ValueLike) -> Timed:
    """``a * b``, signed(36); ``SHARED_LATENCY`` cycles later if the multiplier is shared.

    Parameters
    ----------
    pipe : Pipe
        Of ``block``.
    block : wiring.Component
        Not ``shared``: gets a :class:`.Multiplier` as submodule ``name``. Else the product comes
        from its port ``name``, see :func:`product_ports`.
    a, b : signed(18)
    """
    if not block.shared:
        pipe.m.submodules[name] = multiplier = Multiplier()
        return pipe.through(multiplier, a=a, b=b).p
    port = getattr(block, name)

    def connect(a, b):
        pipe.m.d.comb += [port.a.eq(a), port.b.eq(b)]
        return port.p
    return mix(connect, a, b, latency=SHARED_LATENCY)


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
