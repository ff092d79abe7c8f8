"""Rigid pipelines: values that know in which cycle they are, so that nobody counts registers."""
from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.hdl import Fragment, ShapeLike, ValueCastable
from amaranth.lib import data, wiring

from .fanout import LATENCY as FANOUT_LATENCY
from .fanout import near


def reg(shape: ShapeLike, name: str):
    """A register that is written before it is read, and so does without a reset, whose net would
    be one of the widest of the chip.
    """
    return Signal(shape, name=name, reset_less=True)


def kept(m: Module, name: str, value) -> Signal:
    """A register of what is constant for as long as it matters; domain ``sync``."""
    register = reg(value.shape(), name)
    m.d.sync += register.eq(value)
    return register


def delay(m: Module, value, cycles: int, *, name: str, reset: bool = False) -> Value:
    """``value`` as it was ``cycles`` cycles ago (0: itself).

    Parameters
    ----------
    m : Module
        Gets the registers, in its domain ``sync``.
    value : value-like
        Structures come back as plain bits; those of :class:`Timed` stay what they are.
    cycles : int, 0..
    name : str
        Prefix of the registers' names.
    reset : bool
        True for valid bits: zeros follow a reset. Data does without, as that of :func:`reg`.
    """
    if cycles < 0:
        raise ValueError(f"cycles must be at least 0, not {cycles!r}")
    return Pipe(m).at(0, Value.cast(value), name=name, valid=reset).at(cycles)


class Timed:
    """A value and the cycle it is in, counted from the inputs of its :class:`Pipe`.

    Operators, slices, methods and the fields of structures give what they give for the value,
    again with its cycle. Where two are mixed, the earlier one is delayed; what has no cycle (a
    number, a signal) is taken for constant while anything is in flight. Amaranth's own functions
    take none of these, so that no cycle gets lost: see :func:`mix`. What is computed from early
    values alone is computed early, and the result is delayed, a part as well: if that has more
    bits than its operands, mix all in one.

    Attributes
    ----------
    value : Value or view
    cycle : int
    valid : bool
        It is 0 after a reset, and so are its registers. Stays so if combined by ``&`` with anything
        and by ``|`` or :func:`mux` with another one.
    name : str
        Registers are called so, with their cycle.
    """

    def __init__(self, pipe: Pipe, value: Any, cycle: int, *, name: str, valid: bool = False):
        self.pipe, self.cycle, self.name, self.valid = pipe, cycle, name, valid
        self._taps = [value if isinstance(value, ValueCastable) else Value.cast(value)]

    def __repr__(self) -> str:
        return f"<{self.name} in cycle {self.cycle}>"

    @property
    def value(self) -> Any:
        return self._taps[0]

    def at(self, cycle: int) -> Any:
        """The value in another cycle, this one or a later."""
        if cycle < self.cycle:
            raise ValueError(f"{self.name} is there in cycle {self.cycle}, not in {cycle}")
        while len(self._taps) <= cycle - self.cycle:
            later = Signal(self.value.shape(), name=f"{self.name}_{self.cycle + len(self._taps)}",
                           reset_less=not self.valid)
            self.pipe.m.d.sync += later.eq(self._taps[-1])
            self._taps.append(later)
        return self._taps[cycle - self.cycle]

    def until(self, cycle: int) -> Timed:
        """The same in another cycle, to be mixed there."""
        return self._like(self.at(cycle), cycle=cycle)

    def reg(self, name: str, shape: ShapeLike | None = None) -> Timed:
        """In a register, the next cycle; of another shape if that is told."""
        register = Signal(self.value.shape() if shape is None else shape, name=name,
                          reset_less=not self.valid)
        self.pipe.m.d.sync += register.eq(self.value)
        return self._like(register, cycle=self.cycle + 1, name=name)

    def near(self, name: str) -> Timed:
        """In a register of its own, see :func:`.fanout.near`."""
        return self._like(near(self.pipe.m, self.value, name=name, reset=self.valid),
                          cycle=self.cycle + FANOUT_LATENCY, name=name)

    def _like(self, value, **changes) -> Timed:
        return Timed(self.pipe, value, **(dict(cycle=self.cycle, name=self.name,
                                               valid=self.valid) | changes))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if callable(found) and not isinstance(found, ValueCastable):
            return lambda *args: mix(lambda value, *plain: getattr(value, name)(*plain), self,
                                     *args)
        return mix(lambda value: getattr(value, name), self)

    def __getitem__(self, key) -> Timed:
        return mix(lambda value: value[key], self)

    def __len__(self) -> int:
        return len(self.value)

    def __invert__(self) -> Timed:
        return mix(operator.invert, self)

    def __neg__(self) -> Timed:
        return mix(operator.neg, self)

    def __and__(self, other) -> Timed:
        return mix(operator.and_, self, other, valid=self.valid or _valid(other))

    def __or__(self, other) -> Timed:
        return mix(operator.or_, self, other, valid=self.valid and _valid(other))

    def __add__(self, other) -> Timed:
        return mix(operator.add, self, other)

    def __sub__(self, other) -> Timed:
        return mix(operator.sub, self, other)

    def __lshift__(self, other) -> Timed:
        return mix(operator.lshift, self, other)

    def __rshift__(self, other) -> Timed:
        return mix(operator.rshift, self, other)

    def __lt__(self, other) -> Timed:
        return mix(operator.lt, self, other)

    def __gt__(self, other) -> Timed:
        return mix(operator.gt, self, other)

    # As of Amaranth's values, a comparison is a value, not True or False; so there is no hash.

    def __eq__(self, other) -> Timed:  # type: ignore[override]
        return mix(operator.eq, self, other)

    def __ne__(self, other) -> Timed:  # type: ignore[override]
        return mix(operator.ne, self, other)

    __hash__ = None  # type: ignore[assignment]


def _valid(value) -> bool:
    return isinstance(value, Timed) and value.valid


def mix(function: Callable[..., Any], *args, latency: int = 0, valid: bool = False) -> Timed:
    """``function`` of values of one cycle: those of the latest of ``args``.

    Parameters
    ----------
    function : callable
        Takes plain values; may be Amaranth's (``mix(Cat, a, b)``), or connect what makes the
        result.
    args : Timed or whatever the function takes
        At least one is Timed; those of other pipes are refused.
    latency : int
        Cycles that it takes.
    valid : bool
        See :class:`Timed`.
    """
    timed = [arg for arg in args if isinstance(arg, Timed)]
    first = timed[0]
    if any(other.pipe is not first.pipe for other in timed):
        raise ValueError(f"{', '.join(other.name for other in timed)}: cycles of different pipes "
                         "do not compare")
    cycle = max(each.cycle for each in timed)
    result = function(*(arg.at(cycle) if isinstance(arg, Timed) else arg for arg in args))
    return Timed(first.pipe, result, cycle + latency, name=first.name, valid=valid)


def mux(select, yes, no) -> Timed:
    """``yes`` where ``select``, else ``no``."""
    return mix(Mux, select, yes, no, valid=_valid(yes) and _valid(no))


def cat(*parts) -> Timed:
    """All parts as one value, the lowest first."""
    return mix(Cat, *parts)


def struct(layout: data.Layout, **fields) -> Timed:
    """A view of these fields, which are all of the layout's and in its order."""
    assert list(fields) == [name for name, _ in layout]
    return mix(lambda *values: data.View(layout, Cat(*values)), *fields.values())


class Pipe:
    """A rigid pipeline: a value a cycle, and nothing in it ever stalls.

    Parameters
    ----------
    m : Module
        Gets the registers, in its domain ``sync``. Values must not be mixed within an ``If`` of it.

    Attributes
    ----------
    cycles : dict[str, int]
        Cycle of each output that was given, and of what else has a name.
    """

    def __init__(self, m: Module):
        self.m = m
        self.cycles: dict[str, int] = {}

    def at(self, cycle: int, value, *, name: str = "", valid: bool = False) -> Timed:
        """A value that is there in a cycle; inputs are in cycle 0."""
        return Timed(self, value, cycle, valid=valid,
                     name=name or getattr(Value.cast(value), "name", "value"))

    def inputs(self, *values) -> list[Timed]:
        """Those of cycle 0."""
        return [self.at(0, value) for value in values]

    def read(self, port, address: Timed) -> Timed:
        """What a port of a memory holds there: the next cycle, or this one (domain ``comb``)."""
        def connect(address):
            self.m.d.comb += port.addr.eq(address)
            return port.data
        return mix(connect, address, latency=int(port.domain != "comb"))

    def through(self, block, /, **inputs) -> Any:
        """What a block with a ``latency`` makes of its inputs: the ports it drives, by name.

        The block is a submodule already; inputs that it does not get here are constant.
        """
        cycle = max(value.cycle for value in inputs.values() if isinstance(value, Timed))
        self.m.d.comb += [
            getattr(block, name).eq(value.at(cycle) if isinstance(value, Timed) else value)
            for name, value in inputs.items()]
        return SimpleNamespace(**{
            name: self.at(cycle + block.latency, getattr(block, name), name=name)
            for name, member in block.signature.members.items()
            if member.is_port and member.flow is wiring.Out})

    def give(self, block, /, **outputs: Timed) -> None:
        """Drive ports of a block, all in the cycle of the latest."""
        cycle = max(value.cycle for value in outputs.values())
        for name, value in outputs.items():
            self.m.d.comb += getattr(block, name).eq(value.at(cycle))
            self.cycles[name] = cycle


class Piped(wiring.Component, ABC):
    """A block that is a :class:`Pipe`: it tells how long it takes by being built.

    Subclasses have :meth:`stages` instead of ``elaborate``.
    """

    @abstractmethod
    def stages(self, pipe: Pipe) -> None:
        """Make the pipeline, from ports in cycle 0 (:meth:`Pipe.inputs`) to :meth:`Pipe.give`."""

    def elaborate(self, platform):
        pipe = Pipe(Module())
        self.stages(pipe)
        self._cycles = pipe.cycles
        return pipe.m

    @property
    def cycles(self) -> dict[str, int]:
        """``cycles`` of its pipe: cycle of each output."""
        if not hasattr(self, "_cycles"):
            Fragment.get(self, None)        # what is elaborated once may be once more
        return self._cycles

    @property
    def latency(self) -> int:
        """Cycles from inputs to the last of all outputs."""
        return max(self.cycles.values())
