"""Issue and TilingEngine with a unified maximum: SV begins beside QK's last scores, and once more
where a row has another maximum; bit for bit the golden model, and as quick as it says."""
import os
import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from array_bench import ArrayUnderTest, Bench, Tile
from bench import pack, simulate
from meadowlark_hdl.compute.softmax_golden import (MASKED, WINDOWS, peaks, probabilities, scores,
                                                   unified_field)
from meadowlark_hdl.compute.tiling_engine_golden import broadcast, dot
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import subgroups
from meadowlark_hdl.isa import NO_WINDOW, Instruction, Kind, Op, Src
from meadowlark_hdl.issue.judgement import judged_cycle
from meadowlark_hdl.signatures import FetchedInstruction, PassLayout
from presented import a_pass, packed_lots

CONFIGS = {f"w{W}p{P}": Config(W=W, P=P, bus_bytes=4, act_words=64, score_depth=256,
                               tile_beats=64, tile_rows=16, sv_cycles=sv, unified=True,
                               softcap=W == 8)
           for W, P, sv in ((8, 3, 4), (16, 4, 2), (4, 9, 2))}


async def queued(dut, work):
    """Offer one instruction behind the other, some of them late, behind what is none; returns when
    the last is taken."""
    for i, lots in work:
        dut.instr__valid.value = 0
        dut.instr__payload.value = pack(FetchedInstruction(), instr=dict(Instruction(
            Op.LINEAR, fn=1, shift=random.randrange(64), mant=random.randrange(1 << 16))), lots={})
        for _ in range(random.choice([0, 0, random.randrange(12)])):
            await RisingEdge(dut.clk)
        dut.instr__payload.value = pack(FetchedInstruction(), instr=dict(i),
                                        lots=packed_lots(lots) if lots else {})
        dut.instr__valid.value = 1
        taken = False
        while not taken:
            await ReadOnly()
            taken = bool(dut.instr__ready.value)
            await RisingEdge(dut.clk)
    dut.instr__valid.value = 0


def phi_of(rng, kind, maxima, window):
    """A unified maximum in whole log2 units that rows take, miss, or some of each."""
    top = -(-int(maxima.max()) // 1024)
    return int(np.clip({"all": top, "above": top + window + 1, "below": int(
        maxima.min()) // 1024 - 1, "some": rng.integers(int(maxima.min()) // 1024 - 1, top + 2)}[
            kind], -128, 127))


@cocotb.test(timeout_time=400, timeout_unit="us")
@cocotb.parametrize(heads=[0, 1], stall=[0.0, 0.7])
async def attention(dut, heads, stall):
    c, rng = CONFIGS[os.environ["CASE"]], np.random.default_rng(random.randrange(2**32))
    row_beats, rows = 2, 16
    head_dim = row_beats * c.W
    bench = Bench(dut, c, model={"block_words": 16, "blocks": 4,
                                 "head_log2": head_dim.bit_length() - 1},
                  pass_={"pos0": 0, "n": 1, "nb": 1, "ctx": 1, "final": 1})
    await bench.begin(stall)
    for trial, kind in enumerate(("all", "above", "below", "exact", "some", "some", "some")):
        n = 1 if heads else int(rng.integers(1, 2 * c.P + 1))
        # One key, some, or two tiles of them.
        pos0 = (0, 5, int(rng.integers(40)))[trial % 3]
        group, lanes = (1, int(rng.integers(1, c.P + 1))) if heads else (2, 0)
        p = a_pass(c.P, n, pos0, 2, 2)
        dut.pass_.value = pack(PassLayout(), pos0=pos0, n=n, nb=p.nb, ctx=p.ctx, final=1)
        back = int(rng.choice([NO_WINDOW, rng.integers(1, 20)]))
        fields = dict(heads=heads, lanes=lanes, group=group, back=back, last=0, ahead=0,
                      src=Src.KV, rows=rows, row_beats=row_beats)
        # Of narrow rows all maxima are near each other.
        x = rng.integers(-2**12, 2**12, (group, p.nb, c.P, head_dim)) >> int(rng.integers(0, 7))
        keys, values = rng.integers(-128, 128, (2, p.ctx, head_dim))
        for h in range(group):
            await bench.write_acts(x[h], 3 + h * row_beats)
        position = pos0 + np.arange(p.nb * c.P).reshape(p.nb, c.P)
        behind = np.arange(p.ctx) - position[..., None]
        hidden = ((behind > 0) | (behind < -back)) & (not heads)
        if heads:
            hidden[..., :max(0, pos0 - back)] = True
        s = np.where(hidden, MASKED, scores(dot(keys, x), 6))
        there = np.broadcast_to(np.arange(c.P) < lanes if heads else position < p.ctx, s.shape[:-1])
        maxima = s.max(axis=-1, keepdims=True)
        code = int(rng.integers(1, 4))
        window = 0 if kind == "exact" else WINDOWS[code]
        phi = phi_of(rng, kind if window else "all", maxima[there], window)
        peak, good = peaks(maxima, phi, window)
        prob, total = probabilities(s, peak)
        want = broadcast(prob, values)
        svs = int(rng.integers(1, 3))       # columns of values at once
        bench.results.clear()
        work = []
        for lots in subgroups(c, p, fields):
            some = slice(lots.keys.start, lots.keys.stop)
            work.append((Instruction(Op.QK, x=3, shift=6, mant=unified_field(phi, window),
                                     **fields), lots))
            bench.tiles += [Tile(keys[some][at:at + rows].reshape(-1, c.W))
                            for at in range(0, len(lots.keys), rows)]
            for sv in range(svs):
                columns = slice(sv * head_dim // svs, (sv + 1) * head_dim // svs)
                work.append((Instruction(Op.SV, shift=9, mant=0x8001, y=columns.start, **fields | {
                    "row_beats": row_beats // svs}), lots))
                bench.tiles += [Tile(values[some, columns][at:at + rows].reshape(-1, c.W))
                                for at in range(0, len(lots.keys), rows)]
        active, done = bench.active, bench.retired + len(work) + 1
        await queued(dut, [*work, (Instruction(Op.END), None)])
        while bench.retired < done:
            await RisingEdge(dut.clk)
        sums = [r for r in bench.results if r["kind"] == Kind.SUM]
        drained = bench.table(Kind.DRAIN)
        assert len(sums) == group * p.nb * c.P * svs
        for r in sums:
            b = r["to"]["block"]
            assert not there[0, b, r["lane"]] or r["acc"] in total[:, b, r["lane"]]
        for h, b, k in zip(*np.nonzero(there)):
            assert [drained[h * head_dim + j, b, k]["acc"] for j in range(head_dim)] == \
                want[h, b, k].tolist(), (trial, kind, h, b, k)
        # Beats that an SV did in vain: none where all rows take it.
        seen = [len(lots.keys) if heads else sum(
            len(p.sees(c, fields, b)) for b in lots.blocks) * len(lots.heads)
            for i, lots in work if i["op"] == Op.QK]
        vain = bench.active - active - sum(seen) * row_beats * (1 + c.sv_cycles)
        assert 0 <= vain <= judged_cycle(c) * len(seen)
        if window == 0 or good[there].all():
            assert vain == 0, (trial, kind)
        if heads and not stall and kind == "below" and trial == 2:
            assert vain > 0


@pytest.mark.parametrize("case", CONFIGS)
def test_unified_array(case, sim, seed):
    simulate(ArrayUnderTest(CONFIGS[case]), __name__, seed=seed, sim=sim, case=case)
