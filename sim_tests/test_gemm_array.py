"""Issue and TilingEngine do attention by GEMM: what SPILL gives comes back by FILL."""
import os
import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles

from array_bench import ArrayUnderTest, Bench, Tile
from bench import simulate
from meadowlark_hdl.compute.softmax_golden import MASKED, probabilities, scores, spilled
from meadowlark_hdl.compute.tiling_engine_golden import broadcast, dot
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import subgroups
from meadowlark_hdl.isa import NO_WINDOW, Instruction, Kind, Mode, Op, Src
from presented import a_pass

CONFIGS = {f"w{W}p{P}": Config(W=W, P=P, bus_bytes=4, act_words=64, score_depth=256,
                               tile_beats=64, tile_rows=16, gemm=True)
           for W, P in ((8, 4), (16, 4))}


def there_and_back(c, bench, values):
    """Tiles of what SPILL gave, values[keys, lanes] and zeros, so many beats each."""
    rows = np.pad(values, ((0, -len(values) % c.spilled_keys), (0, 0))).reshape(-1, c.W)
    bench.tiles = [Tile(rows[at:at + 4]) for at in range(0, len(rows), 4)]


@cocotb.test(timeout_time=60, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.8], heads=[0, 1])
async def attention_through_memory(dut, stall, heads):
    c = CONFIGS[os.environ["CASE"]]
    rng = np.random.default_rng(random.randrange(2**32))
    head_dim, n = 2 * c.W, 1 if heads else 2 * c.P - 1
    pos0 = int(rng.integers(1, 12))
    p = a_pass(c.P, n, pos0, 2, 2)
    bench = Bench(dut, c, model={"block_words": 16, "blocks": 4,
                                 "head_log2": head_dim.bit_length() - 1},
                  pass_={"pos0": pos0, "n": n, "nb": p.nb, "ctx": p.ctx, "final": 1})
    await bench.begin(stall)
    group = 1 if heads else 2
    fields = dict(heads=heads, lanes=c.P * heads, group=group, back=NO_WINDOW, last=0, ahead=0)
    x = rng.integers(-2**12, 2**12, (group, p.nb, c.P, head_dim))
    keys, values = rng.integers(-128, 128, (2, p.ctx, head_dim))
    for h in range(group):
        await bench.write_acts(x[h], 3 + 2 * h)
    (lots,) = subgroups(c, p, fields)
    seen = [p.ctx] if heads else [min(p.ctx, pos0 + (b + 1) * c.P) for b in range(p.nb)] * group
    rows = sum(seen)
    position = pos0 + np.arange(p.nb * c.P).reshape(p.nb, c.P)
    hidden = (np.arange(p.ctx) > position[..., None]) & (not heads)
    s = np.where(hidden, MASKED, scores(dot(keys, x), 6))
    memory = spilled(s)                                 # heads, blocks, lanes, keys
    prob, total = probabilities(memory << 2, s.max(axis=-1, keepdims=True))

    async def spill(beside):
        """And tell that it is in memory; another one waits for that."""
        await bench.execute(Instruction(Op.SPILL, rows=128, row_beats=1, beside=beside, **fields),
                            lots)
        dut.store_done.value = 1
        await ClockCycles(dut.clk, 1)
        dut.store_done.value = 0

    def flat(each):
        each = each.reshape(-1, c.P, p.ctx)             # lots, lanes, keys
        return np.concatenate([lot[:, :count].T for lot, count in zip(each, seen, strict=True)])
    bench.tiles = [Tile(keys.reshape(-1, c.W))]
    await bench.execute(Instruction(Op.QK, src=Src.KV, rows=64, row_beats=2, x=3, shift=6,
                                    **fields), lots)
    valid = flat(np.broadcast_to(((position < p.ctx) | bool(heads))[..., None], s.shape))
    for beside, want in ((0, memory), (1, prob - (1 << 15))):
        await spill(beside)
        got = np.array([r["acc"] for r in bench.results if r["kind"] == Kind.ROW])
        assert len(got) == rows * c.P
        got = got.reshape(rows, c.P) - (1 << 15)
        np.testing.assert_array_equal(got[valid], flat(want)[valid])
        bench.results.clear()
        # Only what lies in memory counts: other scores and probabilities, of those that are there.
        given = np.roll(got, 1, axis=0) if not beside and stall else got
        there_and_back(c, bench, given)
        await bench.execute(Instruction(Op.FILL, src=Src.KV, mode=Mode.INT16, chunks=8, row_beats=1,
                                        **fields), lots)
        assert not bench.tiles
        if given is not got:
            break
    else:
        bench.tiles = [Tile(values.reshape(-1, c.W))]
        await bench.execute(Instruction(Op.SV, src=Src.KV, rows=64, row_beats=2, beside=1,
                                        **fields), lots)
        await bench.execute(Instruction(Op.END))
        sums = iter([r for r in bench.results if r["kind"] == Kind.SUM])
        drained, want = bench.table(Kind.DRAIN), broadcast(prob, values)
        for h, b in ((h, b) for h in range(group) for b in range(p.nb)):
            for k in range(c.P):
                found = next(sums)
                if heads or b * c.P + k < n:
                    assert found["acc"] == total[h, b, k]
                    assert [drained[h * head_dim + j, b, k]["acc"] for j in range(head_dim)] == \
                        want[h, b, k].tolist()
        return
    # Scores that came back in other places: so do their probabilities.
    await spill(1)
    got = np.array([r["acc"] for r in bench.results if r["kind"] == Kind.ROW]).reshape(rows, c.P)
    at = 0
    for lot, count in enumerate(seen):
        peak = s.reshape(-1, c.P, p.ctx)[lot].max(axis=-1)
        back = given[at:at + count].T.astype(np.int64) << 2
        ok = valid[at:at + count].T & (back <= peak[:, None])
        wanted = probabilities(back, peak[:, None])[0]
        np.testing.assert_array_equal(got[at:at + count].T[ok], wanted[ok])
        at += count


@pytest.mark.parametrize("case", CONFIGS)
def test_gemm_array(case, sim, seed):
    simulate(ArrayUnderTest(CONFIGS[case]), __name__, seed=seed, sim=sim, case=case)
