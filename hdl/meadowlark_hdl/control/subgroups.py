"""Which lots of a QK, and of the SVs behind it, come next."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..lib.times import times
from ..signatures import InstructionLayout, LotsLayout, PassLayout


class Subgroups(wiring.Component):
    """Walks heads, and blocks inside, in steps that the Planner found; says which keys they see.

    Golden: :func:`.sequencer_golden.subgroups`.
    Timing: ``lots`` and ``final`` stand ``LATENCY`` cycles after a new instruction or ``next``.

    Parameters
    ----------
    config : Config

    Members
    -------
    instr : In(InstructionLayout)   At rest any; a QK's or SV's from then until the last ``next``.
    pass_ : In(PassLayout)
    next : In(1)                Pulse: these lots are done; behind the final ones it is at rest.
    lots : Out(LotsLayout)
    final : Out(1)              They are the instruction's last ones.
    """

    LATENCY = 5

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "instr": In(InstructionLayout), "pass_": In(PassLayout()), "next": In(1),
            "lots": Out(LotsLayout()), "final": Out(1)})

    def elaborate(self, platform):
        m = Module()
        instr, pass_, lots, P = self.instr, self.pass_, self.lots, self.config.P
        under_way = Signal()
        heads_left, blocks_left = reg(6, "heads_left"), reg(6, "blocks_left")
        heads, blocks = reg(5, "heads"), reg(5, "blocks")
        last_heads, last_blocks = reg(1, "last_heads"), reg(1, "last_blocks")
        all_blocks, all_keys = reg(6, "all_blocks"), reg(1, "all_keys")
        # Positions: of the first token of all, of the next lots, and behind these.
        origin, start, reach = Signal(14), reg(14, "start"), reg(14, "reach")
        # Keys: the first one that is seen, which may be none, and the end of those.
        oldest, first, end = reg(signed(15), "oldest"), reg(13, "first"), reg(14, "end")
        keys, last_block = reg(13, "keys"), reg(6, "last_block")
        one = instr.heads | instr.last
        count = Mux(one, 1, pass_.nb)
        m.d.comb += origin.eq(pass_.pos0 + times(Mux(instr.last, last_block, 0), P))
        m.d.sync += [
            all_blocks.eq(count), all_keys.eq(one | instr.ahead), last_block.eq(pass_.nb - 1),
            last_heads.eq(heads_left <= pass_.sub_heads),
            heads.eq(Mux(heads_left <= pass_.sub_heads, heads_left, pass_.sub_heads)),
            last_blocks.eq(blocks_left <= pass_.sub_blocks),
            blocks.eq(Mux(blocks_left <= pass_.sub_blocks, blocks_left, pass_.sub_blocks))]
        m.d.comb += [
            lots.heads.eq(heads), lots.blocks.eq(blocks), lots.begin.eq(~under_way),
            lots.first.eq(first), lots.keys.eq(keys), lots.again.eq(blocks_left == all_blocks),
            self.final.eq(last_heads & last_blocks)]
        m.d.sync += [
            reach.eq(start + times(blocks, P)), oldest.eq(start - instr.back),
            end.eq(Mux(all_keys | (reach > pass_.ctx), pass_.ctx, reach)),
            first.eq(Mux(oldest < 0, 0, oldest)), keys.eq(end - first)]
        with m.If(~under_way):
            m.d.sync += [heads_left.eq(instr.group), blocks_left.eq(count), start.eq(origin)]
        with m.If(self.next):
            m.d.sync += [under_way.eq(~self.final), blocks_left.eq(blocks_left - blocks),
                         start.eq(reach)]
            with m.If(last_blocks):
                m.d.sync += [blocks_left.eq(all_blocks), start.eq(origin),
                             heads_left.eq(heads_left - heads)]
        return m
