"""Saturation against the golden model, at once and in parts."""
import random

import pytest
from amaranth import Module, Signal, signed
from amaranth.sim import Simulator
from meadowlark_hdl import fixed
from meadowlark_hdl.lib.saturate import beyond, limit, saturate


@pytest.mark.parametrize("width, bits", [(2, 2), (9, 8), (20, 16), (20, 2), (40, 27)])
def test_saturate(width, bits, seed):
    rng = random.Random(seed)
    m = Module()
    value = Signal(signed(width))
    over, negative, kept = Signal(), Signal(), Signal(signed(bits))     # the parts, a cycle later
    at_once, late = Signal(signed(bits)), Signal(signed(bits))
    m.d.sync += [over.eq(beyond(value, bits)), negative.eq(value[-1]), kept.eq(value)]
    m.d.comb += [at_once.eq(saturate(value, bits)),
                 late.eq(saturate(kept, bits, over=over, negative=negative))]
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    top = 1 << bits - 1
    edges = [at + by for at in (0, -top, top, -(1 << width - 1), (1 << width - 1) - 1)
             for by in (-2, -1, 0, 1, 2)]
    values = [v for v in edges if -(1 << width - 1) <= v < 1 << width - 1]
    values += [rng.randrange(-(1 << width - 1), 1 << width - 1) for _ in range(100)]

    async def bench(ctx):
        for v in values:
            ctx.set(value, v)
            assert ctx.get(at_once) == fixed.saturate(v, bits)
            await ctx.tick()
            ctx.set(value, ~v)          # the parts are of the cycle before
            assert ctx.get(late) == fixed.saturate(v, bits)
            assert ctx.get(over) == (v != fixed.saturate(v, bits))
    simulator.add_testbench(bench)
    simulator.run()


def test_limit():
    m, negative, o = Module(), Signal(), Signal(signed(8))
    m.d.comb += o.eq(limit(negative, 8))
    simulator = Simulator(m)

    async def bench(ctx):
        assert ctx.get(o) == 127
        ctx.set(negative, 1)
        assert ctx.get(o) == -128
    simulator.add_testbench(bench)
    simulator.run()


def test_one_bit_has_no_sign():
    with pytest.raises(ValueError, match="^bits must be at least 2, not 1$"):
        saturate(Signal(signed(4)), 1)
