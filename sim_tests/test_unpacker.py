"""Unpacker: equals the golden model, W weights a cycle; corrupt streams end in an error."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import cycles, flush, recv, send, simulate, start
from cocotb.triggers import ClockCycles, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.weights.entropy_golden import pack_entropy
from meadowlark_hdl.weights.meadow_golden import ENTRIES, PACKETS, pack_meadow, reindexed
from meadowlark_hdl.weights.modes import Packing
from meadowlark_hdl.weights.packing_golden import PackingError, Unpacker as Golden
from meadowlark_hdl.weights.unpacker import buses, unpacker

CONFIG = {"P": 8, "tile_beats": 64}


def weights(rng, chunks, W, spread):
    """Bytes of int8 weights, all of them if spread is None."""
    if spread is None:
        return rng.integers(0, 256, (chunks, W)).astype(np.uint8)
    values = np.rint(rng.normal(size=(chunks, W)) * spread)
    return np.clip(values, -127, 127).astype(np.int8).view(np.uint8)


def random_segment(rng, W, kind, tiles, spread):
    """-> (plain chunks, coded chunks of each tile). kind: "entropy", or C of MEADOW's packing."""
    plain = weights(rng, sum(tiles), W, spread)
    spare = int(rng.choice([0, 0, 0, 1, 7, 40]))        # chunks at the end that nobody needs
    lanes = int(os.environ["LANES"])
    if kind == "entropy":
        return plain, pack_entropy(plain, tiles, spare=spare, lanes=lanes)[1]
    while len(reindexed(plain, kind)[0]) > ENTRIES[kind]:
        plain &= plain << 1             # fewer levels
    return plain, pack_meadow(plain, tiles, kind, int(rng.choice(PACKETS)), spare=spare,
                              lanes=lanes)[1]


def kinds():
    return {"entropy": ["entropy"], "meadow": [1, 2, 4],
            "both": ["entropy", 1, 2, 4]}[os.environ.get("MODES", "both")]


def long_steps():
    """C of MEADOW's packing -> chunks of W that a step makes, where these are several."""
    share = int(os.environ.get("W", 1)) // int(os.environ.get("LANES", 1))
    return {kind: kind // share for kind in kinds() if kind != "entropy" and kind > share}


def segments(count, most=40):
    rng = np.random.default_rng(random.getrandbits(32))
    W, out = int(os.environ["W"]), []
    for k in range(count):
        tiles = [4 * int(rng.integers(1, most // 4)) for _ in range(rng.integers(1, 5))]
        spread = [0, 0.3, 2, 10, 36, None][int(rng.integers(6))]
        kind = kinds()[k % len(kinds())]
        out.append((tiles, *random_segment(rng, W, kind, tiles, spread)))
    return out


def whole(raw, W):
    return [int.from_bytes(raw[i:i + W], "little") for i in range(0, len(raw), W)]


async def run(dut, found, stall, times=None, chunk_stall=None, taken=None):
    """Sends segments, checks what they give."""
    W = int(os.environ["W"])
    cocotb.start_soon(send(dut, "tiles", [n for tiles, _, _ in found for n in tiles], stall))
    chunks = [c for _, _, parts in found for part in parts for c in whole(part, W)]
    cocotb.start_soon(send(dut, "i", chunks, stall if chunk_stall is None else chunk_stall,
                           times=taken))
    want = [c for _, plain, _ in found for c in whole(plain.tobytes(), W)]
    got = await recv(dut, "o", len(want), stall, times=times)
    assert got == want, f"chunk {next(i for i in range(len(want)) if got[i] != want[i])}"
    await ClockCycles(dut.clk, 300)         # the checksum of the last one
    assert not dut.error.value


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def matches_golden(dut, stall):
    await start(dut, resume=1)
    await run(dut, segments(12), stall)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def slow_chunks(dut):
    await start(dut, resume=1)
    await run(dut, segments(6), 0.0, chunk_stall=0.75)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.skipif("entropy" not in kinds(), reason="MEADOW's packing keeps no tables")
async def keeps_tables(dut):
    """A segment without tables uses those of the one before."""
    await start(dut, resume=1)
    rng, W = np.random.default_rng(random.getrandbits(32)), int(os.environ["W"])
    plain = weights(rng, 60, W, 20)
    lanes = int(os.environ["LANES"])
    code, first = pack_entropy(plain, [20, 40], lanes=lanes)
    some = rng.permutation(plain.ravel()).reshape(plain.shape)
    _, second = pack_entropy(some, [40, 20], code, keep=True, lanes=lanes)
    await run(dut, [([20, 40], plain, first), ([40, 20], some, second)], 0.0)


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(spread=[36, 10])
async def full_rate(dut, spread):
    """W weights in 0.98 of the cycles (of those in which it may), hand-overs of tiles included."""
    await start(dut, resume=1)
    rng, W = np.random.default_rng(random.getrandbits(32)), int(os.environ["W"])
    for kind in kinds():
        tiles = [128] * (400000 // W // 128 + 1) if os.environ.get("SLOW") else [128] * 40
        plain, parts = random_segment(rng, W, kind, tiles, spread)
        if sum(map(len, parts)) > 0.98 * plain.size:
            continue                        # memory would have to give a chunk every cycle
        times, began = [], cycles(dut)
        await run(dut, [(tiles, plain, parts)], 0.0, times)
        # Without the preamble, of which a tensor has one; here the tensor is short.
        share, steady = len(times) / (times[-1] - began), len(times) / (times[-1] - times[0] + 1)
        cocotb.log.info(f"W {W}, {kind}: {len(times)} chunks, {share:.4f}, steady {steady:.4f}, "
                        f"{8 * sum(map(len, parts)) / plain.size:.3f} bits a weight")
        share_of_lanes = int(os.environ["LANES"]) / W
        pace = share_of_lanes if kind in (2, 4) else 1 / int(os.environ["CYCLES"])
        share_of_buses = int(os.environ["BUSES"]) * 2 / W
        if share_of_buses < 1:              # words may get to the lanes more slowly than that
            pace = min(pace, 0.95 * share_of_buses * plain.size / sum(map(len, parts)))
        if share_of_lanes < 1:              # a register before each chunk: half more than memory
            pace = min(pace, 1.5 * int(os.environ["BUS"]) / W * plain.size / sum(map(len, parts)))
        if share_of_buses * int(os.environ["CYCLES"]) <= 1:
            pace *= 0.85        # buses for 8 bits a weight and no more: lanes wait for each other
        assert steady >= 0.98 * pace


@cocotb.test(timeout_time=40, timeout_unit="ms")
async def corrupt(dut):
    """Every tile gets its chunks, no wrong tensor goes without an error, flush helps."""
    rng, W = np.random.default_rng(random.getrandbits(32)), int(os.environ["W"])
    await start(dut, resume=1)
    for _ in range(int(os.environ.get("FUZZ", 40))):
        tiles, plain, parts = segments(1, 24)[0]
        raw = bytearray(b"".join(parts))
        how = rng.integers(5)
        if how == 0:
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        elif how == 1:
            for _ in range(rng.integers(2, 20)):
                raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        elif how == 2:
            at = int(rng.integers(len(raw)))
            raw[at:at + 32] = rng.bytes(len(raw[at:at + 32]))
        elif how == 3:
            a, b = (int(x) * W for x in rng.integers(len(raw) // W, size=2))
            raw[a:a + W], raw[b:b + W] = raw[b:b + W], raw[a:a + W]
        else:
            raw[:] = rng.bytes(len(raw))
        # Behind the checksum there are zeros, which nobody reads.
        lanes = int(os.environ["LANES"])
        sound = bytes(raw)[:4 - lanes or None] == b"".join(parts)[:4 - lanes or None]
        golden, at, fine = Golden(lanes, W), 0, True
        try:
            for n in tiles:
                at = golden.tile(bytes(raw), at, n)[1]
        except PackingError:
            fine = False
        tasks = [cocotb.start_soon(send(dut, "tiles", tiles)),
                 cocotb.start_soon(send(dut, "i", whole(bytes(raw), W)))]
        got = await recv(dut, "o", sum(tiles))
        await ClockCycles(dut.clk, 300)
        assert bool(dut.error.value) == (not fine) == (not sound)
        assert not sound or got == whole(plain.tobytes(), W)
        await flush(dut, tasks, tiles__valid=0, i__valid=0)
        await RisingEdge(dut.clk)
        assert not dut.error.value
    await run(dut, segments(1), 0.0)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.skipif(not long_steps(), reason="no step makes more than a chunk")
@cocotb.parametrize(behind=[0, 1])
async def part_of_a_step(dut, behind):
    """A tile that is no whole number of steps is an error, the first one or one behind others."""
    rng, W = np.random.default_rng(random.getrandbits(32)), int(os.environ["W"])
    await start(dut, resume=1)
    for kind, chunks in long_steps().items():
        _, parts = random_segment(rng, W, kind, [8, 8, 8], 0.3)
        tiles = [*[8] * behind, 8 - chunks // 2, 8 + chunks // 2]
        raw, golden, at = b"".join(parts), Golden(int(os.environ["LANES"]), W), 0
        with pytest.raises(PackingError):
            for n in tiles:
                at = golden.tile(raw, at, n)[1]
        tasks = [cocotb.start_soon(send(dut, "tiles", tiles)),
                 cocotb.start_soon(send(dut, "i", whole(raw, W)))]
        await recv(dut, "o", sum(tiles))
        assert dut.error.value
        await flush(dut, tasks, tiles__valid=0, i__valid=0)
        await run(dut, segments(1), 0.0)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(behind=[0, 1])
async def more_than_the_segment(dut, behind):
    """A tile with more steps than are left is an error: its chunks as far as they go, then zeros,
    and none is lost where the two meet."""
    rng, W = np.random.default_rng(random.getrandbits(32)), int(os.environ["W"])
    await start(dut, resume=1)
    for kind in kinds():
        plain, parts = random_segment(rng, W, kind, [8] * (behind + 1), 0.3)
        tiles, raw = [*[8] * behind, 8 + 8], b"".join(parts)
        golden, at = Golden(int(os.environ["LANES"]), W), 0
        with pytest.raises(PackingError):
            for n in tiles:
                at = golden.tile(raw, at, n)[1]
        tasks = [cocotb.start_soon(send(dut, "tiles", tiles)),
                 cocotb.start_soon(send(dut, "i", whole(raw, W)))]
        got = await recv(dut, "o", sum(tiles))
        assert dut.error.value and got == whole(plain.tobytes(), W) + [0] * 8
        await flush(dut, tasks, tiles__valid=0, i__valid=0)
        await run(dut, segments(1), 0.0)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def flush_in_mid_segment(dut):
    """Nothing of a segment that was flushed gets into the next, whatever the lanes were doing."""
    await start(dut, resume=1)
    for _ in range(10):
        tiles, _, parts = segments(1)[0]
        chunks = [c for part in parts for c in whole(part, int(os.environ["W"]))]
        tasks = [cocotb.start_soon(send(dut, "tiles", tiles)),
                 cocotb.start_soon(send(dut, "i", chunks))]
        await recv(dut, "o", random.randrange(1, sum(tiles)))
        await ClockCycles(dut.clk, random.randrange(1, 10))
        await flush(dut, tasks, tiles__valid=0, i__valid=0)
        await run(dut, segments(1), 0.0)


@pytest.mark.parametrize("modes, w, bus, cycles", [
    ("both", 4, 4, 1), ("both", 8, 8, 1), ("both", 16, 16, 1), ("both", 32, 32, 1),
    ("both", 8, 4, 2), ("both", 8, 1, 2), ("entropy", 16, 2, 2), ("entropy", 8, 2, 1),
    ("meadow", 8, 8, 1), ("both", 8, 2, 4), ("both", 16, 4, 4), ("entropy", 16, 2, 4)])
def test_unpacker(w, modes, bus, cycles, seed):
    packing = ~Packing(0) if modes == "both" else Packing[modes.upper()]
    config = Config(W=w, bus_bytes=bus, unpack_cycles=cycles, packing=packing.value, **CONFIG)
    simulate(unpacker(config), __name__, seed=seed, w=w, modes=modes, cycles=cycles,
             buses=buses(config), bus=bus, lanes=config.unpack_lanes)
