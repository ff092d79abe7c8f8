"""Double tile buffer: one half is read, as often as needed, while the other fills."""
from amaranth import Cat, Module, ResetInserter, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import ceil_log2

from ..config import Config
from ..lib.collisions import IN_BLOCKS
from ..lib.pipe import delay
from ..signatures import TileFill, TileRead


class TileBuffer(wiring.Component):
    """Two halves of ``tile_beats`` beats and ``tile_rows`` row scales.

    Items go to the half that is being filled, beats and scales each from address 0 up; the item
    with ``last`` completes it. A complete half can be read until its ``release``; the halves fill
    in turn, half 0 first.

    Timing: one item a cycle; a half is ``available`` ``LATENCY`` cycle after its last item came.
    Reading: RAM, then its register: data 2 cycles after its address (a row's scale is chosen from
    its W / 4 neighbours behind that register). A half is
    ``freed`` in the cycle after its ``release``, in which it may be addressed for the last time.

    Parameters
    ----------
    config : Config
        W, tile_beats, tile_rows.

    Members
    -------
    i : In(TileFill)
        At most tile_beats beats and the scales of tile_rows rows a tile (more overwrite the first
        ones); a tile for each half that was freed, no more.
    read : In(TileRead)
        ``release`` of a half only while it is ``available``. The scales of a tile without headers
        are those of some earlier tile.
    flush : In(1)
        While high, as in reset: both halves empty, items are dropped.
    """

    LATENCY = 1

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"i": In(TileFill(config)), "read": In(TileRead(config)),
                          "flush": In(1)})

    def elaborate(self, platform):
        m = Module()
        c, read = self.config, self.read
        full = Signal(2)            # of each half
        back = Signal()             # the half that fills
        put, last = self.i.valid, Signal()
        item = self.i.payload
        m.d.comb += [last.eq(put & item.last), read.available.eq(full)]

        group = c.W // 4            # rows whose scales come together
        groups = max(c.tile_rows // group, 1)
        row_bits, half = ceil_log2(c.tile_rows), read.scale_addr[-1]
        in_group = read.scale_addr[:min(ceil_log2(group), row_bits)]
        taken = {
            "beat": (put & ~item.is_scale, c.tile_beats, item.beat, read.beat_addr),
            "scales": (item.is_scale, groups, item.scales,
                       Cat(read.scale_addr[len(in_group):row_bits], half))}
        found = {}
        for name, (enable, depth, value, address) in taken.items():
            at = Signal(range(depth))
            shape = value.shape()
            ram = memory.Memory(shape=shape, depth=2 * depth, init=[], attrs=IN_BLOCKS)
            m.submodules[name] = ram
            w, r = ram.write_port(), ram.read_port()
            out = found[name] = Signal(shape, reset_less=True, name=name)
            m.d.comb += [w.en.eq(enable), w.addr.eq(Cat(at, back)), w.data.eq(value),
                         r.addr.eq(address)]
            m.d.sync += out.eq(r.data)
            with m.If(enable):
                m.d.sync += at.eq(at + 1)
            with m.If(last):
                m.d.sync += at.eq(0)

        row = delay(m, in_group, 2, name="row")
        m.d.comb += [read.beat.eq(found["beat"]), read.scale.eq(found["scales"][row])]

        # A half is filled only while empty, and released only while full.
        m.d.sync += [full.eq((full | (last << back)) & ~read.release), back.eq(back ^ last),
                     self.i.freed.eq(read.release)]
        return ResetInserter(self.flush)(m)
