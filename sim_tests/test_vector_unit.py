"""VectorUnit against the golden models: every epilogue, in order, as a pass would use it."""
import os
import random
from itertools import product

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from bench import cycles, pack, simulate, start, unpack
from meadowlark_hdl.compute.glu_golden import alone, glu
from meadowlark_hdl.compute.norm import Norm
from meadowlark_hdl.compute.norm_golden import add_residual, rmsnorm, sum_of_squares
from meadowlark_hdl.compute.requant_golden import requant
from meadowlark_hdl.compute.rope_golden import rope
from meadowlark_hdl.compute.softcap_golden import softcap
from meadowlark_hdl.compute.softmax_golden import output_scale
from meadowlark_hdl.compute.vector_unit import VectorUnit
from meadowlark_hdl.config import Config
from meadowlark_hdl.fixed import saturate
from meadowlark_hdl.functions import FUNCTIONS
from meadowlark_hdl.isa import Fn, Instruction, Kind, Op, Pair, Sink, cap_of
from meadowlark_hdl.issue.issue_golden import destination
from meadowlark_hdl.signatures import Beat, ModelLayout, NormJob, PassLayout, Result

CONFIGS = {
    "w8p16": Config(W=8, P=16, bus_bytes=2, residual_values=4096, rope_pairs=4096),
    "w4p3": Config(W=4, P=3, bus_bytes=1, residual_values=2048),
    "w16p4": Config(W=16, P=4, bus_bytes=4, residual_values=2048),
}
CONFIGS |= {f"{name}-shared": config.replace(vector_products=8)
            for name, config in CONFIGS.items()}
PAIRS = {"w8p16-pairs": CONFIGS["w8p16"].replace(lane_pairs=True, sv_cycles=4),
         "w16p4-shared-pairs": CONFIGS["w16p4-shared"].replace(lane_pairs=True)}
CONFIGS |= PAIRS
CAPPED = {"w16p4-softcap": CONFIGS["w16p4"].replace(softcap=True)}
DRAIN_CYCLES = 60       # more than anything takes
WIDE = 34               # bits of what is narrowed: with as many nothing is saturated


class Bench:
    """Drives a VectorUnit one instruction at a time and keeps what it writes.

    act: int16[lane, element], as the activation memories would hold it. scratch: int8[bytes], as
    scratch memory would. logits: list of (row,
    value). sums: list of saturated values, counted by the model. last_write, last_result: cycles.
    """

    def __init__(self, dut, config, rng):
        self.dut, self.config, self.rng = dut, config, rng
        self.unit = VectorUnit(config)
        self.act = np.zeros((config.P, config.act_words * config.W), np.int64)
        self.scratch = np.zeros(config.scratch_bytes, np.int64)
        self.logits, self.written, self.saturated = [], 0, 0
        self.last_write = self.last_result = self.norm_done = None
        self.gamma = np.zeros(0, np.int64)
        self.beats = Beat(config)

    def latency(self, sink, pair=Pair.NONE, fn=Fn.NONE):
        return self.unit.latency_of(sink, pair, fn)

    async def begin(self, **model):
        self.model = dict(hidden=32, stride=80, head_log2=4, eps=7, block_words=40,
                          token_words=41) | model
        await start(self.dut, model=pack(ModelLayout, **self.model), clear=1)
        self.dut.clear.value = 0            # counts outlive a reset
        cocotb.start_soon(self._watch())
        cocotb.start_soon(self._gamma())

    async def _watch(self):
        dut, W = self.dut, self.config.W
        while True:
            await ReadOnly()
            if dut.act__valid.value:
                assert dut.busy.value, "write while not busy"
                lane, addr = int(dut.act__lane.value), int(dut.act__addr.value)
                mask, data = int(dut.act__mask.value), int(dut.act__data.value)
                lanes, each = slice(lane, lane + 1), self.config.sv_cycles
                if self.config.lane_pairs and dut.act__paired.value:
                    lanes = slice(lane * each, lane * each + each)
                for i in range(W):
                    if mask >> i & 1:
                        raw = data >> 16 * (i % 4) & 0xffff
                        self.act[lanes, addr * W + i] = raw - (raw >> 15 << 16)
                        self.written += 1
                self.last_write = cycles(dut)
            if dut.scratch__valid.value:
                assert dut.busy.value and not dut.act__valid.value
                addr, mask = int(dut.scratch__addr.value), int(dut.scratch__mask.value)
                data = int(dut.scratch__data.value).to_bytes(4, "little")
                for i in range(4):
                    if mask >> i & 1:
                        self.scratch[4 * addr + i] = (data[i] ^ 128) - 128
                        self.written += 1
                self.last_write = cycles(dut)
            if dut.logit__valid.value:
                self.logits.append((int(dut.logit__row.value), dut.logit__value.value.to_signed()))
                self.last_write = cycles(dut)
            if dut.norm_done.value:
                assert self.norm_done is None and self.last_write == cycles(dut)
                self.norm_done = cycles(dut)
            await RisingEdge(dut.clk)

    async def _gamma(self):
        """The tile buffer's read port: what was asked for GAMMA_LATENCY cycles ago."""
        dut, W, asked = self.dut, self.config.W, [0] * (Norm.GAMMA_LATENCY - 1)
        while True:
            await ReadOnly()
            asked.append(int(dut.gamma_addr.value))
            await RisingEdge(dut.clk)
            beat = self.gamma[(at := asked.pop(0)) * W:(at + 1) * W]
            dut.gamma.value = pack(self.beats, **{}) if len(beat) < W else sum(
                (int(v) & 0x3ffff) << 18 * k for k, v in enumerate(beat))

    async def instruction(self, op, pass_, **fields):
        """An instruction's results are next, or its NORM, and its pass."""
        self.pass_, self.instr = pass_, Instruction(op, **fields)
        self.dut.norm_job.value = pack(NormJob(), lent=int(op == Op.NORM), **{
            name: self.instr[name]
            for name in ("last", "wide", "shift", "y", "beside", "row_beats")})
        self.dut.pass_.value = pack(PassLayout(), **pass_)
        self.written, self.last_write = 0, None
        for _ in range(4):
            await RisingEdge(self.dut.clk)

    @property
    def apart(self):
        """Idle cycles behind a row, if it has fewer results than rows are apart."""
        return [self.config.row_cycles - self.config.P] * (self.config.P < self.config.row_cycles)

    async def results(self, items, gap=0.0):
        """Give results; each item is a dict, or a number of idle cycles."""
        dut, layout = self.dut, Result(self.config)
        for item in items:
            if isinstance(item, int):
                dut.r__valid.value = 0
                for _ in range(item):
                    dut.r__payload.value = random.getrandbits(layout.size)
                    await RisingEdge(dut.clk)
                continue
            dut.r__valid.value = 1
            dut.r__payload.value = pack(layout, **item)
            self.last_result = cycles(dut)
            await RisingEdge(dut.clk)
        dut.r__valid.value = 0
        dut.r__payload.value = random.getrandbits(layout.size)

    async def finish(self):
        """Wait until busy falls; return the cycle in which it was last high."""
        for _ in range(2000):
            await ReadOnly()
            if not self.dut.busy.value:
                break
            await RisingEdge(self.dut.clk)
        else:
            raise AssertionError("busy for ever")
        last, written, logits = cycles(self.dut) - 1, self.written, len(self.logits)
        for _ in range(DRAIN_CYCLES):
            await RisingEdge(self.dut.clk)
        assert (written, logits) == (self.written, len(self.logits)), "writes after busy"
        return last

    async def saturations(self):
        await ReadOnly()
        count = int(self.dut.saturations.value)
        await RisingEdge(self.dut.clk)
        return count

    # What a LINEAR instruction's results look like, and what they stand for.

    def rows(self, count, blocks, tile, *, bits, gaps):
        """Rows of random results -> (items for :meth:`results`, y[block, lane, row]).

        bits: log2 of their size; every fifth row is far larger. gaps: idle cycles between rows.
        """
        P, rng, limit = self.config.P, self.rng, 2**min(bits, 31)
        y = np.zeros((max(blocks) + 1, P, count), np.int64)
        items = []
        for base in range(0, count, tile):
            for block in blocks:
                for row in range(base, min(base + tile, count)):
                    scale = dict(mant=int(rng.integers(2**15, 2**16)),
                                 shift=int(rng.integers(20, 40)),
                                 bias=int(rng.integers(-limit, limit)))
                    size = bits + scale["shift"] - 16 + (3 if row % 5 == 3 else 0)
                    acc = rng.integers(-2**min(size, 44), 2**min(size, 44), P)
                    y[block, :, row] = requant(acc, *scale.values())
                    items += [dict(acc=int(acc[k]), lane=k, kind=Kind.ROW, add=1,
                                   to=self.to(row, block), scale=scale) for k in range(P)]
                    items += self.apart
                    if gaps and rng.random() < 0.5:
                        items.append(int(rng.integers(1, 9)))
        return items, y

    def found(self, sink, block, y, count):
        """int[lane, count], what LINEAR has written of a block from element ``y`` on."""
        config, model = self.config, self.model
        if sink == Sink.ACT:
            at = block * model["block_words"] * config.W + y
            return self.act[:, at:at + count]
        tokens = self.scratch[:(block + 1) * config.P * model["token_words"] * config.W]
        return tokens.reshape(-1, model["token_words"] * config.W)[-config.P:, y:y + count]

    def to(self, row, block):
        """Where a row of LINEAR goes."""
        some = {"paired": self.instr["add"]} if self.config.lane_pairs else {}
        if self.config.softcap:
            some["cap"] = cap_of(self.instr)
        return destination(self.model, self.instr, block, row) | some

    def exists(self, blocks):
        """bool[block, lane]: the pass has this token."""
        slots = np.arange((max(blocks) + 1) * self.config.P).reshape(-1, self.config.P)
        return slots < self.pass_["n"]


def _pass(n, P, pos0=0):
    return dict(pos0=pos0, n=n, nb=-(-n // P), ctx=pos0 + n, final=1)


async def _prepared(dut, **model):
    config = (CONFIGS | CAPPED)[os.environ["CONFIG"]]
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    bench = Bench(dut, config, rng)
    await bench.begin(**model)
    return bench, config, rng


async def _embed(bench, n, old=None):
    """EMBED of n tokens, a result a cycle; returns the residual[slot, hidden]. old: the residual
    that it adds to."""
    config, rng, hidden = bench.config, bench.rng, bench.model["hidden"]
    P, residual, items = config.P, np.zeros((n, hidden), np.int64), []
    await bench.instruction(Op.EMBED, _pass(n, P), sink=Sink.RESIDUAL, stats=1,
                            add=int(old is not None))
    for s in range(n):
        scale = dict(mant=int(rng.integers(2**15, 2**16)), shift=int(rng.integers(0, 9)), bias=0)
        # Tokens of all sizes: the square drops bits of the large ones.
        acc = rng.integers(-127, 128, hidden) << rng.integers(0, 10)
        residual[s] = add_residual(0 if old is None else old[s], requant(acc, *scale.values()))
        to = dict(sink=Sink.RESIDUAL, stats=1, block=s // P)
        items += [dict(acc=int(acc[i]), lane=s % P, kind=Kind.TOKEN, add=int(old is not None),
                       to=to | dict(element=i), scale=scale) for i in range(hidden)]
        if s < n - 1 and rng.random() < 0.5:        # the last result ends the run
            items.append(int(rng.integers(1, 30)))
    await bench.results(items)
    last = await bench.finish()
    assert last - bench.last_result == bench.latency(Sink.RESIDUAL)
    assert bench.written == 0
    return residual


async def _norm(bench, residual, last=False, shift=None, beside=0):
    """NORM of the residual, or of values beside it, checked against the golden model and the
    promised cycles.

    Returns how many of its values were saturated.
    """
    dut, config, (n, hidden) = bench.dut, bench.config, residual.shape
    P, W, y, before = config.P, config.W, 16, bench.act.copy()
    if shift is None:
        shift = int(bench.rng.integers(12, 18))
    bench.gamma = bench.rng.integers(-2**15, 2**15, hidden)
    await bench.instruction(Op.NORM, _pass(n, P), sink=Sink.ACT, wide=1, y=y, shift=shift,
                            last=int(last), beside=beside, row_beats=hidden // W)
    bench.norm_done, started, count = None, cycles(dut), await bench.saturations()
    started = cycles(dut)
    dut.norm_start.value = 1
    await RisingEdge(dut.clk)
    dut.norm_start.value = 0
    assert await bench.finish() == bench.norm_done
    want, exact = (rmsnorm(residual, sum_of_squares(residual), bench.model["eps"], bench.gamma,
                           shift, bits) for bits in (16, WIDE))
    slots = range((n - 1) // P * P if last else 0, n)
    for s in slots:
        at = s // P * bench.model["block_words"] * W + y
        before[s % P, at:at + hidden] = want[s]
    np.testing.assert_array_equal(bench.act, before)
    # hidden / norm_width cycles a token, no gap between tokens.
    first = started + bench.unit.norm_latency
    assert bench.norm_done - first == len(slots) * hidden // config.norm_width - 1
    saturated = (want != exact)[list(slots)].sum()
    assert await bench.saturations() - count == saturated
    return saturated


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def embed_norm_and_residual(dut):
    bench, config, rng = await _prepared(dut)
    P, hidden = config.P, bench.model["hidden"]
    saturated = 0
    for n, gaps in ((2 * P + 3, False), (P, True), (1, False)):
        residual = await _embed(bench, n, await _embed(bench, n))
        saturated += await _norm(bench, residual, shift=12)     # some are for certain
        p = _pass(n, P)
        for big in (12, 26):
            await bench.instruction(Op.LINEAR, p, sink=Sink.RESIDUAL, stats=1)
            items, y = bench.rows(hidden, range(p["nb"]), 8, bits=big, gaps=gaps)
            await bench.results(items)
            last = await bench.finish()
            assert last - bench.last_result == bench.latency(Sink.RESIDUAL)
            residual = add_residual(residual, y.reshape(-1, hidden)[:n])
            saturated += await _norm(bench, residual)
            # Beside the residual nothing is added, and the residual stays; a head, or all.
            for count in (config.W, 48):
                await bench.instruction(Op.LINEAR, p, sink=Sink.BESIDE, stats=1)
                items, y = bench.rows(count, range(p["nb"]), 8, bits=big, gaps=gaps)
                await bench.results(items)
                last = await bench.finish()
                assert last - bench.last_result == bench.latency(Sink.BESIDE)
                values = add_residual(0, y.reshape(-1, count)[:n])
                saturated += await _norm(bench, values, beside=1, last=count == 48)
            await bench.instruction(Op.LINEAR, p, sink=Sink.RESIDUAL, stats=1)
            items, y = bench.rows(hidden, range(p["nb"]), 8, bits=big, gaps=gaps)
            await bench.results(items)
            await bench.finish()
            residual = add_residual(residual, y.reshape(-1, hidden)[:n])
        saturated += await _norm(bench, residual, last=True)
    assert saturated > 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(gaps=[False, True])
async def plain_rows(dut, gaps):
    bench, config, rng = await _prepared(dut)
    P = config.P
    n, total = P + 2, 0
    for sink, size, bits in ((Sink.ACT, 16, 14), (Sink.ACT, 8, 6), (Sink.SCRATCH, 8, 6)):
        await bench.instruction(Op.LINEAR, _pass(n, P), sink=sink, wide=int(size == 16), y=9,
                                shift=5)
        items, y = bench.rows(14, range(2), 6, bits=bits, gaps=gaps)
        await bench.results(items)
        last = await bench.finish()
        assert last == bench.last_write == bench.last_result + bench.latency(sink)
        want = saturate(y, size)
        for block in range(2):
            np.testing.assert_array_equal(bench.found(sink, block, 9, 14), want[block])
        assert bench.written == want.size
        total += (want != y)[bench.exists(range(2))].sum()
    assert await bench.saturations() == total > 0
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    assert await bench.saturations() == 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def rows_of_a_table_to_activations(dut):
    """EMBED to activations: token after token, a result a cycle in one lane."""
    bench, config, rng = await _prepared(dut)
    P, count = config.P, 14
    n = P + 2
    await bench.instruction(Op.EMBED, _pass(n, P), sink=Sink.ACT, wide=1, y=9, shift=5)
    items, y = bench.rows(count, range(2), count, bits=14, gaps=False)
    items = [i | {"kind": Kind.TOKEN} for i in items
             if isinstance(i, dict) and i["to"]["block"] * P + i["lane"] < n]
    await bench.results(sorted(items, key=lambda i: (i["to"]["block"], i["lane"],
                                                     i["to"]["element"])))
    last = await bench.finish()
    assert last == bench.last_write == bench.last_result + bench.latency(Sink.ACT)
    want, there = saturate(y, 16), bench.exists(range(2))
    for block in range(2):
        np.testing.assert_array_equal(bench.found(Sink.ACT, block, 9, count)[there[block]],
                                      want[block][there[block]])
    assert bench.written == n * count
    assert await bench.saturations() == (want != y)[there].sum() > 0


async def _angles(bench):
    """Fill the RoPE memory; cos, sin[pair]."""
    dut, pairs = bench.dut, 2 * bench.config.P << bench.model["head_log2"] - 1
    cos, sin = bench.rng.integers(-2**14, 2**14 + 1, (2, pairs))
    dut.rope__valid.value = 1
    for at in range(pairs):
        dut.rope__addr.value = at
        dut.rope__cos.value, dut.rope__sin.value = int(cos[at]), int(sin[at])
        await RisingEdge(dut.clk)
    dut.rope__valid.value = 0
    return cos, sin


def _made(pair, fn, rows, shift, bits, angles):
    """What becomes of rows[block, lane, 32], saturated to so many bits."""
    even, odd = rows[..., ::2], rows[..., 1::2]
    if pair == Pair.GLU:
        return glu(fn, even, odd, shift, bits)
    if pair == Pair.NONE:
        return alone(fn, rows, shift, bits) if fn else saturate(rows, bits)
    half = len(angles[0]) // (rows.shape[0] * rows.shape[1])
    at = np.arange(rows[..., 0].size).reshape(*rows.shape[:2], 1) * half + np.arange(16) % half
    return np.stack(rope(even, odd, *(each[at] for each in angles), shift, bits), -1) \
        .reshape(rows.shape)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(gaps=[False, True])
async def pairs_of_rows(dut, gaps):
    bench, config, rng = await _prepared(dut)
    P, angles = config.P, await _angles(bench)
    blocks, total = range(2), 0
    # Functions as gates and alone in turn; some results are saturated for certain.
    of_functions = [(sink, pair, fn, shift + 8 * (sink == Sink.SCRATCH),
                     8 if sink == Sink.SCRATCH else 16, 17)
                    for k, fn in enumerate(FUNCTIONS, int(rng.integers(2)))
                    for pair, shift in [((Pair.GLU, 13), (Pair.NONE, 1))[k % 2]]
                    for sink in [Sink(rng.choice([Sink.ACT, Sink.SCRATCH]))]]
    for sink, pair, fn, shift, size, bits in (
            (Sink.ACT, Pair.ROPE, Fn.NONE, 14, 16, 14),
            (Sink.SCRATCH, Pair.ROPE, Fn.NONE, 21, 8, 14), *of_functions):
        await bench.instruction(Op.LINEAR, _pass(2 * P - 1, P), sink=sink, pair=pair, fn=fn,
                                wide=int(size == 16), y=6, shift=shift)
        items, rows = bench.rows(32, blocks, 8, bits=bits, gaps=gaps)
        await bench.results(items)
        last = await bench.finish()
        assert last == bench.last_write == bench.last_result + bench.latency(sink, pair, fn)
        want, exact = (_made(pair, fn, rows, shift, limit, angles) for limit in (size, WIDE))
        total += (want != exact)[bench.exists(blocks)].sum()
        assert await bench.saturations() == total
        for block in blocks:
            np.testing.assert_array_equal(bench.found(sink, block, 6, want.shape[-1]), want[block])
        assert bench.written == want.size
    assert total > 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(way=["plain", "rotate", "gate"])
async def one_way_many_destinations(dut, way):
    """Pairs of rows of three instructions in any order, without a gap: each goes where it says."""
    bench, config, rng = await _prepared(dut)
    P, angles = config.P, await _angles(bench)
    pieces, wanted, order = [], [], []
    for k, (sink, pair, fn, shift, bits) in enumerate({
            "plain": ((Sink.ACT, Pair.NONE, Fn.NONE, 0, 16), (Sink.ACT, Pair.NONE, Fn.NONE, 0, 8),
                      (Sink.SCRATCH, Pair.NONE, Fn.NONE, 0, 8)),
            "rotate": ((Sink.ACT, Pair.ROPE, Fn.NONE, 14, 16),
                       (Sink.ACT, Pair.ROPE, Fn.NONE, 19, 8),
                       (Sink.SCRATCH, Pair.ROPE, Fn.NONE, 21, 8)),
            "gate": ((Sink.ACT, Pair.GLU, Fn.SILU, 11, 16), (Sink.ACT, Pair.NONE, Fn.TANH, 9, 8),
                     (Sink.SCRATCH, Pair.NONE, Fn.GELU, 8, 8))}[way]):
        y = 6 + 40 * k
        await bench.instruction(Op.LINEAR, _pass(2 * P - 1, P), sink=sink, pair=pair, fn=fn,
                                wide=int(bits == 16), y=y, shift=shift)
        items, rows = bench.rows(32, range(2), 8, bits=14, gaps=False)
        size = 2 * (P + len(bench.apart))
        pieces.append([items[at:at + size] for at in range(0, len(items), size)])
        order += [k] * len(pieces[-1])
        want, exact = (_made(pair, fn, rows, shift, limit, angles) for limit in (bits, WIDE))
        wanted.append((sink, y, want, (want != exact)[bench.exists(range(2))].sum()))
    rng.shuffle(order)
    await bench.results([item for k in order for item in pieces[k].pop(0)])
    assert await bench.finish() == bench.last_write
    for sink, y, want, _ in wanted:
        for block in range(2):
            np.testing.assert_array_equal(bench.found(sink, block, y, want.shape[-1]), want[block])
    assert bench.written == sum(want.size for _, _, want, _ in wanted)
    assert await bench.saturations() == sum(count for *_, count in wanted) > 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def logits_of_the_last_token(dut):
    """Of a pass; or of each token of its last block."""
    bench, config, rng = await _prepared(dut)
    P = config.P
    for n in (1, P - 1, P, P + 1, 3 * P - 1):
        p = _pass(n, P)
        for each, only in product((0, 1), (0, 1)):      # with rows of the blocks before, too
            cap = int(rng.choice([0, 1, 61440, 65535])) if config.softcap else 0
            await bench.instruction(Op.LINEAR, p | {"each": each}, sink=Sink.LOGIT, last=only,
                                    **dict(fn=Fn.TANH, mant=cap) if cap else {})
            bench.logits.clear()
            blocks = range(p["nb"] - 1 if only else 0, p["nb"])
            items, y = bench.rows(10, list(blocks), 4, bits=18 if cap else 34, gaps=True)
            y = softcap(y, cap) if cap else y
            await bench.results(items)
            finished = await bench.finish() + 1
            assert bench.written == 0
            last = (n - 1) % P
            assert bench.logits == [(r, y[-1, lane, r]) for r in range(10)
                                    for lane in range(0 if each else last, last + 1)]
            assert bench.last_write - bench.last_result <= bench.latency(Sink.LOGIT)
            assert bench.last_write < finished


def _attention(bench, blocks, mant, shift):
    """Rows of SUM and DRAIN -> (items, y[block, lane, row]); a row of elements has one for each
    lane of a head."""
    instr = bench.instr
    config, rng, dim = bench.config, bench.rng, 1 << bench.model["head_log2"]
    P, each, paired = config.P, 1, {}
    if config.lane_pairs:
        each, paired = config.sv_cycles if instr["add"] else 1, {"paired": instr["add"]}
    y, items = np.zeros((len(blocks), P, dim // each), np.int64), []
    for at, block in enumerate(blocks):
        total = rng.integers(2**15, 2**rng.integers(16, 28), P)
        sums = [dict(acc=int(total[k]), lane=k, kind=Kind.SUM,
                     to=dict(block=block, element=mant, by=shift)) for k in range(P)]
        gap = bench.unit.sum_gap
        items += [*sums, *[gap - P] * (P < gap)]
        scale, down = output_scale(total, mant, shift)
        for row in range(dim // each):
            acc = rng.integers(-128, 128, P) * total + rng.integers(-2**15, 2**15, P)
            y[at, :, row] = requant(acc, scale, down)
            to = dict(sink=Sink.ACT, wide=1, block=block, element=instr["y"] + row * each,
                      heads=instr["heads"], to_lane=max(instr["lanes"] - 1, 0), **paired)
            items += [dict(acc=int(acc[k]), lane=k, kind=Kind.DRAIN, add=1, to=to,
                           scale=dict(mant=1, shift=2, bias=3)) for k in range(P)]
            items += bench.apart
    return items, y


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(head_log2=[4, 8])
async def attention_output(dut, head_log2):
    bench, config, rng = await _prepared(dut, head_log2=head_log2, block_words=70)
    P, W, dim = config.P, config.W, 1 << bench.model["head_log2"]
    total = 0
    for shift in (0, 5, 63):
        mant = int(rng.integers(2**15, 2**16))
        await bench.instruction(Op.SV, _pass(2 * P, P), sink=Sink.ACT, wide=1, y=3, mant=mant,
                                shift=shift, lanes=P)
        items, y = _attention(bench, range(2), mant, shift)
        await bench.results(items)
        last = await bench.finish()
        assert last == bench.last_write == bench.last_result + bench.latency(Sink.ACT)
        want = saturate(y, 16)
        for block in range(2):
            at = block * bench.model["block_words"] * W + 3
            np.testing.assert_array_equal(bench.act[:, at:at + dim], want[block])
        total += (want != y).sum()
    assert await bench.saturations() == total


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(head_log2=[4, 8])
async def lanes_are_heads(dut, head_log2):
    bench, config, rng = await _prepared(dut, head_log2=head_log2)
    P, half, dim = config.P, 1 << bench.model["head_log2"] - 1, 1 << bench.model["head_log2"]
    cos, sin = await _angles(bench)
    each = config.sv_cycles if config.lane_pairs else 1
    used, total = (P - 1) // each * each, 0
    heads, paired = used // each, int(each > 1)
    most = min(P, (config.act_words * config.W - 2) // dim)     # tokens whose queries there is
    for pair, shift, n in ((Pair.NONE, 0, int(rng.integers(1, most + 1))), (Pair.ROPE, 14, most),
                           (Pair.ROPE, 14, 1))[:3 if head_log2 == 4 else 2]:
        await bench.instruction(Op.LINEAR, _pass(n, P, 77), sink=Sink.ACT, pair=pair, wide=1, y=2,
                                shift=shift, heads=1, lanes=used, add=paired)
        before = bench.act.copy()
        items, rows = bench.rows(heads * dim, [0], dim, bits=14, gaps=False)
        await bench.results(items)
        await bench.finish()
        for token in range(n):          # one behind the other in the lane of each head
            angle = (each[token * half:(token + 1) * half] for each in (cos, sin))
            y, (cos_s, sin_s) = rows[0, token].reshape(heads, dim), angle
            want, exact = (
                saturate(y, limit) if pair == Pair.NONE else np.stack(
                    rope(y[:, ::2], y[:, 1::2], cos_s, sin_s, shift, limit), -1).reshape(heads, dim)
                for limit in (16, WIDE))
            before[:used, 2 + token * dim:2 + (token + 1) * dim] = np.repeat(want, each, 0)
            total += (want != exact).sum()
        np.testing.assert_array_equal(bench.act, before)
        assert await bench.saturations() == total
    for n in (1, P):
        await bench.instruction(Op.SV, _pass(n, P, 77), sink=Sink.ACT, wide=1, y=8, mant=40000,
                                shift=2, heads=1, lanes=used, add=paired)
        tokens = sorted(set(rng.integers(0, n, 3).tolist()))
        before = bench.act.copy()
        items, y = _attention(bench, tokens, 40000, 2)      # a token in the place of a block
        await bench.results(items)
        await bench.finish()
        for found, token in zip(y, tokens):
            want = saturate(found[:used], 16)
            before[token, 8:8 + heads * dim] = np.moveaxis(
                want.reshape(heads, each, -1), 1, 2).reshape(-1)
            total += (want != found[:used]).sum()
        np.testing.assert_array_equal(bench.act, before)
        assert await bench.saturations() == total


@pytest.mark.parametrize("config", CONFIGS)
def test_vector_unit(config, seed):
    simulate(VectorUnit(CONFIGS[config]), __name__, seed=seed, config=config,
             testcase="lanes_are_heads" if config in PAIRS else None)


def test_soft_caps(seed):
    """Of logits; one that has none comes as it is, and as late. No other way changes."""
    config, = CAPPED
    simulate(VectorUnit(CAPPED[config]), __name__, seed=seed, config=config,
             testcase="logits_of_the_last_token")


def test_payload_fits_the_layout():
    layout = Result(CONFIGS["w4p3"])
    bits = pack(layout, acc=-1, lane=2, kind=1, to=dict(element=3, block=2))
    assert unpack(layout, bits)["acc"] == -1
