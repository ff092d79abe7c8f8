"""PackedWeightDecoder with packed tiles among others: headers, order and errors."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import flush, send, simulate, start
from cocotb.triggers import ClockCycles, RisingEdge
from test_decoder import CONFIG, check, random_tile, random_tiles, take_items

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Header, Mode
from meadowlark_hdl.signatures import TileTag
from meadowlark_hdl.weights.decoder import PackedWeightDecoder
from meadowlark_hdl.weights.decoder_golden import header_chunks
from meadowlark_hdl.weights.entropy_golden import pack_entropy
from meadowlark_hdl.weights.meadow_golden import ENTRIES, pack_meadow

SHAPES = [(2, 4), (4, 8), (8, 8), (1, 4), (3, 12), (16, 4)]


def random_tensor(W):
    """A tensor's tiles, packed: as :func:`test_decoder.random_tile`, the chunks coded."""
    mode, header = random.choice(list(Mode)), random.choice(list(Header))
    count, shape = random.randint(1, 5), random.choice(SHAPES)
    shapes = [shape] * (count - 1) + [random.choice(SHAPES)]
    tiles = [random_tile(W, *shape, mode, header) for shape in shapes]
    heads = [header_chunks(header, rows, W) for rows, _ in shapes]
    plain = [[c.to_bytes(W, "little") for c in chunks[n:]]
             for (_, chunks, _), n in zip(tiles, heads)]
    rows = np.frombuffer(b"".join(sum(plain, [])), np.uint8).reshape(-1, W)
    sizes = [len(part) for part in plain]
    coded, lanes = None, int(os.environ["LANES"])
    if random.random() < 0.5:
        for C in random.sample(list(ENTRIES), 3):
            try:
                coded = pack_meadow(rows, sizes, C, 8, lanes=lanes)[1]
            except ValueError:
                continue
    coded = coded or pack_entropy(rows, sizes, lanes=lanes)[1]
    return [({**tag, "packed": 1}, [*chunks[:n], *(int.from_bytes(part[i:i + W], "little")
                                                  for i in range(0, len(part), W))], items)
            for (tag, chunks, items), n, part in zip(tiles, heads, coded)]


async def run(dut, tiles, stall, chunk_stall=None):
    config = Config(W=int(os.environ["W"]), packing=3, **CONFIG)
    tags, chunks, items = ([t[k] for t in tiles] for k in range(3))
    sent = [cocotb.start_soon(send(dut, "tags", tags, stall, layout=TileTag(config))),
            cocotb.start_soon(send(dut, "chunks", sum(chunks, []),
                                   stall if chunk_stall is None else chunk_stall))]
    want = sum(items, [])
    check(await take_items(dut, config, len(want), stall), want)
    for task in sent:                   # the checksum comes behind the last item
        await task
    await ClockCycles(dut.clk, 20)
    assert not dut.items__valid.value and not dut.error.value


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5], chunk_stall=[None, 0.75])
async def matches_golden(dut, stall, chunk_stall):
    W = int(os.environ["W"])
    await start(dut)
    tiles = []
    for _ in range(12):
        tiles += random_tensor(W) if random.random() < 0.7 else random_tiles(W, 2)
    await run(dut, tiles, stall, chunk_stall)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def damage_and_flush(dut):
    """An error; all tags still get their items; after a flush all is well."""
    W = int(os.environ["W"])
    config = Config(W=W, packing=3, **CONFIG)
    await start(dut)
    for _ in range(20):
        tiles = random_tensor(W) + random_tensor(W)
        behind = header_chunks(tiles[0][0]["header"], tiles[0][0]["rows"], W)
        at = random.randrange(behind, len(tiles[0][1]))
        tiles[0][1][at] ^= 1 << random.randrange(32)
        tasks = [cocotb.start_soon(send(dut, "tags", [t[0] for t in tiles],
                                        layout=TileTag(config))),
                 cocotb.start_soon(send(dut, "chunks", sum([t[1] for t in tiles], [])))]
        await take_items(dut, config, sum(len(t[2]) for t in tiles))
        await ClockCycles(dut.clk, 100)
        assert dut.error.value
        await flush(dut, tasks, tags__valid=0, chunks__valid=0)
        await RisingEdge(dut.clk)
        await run(dut, random_tensor(W), 0.0)


@pytest.mark.parametrize("w, pace, sleep", [
    (8, 1, False), (8, 1, True), (16, 1, False), (16, 4, False), (8, 4, True)])
def test_packed_decoder(w, pace, sleep, seed):
    config = Config(W=w, packing=3, unpack_cycles=pace, **CONFIG)
    simulate(PackedWeightDecoder(config, sleep=sleep), __name__, seed=seed, w=w,
             lanes=config.unpack_lanes)
