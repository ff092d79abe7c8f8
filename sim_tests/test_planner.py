"""Planner equals its golden model, and takes the cycles that it says."""
import random
from dataclasses import replace

import cocotb
from bench import cycles, pack, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.control.planner import Planner
from meadowlark_hdl.control.sequencer_golden import Pass, context_limit, prompt_passes
from meadowlark_hdl.signatures import ModelLayout

# Small, so that scores, accumulators and context all come into play.
CONFIG = Config(W=8, P=4, bus_bytes=2, context=128, score_depth=256, tile_beats=16, topk=16,
                sv_cycles=2)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def equals_the_golden_model(dut):
    await start(dut)
    limit = context_limit(CONFIG)
    for _ in range(1500):
        model = dict(head_log2=random.randrange(3, 9), blocks=random.randrange(1, 9),
                     group=random.choice([1, 2, 3, random.randrange(1, 64)]))
        position = random.choice([0, random.randrange(limit)])
        remaining = random.choice([1, 4, random.randrange(1, 40), limit])
        remaining = min(remaining, limit - position)
        dut.model.value = pack(ModelLayout, **model)
        dut.position.value, dut.remaining.value = position, remaining
        await RisingEdge(dut.clk)       # what the model allows is there
        dut.start.value, begun = 1, cycles(dut)
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await ReadOnly()
        while not dut.done.value:
            await RisingEdge(dut.clk)
            await ReadOnly()
        took = cycles(dut) - begun
        await RisingEdge(dut.clk)
        dut.position.value = dut.remaining.value = random.getrandbits(13)
        if random.random() < 0.5:       # the plan stands
            await ClockCycles(dut.clk, random.randrange(1, 9))
        await ReadOnly()
        found = Pass(position, int(dut.n.value), int(dut.nb.value), int(dut.ctx.value),
                     int(dut.sub_heads.value), int(dut.sub_blocks.value), True, remaining == 1)
        want = next(prompt_passes(CONFIG, model, position, remaining))
        assert found == replace(want, final=True)
        assert took == Planner.cycles(found, model["group"])
        await RisingEdge(dut.clk)


def test_planner(seed):
    simulate(Planner(CONFIG), __name__, seed=seed)
