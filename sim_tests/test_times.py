"""Products by a constant."""
import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator
from meadowlark_hdl.lib.times import times


@pytest.mark.parametrize("factor", [*range(34), 255, 1000])
def test_as_a_product(factor):
    """Of every value, in the same cycle."""
    m, value, product = Module(), Signal(6), Signal(20)
    m.d.comb += product.eq(times(value, factor))

    async def bench(ctx):
        for k in range(64):
            ctx.set(value, k)
            assert ctx.get(product) == factor * k
    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
