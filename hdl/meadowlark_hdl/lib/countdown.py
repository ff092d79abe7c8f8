"""Counts whose end is known from a register: compared a cycle ahead, where they are written."""
from amaranth import Module, Signal
from amaranth.hdl import ShapeLike, ValueLike


class Countdown:
    """How many steps are left, and whether there are any, and whether the next is the last.

    A comparison with 1 or 0 in front of a decision is a level of logic or two. Here the flags are
    computed with the count, a step ahead: they are right in each cycle, and each is a register.
    :meth:`load` and :meth:`step` give the statements; where both stand for one cycle the later
    counts, as for any signal. A step when there are none means nothing.

    Timing: count and flags follow a load or a step ``LATENCY`` cycles later.

    Parameters
    ----------
    m : Module
    shape : shape-like, unsigned
        Of ``left``.
    name : str
        Prefix of the registers' names.
    behind : bool
        ``left`` leaves out the next step: it counts those behind it, and is 0 for the last one.
    last : bool
        False: nobody asks for ``last``, and ``some`` is computed without it.
    reset, reset_flags : bool
        Whether the count, and the flags, are reset; before anything is loaded ``left`` is 0, and
        there are no steps.

    Attributes
    ----------
    left : Signal(shape)    Steps to do.
    last : Signal(1)        The next one is the last.
    some : Signal(1)        There is a next one; not with ``behind``, which cannot tell.
    """

    LATENCY = 1

    def __init__(self, m: Module, shape: ShapeLike, *, name: str, behind: bool = False,
                 last: bool = True, reset: bool = True, reset_flags: bool = True):
        if behind and not last:
            raise ValueError("a count of the steps behind the next one has no flag but last")
        self._m, self._behind, self._last = m, behind, last
        self.left = Signal(shape, name=f"{name}_left", reset_less=not reset)
        if self.left.shape().signed:
            raise ValueError(f"shape must be unsigned, not {shape!r}")
        self.last = Signal(name=f"{name}_last", reset_less=not reset_flags)
        if not behind:
            self.some = Signal(name=f"{name}_some", reset_less=not reset_flags)

    def load(self, count: ValueLike, *, last: ValueLike | None = None,
             some: ValueLike | None = None) -> list:
        """So many steps; with ``behind``, so many behind the first, see :meth:`load_all`.

        ``last``, ``some``: whether the first is the last and whether there is one, where the caller
        knows sooner.
        """
        at_last = count == (0 if self._behind else 1)
        loads = [self.left.eq(count)]
        if self._last:
            loads.append(self.last.eq(at_last if last is None else last))
        if not self._behind:
            loads.append(self.some.eq((count != 0) if some is None else some))
        return loads

    def load_all(self, count: ValueLike) -> list:
        """So many steps, at least 1, of a count of those ``behind``."""
        assert self._behind
        return [self.left.eq(count - 1), self.last.eq(count == 1)]

    def step(self) -> list:
        """One is done."""
        steps = [self.left.eq(self.left - 1)]
        if self._last:
            steps.append(self.last.eq(self.left == (1 if self._behind else 2)))
        if not self._behind:
            steps.append(self.some.eq(~self.last if self._last else self.left != 1))
        return steps
