"""TableLookup equals its golden model, and takes the cycles that it says."""
import os

import cocotb
import numpy as np
import pytest
from bench import recv, send, simulate, start
from memory_model import SimMemory
from meadowlark_hdl.config import Config
from meadowlark_hdl.draft.table_lookup import Entry, LastTokens, TableLookup
from meadowlark_hdl.draft.table_lookup_golden import (BUCKET_BYTES, EMPTY, LENGTHS, SLOTS, TAG_BITS,
                                                      TOKEN_BITS, bucket, lookup, mix, tag)
from meadowlark_hdl.draft.table_lookup_golden import start as no_token


#: Tokens that look for the tag of ones, which empty places have too.
ALL_TOKENS = np.arange(1 << TOKEN_BITS)
ONES = ALL_TOKENS[tag(mix(no_token(ALL_TOKENS), ALL_TOKENS)) == (1 << TAG_BITS) - 1]


def table(rng, texts, buckets):
    """Entries for some ends of texts, some for the same context; some places empty, some of the
    rest by chance."""
    entries = rng.integers(0, 1 << 32, (buckets, SLOTS), dtype=np.uint32)
    entries[rng.random(entries.shape) < 0.3] = EMPTY
    for text in texts:
        state = no_token(0)
        for n in range(1, len(text) + 1):
            state = mix(state, text[-n])
            for slot in rng.permutation(SLOTS)[:int(rng.choice([0, 0, 1, 2, 4]))]:
                token = int(rng.choice([0, (1 << TOKEN_BITS) - 1, rng.integers(1 << TOKEN_BITS)]))
                if n in LENGTHS:
                    entries[bucket(state, buckets), slot] = tag(state) << TOKEN_BITS | token
    return entries


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def equals_the_golden_model(dut, stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    bus = int(os.environ["BUS"])
    await start(dut)
    memory = SimMemory(dut, "mem", 1 << 16, bus_bytes=bus, stall=stall,
                       latency=int(rng.integers(1, 20)), queue=4, gap=int(rng.integers(3)))
    memory.start()
    seen = set()
    for buckets in (1, 2, 3000, *rng.integers(1, 3000, 4).tolist()):
        texts = [rng.integers(0, int(rng.choice([3, 1 << 19])), int(rng.integers(6))).tolist()
                 for _ in range(50)] + [[int(token)] for token in rng.choice(ONES, 10)]
        entries = table(rng, texts, buckets)
        base = int(rng.integers(0, (1 << 16) // BUCKET_BYTES - buckets + 1)) * BUCKET_BYTES
        memory.data[:] = rng.integers(0, 256, 1 << 16, dtype=np.uint8)
        memory.data[base:base + entries.nbytes] = entries.astype("<u4").reshape(-1).view(np.uint8)
        dut.base.value, dut.buckets.value = base // bus, buckets
        memory.reads.clear()
        memory.read_times.clear()
        asked = [{"tokens": text[::-1] + rng.integers(0, 1 << 19, 5 - len(text)).tolist(),
                  "count": len(text)} for text in texts]
        taken, given = [], []
        sender = cocotb.start_soon(send(dut, "i", asked, stall, layout=LastTokens(), times=taken))
        got = await recv(dut, "o", len(asked), stall, layout=Entry(), times=given)
        await sender
        reads = 0
        for text, found, begin, end in zip(texts, got, taken, given, strict=True):
            want = lookup(entries, text)
            seen.add(want and want[1])
            assert (found["length"], found["length"] and found["token"]) == (
                (want[1], want[0]) if want else (0, 0)), text
            lengths = [n for n in LENGTHS if n <= len(text)]
            of_it = memory.reads[reads:reads + len(lengths)]
            reads += len(lengths)
            assert [words for _, _, words in of_it] == [BUCKET_BYTES // bus] * len(lengths)
            if not stall and lengths:
                last = memory.read_times[reads * BUCKET_BYTES // bus - 1]
                assert of_it[0][0] - begin == lengths[0] + TableLookup.READ
                assert end - last == TableLookup.LATENCY
        assert reads == len(memory.reads)
    assert seen == {None, *LENGTHS}


@pytest.mark.parametrize("bus", [2, 4, 16])
def test_table_lookup(bus, seed):
    simulate(TableLookup(Config(W=16, P=4, bus_bytes=bus)), __name__, seed=seed, bus=bus)


def test_a_bus_wider_than_a_bucket():
    with pytest.raises(ValueError, match="^bus_bytes must be at most 16, not 32$"):
        TableLookup(Config(W=32, P=5, bus_bytes=32))
