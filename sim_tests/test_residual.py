"""Residual equals its golden model, sums of squares included, with updates as close as allowed."""
import random

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from bench import simulate, start
from meadowlark_hdl.compute.norm_golden import add_residual, square, sum_of_squares
from meadowlark_hdl.compute.residual import Residual
from meadowlark_hdl.config import Config
from pipelines import through

CONFIG = Config(W=4, P=4, bus_bytes=1, residual_values=1024)
UNIT = Residual(CONFIG)
HIDDEN = 16
SIZES = [0, 1, -1, 2**17 - 1, 2**17, -2**17, -2**17 - 1, 2**22 - 1, 2**22, -2**22, -2**22 - 1,
         2**26 - 1, 2**26, -2**26, -2**26 - 1, 2**31 - 1, -2**31]


async def _update(dut, slot, i, value, *, add, in_order, stats=1):
    at = slot * HIDDEN + i
    for name, v in dict(valid=1, add=add, in_order=in_order, stats=stats, first=i == 0,
                        word=at // 4, element=at % 4, slot=slot, value=int(value)).items():
        getattr(dut, name).value = int(v)
    await RisingEdge(dut.clk)
    dut.valid.value = 0
    # What stands there between updates must not count.
    dut.value.value, dut.slot.value = random.randrange(-2**31, 2**31), random.randrange(128)


async def _check(dut, residual, summed=None):
    """Read everything back, a word and a sum a cycle. summed: what the sums are of, if not of it.
    """
    await ClockCycles(dut.clk, UNIT.latency - 1)
    dut.norm.value = 1
    words = np.arange(residual.size // 4)
    read, = await through(dut, UNIT.cycles["read"], {"read_word": words}, {"read": False})
    got = np.array([int(w) >> 27 * k & 2**27 - 1 for w in read for k in range(4)])
    np.testing.assert_array_equal(got, residual.reshape(-1) % 2**27)
    sums, = await through(dut, Residual.SUM_LATENCY, {"sum_slot": np.arange(len(residual))},
                          {"sum": False})
    assert [int(s) for s in sums] == [int(s) for s in sum_of_squares(
        residual if summed is None else summed)]
    dut.norm.value = 0


def _values(rng, *shape):
    drawn = rng.integers(-2**31, 2**31, shape) >> rng.integers(0, 32, shape)
    return np.where(rng.random(shape) < 0.3, rng.choice(SIZES, shape), drawn)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.3])
async def matches_golden(dut, stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    slots, lanes = 12, CONFIG.P
    await start(dut)
    residual = 0
    for add in (0, 1, 1):                   # as EMBED: one token after the other
        value = _values(rng, slots, HIDDEN)
        for slot in range(slots):
            for i in range(HIDDEN):
                await _update(dut, slot, i, value[slot, i], add=add, in_order=1)
                while random.random() < stall:
                    await RisingEdge(dut.clk)
        residual = summed = add_residual(residual, value)
        await _check(dut, residual)
    for stats in (1, 0, 1):                 # as LINEAR: tile, block, row, lane; 4 cycles a row
        value = _values(rng, slots, HIDDEN)
        for tile in range(0, HIDDEN, 4):
            for block in range(slots // lanes):
                for i in range(tile, tile + 4):
                    for lane in range(lanes):
                        slot = block * lanes + lane
                        await _update(dut, slot, i, value[slot, i], add=1, in_order=0, stats=stats)
                    while random.random() < stall:
                        await RisingEdge(dut.clk)
        residual = add_residual(residual, value)
        summed = residual if stats else summed
        await _check(dut, residual, summed)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def complete_after_the_latency(dut):
    """The last step of an update is the write of its sum, exactly where promised."""
    await start(dut)
    await _update(dut, 5, 0, 9876543, add=0, in_order=1)
    dut.norm.value, dut.sum_slot.value = 1, 5
    for cycle in range(1, UNIT.latency + Residual.SUM_LATENCY + 1):
        await ReadOnly()
        there = int(dut.sum.value) == square(9876543)
        assert there == (cycle == UNIT.latency + Residual.SUM_LATENCY)
        await RisingEdge(dut.clk)


def test_residual(seed):
    simulate(UNIT, __name__, seed=seed)


def test_golden_square_is_close():
    for size in SIZES[:-4]:
        exact = size * size
        assert abs(int(square(size)) - exact) <= exact * 2**-11
