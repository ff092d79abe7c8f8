"""Whether the maximum that SV takes for granted is the right one, and when SV may begin."""
from __future__ import annotations

from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..compute.lane import score_cycle
from ..compute.tiling_engine import missed_cycle
from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..signatures import InstructionLayout
from .dispatch import Dispatch


def judged_cycle(config: Config) -> int:
    """From the last beat of a QK to the first cycle in which it is known whether a row missed the
    unified maximum: the array hears a cycle later, and its answer stands in a register."""
    return missed_cycle(config) + 2


class Judgement(wiring.Component):
    """Of a core with ``config.unified``: what QK leaves to its SV.

    A QK with exact maxima ends when these are known. One with a unified maximum ends at once, but
    for an SV that would read scores before they are there: the first one of the last tile can be
    read when SV begins. That is enough since an SV takes no less for a key than its QK, and has its
    keys in no smaller tiles. An SV that begins before all lanes have told whether their maximum is
    that one assumes so. It is known :func:`judged_cycle` cycles after QK's last beat; until then
    the SV's first lot does not end.

    Source: softmax with a unified maximum, FlashDecoding++, arXiv:2311.01282, section 3.

    Parameters
    ----------
    config : Config

    Members
    -------
    req, instr : In(1), In(InstructionLayout)   An instruction of :class:`.Keys` begins; it stands.
    tile, done : In(1)      One cycle: a tile begins; the last beat of a lot is presented.
    last : In(1)            The lot is the instruction's last one.
    missed : In(1)          See :class:`.TilingEngine`.
    waits : Out(1)          The lot may not end.
    assumed : Out(1)        SV assumes that no row missed; a register.
    again : Out(1)          One cycle: a row has. From the next cycle on assumed is 0.
    phi, window, shift : Out    Of the latest QK, from the first cycle of its walker on.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "req": In(1), "instr": In(InstructionLayout), "tile": In(1), "done": In(1),
            "last": In(1), "missed": In(1), "waits": Out(1), "assumed": Out(1), "again": Out(1),
            "phi": Out(signed(8)), "window": Out(2), "shift": Out(6)})

    def elaborate(self, platform):
        m = Module()
        instr, exact = self.instr, score_cycle(self.config) + 1
        # A score comes with the last beat of its key; the next walker begins some cycles later.
        beats = (1 << Config.MAX_HEAD_LOG2) // self.config.W        # of a key, at most
        apart = Dispatch.START + Dispatch.SETTLE
        hold = Countdown(m, range(exact + beats), name="hold", last=False)
        judged = Countdown(m, range(judged_cycle(self.config)), name="judged", last=False)
        is_qk, unified = Signal(), reg(1, "unified")
        heard, missed = Signal(), Signal()
        m.d.sync += [is_qk.eq(instr.op == Op.QK), unified.eq(self.window != 0),
                     heard.eq(self.missed), missed.eq(missed | heard)]
        for count in (hold, judged):
            with m.If(count.some):
                m.d.sync += count.step()
        with m.If(is_qk & self.done):
            m.d.sync += judged.load(judged_cycle(self.config) - 1)
            with m.If(~unified):
                m.d.sync += hold.load(exact)
        with m.If(is_qk & self.tile & unified):
            m.d.sync += hold.load((exact - apart - 2 + instr.row_beats)[:len(hold.left)])
        with m.If(~judged.some):
            m.d.sync += self.assumed.eq(0)
        with m.If(self.req):
            m.d.sync += self.assumed.eq((instr.op == Op.SV) & unified & judged.some)
            with m.If(instr.op == Op.QK):
                m.d.sync += [self.phi.eq(instr.mant[:8]), self.window.eq(instr.mant[8:10]),
                             self.shift.eq(instr.shift), missed.eq(0)]
                if self.config.softcap:         # one that has a soft cap has exact maxima
                    with m.If(instr.fn.any()):
                        m.d.sync += self.window.eq(0)
        m.d.comb += [self.again.eq(self.assumed & ~judged.some & (missed | heard)),
                     self.waits.eq(self.assumed | is_qk & self.last & hold.some)]
        return m
