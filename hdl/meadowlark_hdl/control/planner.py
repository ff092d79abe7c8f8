"""Plans a pass: the most blocks of a prompt that fit, counted up."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..signatures import ModelLayout
from .sequencer_golden import MAX_TILE_KEYS


class Planner(wiring.Component):
    """The largest number of blocks whose scores and accumulators a lane can hold.

    Two additions a step, no product: what b blocks need follows from what b - 1 need.

    Golden: :func:`.sequencer_golden.plan`.
    Timing: ``start`` to ``done`` ``TRY`` cycles for each number of blocks that is tried.

    Parameters
    ----------
    config : Config

    Members
    -------
    model : In(ModelLayout)     head_log2, at least log2 W, and blocks.
    start : In(1)               Pulse, at rest.
    position, remaining : In(13), In(13)
                                Of the pass's first token; tokens from there on, 1... Constant from
                                ``start`` to ``done``.
    done : Out(1)               Pulse; from the next cycle to the next start hold:
    nb : Out(6)                 Blocks, the last of which may be ragged; 0: not even one fits.
    n, ctx : Out(13), Out(14)   Tokens, and ``position + n``; not if nb is 0.
    """

    TRY = 5

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "model": In(ModelLayout), "start": In(1), "position": In(13), "remaining": In(13),
            "done": Out(1), "nb": Out(6), "n": Out(13), "ctx": Out(14)})

    def elaborate(self, platform):
        m = Module()
        config, P, position, remaining = self.config, self.config.P, self.position, self.remaining

        # What the model allows. head_log2 < log2 W is refused, so the shifts are as meant; when a
        # block needs more than acc_slots the quotient is 0 and nothing fits.
        slice_log2 = config.sv_columns.bit_length() - 1
        tile_log2 = config.W.bit_length() + config.tile_beats.bit_length() - 2
        keys_max = MAX_TILE_KEYS.bit_length() - 1
        tile_keys = Signal(range(MAX_TILE_KEYS + 1))
        acc_blocks = Signal(range(config.acc_slots + 1))
        with m.Switch(self.model.head_log2):
            for h in range(8):
                with m.Case(h):
                    m.d.sync += [
                        tile_keys.eq(1 << min(tile_log2 - h, keys_max) if h <= tile_log2 else 0),
                        acc_blocks.eq(config.acc_slots >> max(h - slice_log2, 0))]

        # The candidate: b blocks of which the last may be ragged.
        blocks = Signal(6)                  # most that may be tried
        b = Signal(6)
        tokens = Signal(12)                 # b * P, at most 63 * 32
        step = Signal(14)                   # position + P*(2b + 1): 8191 + 32 * 127
        area_full = Signal(20)              # b * (position + b*P), at most 63 * (8191 + 2016)
        area_rest = Signal(20)              # b * (position + remaining), at most 63 * 16382
        area = Signal(20)
        n = Signal(13)
        ctx = Signal(14)
        rest = Signal(14)                   # position + remaining
        ragged, more, good_area, good_acc = Signal(), Signal(), Signal(), Signal()
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    # A lone token runs the decode list, which knows one block only
                    blocks.eq(Mux(remaining == 1, 1, self.model.blocks)),
                    rest.eq(position + remaining), step.eq(position + P),
                    b.eq(0), tokens.eq(0), area_full.eq(0), area_rest.eq(0)]
                with m.If(self.start):
                    m.d.sync += self.nb.eq(0)
                    m.next = "TRY"
            with m.State("TRY"):
                m.d.sync += [
                    b.eq(b + 1), tokens.eq(tokens + P), area_full.eq(area_full + step),
                    area_rest.eq(area_rest + rest), step.eq(step + 2 * P)]
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.sync += [ragged.eq(tokens >= remaining), ctx.eq(position + tokens),
                             more.eq(b != blocks), good_acc.eq(b <= acc_blocks)]
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += [n.eq(Mux(ragged, remaining, tokens)), ctx.eq(Mux(ragged, rest, ctx)),
                             area.eq(Mux(ragged, area_rest, area_full))]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += [good_area.eq(area <= config.score_depth),
                             good_acc.eq(good_acc | (ctx <= tile_keys))]
                m.next = "DECIDE"
            with m.State("DECIDE"):
                with m.If(good_area & good_acc):
                    m.d.sync += [self.nb.eq(b), self.n.eq(n), self.ctx.eq(ctx)]
                with m.If(good_area & good_acc & more & ~ragged):
                    m.next = "TRY"
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
