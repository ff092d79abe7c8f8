"""Which lots of a QK, and of the SV behind it, come next."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..lib.times import times
from ..signatures import InstructionLayout, LotsLayout, PassLayout


class Subgroups(wiring.Component):
    """Walks heads, and blocks inside, in steps that the Planner found.

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

    LATENCY = 4

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
        start, reach = reg(14, "start"), reg(14, "reach")       # positions: of the first token; end
        all_blocks, all_keys, keys = reg(6, "all_blocks"), reg(1, "all_keys"), reg(13, "keys")
        one = instr.heads | instr.last
        count = Mux(one, 1, pass_.nb)
        m.d.sync += [
            all_blocks.eq(count), all_keys.eq(one),
            last_heads.eq(heads_left <= pass_.sub_heads),
            heads.eq(Mux(heads_left <= pass_.sub_heads, heads_left, pass_.sub_heads)),
            last_blocks.eq(blocks_left <= pass_.sub_blocks),
            blocks.eq(Mux(blocks_left <= pass_.sub_blocks, blocks_left, pass_.sub_blocks))]
        m.d.comb += [
            lots.heads.eq(heads), lots.blocks.eq(blocks), lots.begin.eq(~under_way),
            lots.keys.eq(keys), lots.again.eq(blocks_left == all_blocks),
            self.final.eq(last_heads & last_blocks)]
        m.d.sync += [
            reach.eq(start + times(blocks, P)),
            keys.eq(Mux(all_keys | (reach > pass_.ctx), pass_.ctx, reach))]
        with m.If(~under_way):
            m.d.sync += [heads_left.eq(instr.group), blocks_left.eq(count), start.eq(pass_.pos0)]
        with m.If(self.next):
            m.d.sync += [under_way.eq(~self.final), blocks_left.eq(blocks_left - blocks),
                         start.eq(start + times(blocks, P))]
            with m.If(last_blocks):
                m.d.sync += [blocks_left.eq(all_blocks), start.eq(pass_.pos0),
                             heads_left.eq(heads_left - heads)]
        return m
