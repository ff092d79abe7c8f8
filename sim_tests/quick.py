"""A bench for small blocks, in Amaranth's own simulator: nothing to build, over in seconds."""
from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator


def run(block: Elaboratable, *benches: Callable[[Any], Coroutine[Any, Any, None]],
        cycles: int = 100_000) -> None:
    """Simulate a block until all its benches have ended; an AssertionError if they do not."""
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench)

    async def watchdog(ctx) -> None:
        await ctx.delay(cycles * 1e-6)
        raise AssertionError(f"no end after {cycles} cycles")
    simulator.add_testbench(watchdog, background=True)
    simulator.run()
