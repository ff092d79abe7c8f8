"""TileBuffer: two halves, replay while the other fills, latency and hand-over to the cycle."""
import os
import random

import cocotb
import pytest
from bench import cycles, flush, pack, simulate, start, unpack
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.signatures import Beat, DecoderItem, RowScale
from meadowlark_hdl.weights.tile_buffer import TileBuffer

SIZES = {"P": 4, "bus_bytes": 1, "tile_beats": 32, "tile_rows": 8}


def random_tile(c: Config, rows=None, beats=None):
    """-> (scales, beats)"""
    rows = random.choice([0, 1, c.tile_rows, random.randint(0, c.tile_rows)]) \
        if rows is None else rows
    beats = random.choice([1, 2, c.tile_beats, random.randint(1, c.tile_beats)]) \
        if beats is None else beats
    return ([{"mant": random.getrandbits(16), "shift": random.getrandbits(6),
              "bias": random.randrange(-2**31, 2**31)} for _ in range(rows)],
            [[random.choice([-2**17, 2**17 - 1, random.randrange(-2**17, 2**17)])
              for _ in range(c.W)] for _ in range(beats)])


def items(tile):
    scales, beats = tile
    group = len(beats[0]) // 4          # of W / 4 rows; the last one may have fewer
    return [*({"is_scale": 1, "scales": scales[i:i + group]
               + [{"mant": 1, "shift": 2, "bias": 3}] * (group - len(scales[i:i + group]))}
              for i in range(0, len(scales), group)),
            *({"beat": b, "last": int(i == len(beats) - 1)} for i, b in enumerate(beats))]


async def fill(dut, c, tiles, stall=0.0, times=None):
    """Sends tiles as the decoder does: each one when a half is free for it."""
    clock, settled = RisingEdge(dut.clk), ReadOnly()
    free = 2

    async def next_cycle():
        nonlocal free
        await settled
        free += int(dut.i__freed.value).bit_count()
        await clock
    for tile in tiles:
        while not free:
            await next_cycle()
        free -= 1
        for item in items(tile):
            while stall and random.random() < stall:
                dut.i__valid.value = dut.i__payload.value = 0
                await next_cycle()
            dut.i__valid.value, dut.i__payload.value = 1, pack(DecoderItem(c), **item)
            if times is not None:
                times.append(cycles(dut))
            await next_cycle()
        dut.i__valid.value = dut.i__payload.value = 0


class Engine:
    """Reads at random addresses, one a cycle, and compares 2 cycles later."""

    def __init__(self, dut, c):
        self.dut, self.c, self.expect, self.half = dut, c, [], 0

    async def step(self, tile=None, release=False):
        """One cycle; with a tile, reads something of it in the front half, else of either half.

        Returns whether the front half was available; after a release the other one is.
        """
        dut, c = self.dut, self.c
        beat, scale = random.randrange(c.tile_beats), random.randrange(c.tile_rows)
        want_beat = want_scale = None
        if tile is not None:
            beat = random.randrange(len(tile[1]))
            want_beat = tile[1][beat]
            if tile[0]:
                scale = random.randrange(len(tile[0]))
                want_scale = tile[0][scale]
        half = self.half if tile is not None else random.randrange(2)
        dut.read__beat_addr.value = beat + half * c.tile_beats
        dut.read__scale_addr.value = scale + half * c.tile_rows
        dut.read__release.value = int(release) << self.half
        self.expect.append((want_beat, want_scale))
        await ReadOnly()
        available = bool(int(dut.read__available.value) >> self.half & 1)
        if len(self.expect) > 2:
            want_beat, want_scale = self.expect.pop(0)
            if want_beat is not None:
                assert unpack(Beat(c), int(dut.read__beat.value)) == want_beat
            if want_scale is not None:
                assert unpack(RowScale(), int(dut.read__scale.value)) == want_scale
        await RisingEdge(dut.clk)
        dut.read__release.value = 0
        self.half ^= release
        return available

    async def available(self):
        while not await self.step():
            pass


def config() -> Config:
    return Config(W=int(os.environ["W"]), **SIZES)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4], replay=[0, 3, 60])
async def tiles_in_order(dut, stall, replay):
    """replay: cycles of reading a tile; the release comes with the last one."""
    c = config()
    await start(dut)
    tiles = [random_tile(c) for _ in range(24)]
    cocotb.start_soon(fill(dut, c, tiles, stall))
    engine = Engine(dut, c)
    for tile in tiles:
        await engine.available()
        for _ in range(replay):
            assert await engine.step(tile)
        await engine.step(tile, release=True)
    await engine.step()
    await engine.step()
    assert not await engine.step()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def hand_over_to_the_cycle(dut):
    c = config()
    await start(dut)
    tiles = [random_tile(c, 2, 4), random_tile(c, 0, 1), random_tile(c, 3, 5)]
    times = []
    cocotb.start_soon(fill(dut, c, tiles, times=times))
    engine = Engine(dut, c)
    first, second, third = (len(items(t)) for t in tiles)
    while len(times) < first:
        assert not await engine.step()
    assert cycles(dut) == times[first - 1] + 1
    assert await engine.step(tiles[0])          # the cycle after the last item was taken
    assert dut.read__available.value == 0b01
    for _ in range(10):
        assert await engine.step(tiles[0])
    # Both halves are full: the third tile has to wait for the release.
    two = first + second
    assert len(times) == two
    released = cycles(dut)
    assert await engine.step(tiles[0], release=True)
    assert await engine.step(tiles[1])          # available at once
    assert await engine.step(tiles[1])
    assert times[two] == released + 2           # and the freed half a cycle later
    for _ in range(20):
        assert await engine.step(tiles[1])
    # One item a cycle while the other half is read.
    assert times[two + third - 1] == times[two] + third - 1
    assert await engine.step(tiles[1], release=True)
    for _ in range(5):
        assert await engine.step(tiles[2])
    assert await engine.step(tiles[2], release=True)
    assert not await engine.step()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flush_empties_both_halves(dut):
    c = config()
    await start(dut)
    for at in range(0, 60, 5):
        tiles = [random_tile(c, 4, 9) for _ in range(4)]
        task = cocotb.start_soon(fill(dut, c, tiles))
        await ClockCycles(dut.clk, 1 + at)
        await flush(dut, [task], i__valid=0, i__payload=0)
        await ReadOnly()
        assert not dut.read__available.value and not dut.i__freed.value
        await RisingEdge(dut.clk)
        engine = Engine(dut, c)
        tiles = [random_tile(c), random_tile(c)]
        cocotb.start_soon(fill(dut, c, tiles))
        for tile in tiles:
            await engine.available()
            for _ in range(9):
                await engine.step(tile)
            await engine.step(tile, release=True)
        dut.i__valid.value = 0


@pytest.mark.parametrize("w", [4, 8, 16])
def test_tile_buffer(w, seed):
    simulate(TileBuffer(Config(W=w, **SIZES)), __name__, seed=seed, w=w)
