"""Sampler equals its golden model, token and CRC, in all modes; the golden model draws fairly."""
import os
import random
from dataclasses import replace
from zlib import crc32

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, RisingEdge, Timer

from bench import cycles, pack, simulate, start
from meadowlark_hdl.config import Config
from meadowlark_hdl.sampler.sampler import Sampler
from meadowlark_hdl.sampler.sampler_golden import (
    Sampling,
    gumbel,
    hash32,
    lane_seed,
    logits_crc,
    noise_key,
    sample,
    scaled,
)
from meadowlark_hdl.signatures import PlaceLayout, RunLayout

CONFIG = Config(W=4, P=int(os.environ.get("LANES", 4)), bus_bytes=2, topk=int(
    os.environ.get("TOPK", 32)), batches=os.environ.get("BATCHES", "1") == "1")
TURNS = CONFIG.turns
EDGES = [0, 1, -1, 2**31 - 1, -2**31, 2**30, -2**30, 4096, -4096]


async def drive(dut, logits, s, position, gap, late, places=(), seeds=()):
    """One head pass; returns (token, crc, cycles from finish to done), or of several rows of logits
    a list of (token, crc). places: positions of the tokens of a batch. seeds: theirs."""
    rows, many = np.atleast_2d(logits).T, np.ndim(logits) > 1
    for slot, place in enumerate(places):
        dut.places__en.value, dut.places__addr.value = 1, slot
        dut.places__data.value = pack(PlaceLayout(), base=random.getrandbits(27), position=place)
        await RisingEdge(dut.clk)
        dut.places__en.value = 0
    for slot, seed in enumerate(seeds):
        dut.seeds__en.value, dut.seeds__addr.value = 1, slot
        dut.seeds__data.value = lane_seed(s.seed, seed)
        await RisingEdge(dut.clk)
        dut.seeds__en.value = 0
    dut.run.value = pack(RunLayout(), inv_t_mant=s.inv_t_mant, inv_t_shift=s.inv_t_shift,
                         top_k=s.top_k, top_p=s.top_p, seed=s.seed, batch=bool(places))
    dut.position.value = position
    if TURNS > 1:
        dut.last.value, dut.turn.value = rows.shape[1] - 1, 0
    dut.start.value = 1
    clock = RisingEdge(dut.clk)
    await clock
    dut.start.value = 0
    await ClockCycles(dut.clk, 15)
    for row, values in enumerate(rows):
        for turn, value in enumerate(values):
            dut.logit__valid.value, dut.logit__row.value = 1, row
            dut.logit__value.value = int(value) & 0xFFFFFFFF
            last = row == len(rows) - 1
            dut.finish.value = int(last and not late and turn == len(values) - 1)
            await clock
        dut.logit__valid.value = 0
        dut.finish.value = 0
        # What stands on the port between logits means nothing
        dut.logit__row.value = dut.logit__value.value = random.getrandbits(19)
        if not last:
            await ClockCycles(dut.clk, gap() + (len(values) - 1) * 4 - len(values))
    if late:
        await ClockCycles(dut.clk, late)
        dut.finish.value = 1
        await clock
        dut.finish.value = 0
    begun = cycles(dut)
    await RisingEdge(dut.done)
    took = cycles(dut) - begun + 1
    if TURNS > 1:                       # until the last logit has taken its turn
        took -= {0: 3, 1: 1}.get(late, 0)
    await Timer(1, "ns")
    first = int(dut.token.value), int(dut.crc.value)
    if not many:
        return *first, took
    drawn = []
    for turn in range(len(logits)):
        dut.turn.value = turn
        await clock
        await Timer(1, "ns")
        drawn.append((int(dut.token.value), int(dut.crc.value)))
    assert drawn[0] == first
    return drawn


def some_logits(rng, kind, count):
    if kind == "normal":
        x = rng.normal(0, 3 * 4096, count)
    elif kind == "wide":
        x = rng.integers(-2**31, 2**31, count)
    elif kind == "edges":
        x = rng.choice(EDGES, count)
    elif kind == "ties":
        x = rng.integers(-2, 3, count) * 1000
    elif kind == "equal":
        x = np.full(count, rng.integers(-2**20, 2**20))
    elif kind == "close":
        x = rng.integers(-40, 40, count) + rng.integers(-2**30, 2**30)
    else:
        x = np.sort(rng.integers(-2**17, 2**17, count))
        x = x if kind == "rising" else x[::-1]
    return np.clip(np.asarray(x), -2**31, 2**31 - 1).astype(np.int64)


KINDS = ["normal", "wide", "edges", "ties", "equal", "close", "rising", "falling"]


def some_sampling(rng, mode, topk):
    if mode == "greedy":
        return Sampling(0, int(rng.integers(32)), int(rng.integers(topk + 1)),
                        int(rng.integers(1 << 16)), int(rng.integers(1 << 32)))
    # Temperatures of users most of the time (0.2 .. 5), anything else otherwise
    if rng.random() < 0.7:
        temperature = float(rng.uniform(0.2, 5))
        scale, shift = np.log2(np.e) / temperature, 0
        while round(scale * 2) < 1 << 16:
            scale, shift = scale * 2, shift + 1
        mant = round(scale)
    else:
        mant, shift = int(rng.integers(1, 1 << 16)), int(rng.integers(32))
    top_k = 0 if mode == "temperature" else int(np.clip(rng.choice(
        [1, 2, topk - 1, topk, rng.integers(1, topk + 1)]), 1, topk))
    top_p = 0
    if mode == "top_p":
        top_p = int(rng.choice([1, 655, 32768, 58982, 62259, 65535, rng.integers(1, 1 << 16)]))
    if mode == "temperature" and rng.random() < 0.2:
        top_p = 1000                    # ignored without top_k
    return Sampling(mant, shift, top_k, top_p, int(rng.integers(1 << 32)))


def done_cycles(s, topk, count):
    """Cycles from finish to done after ``count`` logits, as the docstring of Sampler has them."""
    if not s.inv_t_mant or not s.top_k:
        return Sampler.LATENCY if s.inv_t_mant else Sampler.GREEDY
    ring, drawn = topk + -(-topk // 7), min(s.top_k, count)
    return 130 + 6 * ring + 8 * drawn if s.top_p else 98 + 4 * ring + 4 * drawn


@cocotb.test(timeout_time=200, timeout_unit="ms")
@cocotb.parametrize(mode=["greedy", "temperature", "top_k", "top_p"])
async def equals_the_golden_model(dut, mode):
    topk, count = int(os.environ["TOPK"]), int(os.environ["VECTORS"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED + len(mode))
    await start(dut)
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        length = int(rng.choice([1, 2, 5, topk, topk + 1, 40, rng.integers(1, 80)]))
        logits = some_logits(rng, kind, length)
        s = some_sampling(rng, mode, topk)
        position = int(rng.integers(1 << 13))
        if mode != "greedy" and i % 5 == 0:
            # Scaled by 1/2, where each odd logit is a rounding tie, and the noise taken off before:
            # most draws are ties, and an LSB decides
            s = replace(s, inv_t_mant=1 << 15, inv_t_shift=16)
            noise = gumbel(noise_key(s.seed, position), np.arange(length))
            logits = 2 * (1000 - noise) + rng.integers(-1, 2, size=length)
        if mode == "top_p" and i % 3 == 0 and topk >= 4:
            # The nucleus ends exactly between two of equal weight
            logits = np.full(length, 5)
            s = replace(s, top_k=int(rng.choice([2, 4])), top_p=32768)
        gap = [lambda: 4, lambda: random.choice([4, 4, 5, 6, 7, 8, 9, 12, 13, 20])][i % 2]
        token, crc, took = await drive(dut, logits, s, position, gap, random.choice([0, 0, 1, 30]))
        assert token == sample(logits, s, position), (kind, s, position, list(logits))
        assert crc == logits_crc(logits)
        assert took == done_cycles(s, topk, length)


def all_alike(rng, topk, *, nucleus):
    """So hot that all weights are equal: each entry of the list counts, with top-p its rank too."""
    return Sampling(1, 31, topk, int(rng.integers(1, 1 << 16)) if nucleus else 0,
                    int(rng.integers(1 << 32)))


@cocotb.test(timeout_time=100, timeout_unit="ms")
@cocotb.parametrize(kind=["rising", "falling", "equal", "few", "waves"])
async def a_full_list_keeps_up(dut, kind):
    """Logits 4 cycles apart, each of which goes to the top, to the end, among its equals."""
    topk = int(os.environ["TOPK"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for i in range(40):
        x = np.arange(topk + int(rng.integers(3 * topk + 2)))
        logits = {"rising": x, "falling": -x, "equal": 0 * x, "few": rng.integers(-2, 3, len(x)),
                  "waves": (x % (topk + 3)) * rng.choice([-1, 1])}[kind] * 3 - 7
        s = all_alike(rng, topk, nucleus=i % 2)
        token, _, took = await drive(dut, logits, s, i, lambda: 4, 0)
        assert token == sample(logits, s, i), (s, list(logits))
        assert took == done_cycles(s, topk, len(logits))


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def a_start_leaves_nothing_of_a_full_list(dut):
    """Started anew between the steps of insertions, in a round, while it is cleared."""
    topk = int(os.environ["TOPK"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for i in range(80):
        large = 1000 + np.arange(topk + 20) * rng.choice([-1, 0, 1])
        s = all_alike(rng, topk, nucleus=True)
        pass_ = cocotb.start_soon(drive(dut, large, s, 5, lambda: 4, 0))
        inserting = 16 + 4 * len(large)
        await ClockCycles(dut.clk, random.randrange(inserting - 40, inserting + 200 * (i % 2)))
        pass_.cancel()
        dut.logit__valid.value = dut.finish.value = 0
        for _ in range(random.choice([0, 0, 1, 3])):
            dut.start.value = 1
            await RisingEdge(dut.clk)
            dut.start.value = 0
            await ClockCycles(dut.clk, random.randrange(1, 20))
        small = rng.integers(-5, 5, int(rng.integers(1, topk + 1)))
        token, crc, took = await drive(dut, small, s, i, lambda: 4, 0)
        assert (token, crc) == (sample(small, s, i), logits_crc(small)), (s, list(small))
        assert took == done_cycles(s, topk, len(small))


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def a_start_at_any_time_begins_anew(dut):
    topk = int(os.environ["TOPK"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    for i in range(60):
        mode = ["greedy", "temperature", "top_k", "top_p"][i % 4]
        logits, s = some_logits(rng, "normal", 12), some_sampling(rng, mode, topk)
        pass_ = cocotb.start_soon(drive(dut, logits, s, 5, lambda: 4, 0))
        await ClockCycles(dut.clk, random.randrange(16, 400))
        pass_.cancel()
        dut.logit__valid.value = dut.finish.value = 0
        logits, s = some_logits(rng, "ties", 9), some_sampling(rng, mode, topk)
        token, crc, _ = await drive(dut, logits, s, i, lambda: 4, 0)
        assert (token, crc) == (sample(logits, s, i), logits_crc(logits))


@cocotb.test(timeout_time=50, timeout_unit="ms", skip=TURNS == 1)
@cocotb.parametrize(mode=["greedy", "temperature"], batch=[False, True])
async def tokens_take_turns(dut, mode, batch):
    """Of consecutive positions, or of a batch with any; each has what it would have alone."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED + len(mode) + batch)
    await start(dut)
    for i in range(60):
        shape = int(rng.integers(1, TURNS + 1)), int(rng.choice([1, 2, 5, rng.integers(1, 40)]))
        logits = np.stack([some_logits(rng, KINDS[(i + k) % len(KINDS)], shape[1])
                           for k in range(shape[0])])
        s, position = some_sampling(rng, mode, CONFIG.topk), int(rng.integers((1 << 13) - 32))
        if i % 4 == 0:                  # they differ in nothing but their noise
            logits[:], s = logits[0], replace(s, inv_t_mant=min(s.inv_t_mant, 1), inv_t_shift=31)
        places = rng.integers(0, (1 << 13) - 1, shape[0]).tolist() if batch else []
        seeds = rng.choice([s.seed, 7, 1 << 31], shape[0]).tolist()     # of a batch alone
        gap = [lambda: 4, lambda: random.choice([4, 5, 6, 7, 8, 9, 20])][i % 2]
        drawn = await drive(dut, logits, s, position, gap, random.choice([0, 0, 1, 30]), places,
                            seeds)
        assert drawn == [
            (sample(row, replace(s, seed=seeds[turn]), (places[turn] + position) % (1 << 13))
             if batch else sample(row, s, position + turn), logits_crc(row))
            for turn, row in enumerate(logits)], (s, position, places, seeds)


@pytest.mark.parametrize("topk, lanes, batches", [
    (1, 4, 1), (5, 5, 1), (8, 4, 0), (32, 8, 1)])
def test_sampler(seed, topk, lanes, batches):
    config = CONFIG.replace(topk=topk, P=lanes, batches=bool(batches))
    simulate(Sampler(config), __name__, seed=seed, topk=topk, lanes=lanes, batches=batches,
             vectors=400 if topk == 32 else 150)


# The golden model itself.

def test_crc_is_that_of_zlib():
    logits = np.array([1, -1, 2**31 - 1, -2**31], np.int64)
    assert logits_crc(logits) == crc32(b"".join(int(x).to_bytes(4, "little", signed=True)
                                                for x in logits))


def test_greedy_takes_the_first_of_equals():
    assert sample([1, 5, 5, 4], Sampling(top_k=3, top_p=9), 0) == 1


def test_hash_is_a_bijection_on_a_sample_and_flips_half_the_bits():
    x = np.arange(1 << 18)
    assert len(np.unique(hash32(x))) == len(x)
    for bit in range(18):
        flips = hash32(x) ^ hash32(x ^ (1 << bit))
        ones = sum(int(((flips >> np.uint64(b)) & np.uint64(1)).sum()) for b in range(32))
        assert 0.35 < ones / (32 * len(x)) < 0.65


def test_noise_is_gumbel():
    noise = np.concatenate([gumbel(noise_key(seed, position), np.arange(4096))
                            for seed in (0, 1, 123456789) for position in range(40)]) / 4096
    # -log2(-ln u): Euler's constant / ln 2 and pi / sqrt 6 / ln 2; 491,520 draws
    assert abs(noise.mean() - 0.83275) < 0.02
    assert abs(noise.std() - 1.85034) < 0.02
    for x in (-1.5, 0, 1, 2, 4, 8):
        exact = np.exp(-2.0**-x)
        assert abs((noise <= x).mean() - exact) < 0.005


def test_noise_of_neighbours_is_independent():
    ids = np.arange(512)
    noise = np.array([gumbel(noise_key(7, p), ids) for p in range(512)]) / 4096
    noise -= noise.mean()
    for bit in range(9):                # 262,144 products: standard deviation 0.002
        assert abs((noise * noise[:, ids ^ 1 << bit]).mean() / noise.var()) < 0.01
        assert abs((noise * noise[ids ^ 1 << bit]).mean() / noise.var()) < 0.01
        shift = 1 << bit
        assert abs((noise[:, shift:] * noise[:, :-shift]).mean() / noise.var()) < 0.03


def chi_square(counts, p):
    """Standard deviations by which the statistic is too large (Wilson and Hilferty, 1931)."""
    expected = p * counts.sum()
    assert expected.min() > 5
    df = len(p) - 1
    x = ((counts - expected) ** 2 / expected).sum()
    return ((x / df) ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df))


DRAWS = 8000
LOGITS = np.array([0, 3000, -2500, 6000, 6000, 1, -4000, 8191, 2048, 7000, -6000, 4500] * 3)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k,top_p", [(0, 0), (5, 0), (32, 0), (8, 45000), (32, 60000)])
def test_draws_follow_the_softmax(temperature, top_k, top_p):
    mant, shift = round(np.log2(np.e) / temperature * 2**14), 14
    logits = LOGITS + np.arange(len(LOGITS)) * 3            # no ties
    p = np.exp(logits / 4096 / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p / 65536]] = 0
        p /= p.sum()
    counts = np.zeros(len(p))
    for i in range(DRAWS):
        counts[sample(logits, Sampling(mant, shift, top_k, top_p, 1000 + i % 4), i // 4)] += 1
    assert counts[p == 0].sum() == 0
    rare = (p > 0) & (p * DRAWS < 10)                       # too few for the statistic: together
    common = p * DRAWS >= 10
    groups = [(counts[common], p[common])] + (
        [([counts[rare].sum()], [p[rare].sum()])] if p[rare].sum() * DRAWS > 10 else [])
    counts, p = (np.concatenate(x) for x in zip(*groups, strict=True))
    assert chi_square(counts, p / p.sum()) < 4


def test_scaling_saturates_and_rounds():
    s = Sampling(3, 1)
    assert list(scaled([1, -1, 2**31 - 1, -2**31], s)) == [2, -1, 2**29 - 1, -2**29]
