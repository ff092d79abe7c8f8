"""A unified maximum: the softmax unit, the walker that may begin again, programs, and the forecast
of their cycles, against the golden models."""
import random

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from meadowlark_hdl.compute.lane import score_cycle
from meadowlark_hdl.compute.softmax import SoftmaxUnit
from meadowlark_hdl.compute.softmax_golden import (MASKED, WINDOWS, of_field, peaks, probabilities,
                                                   scores, unified_field)
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Instruction, Op
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.issue.drain import Drain
from meadowlark_hdl.issue.dispatch import Dispatch
from meadowlark_hdl.issue.judgement import Judgement, judged_cycle
from meadowlark_hdl.issue.keys import Keys
from meadowlark_hdl.issue.walker import Job, presentable
from presented import a_pass, check, of_heads, random_work, repeated
from test_walkers import walk

CONFIGS = {name: Config(W=W, P=P, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32,
                        tile_rows=8, rope_pairs=256, sv_cycles=sv_cycles, unified=True)
           for name, W, P, sv_cycles in (("w4p3", 4, 3, 2), ("w8p4", 8, 4, 4), ("w16p6", 16, 6, 2))}


def run(component, bench):
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


# ---- The softmax unit

def test_golden_peaks():
    """A row takes phi iff its maximum is in the window, whose upper end belongs to it."""
    unit = 1 << 10
    for phi, window in ((3, 4), (-128, 8), (127, 16), (0, 8)):
        inside = [phi * unit, phi * unit - 1, (phi - window) * unit + 1]
        outside = [phi * unit + 1, (phi - window) * unit, phi * unit - 1 - window * unit]
        for values, good in ((inside, True), (outside, False)):
            found, took = peaks(values, phi, window)
            assert took.tolist() == 3 * [good]
            assert found.tolist() == (3 * [phi * unit] if good else values)
    assert peaks([5, -7], 0, 0)[0].tolist() == [5, -7] and not peaks(0, 0, 0)[1]
    for phi in (-128, -1, 0, 127):
        for window in WINDOWS[1:]:
            assert of_field(unified_field(phi, window)) == (phi, window)
    assert unified_field(5, 0) == 0 and of_field(0)[1] == 0


@pytest.mark.parametrize("gap", [1, 3])
def test_softmax(gap, seed):
    """Rows in several blocks: what stands for their maxima, what is told of them and when; and
    probabilities against phi that are read before any of that is known."""
    softmax, rng = SoftmaxUnit(CONFIGS["w8p4"]), np.random.default_rng(seed)
    late = softmax.latency

    async def play(ctx, schedule, length):
        seen = []
        for t in range(length):
            for name, value in {"w_en": 0, "w_end": 0, "sum_en": 0, "sum_read": 0, "assumed": 0,
                                **schedule.get(t, {})}.items():
                ctx.set(getattr(softmax, name), int(value))
            seen.append((ctx.get(softmax.p), ctx.get(softmax.missed)))
            await ctx.tick()
        return seen

    async def bench(ctx):
        for trial in range(40):
            phi, window = int(rng.integers(-20, 21)), WINDOWS[int(rng.integers(4))]
            if trial < 4:
                phi, window = (-128, 127)[trial % 2], (4, 16)[trial // 2]
            ctx.set(softmax.phi, phi)
            ctx.set(softmax.window, WINDOWS.index(window))
            ctx.set(softmax.shift, 1)
            rows, keys = int(rng.integers(1, 4)), int(rng.integers(1, 9))
            # Around both ends of the window, and on them.
            top = np.clip(rng.choice([phi, phi - window, phi - window // 2], rows), -128, 127) << 10
            s = top[:, None] + rng.choice([0, 1, -1, 5000, -5000, -900], (rows, keys))
            acc = 2 * s
            masked = rng.random((rows, keys)) < 0.3
            masked[:, 0] = False
            used = rng.random(rows) < 0.8
            blocks = rng.choice(16, rows, replace=False)
            s = np.where(masked, MASKED, scores(acc, 1))
            schedule: dict[int, dict] = {}
            t, ends = 0, []

            def put(at, **values):
                schedule.setdefault(at, {}).update(values)
            for r in range(rows):
                for k in range(keys):
                    put(t, acc=acc[r, k])
                    at = t + SoftmaxUnit.WRITE_LATENCY
                    put(at, w_en=1, w_end=k == keys - 1, w_addr=8 * r + k, w_masked=masked[r, k],
                        w_used=used[r], w_first=k == 0, block=blocks[r])
                    t += gap
                ends.append(at)
                t += max(5 - gap, 0)
            # Assumed: each score as soon as it is there; no block is asked for.
            early = rng.random() < 0.5
            if early:
                for r in range(rows):
                    for k in range(keys):
                        at = ends[r] - gap * (keys - 1 - k) + 2
                        put(at, r_addr=8 * r + k)
                        put(at + 1, assumed=1)
            told = ends[-1] + SoftmaxUnit.MISSED_LATENCY
            read = max(schedule) + 2 if early else told - 1
            order = [(r, k) for r in range(rows) for k in range(keys)]
            for n, (r, k) in enumerate(order):
                put(read + n, r_addr=8 * r + k)
                put(read + n + 1, block=blocks[r])
            seen = await play(ctx, schedule, read + len(order) + late + 1)
            peak, good = peaks(s.max(axis=1, keepdims=True), phi, window)
            p = probabilities(s, peak)[0]
            assert [seen[read + n + late][0] for n in range(len(order))] == [
                p[r, k] for r, k in order], (trial, phi, window)
            for r in range(rows):
                assert seen[ends[r] + SoftmaxUnit.MISSED_LATENCY][1] == (
                    window > 0 and used[r] and not good[r, 0])
            assert sum(missed for _, missed in seen) == sum(
                window > 0 and used[r] and not good[r, 0] for r in range(rows))
            if early:
                for r, k in order:
                    if peaks(s[r].max(), phi, window)[1]:
                        at = ends[r] - gap * (keys - 1 - k) + 2 + late
                        assert seen[at][0] == p[r, k], (trial, r, k)
    run(softmax, bench)


# ---- The walker

@pytest.mark.parametrize("case", CONFIGS)
def test_judgement(case, seed):
    """When QK may end, how long SV assumes, and what it hears of: pulses up to the last cycle."""
    config, rng = CONFIGS[case], random.Random(seed)
    judge, settle = Judgement(config), score_cycle(config) + 1
    judged = judged_cycle(config)

    async def bench(ctx):
        for trial in range(40):
            window, beats, lots = (0, 1, 2, 3)[trial % 4], rng.randrange(1, 9), rng.randrange(1, 4)
            phi, shift = rng.randrange(-128, 128), rng.randrange(64)
            qk = Instruction(Op.QK, mant=unified_field(phi, WINDOWS[window]), shift=shift,
                             row_beats=beats)
            ctx.set(judge.instr, dict(qk))
            ctx.set(judge.req, 1)
            await ctx.tick()
            ctx.set(judge.req, 0)
            await ctx.tick()
            assert (ctx.get(judge.phi), ctx.get(judge.window)) == (phi if window else 0, window)
            # A tile begins, its lots end; only the last one may have to wait.
            ctx.set(judge.tile, 1)
            await ctx.tick()
            ctx.set(judge.tile, 0)
            t = 1
            for lot in range(lots):
                for _ in range(beats * rng.randrange(1, 5)):
                    ctx.set(judge.last, lot == lots - 1)
                    if lot < lots - 1:
                        assert not ctx.get(judge.waits)
                    await ctx.tick()
                    t += 1
                ctx.set(judge.done, 1)
                await ctx.tick()
                ctx.set(judge.done, 0)
                t += 1
            waited = 0
            while ctx.get(judge.waits):
                await ctx.tick()
                waited += 1
            # The next walker's first tile begins so much later than this one's last cycle.
            apart = Dispatch.START + Dispatch.SETTLE
            assert waited == (settle if not window else max(
                0, settle + beats - 1 - apart - t))
            late, since = rng.choice([0, 0, rng.randrange(2 * judged)]), waited
            ctx.set(judge.last, 0)
            for _ in range(late):
                await ctx.tick()
                since += 1
            ctx.set(judge.instr, dict(Instruction(Op.SV, shift=63 - shift)))
            ctx.set(judge.req, 1)
            await ctx.tick()
            ctx.set(judge.req, 0)
            since += 1                          # cycles since that after the last beat
            # The array's answer comes a cycle before it is to be known, or sooner, or not at all.
            at = rng.choice([judged - 2, rng.randrange(judged - 1), None])
            at = None if at is not None and at < since else at
            assumed = window > 0 and since <= judged - 1
            while since < judged + 4:
                ctx.set(judge.missed, since == at)
                if since <= judged - 1:
                    assert ctx.get(judge.waits) == ctx.get(judge.assumed) == assumed, since
                    assert ctx.get(judge.again) == (
                        assumed and at is not None and since == judged - 1), (since, at)
                else:
                    assert not ctx.get(judge.waits | judge.assumed | judge.again)
                assert ctx.get(judge.shift) == shift
                await ctx.tick()
                since += 1
    run(judge, bench)


class Walker(wiring.Component):
    """Keys and Drain as Issue wires them, and what Keys hears of the lanes."""

    def __init__(self, config):
        self.config, self.keys = config, Keys(config)
        self.drain = Drain(config, sum_gap=9)
        self.PRESENTS = tuple(dict.fromkeys((*self.keys.PRESENTS, *Drain.PRESENTS)))
        shapes = presentable(config)
        super().__init__({
            "req": In(1), "idle": Out(1), "job": In(Job()), "front": In(1), "missed": In(1),
            "control": Out(data.StructLayout({name: shapes[name] for name in self.PRESENTS}))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.keys, m.submodules.drain = keys, drain = self.keys, self.drain
        wiring.connect(m, keys.summed, drain.lots)
        m.d.comb += [
            keys.req.eq(self.req), keys.job.eq(self.job), keys.front.eq(self.front),
            keys.missed.eq(self.missed), keys.taken.eq(drain.takes),
            drain.instr.eq(self.job.instr),
            self.idle.eq(keys.idle & drain.settled & ~keys.summed.valid)]
        for name in self.PRESENTS:
            m.d.comb += self.control[name].eq(
                sum((w.control[name] for w in (keys, drain) if name in w.PRESENTS), 0))
        return m


@pytest.mark.parametrize("case", CONFIGS)
def test_walker(case, seed):
    """QK tells each lot's last key and holds its shift; an SV that was wrong begins its first lot
    again, and does all of it then; until it is judged no lot ends, and no tile is given back."""
    config, rng = CONFIGS[case], np.random.default_rng(seed)
    walker, chance = Walker(config), random.Random(seed)
    judged = judged_cycle(config)

    async def bench(ctx):
        for k in range(8):
            p, work = random_work(rng, config, Op.QK, several=k in (0, 1))
            if k == 6:                      # one key, which is soon gone through
                p = a_pass(config.P, 1, 0)
            stall, svs = (0, 0.7)[k % 2], int(rng.choice([1, work["row_beats"]]))
            if work["row_beats"] > max(config.ACC_TURN, work["row_beats"] // svs
                                       * config.sv_cycles):
                svs = 1
            model, window = of_heads({"block_words": 9}, config, work), WINDOWS[k % 4]
            before: list[dict] = []         # the trace of the QK before
            for i, lots in repeated(config, p, work, svs):
                i = Instruction(**dict(i) | ({"shift": i["shift"] ^ 63} if i["op"] == Op.SV else {
                    "mant": unified_field(int(rng.integers(-128, 128)), window)}))
                clock, tell = 0, -1
                if before:                  # cycles since its last beat, in SV's first cycle
                    last = max(t for t, shown in enumerate(before) if shown["array_active"])
                    clock = len(before) + 2 - last
                    if rng.integers(2) and clock < judged:
                        tell = int(rng.choice([judged - 1, rng.integers(clock, judged)]))
                began = clock

                def each():
                    nonlocal clock
                    ctx.set(walker.missed, clock == tell)
                    clock += 1
                trace = await walk(ctx, walker, p, i, model, lots, each=each,
                                   front=lambda stall=stall: chance.random() >= stall)
                wanted = list(issue_golden.beats(config, model, p, i, lots))
                if i["op"] == Op.QK:
                    assert all(shown["shift"] == i["shift"] for shown in trace)
                    check(config, trace, wanted)
                    before = trace
                    continue
                active = [t for t, shown in enumerate(trace) if shown["array_active"]]
                assumes = bool(before and window and began <= judged)
                early = [t for t in active if assumes and began + t <= judged]
                assert all(trace[t]["assumed"] == (t in early) for t in active)
                assert not any(shown.get("release", 0) for shown in trace[:judged - began + 1]
                               if assumes)
                assert not any(trace[t]["m_block"] for t in early)
                if window:
                    assert all(trace[t]["shift"] == i["shift"] ^ 63 for t in active)
                vain = early if tell >= 0 else []
                for t, want in zip(vain, wanted):
                    assert all(trace[t][name] == want[name] for name in (
                        "beat", "part", "s_addr", "acc_en", "acc_keep", "acc_to")), (t, want)
                if vain:
                    again = active[len(vain)]
                    assert began + again == judged + Keys.AGAIN
                    trace = trace[again:]
                check(config, trace, wanted)
                before = []
    run(walker, bench)
