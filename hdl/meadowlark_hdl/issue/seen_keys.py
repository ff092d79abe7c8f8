"""Which keys of a tile a block of tokens sees."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg


class SeenKeys(wiring.Component):
    """Keys from the tile's first one up to the block's last token; with ``heads`` all there are.

    Timing: outputs follow ``LATENCY`` cycles after the inputs, whatever they were before.

    Parameters
    ----------
    config : Config

    Members
    -------
    heads, lanes : In           Of the instruction.
    ctx : In(13)                Keys in all.
    position : In(14)           Of lane 0's token.
    base, keys : In(13)         Position of the tile's first key; keys of the tile, 1..128.
    none : Out(1)               It sees none of them.
    behind, one : Out(8), Out(1)    Keys behind the first that it sees; there is just one.
    all : Out(1)                It sees none after this tile.
    last_query : Out            Lane of the last token, or head, that there is.
    """

    LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "heads": In(1), "lanes": In(6), "ctx": In(13), "position": In(14), "base": In(13),
            "keys": In(13), "none": Out(1), "behind": Out(8), "one": Out(1), "all": Out(1),
            "last_query": Out(range(config.P))})

    def elaborate(self, platform):
        m = Module()
        reach = Signal(14)
        limit, end = reg(14, "limit"), reg(14, "end")       # of the keys it sees; of the tile's
        tile_behind, tile_one = reg(8, "tile_behind"), reg(1, "tile_one")
        behind, fewer, none, all_ = reg(8, "behind"), reg(1, "fewer"), reg(1, "none"), reg(1, "all")
        last = reg(self.last_query.shape(), "last")
        m.d.comb += reach.eq(self.position + self.config.P)
        m.d.sync += [
            limit.eq(Mux(self.heads | (reach > self.ctx), self.ctx, reach)),
            end.eq(self.base + self.keys), tile_behind.eq(self.keys - 1),
            tile_one.eq(self.keys == 1),
            behind.eq(limit - self.base - 1), fewer.eq(limit < end), none.eq(limit <= self.base),
            all_.eq(limit <= end), last.eq(Mux(self.heads, self.lanes, limit - self.position) - 1)]
        m.d.comb += [
            self.none.eq(none), self.all.eq(all_), self.last_query.eq(last),
            self.behind.eq(Mux(fewer, behind, tile_behind)),
            self.one.eq(Mux(fewer, behind == 0, tile_one))]
        return m
