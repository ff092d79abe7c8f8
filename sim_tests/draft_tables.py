"""What drafters are tested with: tables of given texts, some entries wrong; texts themselves."""
from dataclasses import replace

import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from meadowlark_hdl.draft.table_lookup_golden import (EMPTY, LENGTHS, SLOTS,
                                                      TOKEN_BITS, bucket, mix, start, tag)


def table_of(texts, buckets, *, rng, vocab, right=1.0):
    """What follows the longest contexts of texts, uint32[buckets, 4]: the token that does, or, of
    1 - right of them, another; as far as buckets have room."""
    entries = np.full((buckets, SLOTS), EMPTY, np.uint32)
    for text in texts:
        for at in range(LENGTHS[-1], len(text)):
            state = start(0)
            for n in range(1, LENGTHS[-1] + 1):
                state = mix(state, int(text[at - n]))
            token = int(text[at]) if rng.random() < right else int(rng.integers(vocab))
            room = np.flatnonzero(entries[bucket(state, buckets)] == EMPTY)
            if len(room):
                entries[bucket(state, buckets), room[0]] = tag(state) << TOKEN_BITS | token
    return entries


def with_draft_table(image, entries, least):
    """-> the image with registers for a table and memory for it behind all else, and what is to be
    written there: address and bytes."""
    at = -(-image.needs["memory_bytes"] // 64) * 64
    raw = entries.astype("<u4").tobytes()
    return replace(
        image, needs=image.needs | {"memory_bytes": at + len(raw)},
        model_regs=image.model_regs | {"draft_addr": at // image.config["W"],
                                       "draft_buckets": len(entries),
                                       "draft_least": least}), at, raw


async def write_tokens(dut, tokens):
    """Through the port ``host`` of a bench's token memory, from position 0 on."""
    for position, token in enumerate(tokens):
        dut.host__en.value, dut.host__addr.value, dut.host__data.value = 1, position, token
        await RisingEdge(dut.clk)
    dut.host__en.value = 0
    await ClockCycles(dut.clk, 3)
