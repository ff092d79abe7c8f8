"""QK and SV, the inner loop: the keys of a tile that a block sees, beat after beat."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .walker import Job, presentable


class KeyBeats(wiring.Component):
    """Each key of a block, each beat; in SV ``sv_cycles`` parts of it, one a cycle, or where that
    many lanes are a head all of them at once.

    Timing: row_beats cycles a key, in SV row_beats * sv_cycles (of pairs row_beats) and ACC_TURN at
    least, and the cycles that are taken. The first beat is presented in the cycle after ``req``;
    what the block is must stand in that of ``req``.

    Parameters
    ----------
    config : Config

    Members
    -------
    job : In(Job)
    req : In(1)             One cycle, while idle: begin.
    idle : Out(1)
    done : Out(1)           The last beat is presented.
    taken : In(1)           SV pauses for this cycle: another reads the accumulators, or a sum.
    again : In(1)           Only with ``config.unified``. This beat is the block's last one, and it
                            may begin again in the next cycle.
    room : In(1)            Only with ``config.gemm``: SPILL, a row of results a key, pauses
                            without.
    first, skip : In(13), In(7)     Position of the first key; keys of the tile before it.
    anew, until : In        It is the block's first; the last lane that sees it.
    position : In(14)       Of lane 0's token.
    behind, one : In(8), In(1)      Keys behind the first; there is just one.
    score, x, slot : In     Where the block's scores begin, its word x, its first slice. While idle
                            ``x`` and ``skip`` go to the control.
    control : Out           A structure of what it presents; acc_addr and sum_block are 0 in a cycle
                            that is taken, as in QK.
    """

    PRESENTS = ("x_addr", "dot_keep", "beat", "part", "array_active", "s_addr",
                "sc_en", "sc_addr", "sc_from", "sc_until", "sc_first", "sum_en", "sum_keep",
                "sum_block", "acc_en", "acc_keep", "acc_addr", "acc_to")

    def __init__(self, config: Config):
        self.config = config
        shapes = presentable(config)
        if config.gemm:
            self.PRESENTS = (*self.PRESENTS, "res_en")
        if config.lane_pairs:
            self.PRESENTS = (*self.PRESENTS, "own_part")
        super().__init__({
            "job": In(Job()), "req": In(1), "idle": Out(1, init=1), "done": Out(1), "taken": In(1),
            "first": In(13), "skip": In(7), "anew": In(1), "until": In(range(config.P)),
            "position": In(14), "behind": In(8), "one": In(1),
            **({"room": In(1)} if config.gemm else {}),
            **({"again": In(1)} if config.unified else {}),
            "score": In(range(2 * config.score_depth)), "x": In(13),
            "slot": In(range(config.acc_slots)),
            "control": Out(data.StructLayout({name: shapes[name] for name in self.PRESENTS}))})

    def elaborate(self, platform):
        m = Module()
        config, c, instr = self.config, self.control, self.job.instr
        log2_parts = ceil_log2(config.sv_cycles)
        is_sv, first = Signal(), Signal(init=1)     # first: beat of the key
        parted = is_sv                              # it takes a beat in parts
        if config.lane_pairs:
            parted = Signal()
            m.d.sync += parted.eq((instr.op == Op.SV) & ~instr.add)
            m.d.comb += c.own_part.eq(is_sv & ~parted)
        keys = Countdown(m, 8, name="keys", behind=True, reset=False)
        anew, age = reg(1, "anew"), reg(signed(15), "age")      # the first key; key - position
        until, everyone = reg(self.until.shape(), "until"), reg(1, "everyone")
        score, x_addr = reg(self.score.shape(), "score"), reg(13, "x_addr")
        tile_beat = reg(range(config.tile_beats), "tile_beat")
        slice_ = reg(self.slot.shape(), "slice")
        # Beats of a key. SV takes each in parts: steps, whose number behind one has 0 in its low
        # bits in the last part of a beat.
        steps = Countdown(m, 11, name="steps", behind=True, reset=False)
        steps_behind, one_step = reg(11, "steps_behind"), Signal()
        part, beat_done = ~steps.left[:log2_parts], ~parted | ~steps.left[:log2_parts].any()
        one_beat = instr.row_beats == 1
        m.d.sync += [
            is_sv.eq(instr.op == Op.SV), one_step.eq(one_beat & ~parted),
            steps_behind.eq(Mux(
                parted, Cat(Const(1).replicate(log2_parts), instr.row_beats - 1),
                instr.row_beats - 1))]
        # The slices of the next key are those of this one: not sooner than the accumulators allow.
        turn = Countdown(m, range(config.row_cycles) if config.gemm else 2, name="turn", last=False)
        too_soon = max(Config.ACC_TURN - config.sv_cycles, 0)
        short, mine = Signal(), Signal()
        m.d.sync += [short.eq(is_sv & one_beat & (too_soon > 0)),
                     everyone.eq(instr.heads | instr.ahead)]
        if config.lane_pairs:           # rows there are short of 1, 2 or 3 beats
            of_parts, too_soon, is_short = too_soon, Signal(2), instr.row_beats < Config.ACC_TURN
            m.d.sync += [too_soon.eq(Mux(parted, of_parts, Config.ACC_TURN - instr.row_beats)),
                         short.eq(is_sv & Mux(parted, one_beat & (of_parts > 0), is_short))]
        is_spill, pauses = Signal(), is_sv & self.taken
        if config.gemm:
            m.d.sync += is_spill.eq(instr.op == Op.SPILL)
            pauses |= is_spill & ~self.room
        # Beats before the first key: row_beats is a power of two, of a head at most.
        skipped, most = Signal(range(config.tile_beats)), 1 << Config.MAX_HEAD_LOG2
        m.d.comb += skipped.eq(Cat(
            Cat(bit & self.skip[at - k] for k, bit in enumerate(instr.row_beats)
                if 0 <= at - k < len(self.skip) and config.W << k <= most).any()
            for at in range(len(skipped))))

        m.d.comb += [
            mine.eq(is_sv & ~self.taken & ~self.idle),
            c.x_addr.eq(x_addr), c.dot_keep.eq(~first), c.beat.eq(tile_beat),
            c.part.eq(Mux(parted, part, 0)), c.s_addr.eq(score), c.sc_addr.eq(score),
            c.sc_from.eq(Mux(everyone | (age < 0), 0, age)), c.sc_until.eq(until),
            c.sc_first.eq(anew), c.sum_keep.eq(~anew), c.sum_block.eq(Mux(mine, self.slot[1:], 0)),
            c.acc_keep.eq(is_sv & ~anew), c.acc_addr.eq(Mux(mine, slice_, 0)),
            c.acc_to.eq(slice_)]
        with m.If(self.idle):
            m.d.sync += [
                keys.load(self.behind, last=self.one), steps.load(steps_behind, last=one_step),
                anew.eq(self.anew), age.eq(self.first - self.position), until.eq(self.until),
                score.eq(self.score + self.first), x_addr.eq(self.x), tile_beat.eq(skipped),
                slice_.eq(self.slot), turn.load(0), self.idle.eq(~self.req)]
            if config.gemm:
                with m.If(is_spill & turn.some):        # rows are as far apart there, too
                    m.d.sync += turn.step()
        with m.Elif(pauses):
            pass
        with m.Elif(turn.some):
            m.d.sync += turn.step()
        with m.Else():
            m.d.comb += [c.array_active.eq(1), c.sc_en.eq(~is_sv & steps.last), c.acc_en.eq(is_sv),
                         c.sum_en.eq(is_sv & first)]
            m.d.sync += [steps.step(), first.eq(steps.last), x_addr.eq(x_addr + 1),
                         tile_beat.eq(tile_beat + beat_done), slice_.eq(slice_ + 1)]
            with m.If(steps.last):
                m.d.comb += self.done.eq(keys.last)
                m.d.sync += [
                    steps.load(steps_behind, last=one_step), keys.step(), anew.eq(0),
                    age.eq(age + 1), until.eq(until + ~until.all()), score.eq(score + 1),
                    x_addr.eq(self.x), slice_.eq(self.slot),
                    turn.load(too_soon, some=short), self.idle.eq(keys.last)]
                if config.gemm:
                    with m.If(is_spill):
                        m.d.comb += [c.sc_en.eq(0), c.res_en.eq(1)]
                        m.d.sync += turn.load(config.row_cycles - 1)
        if config.unified:
            with m.If(self.again):
                m.d.sync += [self.idle.eq(1), first.eq(1)]
        return m
