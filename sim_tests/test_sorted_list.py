"""The sorted list: what it holds after random logits, and in which order it comes round."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import simulate, start, unpack
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.sampler.sorted_list import ENTRY, SortedList


async def clear(dut):
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    await ClockCycles(dut.clk, SortedList.CLEARED - 1)


async def give(dut, logits, gap, first):
    """Each logit is the item next, for 4 cycles at least."""
    seen = []

    async def watch():
        came, stays = 0, 0
        while True:
            await ReadOnly()
            item = unpack(ENTRY, int(dut.item.value))
            if came:
                seen.append(item)
            stays = 3 if came else max(stays - 1, 0)
            assert not stays or item == seen[-1]
            came = int(dut.comes.value)
            await RisingEdge(dut.clk)
    task = cocotb.start_soon(watch())
    for row, value in enumerate(logits, first):
        dut.logit__valid.value, dut.logit__row.value = 1, row
        dut.logit__value.value = int(value) & 0xFFFFFFFF
        await RisingEdge(dut.clk)
        dut.logit__valid.value, dut.logit__row.value = 0, random.getrandbits(19)
        await ClockCycles(dut.clk, gap() - 1)
    await ClockCycles(dut.clk, 5 + SortedList(int(os.environ["TOPK"])).SETTLED)
    task.cancel()
    assert seen == [dict(token=k, key=int(v) + 2**31, held=1) for k, v in enumerate(logits, first)]


async def turns(dut, count):
    """Tokens that the ring shows at so many of its places; None: nothing."""
    found = []
    for _ in range(count):
        dut.turn.value = 1
        await RisingEdge(dut.clk)
        dut.turn.value = 0
        await RisingEdge(dut.clk)
        await ReadOnly()
        entry = unpack(ENTRY, int(dut.item.value))
        found.append(entry["token"] if entry["held"] else None)
        await RisingEdge(dut.clk)
    return found


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(kind=["wide", "few", "equal", "rising", "falling"])
async def keeps_the_largest_in_order(dut, kind):
    topk = int(os.environ["TOPK"])
    places = SortedList(topk).places
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for k in range(25):
        length = int(rng.choice([1, topk, topk + 1, int(rng.integers(1, 2 * topk + 9))]))
        x = np.arange(length)
        logits = {"wide": rng.integers(-2**31, 2**31, length), "few": rng.integers(-2, 3, length),
                  "equal": 0 * x, "rising": x - 5, "falling": 5 - x}[kind]
        base = random.choice([0, (1 << Config.TOKEN_BITS) - length])
        await clear(dut)
        await give(dut, logits, [lambda: 4, lambda: random.randrange(4, 12)][k % 2], base)
        await ReadOnly()
        assert int(dut.count.value) == min(length, topk)
        await RisingEdge(dut.clk)
        dut.ring.value = 1
        await ClockCycles(dut.clk, 3)
        want = [*base + np.argsort(-logits, kind="stable")[:topk]][::-1]
        first, again = await turns(dut, places), await turns(dut, places)
        assert [token for token in first if token is not None] == want
        assert again == first
        dut.ring.value = 0


@pytest.mark.parametrize("topk", [1, 8, 20])
def test_sorted_list(seed, topk):
    simulate(SortedList(topk), __name__, seed=seed, topk=topk)
