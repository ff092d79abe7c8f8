"""TilingEngine with its issue stage: linear layers and attention against the golden models."""
import os
import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles

from array_bench import SUM_GAP, ArrayUnderTest, Bench, Tile
from bench import simulate
from meadowlark_hdl.compute.lane import Lane
from meadowlark_hdl.compute.softmax_golden import MASKED, probabilities, saturated, scores
from meadowlark_hdl.compute.tiling_engine_golden import broadcast, dot
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Lots, subgroup, tile_keys
from meadowlark_hdl.isa import NO_WINDOW, Header, Instruction, Kind, Mode, Op, Src
from presented import a_pass, repeated

CONFIGS = {"w8p16": Config(W=8, P=16, bus_bytes=2, act_words=64, score_depth=256, tile_beats=64,
                           tile_rows=16),
           "w16p4": Config(W=16, P=4, bus_bytes=16, act_words=64, score_depth=256, tile_beats=64,
                           tile_rows=16),
           "w16p4sv4": Config(W=16, P=4, bus_bytes=16, act_words=64, score_depth=256,
                              tile_beats=64, tile_rows=16, sv_cycles=4),
           "w8p5sv4": Config(W=8, P=5, bus_bytes=4, act_words=64, score_depth=256, tile_beats=64,
                             tile_rows=16, sv_cycles=4),
           "w4p3": Config(W=4, P=3, bus_bytes=4, act_words=64, score_depth=256, tile_beats=64,
                          tile_rows=16)}
PAIRS = {f"{name}pairs": CONFIGS[name].replace(lane_pairs=True)
         for name in ("w16p4", "w8p5sv4", "w4p3")}
CONFIGS |= PAIRS
#: More lanes than cycles from a sum to its drain.
CONFIGS["w4p24"] = CONFIGS["w4p3"].replace(P=24, score_depth=512)


def config():
    return CONFIGS[os.environ["CASE"]]


def model(c, head_dim, block_words=16, blocks=4):
    return {"block_words": block_words, "blocks": blocks, "head_log2": head_dim.bit_length() - 1}


def one_pass(c, pos0, n):
    return {"pos0": pos0, "n": n, "nb": -(-n // c.P), "ctx": pos0 + n, "final": 1}


def generator():
    return np.random.default_rng(random.randrange(2**32))


def linear_tiles(weights, scales, c, rows):
    """int[rows, K] -> tiles of at most ``rows`` rows."""
    beats = weights.reshape(len(weights), -1, c.W)
    return [Tile(beats[i:i + rows].reshape(-1, c.W), scales[i:i + rows])
            for i in range(0, len(weights), rows)]


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.9], only_last=[0, 1])
async def linear(dut, stall, only_last):
    c, rng = config(), generator()
    n = int(rng.integers(2 * c.P + 1, 3 * c.P + 1))
    bench = Bench(dut, c, model=model(c, 16), pass_=one_pass(c, 0, n))
    await bench.begin(stall)
    row_beats, nb, per_tile, count = 3, 3, 6, 16
    K = row_beats * c.W
    x = rng.integers(-2**15, 2**15, (nb, c.P, K))
    x[0, 0], x[-1, -1] = -2**15, 2**15 - 1
    weights = rng.integers(-2**17, 2**17, (count, K))
    weights[0], weights[1] = -2**17, 2**17 - 1
    scales = [(int(rng.integers(1 << 16)), int(rng.integers(64)), int(rng.integers(-9, 9)))
              for _ in range(count)]
    await bench.write_acts(x, 5)
    bench.tiles = linear_tiles(weights, scales, c, per_tile)
    taken = await bench.execute(Instruction(
        Op.LINEAR, src=Src.STREAM, mode=Mode.INT8, header=Header.SCALE, tiles=3, rows=per_tile,
        last_rows=4, row_beats=row_beats, x=5, last=only_last))
    got = bench.table(Kind.ROW)
    blocks = [nb - 1] if only_last else range(nb)
    assert len(got) == count * len(blocks) * c.P
    want = dot(weights, x)
    for (row, block, lane), r in got.items():
        assert block in blocks
        assert r["acc"] == want[block, lane, row], (row, block, lane)
        assert tuple(r["scale"].values()) == scales[row]
    period = max(row_beats, c.row_cycles)
    assert bench.active == count * len(blocks) * row_beats
    if not stall:       # rows, the block's seek, tiles, and the pipeline at the end
        flight = taken - (count * len(blocks) - 1) * period - row_beats
        assert flight <= 3 * 2 + 10 + 26 + c.P + nb


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.9], single=[0, 1], row_beats=[1, 2])
async def attention_of_tokens(dut, stall, single, row_beats):
    """Prefill: lanes are tokens, with a window or without, with keys behind them or without,
    several heads and blocks, as many as fit at once, one or several tiles of keys."""
    c, rng = config(), generator()
    head_dim, group = row_beats * c.W, 2
    head_log2 = head_dim.bit_length() - 1
    per_tile = tile_keys(c, head_log2)
    n = min(2 * c.P - 2, 31)
    pos0 = 0 if single else int(rng.integers(per_tile - n + 1, 2 * per_tile - n))
    fields = one_pass(c, pos0, n)
    nb, ctx = fields["nb"], fields["ctx"]
    fits = subgroup(c, {"head_log2": head_log2, "group": group}, nb, ctx)
    p = a_pass(c.P, n, pos0, *fits)
    bench = Bench(dut, c, model=model(c, head_dim), pass_=fields)
    await bench.begin(stall)
    x = rng.integers(-2**12, 2**12, (group, nb, c.P, head_dim))
    x[rng.random(x.shape[:3]) < 0.3] *= 8           # some of these saturate
    keys = rng.integers(-128, 128, (ctx, head_dim))
    values = rng.integers(-128, 128, (ctx, head_dim))
    values[0], values[-1] = -128, 127
    shift, back = 6, int(rng.choice([NO_WINDOW, 0, rng.integers(2 * c.P), rng.integers(ctx)]))
    ahead = int(rng.integers(3) == 0)
    for h in range(group):
        await bench.write_acts(x[h], 3 + h * row_beats)
    work = repeated(c, p, Instruction(
        Op.QK, src=Src.KV, rows=per_tile, group=group, row_beats=row_beats, x=3, shift=shift,
        back=back, ahead=ahead))
    for i, lots in work:
        assert lots
        cache = (keys if i["op"] == Op.QK else values)[:lots.keys.stop]
        bench.tiles = [Tile(cache[at:at + per_tile].reshape(-1, c.W))
                       for at in lots.keys[::per_tile]]
        await bench.execute(i, lots)
    await bench.execute(Instruction(Op.END))                    # all is drained
    acc = dot(keys, x)                                          # heads, blocks, lanes, keys
    position = pos0 + np.arange(nb * c.P).reshape(nb, c.P)
    behind = np.arange(ctx) - position[..., None]
    hidden = (behind > 0) & (not ahead) | (behind < -back)
    prob, total = probabilities(np.where(hidden, MASKED, scores(acc, shift)))
    # Not those of lanes that have no token.
    assert int(dut.saturations.value) == np.count_nonzero(
        saturated(acc, shift) & ~hidden & (position < ctx)[..., None])
    want = broadcast(prob, values)
    sums = iter([r for r in bench.results if r["kind"] == Kind.SUM])
    drained = bench.table(Kind.DRAIN)
    assert len(drained) == group * nb * c.P * head_dim
    # Lots end in the order of the tiles with their last keys.
    sees = [p.sees(c, work[0][0], b) for b in range(nb)]
    ends = [(h, b) for _, lots in work[::2] if lots for h, b in sorted(
        ((h, b) for h in lots.heads for b in lots.blocks),
        key=lambda lot: (sees[lot[1]].stop - 1 - lots.keys.start) // per_tile)]
    for (h, b), k in ((lot, k) for lot in ends for k in range(c.P)):
        found = next(sums)
        assert (found["to"]["block"], found["lane"]) == (b, k)
        if b * c.P + k < n:                                     # beyond the prompt: anything
            assert found["acc"] == total[h, b, k]
            assert [drained[h * head_dim + j, b, k]["acc"] for j in range(head_dim)] == \
                want[h, b, k].tolist()
    assert next(sums, None) is None
    # Keys above the diagonal of a block, and before its window, are skipped.
    beats = group * row_beats * sum(
        (ctx if ahead else min(ctx, pos0 + (b + 1) * c.P)) - max(0, pos0 + b * c.P - back)
        for b in range(nb))
    assert bench.active == (1 + c.sv_cycles) * beats


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.9], ctx=[1, 2, 70])
async def attention_of_heads(dut, stall, ctx):
    """Decode: lanes are the query heads of a group; each sees all keys, or a window."""
    c, rng = config(), generator()
    row_beats, per_tile, lanes = 4, 16, min(3, c.P - 1)
    head_dim = row_beats * c.W
    bench = Bench(dut, c, model=model(c, head_dim), pass_=one_pass(c, ctx - 1, 1))
    await bench.begin(stall)
    x = rng.integers(-2**12, 2**12, (1, c.P, head_dim))
    x[:, [0, 2, -1]] *= 8           # some of these saturate; the last lane has no query
    keys, values = rng.integers(-128, 128, (2, ctx, head_dim))
    await bench.write_acts(x, 0)
    back = int(rng.choice([NO_WINDOW, 0, rng.integers(ctx)]))
    lots = Lots(range(1), range(1), range(max(0, ctx - 1 - back), ctx), True, True)
    keys, values = (cache[lots.keys.start:] for cache in (keys, values))
    flat = [[Tile(cache[i:i + per_tile].reshape(-1, c.W)) for i in range(0, len(cache), per_tile)]
            for cache in (keys, values)]
    bench.tiles = flat[0]
    both = dict(src=Src.KV, rows=per_tile, row_beats=row_beats, heads=1, lanes=lanes, group=1,
                back=back)
    qk = await bench.execute(Instruction(Op.QK, shift=6, **both), lots)
    bench.tiles = flat[1]
    sv = await bench.execute(Instruction(Op.SV, **both), lots)
    drained = await bench.execute(Instruction(Op.END))
    acc = dot(keys, x[0])
    prob, total = probabilities(scores(acc, 6))
    want = broadcast(prob, values)
    assert int(dut.saturations.value) == np.count_nonzero(saturated(acc[:lanes], 6))
    dut.clear.value = 1
    await ClockCycles(dut.clk, 1)
    dut.clear.value = 0
    await ClockCycles(dut.clk, 1)
    assert int(dut.saturations.value) == 0
    if not stall:
        count = -(-len(keys) // per_tile)
        assert qk <= len(keys) * row_beats + 8 * count + 32
        assert sv <= len(keys) * row_beats * c.sv_cycles + 8 * count + 8
        assert drained <= SUM_GAP + (head_dim + 1) * c.row_cycles + 40
    sums, drained = bench.table(Kind.SUM), bench.table(Kind.DRAIN)
    for k in range(c.P):
        assert sums[0, 0, k]["acc"] == total[k]
        assert [drained[j, 0, k]["acc"] for j in range(head_dim)] == want[k].tolist()


@cocotb.test(timeout_time=300, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.9], row_beats=[1, 2, 4])
async def attention_of_pairs(dut, stall, row_beats):
    """Decode: a head has neighbouring lanes, of which each has another element of a row; then lanes
    are heads again."""
    c, rng = config(), generator()
    each, per_tile, ctx = c.sv_cycles, 16, int(rng.integers(1, 40))
    heads, head_dim = c.P // each, row_beats * c.W
    bench = Bench(dut, c, model=model(c, head_dim), pass_=one_pass(c, ctx - 1, 1))
    await bench.begin(stall)
    lots, saturations = Lots(range(1), range(1), range(ctx), True, True), 0
    for paired in (1, 0, 1):
        lanes, own = (heads * each, each) if paired else (c.P, 1)
        x = rng.integers(-2**12, 2**12, (1, lanes // own, head_dim))
        x[:, [0, -1]] *= 8          # some of these saturate
        keys, values = rng.integers(-128, 128, (2, ctx, head_dim))
        await bench.write_acts(x, 0, paired=paired)
        flat = [[Tile(cache[i:i + per_tile].reshape(-1, c.W)) for i in range(0, ctx, per_tile)]
                for cache in (keys, values)]
        both = dict(src=Src.KV, rows=per_tile, row_beats=row_beats, heads=1, lanes=lanes, group=1,
                    back=NO_WINDOW, add=paired)
        bench.tiles, bench.active = flat[0], 0
        await bench.execute(Instruction(Op.QK, shift=6, **both), lots)
        bench.tiles, bench.results = flat[1], []
        sv = await bench.execute(Instruction(Op.SV, **both), lots)
        await bench.execute(Instruction(Op.END))
        acc = dot(keys, x[0])
        prob, total = probabilities(scores(acc, 6))
        want = broadcast(prob, values)
        saturations += np.count_nonzero(saturated(acc, 6))
        assert int(dut.saturations.value) == saturations
        assert bench.active == ctx * row_beats * (1 + (1 if paired else each))
        if not stall and paired:
            count = -(-ctx // per_tile)
            assert sv <= ctx * max(row_beats, c.ACC_TURN) + 8 * count + 8
        sums, drained = bench.table(Kind.SUM), bench.table(Kind.DRAIN)
        assert len(drained) == head_dim // own * c.P
        for k in range(lanes):
            assert sums[0, 0, k]["acc"] == total[k // own]
            assert [drained[j, 0, k]["acc"] for j in range(0, head_dim, own)] == \
                want[k // own, k % own::own].tolist()
            assert {drained[j, 0, k]["to"]["paired"] for j in range(0, head_dim, own)} == {paired}


@pytest.mark.parametrize("case", CONFIGS)
def test_tiling_engine(case, seed):
    simulate(ArrayUnderTest(CONFIGS[case]), __name__, seed=seed, case=case,
             testcase="attention_of_pairs" if case in PAIRS else
             "attention_of_heads" if case == "w4p24" else
             "(linear|attention_of_tokens|attention_of_heads)")


def test_icarus_too(sim, seed):
    """The smallest configuration on each simulator that is there."""
    simulate(ArrayUnderTest(CONFIGS["w4p3"]), __name__, seed=seed, sim=sim, case="w4p3",
             testcase="(linear|attention_of_tokens|attention_of_heads)")


def test_lane_index_out_of_range():
    with pytest.raises(ValueError, match=r"^index must be in 0\.\.15, not 16$"):
        Lane(CONFIGS["w8p16"], index=16)
