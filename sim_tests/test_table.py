"""Table: what was written last, in the cycle of the address and a cycle later."""
import random

import pytest
from amaranth.sim import Simulator
from meadowlark_hdl.lib.table import Table


@pytest.mark.parametrize("depth", [4, 7, 32])
def test_table(depth, seed):
    rng, table, held = random.Random(seed), Table(13, depth), [0] * depth

    async def bench(ctx):
        asked = None
        for _ in range(400):
            at, addr, entry = rng.randrange(depth), rng.randrange(depth), rng.getrandbits(13)
            en = rng.random() < 0.5 and at != addr
            for port, value in ((table.en, en), (table.at, at), (table.entry, entry),
                                (table.addr, addr)):
                ctx.set(port, value)
            assert ctx.get(table.now) == held[addr]
            await ctx.tick()
            asked = held[addr]
            if en:
                held[at] = entry
            ctx.set(table.addr, rng.randrange(depth))       # counts a cycle later
            assert ctx.get(table.data) == asked
    simulator = Simulator(table)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
