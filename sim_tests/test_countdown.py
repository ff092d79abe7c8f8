"""Countdowns against a count: loads and steps in any order, flags right in every cycle."""
import random

import pytest
from amaranth import ClockDomain, Module, Signal, signed
from amaranth.sim import Simulator
from meadowlark_hdl.lib.countdown import Countdown


def run(count_of, model, *, seed, all_steps=False):
    """Compare with ``model(count)`` -> {flag: value} over random loads, steps and resets."""
    rng = random.Random(seed)
    m, value = Module(), Signal(4)
    load, step, rst = Signal(), Signal(), Signal()
    m.domains.sync = domain = ClockDomain()
    m.d.comb += domain.rst.eq(rst)
    counter = count_of(m)
    with m.If(step):
        m.d.sync += counter.step()
    with m.If(load):
        m.d.sync += counter.load_all(value) if all_steps else counter.load(value)
    simulator = Simulator(m)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        steps = 0
        for _ in range(400):
            wanted = model(steps)
            assert {name: ctx.get(getattr(counter, name)) for name in wanted} == wanted
            given, loads = rng.randrange(1 if all_steps else 0, 16), rng.random() < 0.2
            takes, restarts = bool(steps) and rng.random() < 0.8, rng.random() < 0.02
            ctx.set(value, given)
            ctx.set(load, loads)
            ctx.set(step, takes)
            ctx.set(rst, restarts)
            await ctx.tick()
            steps = 0 if restarts else given if loads else steps - takes
    simulator.add_testbench(bench)
    simulator.run()


def test_all_flags(seed):
    run(lambda m: Countdown(m, 4, name="count"),
        lambda n: {"left": n, "last": n == 1, "some": n != 0}, seed=seed)


def test_without_last(seed):
    run(lambda m: Countdown(m, range(16), name="count", last=False),
        lambda n: {"left": n, "some": n != 0}, seed=seed)


def test_those_behind(seed):
    """With ``load_all`` the count includes the next step; a last one is followed by a load."""
    run(lambda m: Countdown(m, 4, name="count", behind=True),
        lambda n: {"left": n - 1, "last": n == 1} if n else {}, seed=seed, all_steps=True)


def test_loads_of_those_behind():
    m, load, step = Module(), Signal(), Signal()
    count = Countdown(m, 4, name="count", behind=True)
    with m.If(load):
        m.d.sync += count.load(2)
    with m.Elif(step):
        m.d.sync += count.step()
    simulator = Simulator(m)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        ctx.set(load, 1)
        await ctx.tick()
        ctx.set(load, 0)
        ctx.set(step, 1)
        seen = []
        for _ in range(3):
            seen.append((ctx.get(count.left), ctx.get(count.last)))
            await ctx.tick()
        assert seen == [(2, 0), (1, 0), (0, 1)]
    simulator.add_testbench(bench)
    simulator.run()


def test_what_the_caller_knows():
    m, known = Module(), Signal()
    count = Countdown(m, 4, name="count")
    m.d.sync += count.load(5, last=known, some=known)
    simulator = Simulator(m)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        for value in (1, 0):
            ctx.set(known, value)
            await ctx.tick()
            assert [ctx.get(s) for s in (count.left, count.last, count.some)] == [5, value, value]
    simulator.add_testbench(bench)
    simulator.run()


def test_errors():
    with pytest.raises(ValueError, match="^shape must be unsigned, not signed"):
        Countdown(Module(), signed(4), name="count")
    with pytest.raises(ValueError, match="has no flag but last$"):
        Countdown(Module(), 4, name="count", behind=True, last=False)
    assert not hasattr(Countdown(Module(), 4, name="count", behind=True), "some")
