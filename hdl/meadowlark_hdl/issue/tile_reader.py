"""Reads the tile at the front, for whoever wants it."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..compute.lane import BEAT_CYCLE
from ..config import Config
from ..lib.pipe import delay, reg
from ..signatures import TileRead
from .walker import TileControl


class TileReader(wiring.Component):
    """The one reader of the tile buffer. It knows which half is at the front.

    Three read: the array, by ``control``; TokenTiles, beat after beat; and the vector unit, by its
    own address. Each gives the tile back once: then the other half is at the front.

    Timing: the array's beat is there for lane 0 in cycle ``BEAT_CYCLE`` of its control, its scale
    two cycles after its register. ``rewind`` and ``next`` move an address that stands in the cycle
    after them, ``lent_addr`` stands one cycle later; their beats come 2 cycles after the address.
    A beat a cycle for each. From the cycle in which a tile is available to that in which its first
    beat can be presented ``FRONT`` cycles.

    Parameters
    ----------
    config : Config

    Members
    -------
    tile : Out(TileRead)        Its data go to those who read, not through here.
    front : Out(1)              A tile is there.
    control : In(TileControl)
    serial : In(1)              TokenTiles reads.
    rewind, next : In(1)        To the first beat of the tile; to the next one.
    lent : In(1), lent_addr : In(range)     The vector unit reads.
    release : In(1)             TokenTiles or the vector unit is done with the tile.
    """

    FRONT = 2

    def __init__(self, config: Config):
        self.config = config
        beat = range(config.tile_beats)
        super().__init__({
            "tile": Out(TileRead(config)), "front": Out(1), "control": In(TileControl(config)),
            "serial": In(1), "rewind": In(1), "next": In(1), "lent": In(1), "lent_addr": In(beat),
            "release": In(1)})

    def elaborate(self, platform):
        m = Module()
        config, tile, control = self.config, self.tile, self.control
        half, available = Signal(), Signal(2)
        # A half that was given back is there until the array has read it, but no longer a tile.
        given, away = Signal(2), Signal(2)
        with m.If(control.release | self.release):
            m.d.comb += given.eq(Cat(~half, half))
            m.d.sync += half.eq(~half)
        m.d.sync += [away.eq((away | given) & ~tile.release),
                     available.eq(tile.available & ~away)]
        m.d.comb += self.front.eq(Mux(half, available[1], available[0]))

        # A beat's way to lane 0: its address in a register, RAM, its register, lane 0's register.
        # The half is given back in the cycle after its last address.
        control_addr = reg(range(2 * config.tile_beats), "control_addr")
        control_release, release = Signal(2), Signal(2)
        m.d.sync += [control_addr.eq(Cat(control.beat, half)),
                     control_release.eq(Mux(control.release, given, 0)),
                     release.eq(Mux(self.release, given, 0))]
        array_addr = delay(m, control_addr, BEAT_CYCLE - 4, name="array_addr")
        array_release = delay(m, control_release, BEAT_CYCLE - 2, name="array_release", reset=True)

        addr = reg(range(2 * config.tile_beats), "addr")
        scale_addr = reg(range(2 * config.tile_rows), "scale_addr")
        with m.If(~self.serial):
            m.d.sync += addr.eq(Mux(self.lent, Cat(self.lent_addr, half), array_addr))
        with m.Elif(self.rewind):
            m.d.sync += addr.eq(Cat(Const(0, len(control.beat)), half))
        with m.Elif(self.next):
            m.d.sync += addr[:-1].eq(addr[:-1] + 1)
        m.d.sync += scale_addr.eq(Cat(control.tile_row, half))
        m.d.comb += [tile.beat_addr.eq(addr), tile.scale_addr.eq(scale_addr),
                     tile.release.eq(array_release | release)]
        return m
