"""Issue: what it presents, beat by beat; the serial operators, the end of a pass, their cycles."""
import os
import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from array_bench import ArrayUnderTest, Bench, Tile
from bench import pack, recv, simulate, unpack
from meadowlark_hdl.compute.lane import BEAT_CYCLE
from meadowlark_hdl.compute.tiling_engine import EngineControl
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Instruction, Kind, Op, Src
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.issue.issue import Issue
from meadowlark_hdl.signatures import ModelLayout, PassLayout, ScratchCommand
from presented import a_pass, check, of_heads, random_work, repeated, tiles_of

CONFIGS = {f"w{w}p{p}": Config(W=w, P=p, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32,
                               tile_rows=8, rope_pairs=256) for w, p in ((4, 3), (8, 6), (16, 4))}
CONFIGS["w8p6pairs"] = CONFIGS["w8p6"].replace(lane_pairs=True)


def bench_of(dut, n):
    c = CONFIGS[os.environ["CASE"]]
    return Bench(dut, c, model={"block_words": 8, "blocks": 4, "head_log2": 5},
                 pass_={"pos0": 3, "n": n, "nb": -(-n // c.P), "ctx": 3 + n, "final": 1})


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.8])
async def beats(dut, stall):
    """What the golden model presents, and nothing else; drains go on in the next QK."""
    bench = bench_of(dut, 1)
    c, layout = bench.config, EngineControl(bench.config)
    await bench.begin(stall)
    rng, tiles = np.random.default_rng(random.randrange(2**32)), 0
    for _ in range(12):
        p, work = random_work(rng, c, Op.LINEAR, Op.QK, Op.SV)
        dut.pass_.value = pack(PassLayout(), pos0=p.pos0, n=p.n, nb=p.nb, ctx=p.ctx, final=1)
        wanted = []
        bench.trace = []
        model = of_heads(bench.model, c, work)
        dut.model.value = pack(ModelLayout, **model)
        svs = work["row_beats"] if work["op"] != Op.LINEAR and rng.integers(2) else 1
        for i, lots in repeated(c, p, work, svs, less=work["x"] % 2):
            count = tiles_of(i, lots)
            bench.tiles = [Tile(np.zeros((1, c.W), int)) for _ in range(count)]
            await bench.execute(i, lots)
            assert not bench.tiles
            wanted += [e | {"tile": e["tile"] + tiles} if "tile" in e else e
                       for e in issue_golden.beats(c, model, p, i, lots)]
            tiles += count
        await bench.execute(Instruction(Op.END))        # all is drained
        trace = []
        for t, (control, active, _, scale_addr) in enumerate(bench.trace):
            shown = unpack(layout, control)
            shown |= shown.pop("lane") | shown.pop("to") | {"array_active": active,
                                          "tile_row": scale_addr % c.tile_rows}
            if active:
                shown["tile"], shown["beat"] = divmod(bench.trace[t + BEAT_CYCLE - 3][2],
                                                      c.tile_beats)
                assert scale_addr // c.tile_rows == shown["tile"] or not shown["res_en"] \
                    or i["op"] != Op.LINEAR
            trace.append(shown)
        check(c, trace, wanted)


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.8])
async def embed(dut, stall):
    n = CONFIGS[os.environ["CASE"]].P + 2
    bench = bench_of(dut, n)
    W, P = bench.config.W, bench.config.P
    await bench.begin(stall)
    rng = np.random.default_rng(random.randrange(2**32))
    rows = rng.integers(-128, 128, (n, 4, W))
    scales = [(int(rng.integers(1 << 16)), int(rng.integers(64)), 0) for _ in range(n)]
    bench.tiles = [Tile(rows[i], [scales[i]]) for i in range(n)]
    embed = Instruction(Op.EMBED, src=Src.TOKEN, rows=1, row_beats=4)
    taken = await bench.execute(embed)
    await ClockCycles(dut.clk, 4)
    got = [(r["to"]["element"], r["to"]["block"], r["lane"], r["kind"], r["acc"],
            tuple(r["scale"].values())) for r in bench.results]
    want = [(v["element"], v["block"], v["lane"], Kind.TOKEN, int(rows[v["tile"]].flat[v["value"]]),
             scales[v["tile"]]) for v in issue_golden.values(bench.config, a_pass(P, n), embed)]
    assert got == want
    if not stall:
        assert taken <= n * (4 * W + 6) + 14


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.8])
async def rope(dut, stall):
    n = 5
    bench = bench_of(dut, n)
    W = bench.config.W
    await bench.begin(stall)
    rng = np.random.default_rng(random.randrange(2**32))
    rows = rng.integers(-2**15, 2**15, (n, 2, W))
    bench.tiles = [Tile(row) for row in rows]
    rope = Instruction(Op.ROPE, src=Src.TABLE, rows=1, row_beats=2)
    taken = await bench.execute(rope)
    assert bench.ropes == [
        (v["addr"], *(int(rows[v["tile"]].flat[v["value"] + k]) for k in range(2)))
        for v in issue_golden.values(bench.config, a_pass(bench.config.P, n), rope)]
    if not stall:
        assert taken <= n * (W + 6) + 14


@cocotb.test(timeout_time=200, timeout_unit="us")
async def norm_lends_the_tile(dut):
    """norm_start, the gammas through gamma_addr, the tile given back after norm_done."""
    bench = bench_of(dut, 2)
    await bench.begin()
    tile = Tile(np.arange(4 * bench.config.W).reshape(4, -1) - 7)
    bench.tiles = [tile]
    run = cocotb.start_soon(bench.execute(Instruction(Op.NORM, src=Src.STREAM, row_beats=4)))
    while not dut.norm_start.value:
        await RisingEdge(dut.clk)
    for beat in (2, 0, 3):
        dut.gamma_addr.value = beat
        await ClockCycles(dut.clk, 4)
        word = int(dut.gamma.value)
        got = [(word >> 18 * i & (1 << 18) - 1) for i in range(bench.config.W)]
        assert got == [int(v) & (1 << 18) - 1 for v in tile.beats[beat]]
    assert bench.halves[0] is tile and bench.retired == 0
    dut.norm_done.value = 1
    await RisingEdge(dut.clk)
    dut.norm_done.value = 0
    await run
    assert bench.halves[0] is None


@cocotb.test(timeout_time=200, timeout_unit="us")
async def waits_for_the_vector_unit(dut):
    bench = bench_of(dut, 1)
    await bench.begin()
    dut.vector_busy.value = 1
    bench.tiles = [Tile(np.ones((2, bench.config.W), int))]
    run = cocotb.start_soon(bench.execute(Instruction(Op.ROPE, src=Src.TABLE, row_beats=2)))
    await ClockCycles(dut.clk, 100)
    assert bench.retired == 0
    dut.vector_busy.value = 0
    await run


@cocotb.test(timeout_time=200, timeout_unit="us")
async def end_of_pass_and_unknown_op(dut):
    """A STORE is handed on at once; END waits until all of them are done."""
    bench = bench_of(dut, 1)
    await bench.begin()
    ends = 0

    async def count():
        nonlocal ends
        while True:
            await RisingEdge(dut.clk)
            ends += int(dut.pass_end.value)
    cocotb.start_soon(count())
    commands = cocotb.start_soon(recv(dut, "store_cmd", 2, layout=ScratchCommand(bench.config)))
    for addr in (1000, 2000):
        await bench.execute(Instruction(Op.STORE, addr=addr, row_beats=4, x=5))
    assert await commands == [{"addr": addr, "word": 5, "log2_words": 2} for addr in (1000, 2000)]
    end = cocotb.start_soon(bench.execute(Instruction(Op.END)))
    for _ in range(2):
        await ClockCycles(dut.clk, 30)
        assert not end.done() and ends == 0
        dut.store_done.value = 1
        await ClockCycles(dut.clk, 1)
        dut.store_done.value = 0
    await end
    await ClockCycles(dut.clk, 3)
    assert ends == 1 and bench.retired == 3
    cocotb.start_soon(bench.execute(Instruction(15)))
    await ClockCycles(dut.clk, 20)
    assert dut.bad_op.value == 1 and bench.retired == 3


@pytest.mark.parametrize("case", CONFIGS)
def test_issue(case, sim, seed):
    simulate(ArrayUnderTest(CONFIGS[case]), __name__, seed=seed, sim=sim, case=case)


def test_sum_gap_rejected():
    with pytest.raises(ValueError, match=r"^sum_gap must be at least 1, not 0$"):
        Issue(CONFIGS["w4p3"], sum_gap=0)
