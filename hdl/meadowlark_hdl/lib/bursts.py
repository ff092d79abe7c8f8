"""Long transfers in bursts that are not too long and, where asked, do not cross a boundary."""
from amaranth import Module, Mux
from amaranth.hdl import ValueLike

from .pipe import reg


class BurstCutter:
    """Where the next burst of a transfer begins, how long it is, and whether it is the last.

    :meth:`load`, :meth:`measure`, :meth:`cut` and :meth:`advance` give the statements for a state
    machine, each for a state of its own: load, then for each burst measure (only with ``aligned``),
    cut, and when it is under way advance. No comparison and no sum is in the way of a handshake.

    Timing: what a statement changes is there ``LATENCY`` cycles later.

    Parameters
    ----------
    m : Module
    most : int
        Words of the longest burst; with ``aligned`` a power of two.
    address_bits, left_bits : int
        Of the addresses, in words, which wrap; and of what counts the words of a transfer.
    name : str
        Prefix of the registers' names.
    aligned : bool
        A burst ends at the next multiple of ``most`` at the latest.

    Attributes
    ----------
    address : Signal(address_bits)
    left : Signal(left_bits)        Words of the transfer from there on.
    length : Signal                 Words of the burst that was cut, 1..most.
    less_one : Signal               ``length - 1``, as commands have it.
    final : Signal(1)               It is the transfer's last.
    """

    LATENCY = 1

    def __init__(self, m: Module, *, most: int, address_bits: int, left_bits: int, name: str,
                 aligned: bool = False):
        if most < 1 or aligned and most & (most - 1):
            what = "a power of two" if aligned else "at least 1"
            raise ValueError(f"most must be {what}, not {most!r}")
        longest = min(most, (1 << left_bits) - 1)

        self._most, self._aligned = most, aligned
        self.address = reg(address_bits, f"{name}_address")
        self.left = reg(left_bits, f"{name}_left")
        self.length = reg(range(longest + 1), f"{name}_length")
        self.less_one = reg(range(longest), f"{name}_less_one")
        self.final = reg(1, f"{name}_final")
        self._room = reg(range(most + 1), f"{name}_room") if aligned else most

    def load(self, address: ValueLike, words: ValueLike) -> list:
        """A transfer of so many words, at least 1."""
        return [self.address.eq(address), self.left.eq(words)]

    def measure(self) -> list:
        """How far is the boundary?"""
        assert self._aligned
        return [self._room.eq(self._most - self.address[:self._most.bit_length() - 1])]

    def cut(self) -> list:
        """Length and end of the burst that begins at ``address``."""
        fits = self.left <= self._room
        return [self.length.eq(Mux(fits, self.left, self._room)),
                self.less_one.eq(Mux(fits, self.left, self._room) - 1), self.final.eq(fits)]

    def advance(self) -> list:
        """To where the next burst begins."""
        return [self.address.eq(self.address + self.length),
                self.left.eq(self.left - self.length)]
