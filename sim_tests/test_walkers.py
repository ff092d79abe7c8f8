"""Each walker of Issue alone against the golden model: what it presents, when, and its silence."""
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from meadowlark.compile.drains import Drains
from meadowlark_hdl.compute.lane import DRAIN_LATER
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import subgroups
from meadowlark_hdl.isa import NO_WINDOW, Fn, Instruction, Kind, Op, Sink
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.issue.drain import Drain
from meadowlark_hdl.issue.gammas import Gammas
from meadowlark_hdl.issue.keys import Keys
from meadowlark_hdl.issue.rows import Rows
from meadowlark_hdl.issue.stores import Stores
from meadowlark_hdl.issue.token_tiles import TokenTiles
from meadowlark_hdl.issue.walker import Job, presentable, results_settle
from presented import (a_batch, a_pass, check, first_block, of_heads, packed_lots, random_work,
                       repeated, tiles_of)

CONFIGS = {name: Config(W=W, P=P, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32,
                        tile_rows=8, rope_pairs=256, sv_cycles=sv_cycles)
           for name, W, P, sv_cycles in (("w4p3", 4, 3, 2), ("w8p4", 8, 4, 4), ("w16p6", 16, 6, 2))}
CONFIGS |= {f"{name} pairs": CONFIGS[name].replace(lane_pairs=True) for name in ("w8p4", "w16p6")}
CAPPED = {"w8p4-softcap": CONFIGS["w8p4"].replace(softcap=True)}
SUM_GAP = 9
#: What more than one of them presents.
SHARED = {name for name, count in Counter(
    name for walker in (TokenTiles, Gammas, Rows, Keys, Drain, Stores) for name in walker.PRESENTS
).items() if count > 1} | {"paired"}


class KeysAndDrain(wiring.Component):
    """Both as Issue wires them, as a walker that is idle when the drains have settled. missed: what
    Keys hears of the lanes, with ``config.unified``."""

    def __init__(self, config: Config):
        self.config, shapes = config, presentable(config)
        self.keys, self.drain = Keys(config), Drain(config, sum_gap=SUM_GAP)
        self.PRESENTS = tuple(dict.fromkeys((*self.keys.PRESENTS, *self.drain.PRESENTS)))
        super().__init__({
            "req": In(1), "idle": Out(1), "job": In(Job()), "front": In(1),
            "control": Out(data.StructLayout({name: shapes[name] for name in self.PRESENTS})),
            **({"missed": In(1)} if config.unified else {})})

    def elaborate(self, platform):
        m = Module()
        m.submodules.keys, m.submodules.drain = keys, drain = self.keys, self.drain
        wiring.connect(m, keys.summed, drain.lots)
        rests = keys.idle & drain.settled
        if self.config.unified:         # a lot may be done as late as it is over
            rests &= ~keys.summed.valid
            m.d.comb += keys.missed.eq(self.missed)
        m.d.comb += [
            keys.req.eq(self.req), keys.job.eq(self.job), keys.front.eq(self.front),
            keys.taken.eq(drain.takes), drain.instr.eq(self.job.instr), self.idle.eq(rests)]
        for name in self.PRESENTS:
            m.d.comb += self.control[name].eq(
                sum((w.control[name] for w in (keys, drain) if name in w.PRESENTS), 0))
        return m


def run(component, bench):
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


async def walk(ctx, walker, p, i, model, lots=None, *, each=lambda: None, front=lambda: True,
               then=lambda: None):
    """Have an instruction executed. Returns the control of each cycle from the first on.

    each is called in every cycle until the walker is idle, then in the first one behind them.
    """
    ctx.set(walker.job, {
        "instr": dict(i), "model": model, "lots": packed_lots(lots) if lots else {},
        "pass_": {"pos0": p.pos0, "n": p.n, "nb": p.nb, "ctx": p.ctx, "final": 1,
                  "batch": int(bool(p.batch)), "each": int(p.each)},
        "first": first_block(i, p, model, walker.config.P)})
    await ctx.tick()
    assert ctx.get(walker.idle)
    ctx.set(walker.req, 1)
    await ctx.tick()
    ctx.set(walker.req, 0)
    trace, tiles = [], 0
    while not ctx.get(walker.idle):
        ctx.set(walker.front, front())
        each()
        shown = {name: int(ctx.get(walker.control[name])) for name in walker.PRESENTS}
        trace.append(shown | {"tile": tiles})
        tiles += shown.get("release", 0)
        await ctx.tick()
        assert len(trace) < 20000
    then()
    ctx.set(walker.front, 0)
    for after in range(8):              # the lanes may have to wait for the address of a drain
        shown = {name: int(ctx.get(walker.control[name])) for name in walker.PRESENTS}
        assert not any(shown.get(name) for name in issue_golden.ENABLES)
        assert after < 3 or not any(shown[name] for name in SHARED & shown.keys()), shown
        trace.append(shown)
        await ctx.tick()
    return trace


@pytest.mark.parametrize("case", [*CONFIGS, *CAPPED])
@pytest.mark.parametrize("ops", [(Op.LINEAR,), (Op.QK, Op.SV)], ids=lambda ops: ops[0].name)
def test_as_the_golden_model(case, ops, seed):
    """Beats, releases and counted activity; with tiles at once, and now and then."""
    config, rng, chance = (CONFIGS | CAPPED)[case], np.random.default_rng(seed), random.Random(seed)
    walker = Rows(config) if ops[0] == Op.LINEAR else KeysAndDrain(config)

    async def bench(ctx):
        for k in range(10 if case in CONFIGS else 5):
            p, work = random_work(rng, config, *ops, several=k in (0, 1))
            stall = (0, 0.7)[k % 2]
            model = of_heads({"block_words": 9}, config, work)
            svs = (1 if ops[0] != Op.QK else work["row_beats"] if k == 0
                   else int(rng.choice([1, 1, work["row_beats"]])))
            for i, lots in repeated(config, p, work, svs, less=work["x"] % 2):
                trace = await walk(ctx, walker, p, i, model, lots,
                                   front=lambda: chance.random() >= stall)
                wanted = list(issue_golden.beats(config, model, p, i, lots))
                check(config, trace, wanted)
                assert sum(shown.get("release", 0) for shown in trace) == tiles_of(i, lots)
                assert sum(shown.get("array_active", 0) for shown in trace) == sum(
                    "array_active" in beat for beat in wanted)
                if not stall:
                    assert len(trace) - 8 == cycles(config, p, i, lots)
                    assert not any(shown.get("wait_tile", 0) for shown in trace)
    run(walker, bench)


@pytest.mark.parametrize("case", CONFIGS)
def test_rows_of_logits(case, seed):
    """Of the last token; of each, whose logits take turns, which longer rows hide; and rows of
    other things, which do not wait for that."""
    config, rng = CONFIGS[case], random.Random(seed)
    walker, model = Rows(config), {"block_words": 9, "head_log2": 4}

    async def bench(ctx):
        for n in (1, *range(2, config.P), config.P):
            for each, sink in ((False, Sink.LOGIT), (True, Sink.LOGIT), (True, Sink.RESIDUAL)):
                p = replace(a_pass(config.P, n, 0), each=each)
                rows = rng.randrange(2, config.tile_rows + 1)
                i = Instruction(Op.LINEAR, sink=sink, last=1, tiles=2, rows=rows, last_rows=1,
                                row_beats=rng.choice([1, config.tile_beats // rows]))
                trace = await walk(ctx, walker, p, i, model)
                check(config, trace, list(issue_golden.beats(config, model, p, i)))
                assert len(trace) - 8 == cycles(config, p, i, None)
                for _ in range(Config.LOGIT_CYCLES * config.P):     # for the last row as well
                    await ctx.tick()
    run(walker, bench)


@pytest.mark.parametrize("op", [Op.LINEAR, Op.QK], ids=lambda op: op.name)
def test_soft_caps(op, seed):
    """Of rows of logits and of scores with their function; nothing else has one, whatever ``mant``
    is, and what has one has no other function."""
    (config,), mant = CAPPED.values(), random.Random(seed).randrange(1, 1 << 16)
    walker, model = Rows(config) if op == Op.LINEAR else KeysAndDrain(config), {
        "block_words": 9, "head_log2": 4}
    name = {Op.LINEAR: "cap", Op.QK: "score_cap"}[op]

    async def bench(ctx):
        for fn, sink, want in (
                (Fn.TANH, Sink.LOGIT, mant), (Fn.NONE, Sink.LOGIT, 0), (Fn.TANH, Sink.ACT, 0),
                (Fn.SILU, Sink.ACT, 0), (Fn.NONE, Sink.RESIDUAL, 0))[:2 if op == Op.QK else 5]:
            i = Instruction(op, sink=sink if op == Op.LINEAR else Sink.NONE, fn=fn, mant=mant,
                            tiles=1, rows=4, last_rows=4, row_beats=2, group=1, back=NO_WINDOW)
            p = a_pass(config.P, 3, 0)
            for each, lots in repeated(config, p, i)[:1]:
                trace = await walk(ctx, walker, p, each, model, lots)
                beats = list(issue_golden.beats(config, model, p, each, lots))
                check(config, trace, beats)
                ends = [beat for beat in beats if "res_en" in beat or "sc_en" in beat]
                assert {beat[name] for beat in ends} == {want}
                if op == Op.LINEAR:
                    assert {beat["fn"] for beat in ends} == {0 if want else fn}
            for _ in range(Config.LOGIT_CYCLES * config.P):
                await ctx.tick()
    run(walker, bench)


@pytest.mark.parametrize("case", CONFIGS)
def test_lots_that_wait_for_their_places(case, seed):
    """Twice as many lots as there are places for, all of whose keys are in one tile: each is done
    sooner than the one whose place the next but one takes is drained."""
    config, rng = CONFIGS[case], random.Random(seed)
    walker, beats = KeysAndDrain(config), config.acc_slots // (2 * config.sv_cycles)
    most = min(config.tile_rows, 2 * config.P)          # keys that take less than a drain

    async def bench(ctx):
        for _ in range(2):
            p = a_pass(config.P, rng.randrange(config.P, 1 + most), 0, 4, 2)
            sv = Instruction(Op.SV, rows=config.tile_rows, row_beats=beats, group=4,
                             x=rng.randrange(8), shift=rng.randrange(64), back=NO_WINDOW)
            model = of_heads({"block_words": 9}, config, sv)
            for i, lots in repeated(config, p, sv):
                trace = await walk(ctx, walker, p, i, model, lots)
                check(config, trace, list(issue_golden.beats(config, model, p, i, lots)))
                assert len(trace) - 8 == cycles(config, p, i, lots)
                assert any(shown.get("wait_vector") for shown in trace) is (i["op"] == Op.SV)
    run(walker, bench)


@pytest.mark.parametrize("case", [case for case, config in CONFIGS.items() if config.lane_pairs])
def test_keys_of_pairs(case, seed):
    """Lanes of a head take a beat at once; short keys wait until their slices may be read again."""
    config, rng = CONFIGS[case], random.Random(seed)
    walker = KeysAndDrain(config)

    async def bench(ctx):
        for beats in (1, 2, 4):
            p = a_pass(config.P, 1, rng.randrange(8, 40))
            work = Instruction(Op.SV, heads=1, lanes=config.P, add=1, group=1, back=NO_WINDOW,
                               rows=config.tile_rows, row_beats=beats, sink=Sink.ACT)
            model = of_heads({"block_words": 9}, config, work)
            for i, lots in repeated(config, p, work):
                trace = await walk(ctx, walker, p, i, model, lots)
                check(config, trace, list(issue_golden.beats(config, model, p, i, lots)))
                assert len(trace) - 8 == cycles(config, p, i, lots)
    run(walker, bench)


@pytest.mark.parametrize("case", CONFIGS)
def test_windows_of_heads(case, seed):
    """Lanes that are query heads of one token all see the first key of its window."""
    config, rng = CONFIGS[case], random.Random(seed)
    walker, rows = KeysAndDrain(config), config.tile_rows

    async def bench(ctx):
        for back in (0, 1, rows - 1, rng.randrange(3 * rows)):
            p = a_pass(config.P, 1, rng.randrange(back + 1, back + 3 * rows))
            i = Instruction(Op.QK, heads=1, lanes=config.P, group=1, rows=rows, row_beats=1,
                            chunks=rows, back=back)
            model = of_heads({"block_words": 9}, config, i)
            for lots in subgroups(config, p, i):
                check(config, await walk(ctx, walker, p, i, model, lots),
                      list(issue_golden.beats(config, model, p, i, lots)))
    run(walker, bench)


@pytest.mark.parametrize("W", (4, 16))
def test_windows_of_the_widest_heads(W, seed):
    """Blocks whose first keys lie in one tile, of heads of 256."""
    beats, rng = (1 << Config.MAX_HEAD_LOG2) // W, random.Random(seed)
    config = Config(W=W, P=4, bus_bytes=2, act_words=1024, tile_beats=8 * beats, rope_pairs=1024)
    walker = KeysAndDrain(config)

    async def bench(ctx):
        for back in (0, 1, 3, rng.randrange(20)):
            p = a_pass(config.P, 12, rng.randrange(20), sub_blocks=3)
            i = Instruction(Op.QK, rows=8, row_beats=beats, chunks=8 * beats, group=1, back=back)
            model = of_heads({"block_words": beats}, config, i)
            for lots in subgroups(config, p, i):
                trace = await walk(ctx, walker, p, i, model, lots)
                check(config, trace, list(issue_golden.beats(config, model, p, i, lots)))
    run(walker, bench)


def cycles(config, p, i, lots) -> int:
    """What docstrings say an instruction takes, by the rows and keys that it has."""
    if i["op"] == Op.LINEAR:
        blocks = 1 if i["last"] else p.nb
        turns = p.n if p.each and i["sink"] == Sink.LOGIT else 1
        now = free = 0
        period = max(i["row_beats"], config.row_cycles, Config.LOGIT_CYCLES * turns)
        for tile in range(i["tiles"]):
            now += Rows.TILE
            for _ in range(blocks * i["last_rows" if tile == i["tiles"] - 1 else "rows"]):
                now = max(now, free)
                now, free = now + i["row_beats"], now + period
        return now
    now, parts = Keys.SPAN, config.sv_cycles
    steps, elements = i["row_beats"] * parts, i["row_beats"] * config.W
    if i["add"]:
        steps, elements = i["row_beats"], elements // parts
    drains = Drains(config, SUM_GAP)
    for base in lots.keys[::i["rows"]]:
        now += Keys.TILE
        end = min(base + i["rows"], lots.keys.stop)
        for lot, block in enumerate([*lots.blocks] * len(lots.heads)):
            sees = lots.keys if i["heads"] else p.sees(config, i, block)
            limit = sees.stop
            keys = max(min(limit, end) - max(base, sees.start), 0)
            now += Keys.BLOCK - 1
            if i["op"] == Op.QK:
                now += keys * i["row_beats"]
            elif keys:
                if lot >= config.acc_slots // steps:
                    now = max(now, drains.room(lot - config.acc_slots // steps))
                now = drains.beats(now, (keys - 1) * max(steps, config.ACC_TURN) + steps)
                if limit <= end:
                    drains.lot(now - 1, elements)
            now += 1
    return now if i["op"] == Op.QK else drains.last + 1 + results_settle(config)


@pytest.mark.parametrize("case, pairs", [*((case, 0) for case in CONFIGS), *(
    (case, 1) for case, config in CONFIGS.items() if config.lane_pairs)])
def test_drain(case, pairs, seed):
    """The sums, then every element once, in order, P cycles apart, with its slice in a cycle that
    is taken; then the next lot. A QK that follows is none of its business. In pairs a row has an
    element for each lane of a head, and a beat one slice."""
    config, rng = CONFIGS[case], random.Random(seed)
    drain, parts = Drain(config, sum_gap=SUM_GAP), config.sv_cycles
    each = parts if pairs else 1

    async def bench(ctx):
        beats, t, rows, addr = 2, 0, [], {}
        lots = [{"slot": rng.randrange(config.acc_slots // config.sv_cycles) * config.sv_cycles,
                 "head": beats * head, "block": rng.randrange(64)} for head in (0, 3, 1)]
        if pairs:           # one lot alone, of one token
            lots = [lot | {"slot": 0, "head": 0} for lot in lots]
        sv, qk = (dict(Instruction(
            op, row_beats=length, y=rng.randrange(1 << 14), mant=rng.randrange(1 << 16),
            shift=rng.randrange(64), wide=rng.randrange(2), heads=pairs or rng.randrange(2),
            lanes=rng.randrange(1, config.P + 1), add=add))
                 for op, length, add in ((Op.SV, beats, pairs), (Op.QK, 8, 1 - pairs)))
        of_all = {name: sv[name] for name in ("wide", "heads")} | {"sink": Sink.ACT, "by": 0}
        of_sums = {"sink": 0, "wide": 0, "heads": 0, "by": sv["shift"]}
        if config.lane_pairs:
            of_all, of_sums = of_all | {"paired": pairs}, of_sums | {"paired": 0}
        ctx.set(drain.instr, sv)
        await ctx.tick()
        drains = Drains(config, SUM_GAP)
        for lot in lots:
            ctx.set(drain.lots.payload, lot)
            ctx.set(drain.lots.valid, 1)
            drains.lot(t - 1, beats * config.W // each)
            rows, taken = [], False
            while not taken:
                c = drain.control
                shown = {name: int(ctx.get(c[name])) for name in drain.PRESENTS}
                addr[t] = shown["acc_addr"], ctx.get(drain.takes)
                assert not ctx.get(drain.settled) or t < 3
                ctx.set(drain.instr, sv if t < 3 else qk)
                if shown["res_en"]:
                    assert shown["sum_read"] + shown["dr_en"] == 1
                    rows.append((t, shown["res_kind"], shown["element"], shown["block"]))
                    for name, value in (of_sums if shown["sum_read"] else of_all).items():
                        assert shown[name] == value, name
                    assert shown["to_lane"] == (shown["dr_en"] and sv["lanes"] - 1)
                    if shown["sum_read"]:
                        assert shown["sum_block"] == lot["slot"] // 2 and ctx.get(drain.takes)
                else:
                    assert not any(shown[name] for name in (
                        "element", "block", "sum_block", *of_all, "to_lane"))
                taken = ctx.get(drain.lots.ready)
                await ctx.tick()
                t += 1
            first = rows[0][0] + max(SUM_GAP, config.row_cycles)
            begins = sv["y"] + lot["head"] * config.W
            assert rows == [(rows[0][0], Kind.SUM, sv["mant"], lot["block"])] + [
                (first + k * config.row_cycles, Kind.DRAIN, begins + k * each, lot["block"])
                for k in range(beats * config.W // each)]
            assert rows[-1][0] == drains.last == t - 1
            ctx.set(drain.lots.valid, 0)
            for _ in range(rng.choice([0, 1, config.P - 1, config.P, config.P + 9])):
                addr[t] = int(ctx.get(drain.control.acc_addr)), ctx.get(drain.takes)
                await ctx.tick()
                t += 1
        while not ctx.get(drain.settled):
            addr[t] = int(ctx.get(drain.control.acc_addr)), ctx.get(drain.takes)
            assert t < drains.last + 1 + results_settle(config)
            await ctx.tick()
            t += 1
        assert t == drains.last + 1 + results_settle(config)
        for at, _, k, _ in rows[1:]:
            beat, value = divmod(k - begins, config.W)
            slot = lot["slot"] + (beat if pairs else beat * parts + value % parts)
            assert addr.pop(at + DRAIN_LATER) == (slot % config.acc_slots, 1)
        assert not any(at for t, (at, _) in addr.items() if t > rows[0][0] + DRAIN_LATER)
    run(drain, bench)


@pytest.mark.parametrize("op", [Op.EMBED, Op.ROPE])
@pytest.mark.parametrize("case", CONFIGS)
def test_values(case, op, seed):
    """Each value of each tile, whose beats come 2 cycles after their address."""
    config, rng = CONFIGS[case], random.Random(seed)
    W, walker, beats = config.W, TokenTiles(CONFIGS[case]), 3
    what = {name: rng.randrange(2) for name in ("add", "stats", "wide")} | {
        "sink": rng.choice([Sink.ACT, Sink.RESIDUAL]), "y": rng.randrange(1 << 14)}
    p, i = a_pass(config.P, config.P + 2), Instruction(op, row_beats=beats, **what)
    tiles = [[[rng.randrange(-1 << 15, 1 << 15) for _ in range(W)] for _ in range(beats)]
             for _ in range(p.n)]
    seen, there = [], []

    async def bench(ctx):
        state = {"addr": 0, "tile": 0, "way": [(0, 0)] * 2}

        def each():
            """The tile buffer behind TileReader's register."""
            tile, beat = state["way"].pop(0)
            ctx.set(walker.beat, tiles[tile][beat] if tile < p.n and beat < beats else [0] * W)
            state["way"].append((state["tile"], state["addr"]))
            if ctx.get(walker.rewind):
                state["addr"] = 0
            elif ctx.get(walker.next):
                state["addr"] += 1
            state["tile"] += ctx.get(walker.release)
            if ctx.get(walker.element.valid):
                got = walker.element.payload
                seen.append(tuple(ctx.get(value) for value in (
                    got.to.element, got.lane, got.to.block, got.acc)))
                assert ctx.get(got.kind) == Kind.TOKEN and ctx.get(got.scale.mant) == 1234
                assert ctx.get(got.add) == i["add"]
                assert all(ctx.get(got.to[name]) == i[name] for name in ("sink", "wide", "stats"))
            if ctx.get(walker.rope.valid):
                seen.append(tuple(ctx.get(getattr(walker.rope, name))
                                  for name in ("addr", "cos", "sin")))
        ctx.set(walker.scale, {"mant": 1234, "shift": 0, "bias": 0})
        there.append(await walk(ctx, walker, p, i, {}, each=each))
        each()
        assert state["tile"] == p.n
    run(walker, bench)
    wanted = issue_golden.values(config, p, i)
    if op == Op.EMBED:
        assert seen == [(v["element"], v["lane"], v["block"], tiles[v["tile"]][v["value"] // W][
            v["value"] % W]) for v in wanted]
    else:
        assert seen == [(v["addr"], *tiles[v["tile"]][v["value"] // W][v["value"] % W:][:2])
                        for v in wanted]
    per_token = beats * W // (2 if op == Op.ROPE else 1) + TokenTiles.TOKEN
    assert len(there[0]) - 8 == p.n * per_token


def test_gammas(seed):
    """Once there is a tile the vector unit is told, once; the tile goes when it is done."""
    rng, walker = random.Random(seed), Gammas(CONFIGS["w4p3"])
    p, i = a_pass(5, 1), Instruction(Op.NORM)

    async def bench(ctx):
        for _ in range(6):
            front, busy = rng.randrange(5), rng.randrange(1, 9)
            cycles, starts, releases = [0], [], []

            def each():
                t = cycles[0]
                if ctx.get(walker.start):
                    starts.append(t)
                if ctx.get(walker.release):
                    releases.append(t)
                waits = {name: ctx.get(walker.control[name]) for name in walker.PRESENTS}
                assert waits == {"wait_tile": t < front, "wait_vector": t > front}
                ctx.set(walker.done, bool(starts) and t == starts[0] + busy)
                cycles[0] += 1
            await walk(ctx, walker, p, i, {}, each=each, front=lambda: cycles[0] >= front)
            assert starts == [front + 1] and releases == [front + 1 + busy + 1]
    run(walker, bench)


@pytest.mark.parametrize("case", [*CONFIGS, "w8p4 tight"])
def test_stores(case, seed):
    """A command of each STORE, taken when there is room; one is under way until all are done."""
    rng, (name, *tight) = random.Random(seed), case.split()
    config = CONFIGS[name].replace(tight_keys=bool(tight))
    walker = Stores(config)

    async def bench(ctx):
        for _ in range(30):
            due = 0
            for _ in range(rng.randrange(1, 5)):
                p = a_pass(config.P, rng.randrange(1, 3 * config.P), rng.randrange(60))
                if rng.random() < 0.5:
                    p = a_batch(np.random.default_rng(rng.randrange(1 << 30)), config.P,
                                rng.randrange(1, config.P + 1))
                due += len(p.batch) or 1
                log2_words = rng.randrange(7)
                row, size = 1 << log2_words, {"log2_words": log2_words}
                if config.tight_keys:
                    row = rng.randint(1, 64)
                    size = {"words": row}
                i = Instruction(Op.STORE, addr=rng.randrange(1 << 27), x=rng.randrange(1 << 12),
                                row_beats=row)
                wait, t = rng.randrange(4), [0]

                def each():
                    ctx.set(walker.cmd.ready, t[0] >= wait)
                    assert ctx.get(walker.cmd.valid)
                    assert ctx.get(walker.control.wait_store) == (t[0] < wait)
                    assert ctx.get(walker.cmd.payload) == {
                        "addr": i["addr"], "word": i["x"], **size}
                    t[0] += 1

                def then():
                    assert ctx.get(walker.storing)
                trace = await walk(ctx, walker, p, i, {}, each=each, then=then)
                assert len(trace) - 8 == wait + 1
            while due:
                assert ctx.get(walker.storing)
                done = rng.randrange(2)
                ctx.set(walker.done, done)
                due -= done
                await ctx.tick()
            ctx.set(walker.done, 0)
            assert ctx.get(walker.storing)
            await ctx.tick()
            assert not ctx.get(walker.storing)
    run(walker, bench)
