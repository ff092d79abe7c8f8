"""Sequencer against a model of the chip around it: passes, tokens, and every way a run can end."""
import random
from dataclasses import replace

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from bench import cycles, pack, recv, simulate, start, unpack
from meadowlark_hdl.config import Config
from meadowlark_hdl.control import errors
from meadowlark_hdl.control.errors import FAULTS, Error
from meadowlark_hdl.control.planner import Planner
from meadowlark_hdl.control.sequencer import Sequencer
from meadowlark_hdl.control.token_memory import TokenMemory
from meadowlark_hdl.control.sequencer_golden import (
    Pass,
    pass_of,
    context_limit,
    decode_pass,
    draft_pass,
    lots,
    prompt_passes,
    subgroup,
    tile_keys,
)
from meadowlark_hdl.draft.run_golden import turns
from meadowlark_hdl.signatures import ModelLayout, PassLayout, RunLayout, TokenEvent

# Small, so that the scores, the accumulators and the context all come into play.
CONFIG = Config(W=8, P=4, bus_bytes=2, context=128, score_depth=256, tile_beats=16, topk=16,
                sv_cycles=2)
WATCHDOG = 8
PREFILL, DECODE = 0x1234, 0xABCD


class Chip:
    """Everything around the sequencer."""

    def __init__(self, dut, quick=False):
        self.dut, self.quick = dut, quick
        self.passes = []            # (Pass, the tokens it read)
        self.kinds = []             # of each pass, whether it is a batch
        self.starts = []            # cycles of fetch_start
        self.memory = {}            # position -> token, as the chip should hold it
        self.token_of = lambda position: random.getrandbits(19)
        self.samples = {}           # position -> (token, crc)
        self.batches = []           # of each pass of a batch, those
        self.hang, self.stuck = None, False         # hang: pass or drafter
        self.fault = None           # (pass number, bits, pc)
        self.busy = self.dead = False
        self.flushes = 0
        dut.idle.value = dut.ready.value = 1
        self.drawn = []             # (token, crc) of each turn
        self.guesses = {}           # position of a text's last token -> drafts
        self.guess = lambda position: [9]
        self.guessed = []           # positions, in order
        self.begins = 0             # position from which on the token memory is the run's
        cocotb.start_soon(self.clean())
        cocotb.start_soon(self.answer())
        self.work = cocotb.start_soon(self.serve())
        self.drafting = cocotb.start_soon(self.draft())

    def some(self, most):
        return 1 if self.quick else random.randrange(1, most)

    async def clean(self):
        """flush -> idle."""
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            if not int(dut.flush.value):
                continue
            self.flushes += 1
            self.work.cancel()
            self.drafting.cancel()
            dut.draft_done.value = dut.draft_write__en.value = 0
            for name in ("pass_end", "sample_done", "progress", "faults"):
                getattr(dut, name).value = 0
            dut.idle.value = 0
            await ClockCycles(dut.clk, self.some(40))
            if self.stuck:
                return
            dut.idle.value = 1
            while int(dut.flush.value):
                await RisingEdge(dut.clk)
            self.work = cocotb.start_soon(self.serve())
            self.drafting = cocotb.start_soon(self.draft())

    async def pulse(self, name):
        getattr(self.dut, name).value = 1
        await RisingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def read(self, position):
        """The token of an address that stands for one cycle."""
        self.dut.token_addr.value = position
        await ClockCycles(self.dut.clk, 1)
        self.dut.token_addr.value = position + random.randrange(1, CONFIG.context) & (
            CONFIG.context - 1)
        await ClockCycles(self.dut.clk, TokenMemory.LATENCY - 1)
        await ReadOnly()
        token = int(self.dut.token_data.value)
        await RisingEdge(self.dut.clk)
        return token

    async def draft(self):
        """The drafter: reads the text's last token, and writes drafts behind it."""
        dut = self.dut
        while True:
            await ReadOnly()
            begins, position = int(dut.draft_start.value), int(dut.sample_position.value)
            await RisingEdge(dut.clk)
            if not begins:
                continue
            self.guessed.append(position)
            await ClockCycles(dut.clk, 10**9 if self.hang == "drafter" else self.some(60))
            for at in position, random.randrange(self.begins, position + 1):
                dut.draft_addr.value = at
                await ClockCycles(dut.clk, TokenMemory.LATENCY)
                await ReadOnly()
                assert int(dut.token_data.value) == self.token_of(at)
                await RisingEdge(dut.clk)
            drafts = self.guess(position)
            for j, token in enumerate(drafts, 1):
                dut.draft_write__addr.value, dut.draft_write__data.value = position + j, token
                await self.pulse("draft_write__en")
            dut.draft_addr.value = random.randrange(CONFIG.context)
            dut.drafts.value = len(drafts)
            await self.pulse("draft_done")
            dut.drafts.value = random.randrange(CONFIG.P)

    async def answer(self):
        """Tokens by their turn, a cycle later; what is beyond means nothing."""
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            at = int(dut.sample_turn.value)
            dut.sample_token.value, dut.sample_crc.value = (
                self.drawn[at] if at < len(self.drawn) else (random.getrandbits(19), 0))

    async def serve(self):
        dut = self.dut
        while True:
            await ReadOnly()
            begins, sampled = int(dut.fetch_start.value), int(dut.sample_start.value)
            if begins:
                values = unpack(PassLayout(), int(dut.pass_.value))
                pc, now = int(dut.fetch_pc.value), cycles(dut)
            else:
                assert not sampled
            await RisingEdge(dut.clk)
            if not begins:
                continue
            self.starts.append(now)
            dut.idle.value = 0
            assert pc in (PREFILL, DECODE)
            seen = Pass(**{name: value for name, value in values.items() if name != "batch"}
                        | {name: bool(values[name]) for name in ("final", "each")},
                        decode=pc == DECODE)
            self.kinds.append(values["batch"])
            assert sampled == seen.final
            if not self.quick:
                tokens = [await self.read(p) for p in range(seen.pos0, seen.ctx)]
            else:
                tokens = []
            self.passes.append((seen, tokens))
            for _ in range(self.some(4)):
                await ClockCycles(dut.clk, self.some(30))
                await self.pulse("progress")
            if self.fault and self.fault[0] == len(self.passes) - 1:
                dut.faults.value, dut.fault_pc.value = self.fault[1:]
                await ClockCycles(dut.clk, 1)
                dut.faults.value, dut.fault_pc.value = 0, 7
                if random.random() < 0.5:
                    await self.pulse("pass_end")
                await ClockCycles(dut.clk, 10**9)
            if self.hang == "pass":
                await ClockCycles(dut.clk, 10**9)
            assert unpack(PassLayout(), int(dut.pass_.value)) == values
            await self.pulse("pass_end")
            dut.idle.value = 1
            if not seen.final:
                continue
            while not int(dut.sample_finish.value):
                await RisingEdge(dut.clk)
            turns = seen.n if seen.each else 1
            first = seen.ctx - turns + 1
            assert int(dut.sample_position.value) == first
            assert int(dut.sample_last.value) == turns - 1
            await ClockCycles(dut.clk, self.some(40))
            assert int(dut.sample_turn.value) == 0
            drawn = [(self.token_of(first + turn), random.getrandbits(32))
                     for turn in range(turns)]
            self.samples.update(enumerate(drawn, first))
            self.batches += [drawn] * values["batch"]
            self.drawn = drawn
            await RisingEdge(dut.clk)
            await self.pulse("sample_done")


def some_model():
    return {"prefill_pc": PREFILL, "decode_pc": DECODE, "blocks": random.randrange(1, 9),
            "group": random.randrange(1, 5), "head_log2": random.choice([3, 4, 4, 5, 6]),
            "vocab": 999}


async def write_tokens(dut, chip, position, tokens):
    for i, token in enumerate(tokens):
        dut.link__token_en.value, dut.link__token_addr.value = 1, position + i
        dut.link__token_data.value = token
        chip.memory[position + i] = token
        await RisingEdge(dut.clk)
    dut.link__token_en.value = 0


async def begin(dut, model, **run):
    """Pulse start; run and model stay."""
    dut.link__model.value = pack(ModelLayout, **model)
    stop_ids = run.pop("stop_ids", [])
    fields = {"stop_count": len(stop_ids), **run}
    # Unused places hold an id that must not count
    padded = [*stop_ids, *[1] * (8 - len(stop_ids))]
    dut.link__run.value = pack(RunLayout(), stop_ids=padded, **fields)
    dut.link__start.value = 1
    await RisingEdge(dut.clk)
    dut.link__start.value = 0


async def collect(dut, stall=0.0, until_idle=True):
    """Events up to the last one; busy must fall with it."""
    events = []
    while not events or events[-1]["reason"] == 0:
        await ReadOnly()
        assert int(dut.link__busy.value)
        await RisingEdge(dut.clk)
        events += await recv(dut, "link__events", 1, stall, layout=TokenEvent())
    await ReadOnly()
    assert not int(dut.link__busy.value)
    await RisingEdge(dut.clk)
    return events


def expected_passes(config, model, start_pos, prompt, max_new, later):
    """later: the turns behind the first."""
    return [*prompt_passes(config, model, start_pos, prompt, max_new > 0),
            *(draft_pass(config, model, turn.position, turn.n) if turn.drafts else
              decode_pass(config, model, turn.position) for turn in later)]


#: Codes that the error register had in these tests.
SEEN = set()


async def error_of(dut):
    await ReadOnly()
    out = int(dut.link__error.value), int(dut.link__error_pc.value)
    SEEN.add(out[0])
    await RisingEdge(dut.clk)
    return out


async def whole_run(dut, chip, stall=0.0):
    """A random run from start to end, all of it checked."""
    model, limit = some_model(), context_limit(CONFIG)
    while True:
        start_pos = random.choice([0, 0, 0, random.randrange(limit)])
        prompt = random.choice([1, 2, 4, 5, random.randrange(1, limit)])
        if start_pos + prompt <= limit:
            break
    max_new = random.choice([0, 1, 2, random.randrange(20), 500])
    stop_ids = random.sample(range(2, 100), random.randrange(9))
    batch = prompt <= CONFIG.P and not start_pos and random.random() < 0.5
    most = 0 if batch else random.randrange(CONFIG.P)
    price = random.choice([0, 100, 256, 257, 1023])
    # Several small ids, so that stop ids do come up; 1 stands in unused places
    rare = random.random() < 0.5

    def some_token(position=0):
        return (1 if rare and random.random() < 0.9 else
                random.choice([*[random.randrange(2, 120)] * 4, random.getrandbits(19)]))
    text = [some_token() for _ in range(limit + CONFIG.P + 2)]
    # Sequences of a batch know nothing of each other: what one writes is not what the next had.
    chip.token_of, chip.begins = some_token if batch else text.__getitem__, start_pos
    await write_tokens(dut, chip, start_pos, text[start_pos:start_pos + prompt])
    for kept in (chip.passes, chip.kinds, chip.samples, chip.guesses, chip.guessed, chip.batches):
        kept.clear()
    if batch:
        return await batch_run(dut, chip, model, text, prompt, max_new, stop_ids, stall), True, 0
    right = random.random()
    chip.guess = lambda position: chip.guesses.get(position, [])    # what does not pay: none

    def guess(seen, k):
        drafts = [text[len(seen) + j] if random.random() < right else 5
                  for j in range(random.randrange(k + 1))]
        return chip.guesses.setdefault(len(seen) - 1, drafts)
    end = start_pos + prompt
    found = list(turns(text[:end], lambda position, drafts: text[position + 1:], guess, most=most,
                       price=price, max_new=max_new, stop_ids=stop_ids, limit=limit))
    await begin(dut, model, start_pos=start_pos, prompt=prompt, max_new=max_new,
                top_k=0 if most else 16, stop_ids=stop_ids, draft_most=most, draft_price=price)
    pulses = cocotb.start_soon(count_pulses(dut))
    events = await collect(dut, stall)
    assert await error_of(dut) == (0, 0)

    if max_new == 0:
        assert [e["reason"] for e in events] == [5]
    else:
        assert [e["token"] for e in events] == [t for turn in found for t in turn.tokens]
    for i, event in enumerate(events if max_new else ()):
        position = end + i
        token, crc = chip.samples[position]
        assert (event["token"], event["crc"]) == (token, crc)
        if token in stop_ids:
            reason = 1
        elif i + 1 == max_new:
            reason = 2
        else:
            reason = 3 if position == limit else 0
        assert event["reason"] == reason
    assert set(chip.kinds) == {0}
    assert pulses.result() == [sum(turn.accepted for turn in found), 1]
    assert chip.guessed == ([turn.position for turn in found[1:]] if most else [])
    assert [p for p, _ in chip.passes] == expected_passes(
        CONFIG, model, start_pos, prompt, max_new, found[1:])
    drafts = {turn.position: turn.drafts for turn in found[1:]}
    for p, tokens in chip.passes:
        wrong = drafts.get(p.pos0)
        assert tokens == ([text[p.pos0], *wrong] if wrong else text[p.pos0:p.ctx])
    return events[-1]["reason"], False, max((t.accepted for t in found), default=0)


async def batch_run(dut, chip, model, text, n, max_new, stop_ids, stall):
    """A run of n sequences, all of it checked -> why it ended. text: what they have had."""
    await begin(dut, model, start_pos=0, prompt=n, max_new=max_new, stop_ids=stop_ids, batch=1)
    pulses = cocotb.start_soon(count_pulses(dut))
    events = await collect(dut, stall)
    assert await error_of(dut) == (0, 0)
    assert pulses.result() == [0, 1] and set(chip.kinds) == {1}
    drawn = [[token for token, _ in pass_] for pass_ in chip.batches]
    reasons = [1 if set(tokens) & set(stop_ids) else 2 if passes == max_new else
               3 if passes + n - 1 == context_limit(CONFIG) else 0
               for passes, tokens in enumerate(drawn, 1)] if max_new else [5]
    assert all(reasons[-1:]) and not any(reasons[:-1])
    if max_new:
        assert [(e["token"], e["crc"]) for e in events] == [
            item for pass_ in chip.batches for item in pass_]
    assert [e["reason"] for e in events] == [0] * (len(events) - 1) + reasons[-1:]
    assert chip.passes == [
        (replace(pass_of(CONFIG, model, before, n, final=max_new > 0, decode=True), each=True),
         tokens) for before, tokens in enumerate([text[:n], *drawn[:-1]])]
    return reasons[-1]


async def count_pulses(dut):
    """-> drafts accepted and first tokens, until the run has ended, and a cycle."""
    counts = [0, 0]
    while True:
        await ReadOnly()
        busy = int(dut.link__busy.value)
        counts[0] += int(dut.accepted.value)
        counts[1] += int(dut.first_token.value)
        await RisingEdge(dut.clk)
        if not busy:
            return counts


@cocotb.test(timeout_time=100, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.8])
async def runs(dut, stall):
    await start(dut)
    chip = Chip(dut)
    seen, count = set(), 0
    # An end, a kind of run, or kept drafts that never come: the time limit.
    while count < 40 or not seen >= {1, 2, 3, 5, "batch", "kept 0", "kept 3"}:
        reason, batch, kept = await whole_run(dut, chip, stall)
        seen |= {reason, f"kept {kept}"} | ({"batch"} if batch else set())
        count += 1


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def aborts_between_the_tokens_of_a_pass(dut):
    await start(dut)
    chip = Chip(dut, quick=True)
    chip.token_of, chip.guess = lambda position: 9, lambda position: [9]
    for i in range(32):
        await write_tokens(dut, chip, 0, [9] * CONFIG.P)
        kind = ["batch", "draft_most"][i % 2]
        # The first token of a batch is a stop id, which counts no more in the next run.
        await begin(dut, {**some_model(), "head_log2": 3}, prompt=CONFIG.P, max_new=20,
                    stop_ids=[9] * (kind == "batch"), **{kind: 1})
        while not int(dut.link__events__valid.value):
            await RisingEdge(dut.clk)
        events, wait = cocotb.start_soon(collect(dut)), random.randrange(20) * (i % 4 > 1)
        await ClockCycles(dut.clk, wait)
        dut.link__abort.value = 1
        await RisingEdge(dut.clk)
        dut.link__abort.value = 0
        got = await events
        # A token takes six cycles; the one under way when it comes, and the end.
        assert len(got) <= min(2 + -(-wait // 6), CONFIG.P + 1) and got[-1]["reason"] == (
            1 if kind == "batch" and len(got) == CONFIG.P and got[-1]["reason"] == 1 else 4)
    chip.quick = False
    await whole_run(dut, chip)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_abort_does_not_wait_for_drafts(dut):
    await start(dut)
    chip = Chip(dut, quick=True)
    chip.token_of, chip.hang = lambda position: 9, "drafter"
    for _ in range(5):
        chip.guessed.clear()
        await write_tokens(dut, chip, 0, [9])
        await begin(dut, {**some_model(), "head_log2": 3}, prompt=1, max_new=20, draft_most=1)
        events = cocotb.start_soon(collect(dut))
        while not chip.guessed:
            await RisingEdge(dut.clk)
        await ClockCycles(dut.clk, random.randrange(100))
        dut.link__abort.value = 1
        await RisingEdge(dut.clk)
        dut.link__abort.value = 0
        assert [event["reason"] for event in await events] == [0, 4]
    chip.hang, chip.quick = None, False
    await whole_run(dut, chip)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def each_of_the_stop_ids_ends_a_run(dut):
    await start(dut)
    chip = Chip(dut, quick=True)
    # The id in unused places is 1 as well
    stop_ids = [1, 2**19 - 1, 0, 7, 70, 700, 7000, 70000]
    for place, stop in enumerate(stop_ids):
        for count in range(9):
            chip.token_of = lambda position, stop=stop: stop if position == 3 else 5
            await begin(dut, {**some_model(), "head_log2": 3}, prompt=1, max_new=4,
                        stop_ids=stop_ids[:count])
            reasons = [e["reason"] for e in await collect(dut)]
            assert reasons == ([0, 0, 1] if place < count else [0, 0, 0, 2])


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def aborts(dut):
    await start(dut)
    chip = Chip(dut)
    ends = []
    for _ in range(80):
        model = some_model()
        prompt = random.randrange(1, 30)
        chip.token_of = lambda position: 200
        await begin(dut, model, prompt=prompt, max_new=random.choice([0, 1, 3, 90]))
        events = cocotb.start_soon(collect(dut, random.choice([0.0, 0.9])))
        await ClockCycles(dut.clk, random.choice([1, 2, 3, 20, random.randrange(1, 1500)]))
        dut.link__abort.value = 1
        await RisingEdge(dut.clk)
        dut.link__abort.value = 0
        got = await with_timeout(events, 50, "us")
        assert all(e["reason"] == 0 for e in got[:-1])
        ends.append(got[-1]["reason"])
        assert (await error_of(dut))[0] == 0
        if random.random() < 0.3:
            await whole_run(dut, chip)
    assert ends.count(4) > 20


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_abort_in_the_cycle_of_start_or_at_rest(dut):
    await start(dut)
    chip = Chip(dut)
    dut.link__abort.value = 1
    await begin(dut, some_model(), prompt=3, max_new=3)
    dut.link__abort.value = 0
    assert [e["reason"] for e in await collect(dut)] == [4]
    assert not chip.passes
    dut.link__abort.value = 1
    await ClockCycles(dut.clk, 3)
    dut.link__abort.value = 0
    await whole_run(dut, chip)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def bad_requests_are_refused(dut):
    await start(dut)
    chip = Chip(dut)
    limit = context_limit(CONFIG)
    good_model = {**some_model(), "head_log2": 4}
    good = {"start_pos": 3, "prompt": 4, "max_new": 1}
    for model, run, ready, error in (
            ({}, {"prompt": 0}, 1, Error.BAD_RUN),
            ({}, {"start_pos": limit - 3}, 1, Error.BAD_RUN),
            ({}, {"start_pos": 8191, "prompt": 8191}, 1, Error.BAD_RUN),
            ({}, {"start_pos": 8191, "prompt": 1}, 1, Error.BAD_RUN),
            ({}, {"batch": 1, "start_pos": 1}, 1, Error.BAD_RUN),
            ({}, {"batch": 1, "start_pos": 0, "prompt": CONFIG.P + 1}, 1, Error.BAD_RUN),
            ({}, {"batch": 1, "start_pos": 0, "draft_most": 1}, 1, Error.BAD_RUN),
            ({}, {"draft_most": CONFIG.P}, 1, Error.BAD_RUN),
            ({}, {"draft_most": 1, "top_k": 1}, 1, Error.BAD_SAMPLING),
            ({}, {"batch": 1, "start_pos": 0, "top_k": 1}, 1, Error.BAD_SAMPLING),
            ({"blocks": 0}, {}, 1, Error.NO_MODEL),
            ({"head_log2": 2}, {}, 1, Error.BAD_MODEL),
            ({"head_log2": 9}, {}, 1, Error.BAD_MODEL),
            ({"group": 0}, {}, 1, Error.BAD_MODEL),
            ({}, {"top_k": CONFIG.topk + 1}, 1, Error.BAD_SAMPLING),
            ({}, {"stop_count": 9}, 1, Error.BAD_SAMPLING),
            ({}, {}, 0, Error.NOT_READY),
            # Of several the first counts, in this order.
            ({"blocks": 0}, {"prompt": 0}, 0, Error.NO_MODEL),
            ({"head_log2": 2}, {"prompt": 0}, 0, Error.NOT_READY),
            ({"head_log2": 2}, {"prompt": 0}, 1, Error.BAD_RUN),
            ({"head_log2": 2}, {"stop_count": 9}, 1, Error.BAD_MODEL)):
        dut.ready.value = ready
        await ClockCycles(dut.clk, 2)
        await begin(dut, {**good_model, **model}, **{**good, **run})
        assert [e["reason"] for e in await collect(dut)] == [4]
        assert await error_of(dut) == (error, 0)
        dut.ready.value = 1
        assert not chip.passes and not chip.flushes
    await begin(dut, good_model, start_pos=limit - 4, prompt=4, max_new=9)
    assert [e["reason"] for e in await collect(dut)] == [3]
    assert await error_of(dut) == (0, 0)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def a_token_beyond_the_context_overwrites_none(dut):
    await start(dut)
    chip = Chip(dut)
    limit, model = context_limit(CONFIG), {**some_model(), "head_log2": 3}
    await write_tokens(dut, chip, 0, [12345])
    chip.token_of = lambda position: 54321
    await begin(dut, model, start_pos=limit - 1, prompt=1, max_new=9)
    assert [e["reason"] for e in await collect(dut)] == [3]
    chip.passes.clear()
    await begin(dut, model, start_pos=0, prompt=1, max_new=1)
    assert [e["reason"] for e in await collect(dut)] == [2]
    assert [tokens for _, tokens in chip.passes] == [[12345]]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def a_model_of_which_one_lot_fits(dut):
    await start(dut)
    chip = Chip(dut)
    # 64 values a head are 16 slices: one lot fits; keys of a tile: 2
    await begin(dut, {**some_model(), "head_log2": 6, "blocks": 2}, prompt=9, max_new=2)
    assert [e["reason"] for e in await collect(dut)] == [0, 2]
    assert [(p.nb, p.sub_heads, p.sub_blocks) for p, _ in chip.passes] == [
        (2, 1, 1), (1, 1, 1), (1, 1, 1)]
    # 128 and 256 come 64 at a time
    for head_log2 in (7, 8):
        seen = chip.passes[:]
        chip.passes.clear()
        await begin(dut, {**some_model(), "head_log2": head_log2, "blocks": 2}, prompt=9, max_new=2)
        assert [e["reason"] for e in await collect(dut)] == [0, 2]
        assert [p for p, _ in chip.passes] == [p for p, _ in seen]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def faults(dut):
    await start(dut)
    chip = Chip(dut)
    for bits in [1 << i for i in range(len(FAULTS))] + [0b0110, 0b1111, 0b1100]:
        # In any pass, the last of a run that only fills the cache included
        max_new = random.choice([0, 3])
        model = {**some_model(), "head_log2": 4, "blocks": 2}
        count = len(list(prompt_passes(CONFIG, model, 0, 20)))
        pc = random.getrandbits(16)
        chip.passes.clear()
        chip.fault = (random.randrange(count), bits, pc)
        await begin(dut, model, prompt=20, max_new=max_new)
        assert [e["reason"] for e in await collect(dut)] == [4]
        assert await error_of(dut) == (FAULTS[(bits & -bits).bit_length() - 1], pc)
        assert len(chip.passes) == chip.fault[0] + 1
        chip.fault = None
        await whole_run(dut, chip)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def a_fault_on_its_way_when_the_cache_is_filled(dut):
    """It comes from far; with tokens to come the sampler's time is enough for it."""
    await start(dut)
    Chip(dut, quick=True)
    for late in range(12):
        await begin(dut, {**some_model(), "head_log2": 4}, prompt=2, max_new=0)
        events = cocotb.start_soon(collect(dut))
        while not int(dut.pass_end.value):
            await RisingEdge(dut.clk)
        await ClockCycles(dut.clk, 1 + late)
        dut.faults.value = 1
        await RisingEdge(dut.clk)
        dut.faults.value = 0
        assert [e["reason"] for e in await events] == [4]
        assert (await error_of(dut))[0] == FAULTS[0]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def watchdog(dut):
    await start(dut)
    chip = Chip(dut)
    for _ in range(3):
        chip.hang = "pass"
        dut.fault_pc.value = 77
        begun = cycles(dut)
        await begin(dut, some_model(), prompt=2, max_new=1)
        assert [e["reason"] for e in await collect(dut)] == [4]
        assert await error_of(dut) == (Error.WATCHDOG, 77)
        assert 1 << WATCHDOG < cycles(dut) - begun < (1 << WATCHDOG) + 500
        chip.hang = None
        await whole_run(dut, chip)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def the_watchdog_lets_a_slow_link_and_slow_progress_be(dut):
    await start(dut)
    chip = Chip(dut)
    chip.token_of = lambda position: 9
    await begin(dut, some_model(), prompt=1, max_new=2)
    await ClockCycles(dut.clk, 5 << WATCHDOG)
    await ReadOnly()
    assert int(dut.link_stall.value) and int(dut.link__events__valid.value)
    await RisingEdge(dut.clk)
    assert [e["reason"] for e in await collect(dut)] == [0, 2]
    assert await error_of(dut) == (0, 0)


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(cause=["abort", "hang", "memory"])
async def a_core_that_cannot_be_emptied(dut, cause):
    await start(dut)
    chip = Chip(dut)
    await begin(dut, some_model(), prompt=2, max_new=1)
    chip.hang = "pass"
    await ClockCycles(dut.clk, 80)
    chip.stuck = True
    if cause == "abort":
        dut.link__abort.value = 1
        await RisingEdge(dut.clk)
        dut.link__abort.value = 0
    elif cause == "memory":
        dut.ready.value = 0
    assert [e["reason"] for e in await collect(dut)] == [4]
    assert (await error_of(dut))[0] == (Error.MEMORY if cause == "memory" else Error.STUCK)
    # And no run begins on it
    dut.ready.value = 1
    await ClockCycles(dut.clk, 2)
    passes = len(chip.passes)
    await begin(dut, some_model(), prompt=2, max_new=1)
    assert [e["reason"] for e in await collect(dut)] == [4]
    assert (await error_of(dut))[0] == Error.STUCK
    assert len(chip.passes) == passes


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def decode_costs_few_cycles_of_its_own(dut):
    await start(dut)
    chip = Chip(dut, quick=True)
    chip.token_of = lambda position: 9
    model = {**some_model(), "head_log2": 4}
    await begin(dut, model, prompt=1, max_new=20)
    assert len(await collect(dut)) == 20
    gaps = [b - a for a, b in zip(chip.starts, chip.starts[1:], strict=False)]
    own = 2 * Sequencer.TURN + Sequencer.EVENT + Sequencer.PLAN
    assert gaps == [own + 6 + Planner.cycles(decode_pass(CONFIG, model, position), model["group"])
                    for position in range(1, 20)]       # 6 of the chip's model


@cocotb.test(timeout_time=10, timeout_unit="us")
async def every_error_was_raised(dut):
    """The last test: what no input of the Sequencer can cause is not promised."""
    assert set(Error) == SEEN


def test_sequencer(seed):
    simulate(Sequencer(CONFIG, watchdog_log2=WATCHDOG), __name__, seed=seed)


# The plan and the tables.

@pytest.mark.parametrize("head_log2", range(3, 9))
def test_subgroups_are_the_largest_that_fit(head_log2):
    for group in (1, 2, 5, 20):
        for nb in (1, 3, 8):
            for ctx in range(1, 200, 7):
                model, most = dict(head_log2=head_log2, group=group), lots(CONFIG, head_log2, ctx)
                heads, blocks = subgroup(CONFIG, model, nb, ctx)
                assert (heads > 0) == (most > 0) and heads * blocks <= most
                if heads:
                    assert heads == group or heads + 1 > most
                    assert blocks == nb or heads * (blocks + 1) > most
                    assert blocks == 1 or heads == group


def test_tile_keys_fit_the_instruction_field():
    assert tile_keys(CONFIG, 4) == 8
    assert tile_keys(CONFIG.replace(tile_beats=512), 4) == 128


def test_prompt_that_does_not_fit():
    limit = CONFIG.score_depth
    with pytest.raises(ValueError, match=rf"^no pass fits at position {limit - 3}$"):
        list(prompt_passes(CONFIG.replace(W=4), dict(head_log2=7, blocks=1, group=1), limit - 3, 4))


def test_every_error_has_a_sentence():
    assert set(errors.SENTENCES) == set(Error) - {Error.NONE}
    assert errors.sentence(6) == errors.SENTENCES[Error.WATCHDOG]
    assert "error 200" in errors.sentence(200)
    assert len(set(FAULTS)) == len(FAULTS)


def test_watchdog_out_of_range():
    with pytest.raises(ValueError, match=r"^watchdog_log2 must be in 5\.\.32, not 4$"):
        Sequencer(CONFIG, watchdog_log2=4)
