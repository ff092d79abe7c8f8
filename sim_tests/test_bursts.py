"""Bursts of random transfers: together they are the transfer, none too long or over a boundary."""
import random

import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator
from meadowlark_hdl.lib.bursts import BurstCutter


@pytest.mark.parametrize("most, aligned", [(1, False), (5, False), (8, False), (8, True),
                                           (128, True)])
def test_bursts(most, aligned, seed):
    rng = random.Random(seed)
    m, address, words = Module(), Signal(12), Signal(10)
    states = [Signal(name=name) for name in ("load", "measure", "cut", "advance")]
    cutter = BurstCutter(m, most=most, address_bits=12, left_bits=10, name="transfer",
                         aligned=aligned)
    for state, statements in zip(states, (
            cutter.load(address, words), cutter.measure() if aligned else [], cutter.cut(),
            cutter.advance()), strict=True):
        with m.If(state):
            m.d.sync += statements
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    load, measure, cut, advance = states

    async def bench(ctx):
        async def do(state):
            ctx.set(state, 1)
            await ctx.tick()
            ctx.set(state, 0)
        sizes = [1, most, most + 1, 2 * most, 1023] + [rng.randrange(1, 1024) for _ in range(6)]
        for size in sizes:
            start = rng.choice([0, most - 1, 4095, rng.randrange(4096)])    # addresses wrap
            ctx.set(address, start)
            ctx.set(words, size)
            await do(load)
            done, final = 0, False
            while not final:
                if aligned:
                    await do(measure)
                await do(cut)
                at, length = ctx.get(cutter.address), ctx.get(cutter.length)
                room = most - (start + done) % most if aligned else most
                assert at == (start + done) % 4096
                assert length == min(size - done, room) == ctx.get(cutter.less_one) + 1
                done += length
                final = bool(ctx.get(cutter.final))
                assert final == (done == size)
                await do(advance)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("most, aligned, says", [
    (0, False, "^most must be at least 1, not 0$"),
    (12, True, "^most must be a power of two, not 12$")])
def test_errors(most, aligned, says):
    with pytest.raises(ValueError, match=says):
        BurstCutter(Module(), most=most, aligned=aligned, address_bits=8, left_bits=4, name="x")
