"""Queues between the blocks: a short one in distributed RAM, a deep one in block RAM."""
from amaranth import Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .collisions import NO_RW_CHECK
from .fanout import APART


def power_of_two(name: str, value: int, least: int) -> int:
    """The value of a parameter, or a ValueError: it is no power of two from ``least`` on."""
    if not isinstance(value, int) or value < least or value & (value - 1):
        raise ValueError(f"{name} must be a power of two of at least {least}, not {value!r}")
    return value


class Queue(wiring.Component):
    """First in, first out, in distributed RAM; valid and ready come from registers.

    Timing: 1 cycle from ``i`` to ``o``, one element a cycle; neither handshake depends on the
    other side in the same cycle. Use ``ResetInserter`` to empty it.

    Parameters
    ----------
    shape : shape-like
        Of the elements.
    depth : int, power of two, at least 2
        Elements it holds; 16 costs no more than 2 on an ECP5.

    Members
    -------
    i : In(stream of shape)
    o : Out(stream of shape)
    """

    def __init__(self, shape, *, depth: int):
        self.shape, self.depth = shape, power_of_two("depth", depth, 2)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=self.shape, depth=self.depth, init=[])
        w, r = ram.write_port(), ram.read_port(domain="comb")
        level = Signal(range(self.depth + 1))
        put, take = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        ready = Signal(init=1)
        # The place behind the last element is written in every cycle with room: the enable of a
        # wide memory is then a register, and whether an element came is not in its way.
        m.d.comb += [w.en.eq(ready), w.data.eq(self.i.payload), self.o.payload.eq(r.data),
                     self.i.ready.eq(ready)]
        with m.If(put):
            m.d.sync += w.addr.eq(w.addr + 1)
        with m.If(take):
            m.d.sync += r.addr.eq(r.addr + 1)
        with m.If(put & ~take):
            m.d.sync += [level.eq(level + 1), self.o.valid.eq(1),
                         ready.eq(level != self.depth - 1)]
        with m.Elif(take & ~put):
            m.d.sync += [level.eq(level - 1), self.o.valid.eq(level != 1), ready.eq(1)]
        return m


class Skid(wiring.Component):
    """Two elements in registers, in turn: cuts ready and valid of a wide stream.

    Timing: 1 cycle from ``i`` to ``o``, one element a cycle; what enables an element's register is
    a register, and so is what chooses between the two, once for each 32 bits.

    Parameters
    ----------
    width : int
        Bits of an element.

    Members
    -------
    i, o : In, Out(stream of width bits)
    """

    def __init__(self, width: int):
        self.width = width
        super().__init__({"i": In(stream.Signature(width)), "o": Out(stream.Signature(width))})

    def elaborate(self, platform):
        m = Module()
        words = [Signal(self.width, name=f"word{k}", reset_less=True) for k in range(2)]
        full, after, filled, took = Signal(2), Signal(2), Signal(), Signal()
        turns = [Signal(name=f"turn{k}", attrs=APART) for k in range(-(-self.width // 32))]
        ready = Signal(init=1)
        m.d.comb += [self.i.ready.eq(ready), took.eq(self.o.valid & self.o.ready), after.eq(full)]
        m.d.sync += [full.eq(after), ready.eq(~after.all()), self.o.valid.eq(after.any())]
        m.d.sync += [turn.eq(turn ^ took) for turn in turns]
        for k, word in enumerate(words):
            with m.If(~full[k]):
                m.d.sync += word.eq(self.i.payload)
        with m.If(took):
            m.d.comb += after.bit_select(turns[0], 1).eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += filled.eq(~filled)
            m.d.comb += after.bit_select(filled, 1).eq(1)
        for k, turn in enumerate(turns):
            part = slice(32 * k, min(32 * k + 32, self.width))
            m.d.comb += self.o.payload[part].eq(Mux(turn, words[1][part], words[0][part]))
        return m


class RamQueue(wiring.Component):
    """First in, first out, in block RAM whose output is registered before anything uses it.

    Read credits cover the way from the RAM's address to the output and back, so that ``o.ready``
    reaches nothing but a small output queue and a register.

    Timing: 4 cycles from ``i`` to ``o`` when empty, one element a cycle, both ways registered.
    The producer keeps count of the room: an element offered while ``depth`` are in the RAM
    overwrites the oldest. Use ``ResetInserter`` to empty it.

    Parameters
    ----------
    width : int
        Bits of an element.
    depth : int, power of two, at least 2
        Elements in the RAM; up to ``CREDITS`` more are on their way out.

    Members
    -------
    i_valid, i_data : In(1), In(width)
        An element, always taken.
    left : Out(1)
        One cycle for each element that leaves the RAM: its place may be written from the next
        cycle on.
    empty : Out(1)
        Nothing in the RAM and nothing on its way out.
    o : Out(stream of width bits)
    """

    def __init__(self, width: int, *, depth: int):
        self.width, self.depth = width, power_of_two("depth", depth, 2)
        super().__init__({"i_valid": In(1), "i_data": In(width), "left": Out(1),
                          "empty": Out(1), "o": Out(stream.Signature(width))})

    CREDITS = 8     # a credit is back 5 cycles later: address, RAM, register, queue, register

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=self.width, depth=self.depth, init=[],
                                               attrs=NO_RW_CHECK)
        w, r = ram.write_port(), ram.read_port()
        m.submodules.out = out = Queue(self.width, depth=self.CREDITS)
        read, back = Signal(), Signal()

        def counter(most, up, down, *, init=0):
            """A count, and whether it is more than 0."""
            count, some = Signal(range(most + 1), init=init), Signal(init=init != 0)
            m.d.sync += count.eq(count + up - down)
            with m.If(up & ~down):
                m.d.sync += some.eq(1)
            with m.Elif(down & ~up):
                m.d.sync += some.eq(count != 1)
            return count, some
        _, some = counter(self.depth, self.i_valid, read)
        credit, credited = counter(self.CREDITS, back, read, init=self.CREDITS)
        register = Signal(self.width, reset_less=True)
        in_ram, in_register = Signal(), Signal()
        m.d.comb += [
            w.en.eq(self.i_valid), w.data.eq(self.i_data), read.eq(some & credited),
            self.left.eq(read), self.empty.eq(~some & (credit == self.CREDITS)),
            out.i.valid.eq(in_register), out.i.payload.eq(register)]
        wiring.connect(m, out.o, wiring.flipped(self.o))
        m.d.sync += [back.eq(self.o.valid & self.o.ready),
                     in_ram.eq(read), in_register.eq(in_ram), register.eq(r.data)]
        with m.If(self.i_valid):
            m.d.sync += w.addr.eq(w.addr + 1)
        with m.If(read):
            m.d.sync += r.addr.eq(r.addr + 1)
        return m
