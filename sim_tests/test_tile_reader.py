"""TileReader: every reader gets the beats of the tile at the front, and of no other."""
import random

import pytest
from amaranth.sim import Simulator
from meadowlark_hdl.compute.lane import BEAT_CYCLE
from meadowlark_hdl.config import Config
from meadowlark_hdl.issue.tile_reader import TileReader

CONFIG = Config(W=4, P=4, bus_bytes=2, act_words=64, score_depth=64, tile_beats=32, tile_rows=8)


class Halves:
    """The tile buffer: which tile, by number, is in each half."""

    def __init__(self, rng):
        self.rng, self.tiles, self.filled = rng, [None, None], 0

    def fill(self):
        """Perhaps; tiles fill the halves in turn."""
        if self.tiles[self.filled % 2] is None and self.rng.random() < 0.5:
            self.tiles[self.filled % 2] = self.filled
            self.filled += 1

    def release(self, bits):
        for k in range(2):
            if bits >> k & 1:
                assert self.tiles[k] is not None, "an empty half is given back"
                self.tiles[k] = None


def run(bench):
    reader = TileReader(CONFIG)
    simulator = Simulator(reader)
    simulator.add_clock(1e-6)

    async def testbench(ctx):
        await bench(ctx, reader)
    simulator.add_testbench(testbench)
    simulator.run()


async def tick(ctx, reader, halves):
    bits = ctx.get(reader.tile.release)
    await ctx.tick()
    halves.release(bits)
    halves.fill()
    ctx.set(reader.tile.available, sum((t is not None) << k for k, t in enumerate(halves.tiles)))


@pytest.mark.parametrize("most", [2, 40])
def test_array(most, seed):
    """Tiles of a few beats and of many, one after the other: in each half the right one is there
    when its address comes, from the first beat to the last."""
    async def bench(ctx, reader):
        rng = random.Random(seed)
        halves, walked, left, due = Halves(rng), 0, 0, {}
        for t in range(800):
            if not left and ctx.get(reader.front) and rng.random() < 0.8:
                left = rng.randrange(1, most)
            beat, row = rng.randrange(CONFIG.tile_beats), rng.randrange(CONFIG.tile_rows)
            ctx.set(reader.control, {"beat": beat, "tile_row": row, "release": left == 1})
            if left:
                # Control is behind one more register of Issue, where cycles begin to count.
                due[t + 1 + BEAT_CYCLE - 3] = walked, beat
                due[-(t + 1)] = walked % 2, row
                left -= 1
                walked += not left
            if t in due:
                tile, beat = due[t]
                assert ctx.get(reader.tile.beat_addr) == tile % 2 * CONFIG.tile_beats + beat
                assert halves.tiles[tile % 2] == tile
            if -t in due:
                half, row = due[-t]
                assert ctx.get(reader.tile.scale_addr) == half * CONFIG.tile_rows + row
            await tick(ctx, reader, halves)
        assert walked > (8 if most > 2 else 30)
    run(bench)


@pytest.mark.parametrize("lent", [0, 1])
def test_others(lent, seed):
    """Beat after beat, or by an address of the vector unit's."""
    async def bench(ctx, reader):
        rng, walked = random.Random(seed), 0
        halves = Halves(rng)
        ctx.set(reader.lent if lent else reader.serial, 1)
        while walked < 20:
            while not ctx.get(reader.front):
                ctx.set(reader.rewind, 1)
                await tick(ctx, reader, halves)
            ctx.set(reader.rewind, 1)
            beat = rng.randrange(CONFIG.tile_beats)
            ctx.set(reader.lent_addr, beat)
            await tick(ctx, reader, halves)
            ctx.set(reader.rewind, 0)
            count = rng.randrange(1, 6)
            for k in range(count):
                at = walked % 2 * CONFIG.tile_beats + (beat if lent else k)
                assert ctx.get(reader.tile.beat_addr) == at and halves.tiles[walked % 2] == walked
                for _ in range(rng.randrange(3)):
                    await tick(ctx, reader, halves)
                    assert ctx.get(reader.tile.beat_addr) == at
                beat = rng.randrange(CONFIG.tile_beats)
                ctx.set(reader.lent_addr, beat)
                ctx.set(reader.next, 1)
                ctx.set(reader.release, k == count - 1)
                await tick(ctx, reader, halves)
                ctx.set(reader.next, 0)
                ctx.set(reader.release, 0)
            walked += 1
    run(bench)
