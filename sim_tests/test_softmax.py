"""SoftmaxUnit equals its golden model: scores, maxima, probabilities, sums, and their cycles."""
import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from bench import simulate, start
from meadowlark_hdl.compute.softmax import SoftmaxUnit
from meadowlark_hdl.compute.softmax_golden import (MASKED, output_scale, probabilities, saturated,
                                                   scores)
from meadowlark_hdl.config import Config

CONFIGS = {"plain": Config(W=8, P=4, bus_bytes=2, score_depth=64)}
CONFIGS["softcap"] = CONFIGS["plain"].replace(softcap=True)
UNITS = {name: SoftmaxUnit(config) for name, config in CONFIGS.items()}
CONFIG = CONFIGS["plain"]
LATENCY = UNITS["plain"].latency            # from r_addr to p


def unit_of(dut):
    """The block that is simulated."""
    return UNITS["softcap" if hasattr(dut, "cap") else "plain"]


async def play(dut, schedule, length):
    """Set inputs by cycle: schedule[cycle] = {name: value}; enables fall back to 0.

    Returns (p, total, saturated) of each cycle.
    """
    seen = []
    for n in range(length):
        values = dict.fromkeys(("w_en", "sum_en", "sum_read"), 0) | schedule.get(n, {})
        for name, value in values.items():
            getattr(dut, name).value = int(value)
        await ReadOnly()
        # Unknown until first written.
        seen.append((dut.p.value, dut.total.value, dut.saturated.value))
        await RisingEdge(dut.clk)
    return seen


def put(schedule, cycle, **values):
    schedule.setdefault(cycle, {}).update(values)


async def block(dut, acc, shift, masked, *, base, number, gap, used=1, cap=0):
    """Write a row of scores (one every ``gap`` cycles), read it back as probabilities, at the rate
    that the sum of one block allows.

    Returns the probabilities, their sum, and which scores were reported as saturated.
    """
    schedule: dict = {}
    unit = unit_of(dut)
    put(schedule, 0, shift=shift, **({"cap": cap} if hasattr(dut, "cap") else {}))
    at = [gap * i for i in range(len(acc))]
    for i, cycle in enumerate(at):
        put(schedule, cycle, acc=acc[i])
        put(schedule, cycle + unit.write_latency, w_en=1, w_addr=base + i,
            w_masked=masked[i], w_used=used, w_first=i == 0, block=number)
    read = at[-1] + unit.turn                   # the earliest one
    for i, cycle in enumerate(range(read, read + 2 * len(acc), 2)):
        put(schedule, cycle, r_addr=base + i)
        put(schedule, cycle + 1, block=number)
        put(schedule, cycle + LATENCY - 1, sum_en=1, sum_keep=i != 0,
            sum_block=number)
    end = read + 2 * len(acc) + LATENCY - 1
    put(schedule, end, sum_read=1, sum_block=number)
    seen = await play(dut, schedule, end + 2)
    first = read + LATENCY
    late = unit.write_latency + SoftmaxUnit.SATURATED_LATENCY
    reported = [bool(seen[cycle + late][2]) for cycle in at]
    assert sum(int(s) for _, _, s in seen[late:]) == sum(reported), "reported in another cycle"
    return [int(p) for p, _, _ in seen[first:first + 2 * len(acc):2]], int(seen[end + 1][1]), \
        reported


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(gap=[1, 3])
async def matches_golden(dut, gap):
    await start(dut)
    rng = np.random.default_rng(random.randrange(2**32))
    edges = [0, 1, -1, 2**44 - 1, -2**44, 2**43, -2**43 - 1]
    for trial in range(40):
        shift = int(rng.choice([0, 1, 2, 5, 8, 13, 20, 26, 47, 63]))
        n = int(rng.integers(1, 17))
        span = min(44, shift + int(rng.integers(6, 18)))
        acc = rng.integers(-2**span, 2**span, n)
        if trial % 4 == 0:
            acc[: min(n, len(edges))] = edges[:n]
        if trial % 4 == 1:                      # ties of the rounding, around the clamps
            half = 1 << shift >> 1
            acc = np.clip((rng.choice([-2**17 - 1, -2**17, -2**17 + 1, 2**17 - 1, 0, 3], n)
                           << min(shift, 26)) + half
                          + rng.integers(-1, 2, n), -2**44, 2**44 - 1)
        if trial % 4 == 2 and shift <= 26:      # probabilities around 2**-15, the smallest ones
            acc = -rng.integers(13 << 10, 19 << 10, n) << shift
            acc[rng.integers(n)] = 0
        masked = rng.random(n) < 0.3
        masked[acc.argmax() if trial % 4 == 2 else rng.integers(n)] = False
        # Half of the blocks, where there is a cap: none, the least, the largest, any.
        cap = 0 if trial % 2 or not hasattr(dut, "cap") else int(rng.choice(
            [1, 36933, 65535, rng.integers(1, 65536)]))
        s = np.where(masked, MASKED, scores(acc, shift, cap))
        p, total = probabilities(s)
        number = int(rng.integers(16))
        base = int(rng.integers(0, CONFIG.score_depth - n + 1))
        used = trial % 5 != 4
        got, got_total, reported = await block(dut, acc.tolist(), shift, masked, base=base,
                                               number=number, gap=gap, used=used, cap=cap)
        np.testing.assert_array_equal(got, p, f"trial {trial}, shift {shift}")
        assert got_total == total
        assert reported == (saturated(acc, shift) & ~masked & used).tolist()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def visible_keys_are_never_taken_for_hidden_ones(dut):
    """At the lower limit a key that is seen keeps its share, and each saturation is told once."""
    await start(dut)
    lowest = -2**17
    for acc, masked in (([lowest] * 5, [0] * 5), ([lowest - 9] * 3 + [-2**44], [0] * 4),
                        ([lowest, lowest + 1, lowest, 7], [0, 0, 0, 1]),
                        ([2**44 - 1, 2**17, 2**17 - 1, lowest], [0] * 4),
                        ([2**17 - 1, lowest + 1], [0, 0]), ([lowest, 5, 2**17], [1, 0, 1])):
        hidden = np.array(masked, bool)
        want = saturated(acc, 0) & ~hidden
        for cap in (0, 36933, 65535) if hasattr(dut, "cap") else (0,):
            p, total = probabilities(np.where(hidden, MASKED, scores(acc, 0, cap)))
            assert await block(dut, acc, 0, masked, base=3, number=2, gap=1, cap=cap) == (
                p.tolist(), total, want.tolist())
            assert total >= 32768
            assert not np.any(p[hidden])
    assert await block(dut, [lowest] * 2, 0, [0, 0], base=0, number=0, gap=2) == (
        [32768] * 2, 65536, [True] * 2)


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(lowest=[False, True])
async def blocks_keep_their_own_maximum_and_sum(dut, lowest):
    """Two blocks' keys in turns, as a tile replayed for the resident blocks brings them, but as
    soon after each other as the tables of maxima and of sums allow. At the lower limit only the
    mask tells a key that is seen from one that is not."""
    await start(dut)
    rng = np.random.default_rng(random.randrange(2**32))
    acc = np.full((2, 12), -2**18) if lowest else rng.integers(-9000, 9000, (2, 12))
    masked = rng.random((2, 12)) < 0.5
    masked[:, 0] = False
    schedule: dict = {}
    unit, cap = unit_of(dut), 0
    if hasattr(dut, "cap"):
        cap = random.choice([0, 36933, 65535])
        put(schedule, 0, cap=cap)
    put(schedule, 0, shift=1)
    order = [(b, k) for turn in range(0, 12, 4) for b in (0, 1) for k in range(turn, turn + 4)]
    for i, (b, k) in enumerate(order):
        put(schedule, i, acc=acc[b, k])
        put(schedule, i + unit.write_latency, w_en=1, w_addr=16 * b + k, w_masked=masked[b, k],
            w_used=1, w_first=k == 0, block=b)
    read = len(order) - 1 + unit.turn
    order = [(b, k) for k in range(12) for b in (0, 1)]         # one probability a cycle
    for i, (b, k) in enumerate(order):
        put(schedule, read + i, r_addr=16 * b + k)
        put(schedule, read + i + 1, block=b)
        put(schedule, read + i + LATENCY - 1, sum_en=1, sum_keep=k != 0, sum_block=b)
    end = read + len(order) + LATENCY - 1
    put(schedule, end, sum_read=1, sum_block=0)
    put(schedule, end + 1, sum_read=1, sum_block=1)
    seen = await play(dut, schedule, end + 3)
    p, total = probabilities(np.where(masked, MASKED, scores(acc, 1, cap)))
    for i, (b, k) in enumerate(order):
        assert int(seen[read + i + LATENCY][0]) == p[b, k]
    assert [int(seen[end + 1][1]), int(seen[end + 2][1])] == total.tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_softmax(sim, seed, name):
    simulate(SoftmaxUnit(CONFIGS[name]), __name__, seed=seed, sim=sim)


def test_golden_against_float():
    """Each probability within 0.14 % and half an LSB; a row's average of values within 0.2 %."""
    rng = np.random.default_rng(1)
    acc = rng.integers(-6000, 6000, (50, 300))
    p, total = probabilities(scores(acc, 0))
    exact = 2.0 ** ((acc - acc.max(axis=1, keepdims=True)) / 1024)
    assert np.all(np.abs(p / 32768 - exact) <= 0.0014 * exact + 2**-16)
    values = rng.integers(-127, 128, (300, 32))
    mean = (p @ values) / total[:, None]
    want = (exact @ values) / exact.sum(axis=1, keepdims=True)
    assert np.abs(mean - want).max() < 0.002 * 127
    mant, shift = output_scale(total, 40000, 20)
    np.testing.assert_allclose(mant * 2.0**-shift, 40000 * 2.0**-20 / total, rtol=2**-13)


def test_golden_scores_stay_above_masked():
    acc = np.array([-2**44, -2**17 - 1, -2**17, -2**17 + 1, 0, 2**17 - 1, 2**17, 2**44 - 1])
    assert scores(acc, 0).tolist() == [-131071] * 4 + [0] + [131071] * 3
    assert saturated(acc, 0).tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert saturated(2 * acc + 1, 1).tolist() == [True] * 2 + [False] * 3 + [True] * 3
    p, total = probabilities(scores(acc[:3], 0))        # a mean of them, not nothing
    assert p.tolist() == [32768] * 3 and total == 3 * 32768


@pytest.mark.parametrize("row", [[5], [MASKED, -131071]])
def test_golden_largest_is_one(row):
    p, total = probabilities(row)
    assert p.max() == 32768 == total
