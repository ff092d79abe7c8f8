"""Which lots of a QK, and of the SVs behind it, come next."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..lib.table import Table
from ..lib.times import times
from ..signatures import InstructionLayout, LotsLayout, PassLayout, PlaceLayout, PlaceWrite


class Subgroups(wiring.Component):
    """Walks heads, and blocks inside, in steps that the Planner found; says which keys they see.
    If lanes are heads it walks tokens in place of heads, one by one.

    Golden: :func:`.sequencer_golden.subgroups`.
    Timing: ``lots`` and ``final`` stand ``LATENCY`` cycles after a new instruction or ``next``.

    Parameters
    ----------
    config : Config

    Members
    -------
    instr : In(InstructionLayout)   At rest any; a QK's or SV's from then until the last ``next``.
    pass_ : In(PassLayout)
    places : In(PlaceWrite)     Where the tokens of a batch belong; the base of any run.
    next : In(1)                Pulse: these lots are done; behind the final ones it is at rest.
    lots : Out(LotsLayout)
    base : Out(27)              Of their cache.
    final : Out(1)              They are the instruction's last ones.
    """

    LATENCY = 5

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "instr": In(InstructionLayout), "pass_": In(PassLayout()),
            "places": In(PlaceWrite(config)), "next": In(1), "lots": Out(LotsLayout()),
            "base": Out(27), "final": Out(1)})

    def elaborate(self, platform):
        m = Module()
        instr, pass_, lots, P = self.instr, self.pass_, self.lots, self.config.P
        under_way = Signal()
        m.submodules.places = places = Table(PlaceLayout(), P)
        token, base = Signal(range(P)), reg(27, "base")
        m.d.comb += [places.en.eq(self.places.en), places.at.eq(self.places.addr),
                     places.entry.eq(self.places.data), places.addr.eq(token), self.base.eq(base)]
        if self.config.batches:
            m.d.sync += base.eq(places.data.base)
        heads_left, blocks_left = reg(6, "heads_left"), reg(6, "blocks_left")
        heads, blocks = reg(5, "heads"), reg(5, "blocks")
        last_heads, last_blocks = reg(1, "last_heads"), reg(1, "last_blocks")
        all_blocks, all_keys = reg(6, "all_blocks"), reg(1, "all_keys")
        # Positions: of the first token of all, of the next lots, of a batch, and behind these.
        origin, start, at, reach = Signal(14), reg(14, "start"), Signal(14), reg(14, "reach")
        placed = reg(13, "placed")
        # Keys: the first one that is seen, which may be none, and the end of those.
        oldest, first, end = reg(signed(15), "oldest"), reg(13, "first"), reg(14, "end")
        keys, last_block = reg(13, "keys"), reg(6, "last_block")
        count = Mux(instr.heads | instr.last, 1, pass_.nb)
        step = Mux(instr.heads, 1, pass_.sub_heads)
        m.d.comb += origin.eq(pass_.pos0 + times(Mux(instr.last & ~instr.heads, last_block, 0), P))
        m.d.sync += [
            all_blocks.eq(count), all_keys.eq(instr.last | instr.ahead),
            last_block.eq(pass_.nb - 1), last_heads.eq(heads_left <= step),
            heads.eq(Mux(heads_left <= step, heads_left, step)),
            last_blocks.eq(blocks_left <= pass_.sub_blocks),
            blocks.eq(Mux(blocks_left <= pass_.sub_blocks, blocks_left, pass_.sub_blocks))]
        m.d.comb += [
            lots.heads.eq(heads), lots.blocks.eq(blocks), lots.begin.eq(~under_way),
            lots.first.eq(first), lots.keys.eq(keys), lots.again.eq(blocks_left == all_blocks),
            self.final.eq(last_heads & last_blocks)]
        m.d.comb += at.eq(Mux(pass_.batch, placed, start))
        m.d.sync += [
            placed.eq(places.now.position + pass_.pos0),
            reach.eq(at + Mux(instr.heads, 1, times(blocks, P))), oldest.eq(at - instr.back),
            end.eq(Mux(~instr.heads & (all_keys | (reach > pass_.ctx)), pass_.ctx, reach)),
            first.eq(Mux(oldest < 0, 0, oldest)), keys.eq(end - first)]
        with m.If(~under_way):
            m.d.sync += [heads_left.eq(Mux(instr.heads, pass_.n, instr.group)),
                         blocks_left.eq(count), start.eq(origin)]
        with m.If(self.next):
            m.d.sync += [under_way.eq(~self.final), blocks_left.eq(blocks_left - blocks),
                         start.eq(reach), token.eq(Mux(self.final | ~pass_.batch, 0, token + 1))]
            with m.If(last_blocks):
                m.d.sync += [blocks_left.eq(all_blocks), heads_left.eq(heads_left - heads)]
                with m.If(~instr.heads):
                    m.d.sync += start.eq(origin)
        return m
