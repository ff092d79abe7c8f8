"""EMBED and ROPE: a tile for each token, whose values leave one (or one pair) a cycle."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Kind, Op
from ..lib.countdown import Countdown
from ..lib.fanout import fanout
from ..lib.pipe import reg
from ..signatures import Beat, ResultPort, RopeWrite, RowScale
from .slots import Slots
from .walker import Walker


class TokenTiles(Walker):
    """Values of a tile, one after the other: EMBED as results of kind TOKEN, ROPE in pairs as
    writes.

    Timing: hidden + ``TOKEN`` cycles a token, or head_dim/2 + ``TOKEN``; ``ANGLES`` from the last
    one of ROPE to its last effect. ``element`` is combinational, ``rope`` a register.

    Members
    -------
    (beside those of :class:`Walker`)
    rewind, next, release : Out(1)          See :class:`.TileReader`.
    beat : In(Beat), scale : In(RowScale)   Of the tile; the scale stands before its first value.
    element : Out(ResultPort)
    rope : Out(RopeWrite)
    """

    TOKEN, ANGLES = 5, 6
    PRESENTS = ("wait_tile",)

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.EMBED: 8, Op.ROPE: 8}, **{
            "rewind": Out(1), "next": Out(1), "release": Out(1), "beat": In(Beat(config)),
            "scale": In(RowScale()), "element": Out(ResultPort(config)),
            "rope": Out(RopeWrite(config))})

    def elaborate(self, platform):
        m = Module()
        config, W, instr, rope = self.config, self.config.W, self.job.instr, self.rope
        element = self.element.payload
        values = reg(Beat(config), "values")
        left = Countdown(m, range(W), name="values", behind=True, reset=False)  # in ``values``
        beats = Countdown(m, 11, name="beats", behind=True, reset=False)
        slots = Slots(m, config.P)
        block, index = reg(6, "block"), reg(Config.ROW_BITS, "index")
        is_rope, taking, load = Signal(), Signal(), Signal()
        in_beat = Mux(is_rope, W // 2 - 1, W - 1)           # values or pairs behind the first
        m.d.sync += [is_rope.eq(instr.op == Op.ROPE), rope.valid.eq(0)]
        m.d.comb += [
            element.acc.eq(values[0]), element.lane.eq(slots.lane), element.kind.eq(Kind.TOKEN),
            element.add.eq(instr.add), element.scale.eq(self.scale),
            *(element.to[name].eq(instr[name]) for name in ("sink", "wide", "stats")),
            element.to.element.eq(index), element.to.block.eq(block)]

        with m.If(self.idle):
            m.d.sync += [slots.load(self.job.pass_.n), block.eq(0), index.eq(0)]
        # A beat comes 2 cycles after its address and lasts W/2 >= 2 cycles: the address moves on a
        # cycle before the beat it asked for is taken.
        with m.If(taking):
            m.d.comb += [load.eq(left.left == 1), self.next.eq(load)]
            m.d.sync += left.step()
            with m.If(left.last):
                m.d.sync += left.load(in_beat)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += [self.control.wait_tile.eq(~self.front), self.rewind.eq(1)]
                m.d.sync += [beats.load_all(instr.row_beats), left.load(2)]
                with m.If(~is_rope):
                    m.d.sync += index.eq(instr.y)
                with m.If(self.front):
                    m.next = "READ"
            with m.State("READ"):                   # as long as three values
                m.d.comb += taking.eq(1)
                with m.If(left.last):
                    m.next = "VALUES"
            with m.State("VALUES"):
                m.d.comb += [taking.eq(1), self.element.valid.eq(~is_rope)]
                m.d.sync += [rope.valid.eq(is_rope), index.eq(index + 1)]
                with m.If(left.last):
                    m.d.sync += beats.step()
                    with m.If(beats.last):
                        m.d.comb += self.release.eq(1)
                        m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += slots.step()
                with m.If(slots.last_lane):
                    m.d.sync += block.eq(block + 1)
                m.next = "TILE"
                with m.If(slots.last):
                    m.d.sync += self.idle.eq(1)
                    m.next = "IDLE"

        # Always moving: 18 * W flip-flops wide, so that an enable would come late. A register for
        # each few values that hear what they do.
        m.d.sync += [rope.cos.eq(values[0]), rope.sin.eq(values[1]), rope.addr.eq(index)]
        loads = fanout(m, load, W // 2, name="load")
        twos = fanout(m, instr.op == Op.ROPE, W // 2, name="by_two")
        for i in range(W):
            one, two = (values[min(i + k, W - 1)] for k in (1, 2))
            m.d.sync += values[i].eq(
                Mux(loads[i // 2], self.beat[i], Mux(twos[i // 2], two, one)))
        return m
