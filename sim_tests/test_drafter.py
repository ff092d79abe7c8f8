"""Drafter equals its golden model, takes the cycles that it says, and no more than its budget."""
import os

import cocotb
import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import cycles, pack, simulate, start
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from draft_tables import table_of, write_tokens
from memory_model import SimMemory
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.token_memory import TokenMemory, TokenWrite
from meadowlark_hdl.draft.choice_golden import Choice
from meadowlark_hdl.draft.context_match_golden import LONGEST, WINDOW, match
from meadowlark_hdl.draft.drafter import Drafter
from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.draft.table_lookup import TableLookup
from meadowlark_hdl.draft.table_lookup_golden import LENGTHS
from meadowlark_hdl.signatures import ModelLayout, RunLayout

SMALL = Config(W=8, P=6, bus_bytes=4, context=128)
#: As ``ulx3s_85f``, with the longest sweep.
LARGE = Config(W=16, P=8, bus_bytes=4, context=1024)


class WithTokens(wiring.Component):
    """The block and its memory, which the test writes and reads while the block rests."""

    def __init__(self, config: Config, window: int):
        self.drafter = Drafter(config, window=window)
        members = dict(self.drafter.signature.members)
        del members["addr"], members["data"], members["write"]
        super().__init__({**members, "host": In(TokenWrite(config)),
                          "look": In(range(config.context)), "seen": Out(Config.TOKEN_BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.drafter, m.submodules.tokens = drafter, tokens = (
            self.drafter, TokenMemory(self.drafter.config))
        wiring.connect(m, wiring.flipped(self.host), tokens.host)
        wiring.connect(m, drafter.write, tokens.own)
        wiring.connect(m, drafter.mem, wiring.flipped(self.mem))
        m.d.comb += [tokens.busy.eq(~drafter.idle), drafter.data.eq(tokens.data),
                     tokens.addr.eq(self.look), self.seen.eq(tokens.data)]
        with m.If(~drafter.idle):
            m.d.comb += tokens.addr.eq(drafter.addr)
        for name in ("model", "run", "begin", "accepted", "start", "position"):
            m.d.comb += getattr(drafter, name).eq(getattr(self, name))
        for name in ("done", "count", "idle", "drafted"):
            m.d.comb += getattr(self, name).eq(getattr(drafter, name))
        return m


async def pulse(dut, name):
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0
    await RisingEdge(dut.clk)


async def read(dut, position):
    dut.look.value = position
    await ClockCycles(dut.clk, TokenMemory.LATENCY)
    await ReadOnly()
    found = int(dut.seen.value)
    await RisingEdge(dut.clk)
    return found


async def drafts(dut, position):
    """-> (drafts written, cycles of start and of done)."""
    dut.position.value, dut.start.value = position, 1
    await ReadOnly()
    assert int(dut.idle.value)
    begin, pulses = cycles(dut), 0
    await RisingEdge(dut.clk)
    dut.start.value = 0
    while True:
        await ReadOnly()
        pulses += int(dut.drafted.value)
        if int(dut.done.value):
            break
        await RisingEdge(dut.clk)
    count, end = int(dut.count.value), cycles(dut)
    assert count == pulses and int(dut.idle.value)
    await ClockCycles(dut.clk, 3)
    return [await read(dut, position + 1 + j) for j in range(count)], begin, end


class Steps:
    """What a draft takes: the golden model, asked draft by draft."""

    def __init__(self, tokens, k, table, least, window):
        self.drafts = draft(tokens, k, table, least=least, window=window)
        found = match(tokens, window)
        self.swept = (len(tokens) - 1 - (found[0] - LONGEST) if found and found[1] == LONGEST
                      else min(len(tokens) - 1, window))
        at, length = found or (0, 0)
        self.asked = []             # of each step, tokens that the table is asked of, 0: not asked
        text = list(tokens)
        for j in range(min(k, len(self.drafts) + 1)):
            asks = table is not None and length < least
            if not (asks or length):
                break
            self.asked.append(min(len(text), LENGTHS[-1]) if asks else 0)
            if j < len(self.drafts):
                goes_on = length and text[at] == self.drafts[j]
                at, length = (at + 1, min(length + 1, LONGEST)) if goes_on else (0, 0)
                text.append(self.drafts[j])
        self.silent = len(self.asked) > len(self.drafts)


@cocotb.test(timeout_time=60, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def equals_the_golden_model(dut, stall):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    window, config = int(os.environ["WINDOW"]), SMALL
    await start(dut)
    memory = SimMemory(dut, "mem", 1 << 14, bus_bytes=config.bus_bytes, stall=stall,
                       latency=int(rng.integers(1, 20)), queue=4, gap=int(rng.integers(3))).start()
    # The same few ids again and again: what stands where no match is looks like one.
    seen, count, ids = set(), 0, rng.permutation([0, *(1 << b for b in range(19))])
    # "longer": the table is asked of more tokens than the text had, since drafts are behind it.
    wanted = {0, 1, 2, 3, "dear", "longer", *((what, so) for what in ("asked", "silent", "full")
                                    for so in (False, True))}
    while count < 60 or not seen >= wanted:         # what never comes: the time limit
        count += 1
        few = ids[:int(rng.choice([2, 2, 3, 6, 15]))]
        size = int(rng.choice([int(rng.integers(1, 9)), int(rng.integers(9, config.context))]))
        text = rng.choice(few, size).tolist()
        buckets = int(rng.choice([0, 1, int(rng.integers(2, 200))]))
        said = [rng.choice([*few, 77], 6).tolist() for _ in range(4)]
        table = table_of([[*text[-int(rng.integers(5, 9)):], *more] for more in said]
                         + [text] * int(rng.integers(2)), max(1, buckets), rng=rng,
                         vocab=1 << 19, right=0.8) if buckets else None
        at = int(rng.integers(0, 400)) * 16
        if table is not None:
            memory.data[at:at + table.nbytes] = table.astype("<u4").reshape(-1).view(np.uint8)
        least, most = int(rng.integers(2, 6)), int(rng.integers(0, config.P))
        await write_tokens(dut, text)
        price = int(rng.choice([0, 100, 257]))
        choice = Choice(price)
        await pulse(dut, "begin")
        dut.model.value = pack(ModelLayout, draft_addr=at // config.W, draft_buckets=buckets,
                               draft_least=least)
        for n in (size, *rng.integers(1, size + 1, 2).tolist()):
            left = int(rng.choice([1, int(rng.integers(1, 9)), 50]))    # of max_new
            prompt = int(rng.integers(0, n + 1))
            dut.run.value = pack(RunLayout(), start_pos=n - prompt, prompt=prompt,
                                 max_new=left, draft_most=most, draft_price=price, stop_ids=[0] * 8)
            await ClockCycles(dut.clk, 4)
            k = min(most, left - 1, config.context - n)
            steps = Steps(text[:n], k, table, least, window)
            memory.reads.clear()
            memory.read_times.clear()
            found, begin, end = await drafts(dut, n - 1)
            if not choice.drafts():
                assert found == [] and end - begin == 1
                seen.add("dear")
                continue
            for _ in range(int(rng.integers(0, 3))):
                await pulse(dut, "accepted")
                choice.accepted()
            assert found == steps.drafts, (text[:n], least, k)
            asked = [length for length in steps.asked if length]
            assert len(memory.reads) == sum(sum(n <= known for n in LENGTHS) for known in asked)
            if not stall:
                lookups, reads = [], 0
                for known in asked:
                    first, reads = reads, reads + sum(n <= known for n in LENGTHS)
                    taken = memory.reads[first][0] - (LENGTHS[0] + TableLookup.READ)
                    lookups.append(memory.read_times[reads * 4 - 1] + TableLookup.LATENCY - taken)
                assert end - begin == Drafter.cycles(n, steps.swept, steps.asked.count(0), lookups,
                                                     steps.silent)
            await write_tokens(dut, text)
            seen |= {len(found), ("asked", bool(asked)), ("silent", steps.silent),
                     ("full", k == most), *["longer"] * (max(asked, default=0) > n)}


@cocotb.test(timeout_time=20, timeout_unit="ms", skip="LARGE" not in os.environ)
async def the_worst_pass_is_in_the_budget(dut):
    """Of docs/drafts.md: the longest sweep, then the table at each step, on ulx3s_85f."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    # Four rows of 14 cycles at 133 MHz, and 20 on the way, for a core of 89.
    memory = SimMemory(dut, "mem", 1 << 18, bus_bytes=4, latency=20, queue=4, gap=5).start()
    text = rng.integers(0, 1 << 19, 1000).tolist()
    more = rng.integers(0, 1 << 19, 7).tolist()
    table = table_of([text + more], 3000, rng=rng, vocab=1)
    memory.data[:table.nbytes] = table.astype("<u4").reshape(-1).view(np.uint8)
    await write_tokens(dut, text)
    dut.model.value = pack(ModelLayout, draft_addr=0, draft_buckets=3000, draft_least=5)
    dut.run.value = pack(RunLayout(), prompt=1000, max_new=24, draft_most=7, stop_ids=[0] * 8)
    found, begin, end = await drafts(dut, 999)
    assert found == more
    assert end - begin > WINDOW and end - begin <= 1500


@pytest.mark.parametrize("window", [5, 200])
def test_drafter(window, seed):
    simulate(WithTokens(SMALL, window), __name__, seed=seed, window=window)


def test_budget(seed):
    simulate(WithTokens(LARGE, WINDOW), __name__, seed=seed, large=1,
             testcase="the_worst_pass_is_in_the_budget")
