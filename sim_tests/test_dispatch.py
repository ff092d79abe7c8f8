"""Dispatch: the right walker, once, and retired when all has settled, not a cycle later."""
import random

from amaranth.sim import Simulator
from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Instruction, Op
from meadowlark_hdl.issue.dispatch import Dispatch

CONFIG = Config(W=4, P=4, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32, tile_rows=8)
SETTLE = [{Op.EMBED: 1, Op.ROPE: 9}, {Op.LINEAR: 30}, {Op.QK: 3, Op.SV: 0}, {Op.STORE: 0}]


def run(bench):
    dispatch = Dispatch(CONFIG, settle=SETTLE)
    simulator = Simulator(dispatch)
    simulator.add_clock(1e-6)

    async def testbench(ctx):
        ctx.set(dispatch.idle, (1 << len(SETTLE)) - 1)
        ctx.set(dispatch.drained, 1)
        await ctx.tick()
        await bench(ctx, dispatch)
    simulator.add_testbench(testbench)
    simulator.run()


async def give(ctx, dispatch, pc, **fields):
    """An instruction is taken; returns in the cycle after that."""
    ctx.set(dispatch.instr.payload, {"instr": dict(Instruction(**fields)), "pc": pc})
    ctx.set(dispatch.instr.valid, 1)
    assert ctx.get(dispatch.instr.ready)
    await ctx.tick()
    ctx.set(dispatch.instr.valid, 0)
    assert not ctx.get(dispatch.instr.ready)


def test_each_operator(seed):
    async def bench(ctx, dispatch):
        rng, full = random.Random(seed), (1 << len(SETTLE)) - 1
        work = [(k, op, cycles) for k, walker in enumerate(SETTLE) for op, cycles in walker.items()]
        work.append((None, Op.END, 0))
        for pc in range(60):
            k, op, settle = rng.choice(work)
            heads, n, last = rng.randrange(2), rng.randrange(1, 9), rng.randrange(2)
            nb, words = rng.choice([1, 2, rng.randrange(1, 33)]), rng.randrange(1 << 8)
            ctx.set(dispatch.pass_, {"n": n, "pos0": 0, "nb": nb, "ctx": 9, "final": 0})
            ctx.set(dispatch.model, {"block_words": words})
            await ctx.tick()
            wait, storing = rng.randrange(2), rng.randrange(6)
            ctx.set(dispatch.storing, storing > 0)
            ctx.set(dispatch.drained, 0)
            await give(ctx, dispatch, pc, op=op, heads=heads, shift=pc % 64, last=last, wait=wait)
            wait |= op == Op.END                # for STOREs
            for _ in range(storing if wait else 0):
                assert not ctx.get(dispatch.req) and ctx.get(dispatch.wait_store)
                await ctx.tick()
                assert not ctx.get(dispatch.pass_end) and not ctx.get(dispatch.wait_vector)
            ctx.set(dispatch.storing, not wait)
            assert not ctx.get(dispatch.wait_store)
            if op != Op.QK:                     # waits for the drains, and what is behind them
                for _ in range(rng.randrange(1, 4)):
                    assert not ctx.get(dispatch.req) and ctx.get(dispatch.wait_vector)
                    ctx.set(dispatch.vector_busy, 1)
                    await ctx.tick()
                ctx.set(dispatch.drained, 1)
                assert not ctx.get(dispatch.req) and ctx.get(dispatch.wait_vector)
                ctx.set(dispatch.vector_busy, 0)
                await ctx.tick()
            before = nb - 1 if last and k is not None else 0
            for _ in range(before):             # the blocks before the last are passed over
                assert not ctx.get(dispatch.req)
                await ctx.tick()
            first = dispatch.job.first
            assert [ctx.get(first[name]) for name in ("block", "words", "tokens")] == [
                before, before * words, before * CONFIG.P]
            assert ctx.get(dispatch.req) == (0 if k is None else 1 << k)
            assert ctx.get(dispatch.job.instr.shift) == pc % 64 and ctx.get(dispatch.pc) == pc
            await ctx.tick()
            assert ctx.get(dispatch.lanes) == (CONFIG.P if heads else min(n, CONFIG.P))
            assert ctx.get(dispatch.attending) == (op in (Op.QK, Op.SV))
            assert ctx.get(dispatch.pass_end) == (op == Op.END)
            if k is not None:
                ctx.set(dispatch.idle, full & ~(1 << k))
                for _ in range(rng.randrange(1, 5)):
                    assert not ctx.get(dispatch.req) and not ctx.get(dispatch.wait_vector)
                    await ctx.tick()
                ctx.set(dispatch.idle, full)
            busy = rng.choice([0, settle // 2, settle + 3])
            # What the vector unit says is a cycle old; that it has begun is known while it settles.
            # QK and SV do not ask.
            asks = 1 <= settle <= busy and op not in (Op.QK, Op.SV)
            for t in range((busy + 1 if asks else settle) + 1):
                assert not ctx.get(dispatch.retired) and ctx.get(dispatch.wait_vector)
                ctx.set(dispatch.vector_busy, t < busy)
                await ctx.tick()
            ctx.set(dispatch.vector_busy, 0)
            assert ctx.get(dispatch.retired) and not ctx.get(dispatch.wait_vector)
            assert ctx.get(dispatch.instr.ready)
    run(bench)


def test_unknown_operator_stands():
    async def bench(ctx, dispatch):
        await give(ctx, dispatch, 7, op=15)
        for _ in range(20):
            assert ctx.get(dispatch.bad_op) and not ctx.get(dispatch.req)
            assert not ctx.get(dispatch.retired) and not ctx.get(dispatch.instr.ready)
            await ctx.tick()
        assert ctx.get(dispatch.pc) == 7
    run(bench)
