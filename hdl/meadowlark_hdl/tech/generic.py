"""A chip family as its blocks see it, and the one that any synthesis infers."""
from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal, signed


class Technology:
    """What a chip family gives. This one has no cells: registers, ``*`` and ``+``, for simulation
    and for tools that infer the rest.

    Blocks are built of :class:`.Multiplier`, :class:`.ProductPair` and :class:`.GatedAdder`, which
    say what is computed and when, and name no family. What they consist of is up to the technology
    of the platform that a design is elaborated for (:func:`technology_of`). A family is a subclass,
    which overrides what its chips have cells for. Each method fills the module of a cell of that
    class, whose contract it has to keep, its latency too.
    """

    name = "generic"
    #: A wire across the chip costs time: control that many columns hear gets a register for each
    #: few of them. Simulation would only pay for it.
    far_wires = False

    def __repr__(self) -> str:
        return self.name

    @property
    def technology(self) -> Technology:
        """Itself: a design that needs nothing else of a platform is elaborated for a technology."""
        return self

    def multiplier(self, m: Module, cell: Any) -> None:
        a, b = (Signal.like(factor, name=name, reset_less=True)
                for name, factor in (("a", cell.a), ("b", cell.b)))
        pipe = Signal(signed(36), reset_less=True)
        m.d.sync += [a.eq(cell.a), b.eq(cell.b), pipe.eq(a * b), cell.p.eq(pipe)]

    def product_pair(self, m: Module, cell: Any) -> None:
        def reg(value, name):
            register = Signal.like(value, name=name, reset_less=True)
            m.d.sync += register.eq(value)
            return register
        products = []
        for k, (a, b) in enumerate(((cell.a0, cell.b0), (cell.a1, cell.b1))):
            products.append(reg(reg(a, f"a{k}_reg") * reg(b, f"b{k}_reg"), f"product{k}"))
        c = reg(cell.c, "c_reg")
        broadcast, keep = (reg(reg(bit, f"{bit.name}_in"), f"{bit.name}_pipe")
                           for bit in (cell.broadcast, cell.keep))
        m.d.sync += cell.r.eq(products[0] + Mux(broadcast, 0, products[1]) + Mux(keep, c, 0))

    def gated_adder(self, m: Module, cell: Any) -> None:
        m.d.comb += cell.o.eq(Mux(cell.keep, cell.a, 0) + cell.b)

    def pll(self, *, input_mhz: float, output_mhz: float, memory_mhz: float | None = None,
            phase: float) -> Any:
        """A component that makes a core's and a memory's clock of another.

        Parameters
        ----------
        input_mhz, output_mhz : float
        memory_mhz : float, optional
            Makes this clock as well.
        phase : float, 0..1
            Makes the memory's, or else the output, once more, later by this part of its period.

        Returns
        -------
        Component
            With the members i, o, shifted and locked; memory only with ``memory_mhz``.

        Raises
        ------
        ValueError
            Nothing is near one of them. A family without a PLL has none at all.
        """
        raise ValueError(f"no PLL of {self.name} is known")

    def pll_clock(self, input_mhz: float, output_mhz: float,
                  memory_mhz: float | None = None) -> float:
        """What :meth:`pll` makes of ``output_mhz``, MHz; ValueError as there."""
        raise ValueError(f"no PLL of {self.name} is known")

    def pll_clocks(self, input_mhz: float, memory_mhz: float | None = None) -> list[float]:
        """All that it can make, beside ``memory_mhz`` if that is given, MHz, slowest first."""
        return []


GENERIC = Technology()


def technology_of(platform: Any) -> Technology:
    """The technology of a platform, as ``elaborate`` gets it: its ``technology``, or
    :data:`GENERIC`."""
    return getattr(platform, "technology", GENERIC)
