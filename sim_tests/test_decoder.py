"""PackedWeightDecoder: equals the golden model on random tiles, one item a cycle, never hangs."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import cycles, flush, send, simulate, start, unpack
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Header, Mode
from meadowlark_hdl.signatures import DecoderItem, TileTag
from meadowlark_hdl.weights.block_golden import block_weights, normalise
from meadowlark_hdl.weights.decoder import PackedWeightDecoder
from meadowlark_hdl.weights.decoder_golden import (decode_tile, encode_tile, header_chunks,
                                                    row_headers)
from meadowlark_hdl.weights.modes import BLOCK
from test_modes import WANT

#: Of the codes of each mode: the least and the most.
RANGE = {mode: (-1 << bits - 1, (1 << bits - 1) - 1) if offset is None
         else (-offset, (1 << bits) - 1 - offset) for mode, (bits, offset, _) in WANT.items()}
#: Bytes of scale, or scale and minimum, a block.
SCALE_BYTES = {mode: 2 * halves for mode, (*_, halves) in WANT.items() if halves}
CONFIG = {"P": 8, "bus_bytes": 1, "tile_beats": 64, "tile_rows": 32}


def random_tile(W, rows, row_beats, mode, header):
    """-> (tag, chunks, items)."""
    rng = np.random.default_rng(random.getrandbits(32))
    low, high = RANGE[mode]
    codes = rng.integers(low, high + 1, (rows, row_beats * W))
    codes.flat[:2] = low, high
    scales = {}
    if mode in SCALE_BYTES:
        shape = (rows, row_beats * W // BLOCK)
        kind = random.random()
        if kind < 0.3:              # whatever bits: sums may wrap around
            half = rng.integers(0, 1 << 16, (2, *shape)).astype(np.uint16).view(np.float16)
        else:                       # as a model has them; small ones become rounded
            half = rng.normal(size=(2, *shape)) * 10.0 ** rng.integers(-6, 3, (2, *shape))
            half = half.astype(np.float16)
        scales = {"scale": half[0]}
        if WANT[mode][2] == 2:
            scales["minimum"] = half[1]
        if kind >= 0.6:
            found = normalise(codes, **scales)
            scales = {key: value for key, value in zip(("scale", "minimum"), found)
                      if value is not None}
    if header != Header.NONE:
        scales |= {"mant": rng.integers(0, 1 << 16, rows), "shift": rng.integers(0, 64, rows)}
    if header == Header.SHORT:
        scales["mant"] = scales["mant"] & 0xFFE0 | 1 << 15
    if header == Header.BIAS:
        scales["bias"] = rng.integers(-2**31, 2**31, rows)
        scales["bias"][0] = random.choice([-2**31, 2**31 - 1])
    raw = encode_tile(codes, **scales, W=W, mode=mode, header=header)
    if header in (Header.SCALE, Header.BIAS):       # the fourth byte of a header means nothing
        step = 4 if header == Header.SCALE else 8
        raw = bytearray(raw)
        for row in range(rows):
            raw[step * row + 2] |= random.randrange(4) << 6
            raw[step * row + 3] = random.randrange(256)
        raw = bytes(raw)
    mant, shift, bias, values = decode_tile(raw, W=W, rows=rows, row_beats=row_beats, mode=mode,
                                            header=header)
    want = block_weights(codes, scales["scale"], scales.get("minimum")) \
        if mode in SCALE_BYTES else codes
    np.testing.assert_array_equal(values.reshape(codes.shape), want)
    items = []
    if header != Header.NONE:
        heads = [{"mant": m, "shift": s, "bias": b}
                 for m, s, b in zip(mant.tolist(), shift.tolist(), bias.tolist())]
        items = [{"is_scale": 1, "last": 0, "scales": heads[i:i + W // 4]}
                 for i in range(0, rows, W // 4)]
    items += [{"is_scale": 0, "last": int(i == len(values) - 1), "beat": v}
              for i, v in enumerate(values.tolist())]
    chunks = [int.from_bytes(raw[i:i + W], "little") for i in range(0, len(raw), W)]
    tag = {"mode": mode, "header": header, "rows": rows, "beats": rows * row_beats}
    return tag, chunks, items


def reads_blocks() -> bool:
    return bool(int(os.environ.get("BLOCKS", "1")))


def modes_read() -> tuple[Mode, ...]:
    """Those of the decoder under test."""
    return tuple(Mode) if reads_blocks() else (Mode.INT8, Mode.INT16)


def random_tiles(W, count, modes=None, headers=tuple(Header)):
    tiles = []
    for _ in range(count):
        mode = random.choice(modes or modes_read())
        least = BLOCK // W if mode in SCALE_BYTES else 1
        rows = random.choice([1, 2, 3, random.randint(1, 32 // least)])
        row_beats = least * random.choice([1, 2, random.randint(1, 64 // rows // least)])
        tiles.append(random_tile(W, rows, row_beats, mode, random.choice(headers)))
    return tiles


def check(got, want):
    """Only what the kind of item defines; the last headers of a tile may be fewer than W / 4."""
    assert len(got) == len(want)
    for n, (g, w) in enumerate(zip(got, want)):
        for key, value in w.items():
            if key == "scales":
                g[key] = g[key][:len(value)]
            assert g[key] == value, f"item {n}: {key} is {g[key]}, not {value}"


async def take_items(dut, config, count, stall=0.0, times=None):
    """Items as a tile buffer gets them, without a way to refuse one. A half is given back in the
    cycle after its tile's last item; with ``stall`` both halves are kept for a while, at random.
    """
    clock, settled, got, kept = RisingEdge(dut.clk), ReadOnly(), [], []
    begun, free = False, int(os.environ.get("HALVES", "2"))
    while len(got) < count or kept:
        await settled
        if dut.items__valid.value:
            if not begun:
                assert free, "a tile began without a half for it"
                free -= 1
            item = unpack(DecoderItem(config), int(dut.items__payload.value))
            begun = not item["last"]
            got.append(item)
            if times is not None:
                times.append(cycles(dut))
            if item["last"]:
                kept.append(random.randrange(60) if random.random() < stall else 0)
        await clock
        freed = bool(kept) and kept[0] == 0
        dut.items__freed.value = freed << random.randrange(2)
        free += freed
        kept = kept[freed:]
        if kept and kept[0]:
            kept[0] -= 1
    await clock
    dut.items__freed.value = 0
    return got


async def run(dut, tiles, stall, times=None, chunk_stall=None):
    config = Config(W=int(os.environ["W"]), block_modes=reads_blocks(), **CONFIG)
    tags, chunks, items = ([t[k] for t in tiles] for k in range(3))
    cocotb.start_soon(send(dut, "tags", tags, stall, layout=TileTag(config)))
    cocotb.start_soon(send(dut, "chunks", sum(chunks, []),
                           stall if chunk_stall is None else chunk_stall))
    want = sum(items, [])
    check(await take_items(dut, config, len(want), stall, times), want)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def matches_golden(dut, stall):
    await start(dut)
    await run(dut, random_tiles(int(os.environ["W"]), 50), stall)
    await ClockCycles(dut.clk, 5)
    assert not dut.items__valid.value and not dut.error.value


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def slow_chunks(dut):
    await start(dut)
    await run(dut, random_tiles(int(os.environ["W"]), 30), 0.0, chunk_stall=0.75)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(mode=[Mode.INT8, Mode.INT16])
async def cycles_without_headers(dut, mode):
    """No bubble, from tile to tile either (with halves given back in time)."""
    W = int(os.environ["W"])
    await start(dut)
    tiles = [random_tile(W, rows, row_beats, mode, Header.NONE)
             for rows, row_beats in [(1, 6), (1, 5), (8, 8), (6, 1), (4, 4), (1, 7), (2, 3)]]
    times = []
    await run(dut, tiles, 0.0, times)
    assert times[-1] - times[0] == (len(times) - 1) * (1 if mode == Mode.INT8 else 2)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(header=[Header.SCALE, Header.BIAS, Header.SHORT])
async def cycles_with_headers(dut, header):
    """A chunk a cycle, half a chunk of SHORT, and no idle one between tiles."""
    W = int(os.environ["W"])
    await start(dut)
    shapes = [(32, 2), (7, 9), (1, 64), (31, 2)]
    times = []
    await run(dut, [random_tile(W, *shape, Mode.INT8, header) for shape in shapes], 0.0, times)
    size = Header.SCALE if header == Header.SHORT else header
    want = [header_chunks(size, rows, W) + rows * row_beats for rows, row_beats in shapes]
    until_first = 2 if header == Header.BIAS and want[0] > shapes[0][0] * shapes[0][1] + 1 else 1
    assert times[-1] - times[0] == sum(want) - until_first


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.skipif(not reads_blocks(), reason="a decoder without block modes")
@cocotb.parametrize(mode=list(SCALE_BYTES))
async def cycles_of_blocks(dut, mode):
    """Within a tile a beat a cycle; before it the scales, a chunk a cycle, and the pipeline."""
    W, parts = int(os.environ["W"]), int(os.environ["PARTS"])
    await start(dut)
    shapes = [(1, 64), (2, 32), (1, 32), (2, 32)]
    times = []
    await run(dut, [random_tile(W, *shape, mode, Header.NONE) for shape in shapes], 0.0, times)
    before = None
    for rows, row_beats in shapes:
        beats = rows * row_beats
        ours, times = times[:beats], times[beats:]
        assert ours[-1] - ours[0] == (beats - 1) * parts
        if before:
            # The tile's scales, then the way of its first codes, or of the first scale.
            assert ours[0] - before == max(beats * SCALE_BYTES[mode] // 32 + 5, 6)
        before = ours[-1]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def illegal_tags_give_beats(dut, stall):
    """Chunks are left alone, order is kept, and the error stays."""
    W = int(os.environ["W"])
    await start(dut)
    tiles = random_tiles(W, 3)
    for bad in (*({"mode": mode, "header": 1 + mode % 3} for mode in range(len(Mode), 8)),
                *({"mode": mode, "header": 2} for mode in Mode if mode not in modes_read())):
        beats = random.choice([1, 2, 5])
        tiles.append(({**bad, "rows": 3, "beats": beats}, [],
                      [{"is_scale": 0, "last": int(i == beats - 1)}
                       for i in range(beats)]))
        tiles += random_tiles(W, 2)
    await run(dut, tiles[:3], stall)
    assert not dut.error.value
    await run(dut, tiles[3:], stall)
    assert dut.error.value
    await flush(dut)
    await RisingEdge(dut.clk)       # a cycle late
    await ReadOnly()
    assert not dut.error.value


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def flush_in_mid_tile(dut):
    W = int(os.environ["W"])
    config = Config(W=W, block_modes=reads_blocks(), **CONFIG)
    await start(dut)
    for at in range(40):
        tiles = random_tiles(W, 6)
        tasks = [cocotb.start_soon(send(dut, "tags", [t[0] for t in tiles],
                                        layout=TileTag(config))),
                 cocotb.start_soon(send(dut, "chunks", sum([t[1] for t in tiles], []))),
                 cocotb.start_soon(take_items(dut, config, 10**6, 0.3))]
        await ClockCycles(dut.clk, 1 + at)
        await flush(dut, tasks, tags__valid=0, chunks__valid=0, items__freed=0)
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert not dut.items__valid.value
        await RisingEdge(dut.clk)
        await run(dut, random_tiles(W, 3), 0.0)
        await RisingEdge(dut.clk)


@pytest.mark.parametrize("mant, wrong", [([1 << 15, 0xFFE0, 0], None), ([1 << 15, 0xFFE1], 1),
                                         ([0x7FE0], 0)])
def test_what_short_headers_hold(mant, wrong):
    """Eleven bits; rows without weights have none. Anything else is refused, never cut."""
    shift = list(range(60, 60 + len(mant)))
    if wrong is not None:
        with pytest.raises(ValueError, match="more than 11 bits"):
            row_headers(Header.SHORT, mant, shift)
        return
    raw = row_headers(Header.SHORT, mant, shift)
    assert raw.shape == (3, 2)
    got = decode_tile(raw.tobytes() + bytes(16 - 6 + 48), W=16, rows=3, row_beats=1,
                      mode=Mode.INT8, header=Header.SHORT)
    assert got[0].tolist() == [1 << 15, 0xFFE0, 1 << 15] and got[1].tolist() == shift


@pytest.mark.parametrize("w, parts", [(4, 1), (8, 1), (16, 1), (32, 1), (4, 2), (16, 2), (16, 4),
                                      (8, 4)])
def test_decoder(w, parts, seed):
    config = Config(W=w, unpack_cycles=parts, **CONFIG)
    simulate(PackedWeightDecoder(config), __name__, seed=seed, w=w, parts=parts, blocks=1)


@pytest.mark.parametrize("w", [4, 16])
def test_decoder_without_blocks(w, seed):
    config = Config(W=w, block_modes=False, **CONFIG)
    simulate(PackedWeightDecoder(config), __name__, seed=seed, w=w, parts=1, blocks=0)


def test_one_half(seed):
    """A tile begins when the one before is given back."""
    config = Config(W=8, one_half=True, **CONFIG)
    simulate(PackedWeightDecoder(config), __name__, seed=seed, testcase="matches_golden", w=8,
             parts=1, blocks=1, halves=1)
