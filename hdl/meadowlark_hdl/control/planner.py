"""Plans a pass: how many tokens, and how much of its attention at once."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from ..signatures import ModelLayout
from .sequencer_golden import MAX_TILE_KEYS, Pass, sv_log2
from .sequencer_golden import tile_keys as tile_keys_of


class Planner(wiring.Component):
    """As many blocks as the model has room for, then as many lots as a lane takes: query heads of a
    KV head counted up while their scores fit, and if that is all of the group, blocks.

    One addition a step, no product: what n lots need follows from what n - 1 need.

    Golden: :func:`.sequencer_golden.prompt_passes` and :func:`.sequencer_golden.subgroup`.
    Timing: ``start`` to ``done`` :meth:`cycles`.

    Parameters
    ----------
    config : Config

    Members
    -------
    model : In(ModelLayout)     head_log2, from log2 W to MAX_HEAD_LOG2; blocks and group, 1...
    start : In(1)               Pulse, at rest.
    position, remaining : In(13), In(13)
                                Of the pass's first token; tokens from there on, 1..., within the
                                context. Constant from ``start`` to ``done``.
    done : Out(1)               Pulse; from the next cycle to the next start hold:
    nb : Out(6)                 Blocks, the last of which may be ragged.
    n, ctx : Out(13), Out(14)   Tokens, and ``position + n``.
    sub_heads, sub_blocks : Out(5)      One lot fits in any case.
    """

    BLOCK, LOT = 1, 2           # cycles for each that is tried
    REST = 3

    @classmethod
    def cycles(cls, p: Pass, group: int) -> int:
        """Those that the plan of a pass took; group: of the model."""
        tried = p.sub_heads + 1
        if p.sub_heads == group and p.nb > 1:
            tried += p.sub_blocks
        return cls.BLOCK * p.nb + cls.LOT * tried + cls.REST

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "model": In(ModelLayout), "start": In(1), "position": In(13), "remaining": In(13),
            "done": Out(1), "nb": Out(6), "n": Out(13), "ctx": Out(14),
            "sub_heads": Out(5), "sub_blocks": Out(5)})

    def elaborate(self, platform):
        m = Module()
        config, P, remaining, model = self.config, self.config.P, self.remaining, self.model

        # What the model allows.
        tile_keys = Signal(range(MAX_TILE_KEYS + 1))        # rows of the values' tiles
        acc_lots = Signal(range(config.sv_values // config.W + 1))
        with m.Switch(model.head_log2):
            for h in range(config.W.bit_length() - 1, Config.MAX_HEAD_LOG2 + 1):
                with m.Case(h):
                    columns = sv_log2(config, h)
                    m.d.sync += [tile_keys.eq(tile_keys_of(config, columns)),
                                 acc_lots.eq(config.sv_values >> columns)]

        tokens, ragged = Signal(14), Signal()       # nb * P; nothing is left behind them
        many_tiles, most = Signal(), Signal(range(Config.SUM_BLOCKS + 1))
        # So far, with one more, and what that is.
        area, next_area, more_area = (reg(24, name) for name in ("area", "next_area", "more_area"))
        lots, next_lots, more_lots = (reg(6, name) for name in ("lots", "next_lots", "more_lots"))
        of_blocks, another = Signal(), Signal()     # blocks are counted; there is one more
        m.d.comb += ragged.eq(tokens >= remaining)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [tokens.eq(P), of_blocks.eq(0), area.eq(0), lots.eq(0)]
                with m.If(self.start):
                    m.d.sync += [self.nb.eq(1), self.sub_heads.eq(0), self.sub_blocks.eq(0)]
                    m.next = "BLOCKS"
            with m.State("BLOCKS"):
                with m.If(~ragged & (self.nb != model.blocks)):
                    m.d.sync += [self.nb.eq(self.nb + 1), tokens.eq(tokens + P)]
                with m.Else():
                    m.d.sync += self.n.eq(Mux(ragged, remaining, tokens))
                    m.next = "CONTEXT"
            with m.State("CONTEXT"):
                m.d.sync += self.ctx.eq(self.position + self.n)
                m.next = "TILES"
            with m.State("TILES"):
                m.d.sync += [many_tiles.eq(self.ctx > tile_keys), more_area.eq(self.ctx),
                             more_lots.eq(1)]
                m.next = "MOST"
            with m.State("MOST"):
                m.d.sync += most.eq(Mux(many_tiles & (acc_lots < Config.SUM_BLOCKS), acc_lots,
                                        Config.SUM_BLOCKS))
                m.next = "ADD"
            with m.State("ADD"):
                m.d.sync += [next_area.eq(area + more_area), next_lots.eq(lots + more_lots),
                             another.eq(Mux(of_blocks, self.sub_blocks != self.nb,
                                            self.sub_heads != model.group))]
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.next = "ADD"
                with m.If(another & (next_area <= config.score_depth) & (next_lots <= most)):
                    m.d.sync += [area.eq(next_area), lots.eq(next_lots), self.sub_blocks.eq(
                        Mux(of_blocks, self.sub_blocks + 1, 1))]
                    with m.If(~of_blocks):
                        m.d.sync += self.sub_heads.eq(self.sub_heads + 1)
                # All heads are among them: as many again are a block more.
                with m.Elif(~of_blocks & (self.sub_heads == model.group) & (self.nb != 1)):
                    m.d.sync += [of_blocks.eq(1), more_area.eq(area), more_lots.eq(lots)]
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
