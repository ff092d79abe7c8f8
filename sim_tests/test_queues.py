"""Queues: order, room, full and empty, a word a cycle. What `make prove` says for all inputs."""
import random

import cocotb
import pytest
from bench import recv, send, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.lib.queues import Queue, RamQueue, Skid

DEPTH, WIDTH = 8, 12


PAUSES = (("give", "take"), [(0.0, 0.0), (0.0, 0.8), (0.8, 0.0), (0.5, 0.5)])


@cocotb.test()
@cocotb.parametrize(PAUSES)
async def queue(dut, give, take):
    await _in_order(dut, give, take, holds=DEPTH)


@cocotb.test()
@cocotb.parametrize(PAUSES)
async def skid(dut, give, take):
    await _in_order(dut, give, take, holds=2)


async def _in_order(dut, give, take, *, holds):
    """Everything comes out in order, one a cycle; when nobody takes, ``holds`` elements go in."""
    await start(dut)
    values = [random.getrandbits(WIDTH) for _ in range(300)]
    cocotb.start_soon(send(dut, "i", values, give))
    times: list = []
    assert await recv(dut, "o", len(values), take, times=times) == values
    if not give and not take:
        assert times[-1] - times[0] == len(values) - 1
    dut.i__valid.value = 1
    taken = 0
    for _ in range(3 * holds):
        await ReadOnly()
        taken += int(dut.i__ready.value)
        await RisingEdge(dut.clk)
    assert taken == holds and dut.o__valid.value


@cocotb.test()
@cocotb.parametrize(take=[0.0, 0.3, 0.9])
async def ram_queue(dut, take):
    await start(dut)
    values = [random.getrandbits(WIDTH) for _ in range(300)]

    async def give():
        room, left = DEPTH, list(values)
        while left:
            offer = room > 0 and random.random() < 0.9 or (room > 0 and not take)
            dut.i_valid.value, dut.i_data.value = int(offer), left[0]
            await ReadOnly()
            room += int(dut.left.value) - offer
            await RisingEdge(dut.clk)
            if offer:
                left.pop(0)
        dut.i_valid.value = 0

    async def watch():
        inside = 0
        while True:
            await ReadOnly()
            assert not (dut.empty.value and inside)
            inside += int(dut.i_valid.value) - int(dut.o__valid.value and dut.o__ready.value)
            await RisingEdge(dut.clk)
    cocotb.start_soon(watch())
    cocotb.start_soon(give())
    times: list = []
    assert await recv(dut, "o", len(values), take, times=times) == values
    if not take:
        assert times[-1] - times[0] == len(values) - 1
    await ClockCycles(dut.clk, RamQueue.CREDITS)
    assert dut.empty.value


def test_queue(seed):
    simulate(Queue(WIDTH, depth=DEPTH), __name__, seed=seed, testcase="queue")


def test_skid(seed):
    simulate(Skid(WIDTH), __name__, seed=seed, testcase="skid")


def test_ram_queue(seed):
    simulate(RamQueue(WIDTH, depth=DEPTH), __name__, seed=seed, testcase="ram_queue")


@pytest.mark.parametrize("depth", [0, 1, 3, 4.0])
def test_depth_is_a_power_of_two(depth):
    with pytest.raises(ValueError, match="depth must be a power of two of at least 2"):
        RamQueue(4, depth=depth)
