"""A unified maximum: the softmax unit, the walker that may begin again, programs, and the forecast
of their cycles, against the golden models."""
import random
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import meadowlark as ml
import numpy as np
import pytest
from amaranth import Shape
from amaranth.sim import Simulator
from meadowlark.compile.compiler import check_unified, compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.gemm import spilled
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant import integers
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.maximum import best, unified
from meadowlark.quant.quantise import QuantAttend, quantise
from meadowlark.quant.sampling import sampling
from meadowlark.run.prepare import Source
from meadowlark.run.targets import GoldenTarget, SimTarget, golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.compute.lane import score_cycle
from meadowlark_hdl.compute.softmax import SoftmaxUnit
from meadowlark_hdl.compute.softmax_golden import (MASKED, WINDOWS, of_field, peaks, probabilities,
                                                   scores, unified_field)
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch_golden import ProgramError
from meadowlark_hdl.isa import Instruction, Op, encode
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.issue.dispatch import Dispatch
from meadowlark_hdl.issue.judgement import Judgement, judged_cycle
from meadowlark_hdl.issue.keys import Keys
from meadowlark_hdl.issue.walker import presentable
from meadowlark_hdl.sampler.sampler_golden import Sampling
from presented import a_pass, check, of_heads, random_work, repeated
from random_model import random_model
from test_walkers import KeysAndDrain, walk

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
                    at = t + softmax.write_latency
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


@pytest.mark.parametrize("case", CONFIGS)
def test_walker(case, seed):
    """QK tells each lot's last key and holds its shift; an SV that was wrong begins its first lot
    again, and does all of it then; until it is judged no lot ends, and no tile is given back."""
    config, rng = CONFIGS[case], np.random.default_rng(seed)
    walker, chance = KeysAndDrain(config), random.Random(seed)
    judged = judged_cycle(config)
    widths = {name: Shape.cast(shape).width for name, shape in presentable(config).items()}

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
                    for name in ("beat", "part", "s_addr", "acc_en", "acc_keep", "acc_to"):
                        assert trace[t][name] == want[name] % (1 << widths[name]), (t, name, want)
                if vain:
                    again = active[len(vain)]
                    assert began + again == judged + Keys.AGAIN
                    trace = trace[again:]
                check(config, trace, wanted)
                before = []
    run(walker, bench)


# ---- Programs

def a_model(tmp_path, seed, **sizes):
    rng = np.random.default_rng(seed)
    model = load_model(random_model(tmp_path, seed=seed, **sizes))
    return quantise(model, rng.integers(0, model.vocab, (6, 40)).tolist(), head_pad=16), rng


def with_phi(qm, phi, window):
    """The same for all heads."""
    numbers = {name: replace(one, phi=np.full(len(one.v_mant), phi, np.int8), window=window)
               if isinstance(one, QuantAttend) else one for name, one in qm.numbers.items()}
    return replace(qm, numbers=numbers)


def same_logits(image, golden, tokens, seed=0):
    core = golden_core(image, seed=seed)
    for at, end in ((0, 50), (50, 51), (51, len(tokens))):
        np.testing.assert_array_equal(core.forward(tokens[at:end], at),
                                      golden.forward(tokens[at:end], at))
    return core


def test_best(seed):
    """Of all whole numbers none is taken by more rows, and of those that are the smallest."""
    rng = np.random.default_rng(seed)
    for window in WINDOWS[1:]:
        maxima = (rng.normal(rng.integers(-40, 40), rng.integers(1, 12), 200) * 1024).astype(int)
        good = [int(peaks(maxima, phi, window)[1].sum()) for phi in range(-128, 128)]
        phi, missed = best(maxima, window)
        assert phi == int(np.argmax(good)) - 128 and missed == 1 - max(good) / 200
    assert best(np.array([-131071, -131071]), 4) == (-127, 0.0)


def test_program(tmp_path, seed):
    """Calibrated, or so that all rows are done again: then the logits are those of exact maxima."""
    board = get_board("virtual")
    qm, rng = a_model(tmp_path, seed, heads=4, kv_heads=2, context=100)
    plain = compile_model(qm, board, context=100)
    tokens = rng.integers(0, qm.vocab, 61).tolist()
    for window in WINDOWS[1:]:
        made = unified(qm, rng.integers(0, qm.vocab, (3, 40)).tolist(), window=window)
        golden = GoldenModel(made)
        core = same_logits(compile_model(made, board, context=100), golden, tokens, seed)
        assert 0 <= golden.redone <= golden.rows and 0 <= core.redone <= core.rows
        assert core.rows > 0
        loaded = integers.load(integers.dump(made), load_model(tmp_path), "auto")
        assert [loaded.numbers[s.name].phi.tolist() for s in made.plan.attends] == [
            made.numbers[s.name].phi.tolist() for s in made.plan.attends]
    bad = with_phi(qm, -128, 16)
    image, exact = compile_model(bad, board, context=100), GoldenModel(qm)
    core = same_logits(image, exact, tokens, seed)
    assert core.redone == core.rows > 0 and exact.rows == 0
    # Nothing else is different.
    assert image.config["unified"] and "unified" not in plain.config
    assert image.memory == plain.memory
    assert [i for i in image.instructions if i["op"] != Op.QK] == [
        i for i in plain.instructions if i["op"] != Op.QK]
    assert all(i["mant"] == 0 for i in plain.instructions if i["op"] == Op.QK)


def test_forecast():
    """A fixed case, in which not every SV waits for a drain or for memory: quicker with all rows
    good, slower with all of them bad than exact maxima; how many are comes from calibration."""
    board = get_board("virtual")
    exact = Source("stories", board, draft="none").sketch
    program = b"".join(encode(Instruction(**dict(i) | (
        {"mant": unified_field(5, 16)} if i["op"] == Op.QK else {}))) for i in exact.instructions)
    good, bad = (replace(exact, program=program, facts=exact.facts | {"missed": missed})
                 for missed in (0, 10**6))
    least, middle, most = (predict(one, board, prompt=1, generate=2, start_pos=120).cycles
                           for one in (good, exact, bad))
    assert least < middle < most


def test_simulated_board(tmp_path, seed):
    """Tokens, logits and cycles of the chip: some rows done again, or all of them."""
    board = get_board("virtual")
    folder = random_model(tmp_path / "m", seed=seed, context=100)
    qm = Source(str(folder), board, draft="none", maximum="unified-4").quantised
    prompt = np.random.default_rng(seed).integers(2, 128, 37).tolist()
    with closing(SimTarget(board)) as target:
        for number, one in enumerate((qm, with_phi(qm, 127, 4))):
            path = tmp_path / f"{number}.mlk"
            image = compile_model(one, board, context=100)
            replace(image, facts=image.facts | {"missed": 10**6 if number else 0}).save(path)
            source, golden = Source(str(path), board), GoldenTarget(board)
            for each in (golden, target):
                each.load(source)
            events = [[(e.token, e.crc) for e in each.generate(
                prompt, sampling(temperature=1.0, seed=7) if number else Sampling(), max_new=4,
                stop_ids=())] for each in (golden, target)]
            assert events[0] == events[1]
            counted, told = golden.counters(), target.counters()
            assert {name: told[name] for name in counted} == counted
            cycles = predict(source.image, board, prompt=37, generate=4).cycles
            assert abs(cycles / told["cycles"] - 1) < 0.02


def test_refused(tmp_path):
    board, other = get_board("virtual"), get_board("ulx3s_85f")
    qm, _ = a_model(tmp_path, 1, context=50)
    made = with_phi(qm, 3, 8)
    with pytest.raises(UserError, match="board ulx3s_85f has exact maxima alone"):
        compile_model(made, other, context=50)
    image = compile_model(made, board, context=50)
    less = board.config.replace(unified=False)
    with pytest.raises(UserError, match="has a unified maximum, which the board virtual cannot"):
        image.check_board(replace(board, config=less))
    with pytest.raises(UserError, match="attention by GEMM has exact maxima"):
        spilled(image, board.config)
    long = SimpleNamespace(name="m", plan=SimpleNamespace(value_pad=64, key_row=lambda config: 129))
    with pytest.raises(UserError, match="keys of m take longer than their values"):
        check_unified(long, board, "auto")
    with pytest.raises(UserError, match="takes a lane for each query head"):
        check_unified(long, board, "pairs")
    with pytest.raises(ProgramError, match="a unified maximum on a core without"):
        golden_core(image, less).forward([1, 2, 3])
    program = [Instruction(**dict(i) | ({"rows": 1} if i["op"] == Op.SV else {}))
               for i in image.instructions]
    with pytest.raises(ProgramError, match="read scores before they are there"):
        golden_core(replace(image, program=b"".join(map(encode, program)))).forward([1, 2, 3])
    with pytest.raises(ValueError, match="window must be one of"):
        unified(qm, [[1]], window=5)
    with pytest.raises(UserError, match="there is no maximum 'x'"):
        ml.load("stories", maximum="x")
