"""WRITE, WRITE_PROGRAM, WRITE_TOKENS: a memory is filled from a place on."""
from amaranth import Module, Mux, Signal
from amaranth.hdl import ShapeLike
from amaranth.lib.wiring import Out
from amaranth.utils import exact_log2

from ...config import Config
from ...signatures import WordWrite
from ..protocol import Result
from .handler import Handler, Sizes


class Fill(Handler):
    """Units of the payload to places from args[0] on.

    Units beyond the memory's end are left out, and answered with BAD_ADDRESS; so is a first one
    outside. What stood before a unit that is not complete is written, the answer is BAD_LENGTH.

    Timing: a unit is written 1 cycle after it came.

    Parameters
    ----------
    config : Config
    unit : int                  Bytes of a unit.
    shape : shape-like          Its bits that are written.
    depth : int, power of two   Places.
    first : int                 Lowest place that may be written.
    locked : int                From this place on not while a run is under way.

    Members
    -------
    port : In(HandlerPort)
    w : Out(WordWrite)
    """

    def __init__(self, config: Config, *, unit: int, shape: ShapeLike, depth: int, first: int = 0,
                 locked: int = 0):
        self.depth, self.first, self.locked = depth, first, locked
        super().__init__(config, {"w": Out(WordWrite(depth, shape))}, Sizes(unit=unit))

    def elaborate(self, platform):
        m = Module()
        port, w, bits = self.port, self.w, exact_log2(self.depth)
        at = port.args[0]
        self.refuse(m, (port.rest == 0, Result.BAD_LENGTH),
                    ((at < self.first) | (at[bits:] != 0), Result.BAD_ADDRESS),
                    (port.core.busy & (at >= self.locked), Result.BUSY))
        inside, outside = Signal(), Signal()        # a unit fell beyond the end
        m.d.comb += [
            inside.eq(port.place[bits:] == 0),
            self.answer(result=Mux(port.torn, Result.BAD_LENGTH,
                                   Mux(outside, Result.BAD_ADDRESS, Result.OK)))]
        m.d.sync += [w.en.eq(port.unit.valid & inside), w.addr.eq(port.place),
                     w.data.eq(port.unit.payload)]
        with m.If(port.unit.valid & ~inside):
            m.d.sync += outside.eq(1)
        with m.If(port.answer.ready):
            m.d.sync += outside.eq(0)
        return m
