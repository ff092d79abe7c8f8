"""Which keys of a tile a block of tokens sees."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..signatures import InstructionLayout


class SeenKeys(wiring.Component):
    """Keys from the first one in the window of lane 0's token up to the block's last token; with
    ``ahead`` to the last one that there is. With ``heads`` all of them: there is one token.

    Timing: outputs follow ``LATENCY`` cycles after the inputs, whatever they were before.

    Parameters
    ----------
    config : Config

    Members
    -------
    instr : In(InstructionLayout)
    end : In(14)                Behind the last key that there is.
    position : In(14)           Of lane 0's token.
    base, keys : In(13)         Position of the tile's first key; keys of the tile, 1..128.
    first_tile : In(1)          It is the instruction's first one: no block sees keys before it.
    wanted : In(1)              Else skip is 0.
    none : Out(1)               It sees none of them.
    first, skip : Out(13), Out(7)   Position of the first key that it sees; keys of the tile before.
    anew : Out(1)               It sees none before this tile.
    until : Out                 The last lane that sees the first key, or one beyond all.
    behind, one : Out(8), Out(1)    Keys behind the first that it sees; there is just one.
    all : Out(1)                It sees none after this tile.
    last_query : Out            Lane of the last token, or head, that there is.
    limit : Out(14)             Behind the last key that it sees, of any tile; only with
                                ``config.gemm``.
    """

    LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "instr": In(InstructionLayout), "end": In(14), "position": In(14), "base": In(13),
            "keys": In(13), "first_tile": In(1), "wanted": In(1), "none": Out(1),
            "first": Out(13), "skip": Out(7), "anew": Out(1), "until": Out(range(config.P)),
            "behind": Out(8), "one": Out(1), "all": Out(1), "last_query": Out(range(config.P))}
            | ({"limit": Out(14)} if config.gemm else {}))

    def elaborate(self, platform):
        m = Module()
        instr, P = self.instr, self.config.P
        reach, ragged = Signal(14), reg(1, "ragged")
        limit, end = reg(14, "limit"), reg(14, "end")       # of the keys it sees; of the tile's
        oldest = reg(signed(15), "oldest")                  # that lane 0's token sees, or none
        m.d.comb += reach.eq(self.position + P)
        m.d.sync += [
            limit.eq(Mux(instr.heads | instr.ahead | (reach > self.end), self.end, reach)),
            ragged.eq(reach > self.end), end.eq(self.base + self.keys),
            oldest.eq(self.position - instr.back)]

        # Keys of the tile before the oldest one, and behind it; keys that the block sees behind the
        # tile's first. Negative ones are not there.
        skip, rest, seen = Signal(signed(16)), Signal(signed(16)), Signal(signed(16))
        m.d.comb += [skip.eq(oldest - self.base), rest.eq(end + ~oldest),
                     seen.eq(limit + ~Cat(self.base, Const(0, 3)))]
        skips, before = ~skip[-1], ~skip[:-1]   # else the tile begins before + 1 keys behind
        first, anew, until = reg(13, "first"), reg(1, "anew"), reg(self.until.shape(), "until")
        none, all_ = reg(1, "none"), reg(1, "all")
        # Keys behind the first one, up to the limit and to the tile's end.
        to_limit, to_end = reg(8, "to_limit"), reg(8, "to_end")
        tile_skip, last = reg(7, "tile_skip"), reg(self.last_query.shape(), "last")
        m.d.sync += [
            first.eq(Mux(skips, oldest, self.base)),
            tile_skip.eq(Mux(skips & self.wanted, skip, 0)),
            anew.eq(skips | self.first_tile), all_.eq(limit <= end),
            to_limit.eq(Mux(skips, limit + ~oldest, seen)),
            to_end.eq(Mux(skips, rest, self.keys - 1)), none.eq(seen[-1] | rest[-1]),
            last.eq(Mux(instr.heads, instr.lanes, Mux(ragged, self.end - self.position, P)) - 1)]
        few, many = before[:len(until)], before[len(until):]
        m.d.sync += until.eq(Mux(skips, 0, few + 1))
        with m.If(instr.heads | ~skips & (many.any() | few.all())):
            m.d.sync += until.eq(~0)
        m.d.comb += [
            self.none.eq(none), self.all.eq(all_), self.last_query.eq(last), self.anew.eq(anew),
            self.first.eq(first), self.skip.eq(tile_skip), self.until.eq(until),
            self.behind.eq(Mux(all_, to_limit, to_end)),
            self.one.eq(Mux(all_, to_limit == 0, to_end == 0))]
        if self.config.gemm:
            m.d.comb += self.limit.eq(limit)
        return m
