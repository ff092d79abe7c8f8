"""ResultJoin: each result once, whole, after its time."""
import random

from amaranth import Shape
from amaranth.sim import Simulator
from meadowlark_hdl.config import Config
from meadowlark_hdl.issue.result_join import ResultJoin

CONFIG = Config(W=4, P=4, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32, tile_rows=8)


def test_result_join(seed):
    join, rng = ResultJoin(CONFIG), random.Random(seed)
    bits = Shape.cast(join.result.payload.shape()).width
    simulator = Simulator(join)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        due = {}
        for t in range(400):
            for port, later in ((join.engine, 1), (join.element, 2)):
                valid = t % 100 < 90 and t + later not in due and rng.random() < 0.6
                value = rng.getrandbits(bits)           # also where nothing is valid
                ctx.set(port.valid, valid)
                ctx.set(port.payload.as_value(), value)
                if valid:
                    due[t + later] = value
            assert ctx.get(join.result.valid) == (t in due)
            if t in due:
                assert ctx.get(join.result.payload.as_value()) == due[t] & (1 << bits) - 1
            await ctx.tick()
        assert len(due) > 200
    simulator.add_testbench(bench)
    simulator.run()
