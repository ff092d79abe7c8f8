"""The largest logits of a pass, in order while they come; then a ring in which they come round."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..signatures import LogitPort

#: An entry of the list. key: the logit, see :func:`flipped`. Not held: nothing is there.
ENTRY = data.StructLayout({"token": Config.TOKEN_BITS, "key": Config.LOGIT_BITS, "held": 1})


def flipped(key):
    """32 bits, the sign inverted: signed numbers in the order of unsigned ones, and back."""
    return key ^ (1 << Config.LOGIT_BITS - 1)


def _order(entry):
    """An unsigned number, larger if the logit is, and smaller if nothing is there."""
    return Cat(entry.key, entry.held)


class Cell(wiring.Component):
    """Up to 7 neighbouring ranks of the sorted list, in a LUT RAM, and a newcomer.

    A newcomer has four cycles. In the first three its place is found by bisection: a compare in
    each. At the end of the fourth it takes its place and the last entry leaves; or, if it is below
    all, it leaves itself. What leaves is the next cell's newcomer. A logit goes below its equals,
    but an entry that left its place is earlier than all in the cells below and goes to the top.
    Entries stay where they are in the RAM; only the order of its words changes.

    Timing: a newcomer every 4 cycles; with ``turn`` every 2.

    Parameters
    ----------
    size : int, 1..7

    Members
    -------
    i : In(ENTRY)           The next newcomer.
    i_top : In(1)           It left its place in the cell above.
    phase : In(4)           Cycle of the newcomer, one-hot; always the last one with ``turn``.
    step : In(1)            In the last cycle: the newcomer takes its place, the next one comes.
    turn : In(1)            All newcomers go to the top; from 3 cycles before the first such step.
    clear : In(1)           With ``turn``: no newcomer is held. A ``step`` in every cycle is fine.
    newcomer : Out(ENTRY)
    o : Out(ENTRY)          What leaves, during ``step``.
    o_top : Out(1)          For the next cell's ``i_top``.
    """

    MAX = 7

    def __init__(self, size: int):
        self.size = size
        super().__init__({
            "i": In(ENTRY), "i_top": In(1), "phase": In(4), "step": In(1), "turn": In(1),
            "clear": In(1), "newcomer": Out(ENTRY), "o": Out(ENTRY), "o_top": Out(1)})

    def elaborate(self, platform):
        m = Module()
        newcomer = Signal(ENTRY, reset_less=True)
        top = Signal(reset_less=True)
        there = Signal(ENTRY)                      # what leaves, in the last cycle
        # The word of each rank. A rank that the cell does not have is as its last.
        words = [Signal(3, name=f"word_{rank}", init=rank) for rank in range(self.size)]
        last = words[-1]
        word = words + [last] * (self.MAX - self.size)
        # The newcomer's place is the number of entries above it, upper bits first, a bit a compare;
        # 7 if it is below all: two bits are set then, and the third.
        first, _, third, fourth = self.phase
        bit = Signal(reset_less=True)
        upper = Signal(2, reset_less=True)
        below = Signal(reset_less=True)
        stays = ~(below & bit)
        m.d.sync += [upper.eq(Cat(bit, upper)), below.eq(third & bit & upper[0])]
        # From the address to a compare's end is too long for a cycle: both entries of which the bit
        # that is being found will choose one are read in the cycle before, and held.
        high, low = (Signal(len(_order(newcomer)), name=name, reset_less=True)
                     for name in ("high", "low"))
        m.d.sync += bit.eq(Mux(bit, high, low) >= Cat(_order(newcomer), self.turn | top))
        with m.If(fourth & ~self.turn):
            m.d.sync += bit.eq(1)                   # the first compare has but one, the higher
        # Their addresses with bit 0 and 1. Those read last are not yet compared: the entry whose
        # rank will be 3 when the newcomer has taken its place, and the one that leaves. Until then
        # the newcomer is beside the entries.
        middle = min(3, self.size - 1)
        highs, lows = ([Signal(4, name=f"{name}_{b}", reset_less=True) for b in range(2)]
                       for name in ("high", "low"))
        with m.If(first):
            m.d.sync += [way.eq(word[rank]) for way, rank in zip(highs + lows, (2, 6, 0, 4))]
        with m.Else():
            for b in range(2):
                place = Cat(Const(b, 1), bit, upper[0])
                m.d.sync += [
                    highs[b].eq(Mux(place == middle, Cat(last, 1), Mux(
                        place < middle, words[max(middle - 1, 0)], words[middle]))),
                    lows[b].eq(Cat(last, bit & upper[0] & b))]
        # Before its last cycle the newcomer is written beside the entries, to leave from there; in
        # it, over the entry that leaves. 16 bits of the token are read only to leave.
        read_at = {"ids": [Cat(last, ~stays)],
                   "keys": [Mux(first, word[rank], Mux(bit, ways[1], ways[0]))
                            for rank, ways in ((1, lows), (5, highs))]}
        read = []
        for name, part in (("ids", slice(16)), ("keys", slice(16, None))):
            new = newcomer.as_value()[part]
            m.submodules[name] = ram = memory.Memory(shape=len(new), depth=16, init=[])
            write = ram.write_port()
            m.d.comb += [write.addr.eq(Cat(last, ~fourth)), write.data.eq(new),
                         write.en.eq(~fourth | (self.step & stays))]
            for address in read_at[name]:
                port = ram.read_port(domain="comb")
                m.d.comb += port.addr.eq(address)
                read.append(port.data)
        leaving_id, leaving, higher = read
        m.d.comb += there.eq(Cat(leaving_id, leaving))
        m.d.sync += [low.eq(leaving[-len(low):]), high.eq(higher[-len(high):])]
        m.d.comb += [self.newcomer.eq(newcomer), self.o.eq(there), self.o_top.eq(top | stays)]
        place = Cat(bit, upper)
        with m.If(self.step):
            m.d.sync += [newcomer.eq(self.i), top.eq(self.i_top)]
            for rank in range(self.size):
                with m.If(place == rank):
                    m.d.sync += words[rank].eq(last)
                with m.Elif(place < rank):
                    m.d.sync += words[rank].eq(words[rank - 1])
        with m.If(self.clear):
            m.d.sync += newcomer.held.eq(0)
        return m


class SortedList(wiring.Component):
    """A chain of cells that sorts logits as they come, and afterwards turns as a ring.

    It keeps the ``slots`` largest logits; of equal ones those that came first. As a ring it has
    ``places``: all ranks, and each cell's newcomer, where nothing is once the list is at rest. It
    turns by one place at a time, last entry first. Without top-k it is only where a logit stays.

    Timing: logits at least 4 cycles apart, each is the ``item`` 2 to 5 cycles later; the first at
    least ``CLEARED`` cycles after ``clear``. ``SETTLED`` cycles after the last one and those 5 the
    list is at rest. ``turn`` to the next item 2 cycles, and as many to the next ``turn``.

    Parameters
    ----------
    slots : int, 1..

    Members
    -------
    logit : In(LogitPort())     Not while it is a ring.
    ring : In(1)                It is a ring; from 3 cycles before the first ``turn``.
    turn : In(1)                Pulse, as a ring.
    clear : In(1)               Pulse, at any time: nothing is held any more.
    item : Out(ENTRY)           The logit that came, for 4 cycles at least; or what the ring is at.
    comes : Out(1)              Pulse: from the next cycle on the item is a new logit.
    count : Out                 Entries held, 0..slots.
    """

    def __init__(self, slots: int):
        self.slots = slots
        self.sizes = [min(Cell.MAX, slots - rank) for rank in range(0, slots, Cell.MAX)]
        self.places = slots + len(self.sizes)
        self.SETTLED = 4 * (len(self.sizes) + 1)
        super().__init__({
            "logit": In(LogitPort()), "ring": In(1), "turn": In(1), "clear": In(1),
            "item": Out(ENTRY), "comes": Out(1), "count": Out(range(slots + 1))})

    CLEARED = Cell.MAX + 5

    def elaborate(self, platform):
        m = Module()
        # A logit waits for the next step, which is every fourth cycle.
        waiting = Signal(ENTRY, reset_less=True)
        phase = Signal(4, init=1)
        step, will_step, turning = Signal(), Signal(), Signal()
        clearing = Countdown(m, range(self.CLEARED), name="clearing", last=False)
        m.d.comb += [will_step.eq(clearing.some | Mux(self.ring, self.turn, phase[2])),
                     self.comes.eq(step & waiting.held)]
        m.d.sync += [step.eq(will_step), phase.eq(Mux(turning, 8, phase.rotate_left(1))),
                     turning.eq(self.ring | clearing.some | self.clear)]
        with m.If(step):
            m.d.sync += waiting.held.eq(0)
        with m.If(self.logit.valid):
            m.d.sync += [waiting.key.eq(flipped(self.logit.value)),
                         waiting.token.eq(self.logit.row), waiting.held.eq(1),
                         self.count.eq(self.count + (self.count != self.slots))]
        with m.If(clearing.some):
            m.d.sync += clearing.step()
        with m.If(self.clear):
            m.d.sync += [clearing.load(self.CLEARED - 2), waiting.held.eq(0), self.count.eq(0)]

        cells = [Cell(size) for size in self.sizes]
        steps = fanout(m, will_step, len(cells), name="step", reset=True)       # one a cell
        for k, cell in enumerate(cells):
            m.submodules[f"cell_{k}"] = cell
            m.d.comb += [
                cell.phase.eq(phase), cell.step.eq(steps[k]), cell.turn.eq(turning),
                cell.clear.eq(clearing.some), cell.i_top.eq(cells[k - 1].o_top if k else 0),
                cell.i.eq(cells[k - 1].o if k else Mux(turning, cells[-1].o, waiting))]
        m.d.comb += self.item.eq(cells[0].newcomer)
        return m
