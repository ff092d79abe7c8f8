"""Attention by GEMM: the walkers of SPILL and FILL, what packs values, and the program, against the
golden models."""
import random
from collections import deque
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from amaranth import Value
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.gemm import spilled
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark.run.targets import GoldenTarget, SimTarget, golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.compute.softmax import SoftmaxUnit
from meadowlark_hdl.compute.softmax_golden import MASKED
from meadowlark_hdl.compute.softmax_golden import spilled as in_memory
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch_golden import ProgramError
from meadowlark_hdl.control.fetch_golden import walk as walk_of
from meadowlark_hdl.control.sequencer_golden import prompt_passes, subgroups
from meadowlark_hdl.isa import Instruction, Op, fault
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.issue.fill import Fill
from meadowlark_hdl.issue.keys import Keys
from meadowlark_hdl.memory.spiller import Spiller
from meadowlark_hdl.sampler.sampler_golden import Sampling
from presented import a_batch, a_pass, check
from random_model import random_model
from test_walkers import run, walk

CONFIGS = {f"w{W}p{P}": Config(W=W, P=P, bus_bytes=bus, act_words=64, score_depth=256,
                               tile_beats=32, tile_rows=8, rope_pairs=256, gemm=True)
           for W, P, bus in ((8, 4, 2), (16, 4, 16), (16, 8, 4))}


def some_pass(rng, c):
    """A pass and an instruction's fields; some are of a batch, whose lanes are heads."""
    rest = dict(last=0, back=8191, ahead=0)
    if rng.random() < 0.4:
        n = int(rng.integers(1, c.P + 1))
        p = a_batch(rng, c.P, n) if rng.integers(2) else a_pass(c.P, 1, int(rng.integers(60)))
        return p, dict(heads=1, lanes=int(rng.integers(1, c.P + 1)), group=1, **rest)
    p = a_pass(c.P, int(rng.integers(1, 3 * c.P + 1)), int(rng.integers(9)),
               *(map(int, rng.integers(1, 4, 2))))
    return p, rest | dict(heads=0, lanes=0, group=int(rng.integers(1, 4)),
                          ahead=int(rng.random() < 0.2))


@pytest.mark.parametrize("case", CONFIGS)
def test_walkers(case, seed):
    """What QK, SPILL and FILL present; SPILL only while there is room, and rows P cycles apart."""
    c, rng, chance = CONFIGS[case], np.random.default_rng(seed), random.Random(seed)
    keys = Keys(c)

    async def of_keys(ctx):
        for k in range(8):
            p, fields = some_pass(rng, c)
            model, stall = {"block_words": 9, "head_log2": (c.W - 1).bit_length()}, (0, 0.5)[k % 2]
            for lots in subgroups(c, p, fields):
                for i in (Instruction(Op.QK, rows=128, row_beats=1, **fields),
                          *(Instruction(Op.SPILL, rows=128, row_beats=1, beside=b, **fields)
                            for b in (0, 1))):
                    room = []

                    def each():
                        room.append(chance.random() >= stall)
                        ctx.set(keys.room, room[-1])
                    trace = await walk(ctx, keys, p, i, model, lots, each=each)
                    wanted = list(issue_golden.beats(c, model, p, i, lots))
                    check(c, trace, wanted)
                    assert ctx.get(keys.rows) == len(wanted)
                    rows = [t for t, shown in enumerate(trace) if shown["res_en"]]
                    assert len(rows) == (len(wanted) if i["op"] == Op.SPILL else 0)
                    assert all(b - a >= c.row_cycles for a, b in zip(rows, rows[1:]))
                    assert all(room[t] for t in rows)
                    if not stall and i["op"] == Op.SPILL:
                        assert not any(shown["release"] for shown in trace)
    run(keys, of_keys)


@pytest.mark.parametrize("case", CONFIGS)
def test_fill(case, seed):
    """Each score once, from the tile it is in."""
    c, rng, chance = CONFIGS[case], np.random.default_rng(seed), random.Random(seed)
    fill = Fill(c)

    async def of_fill(ctx):
        for k in range(6):
            rows, beats = int(rng.integers(1, 60)), int(rng.integers(1, 9))
            ctx.set(fill.rows, rows)
            i, stall = Instruction(Op.FILL, chunks=2 * beats, row_beats=1), (0, 0.6)[k % 2]
            trace = await walk(ctx, fill, a_pass(c.P, 1), i, {},
                               front=lambda stall=stall: chance.random() >= stall)
            wanted = list(issue_golden.fill(c, rows, i))
            check(c, trace, wanted)
            tiles = -(-rows // (beats * c.spilled_keys))
            assert sum(shown["release"] for shown in trace) == tiles
            assert not any(before["wait_tile"] and shown["array_active"]
                           for before, shown in pairwise(trace))
            if not stall:
                assert len(trace) - 8 == rows + tiles * Fill.TILE
    run(fill, of_fill)


def test_the_maximum_stays():
    """What FILL brings takes no part in it, whatever block it is said to be of."""
    softmax, p = SoftmaxUnit(CONFIGS["w8p4"]), []

    async def write(ctx, base, scores, **fields):
        for t in range(len(scores) + 24):
            at = t - softmax.write_latency
            on = int(0 <= at < len(scores))
            ctx.set(softmax.acc, scores[t] if t < len(scores) else 0)
            for name, value in ({"w_en": on, "w_used": 1, "w_addr": base + at if on else 0,
                                 "w_first": on and at == 0, "w_keep": 0} | {
                    name: value and on for name, value in fields.items()}).items():
                ctx.set(getattr(softmax, name), value)
            await ctx.tick()

    async def bench(ctx):
        await write(ctx, 0, [1000, 2000], block=0)
        await write(ctx, 2, [9000, 8000], block=1)
        for _ in range(2):
            for addr, block in ((0, 0), (1, 0), (2, 1), (3, 1)):
                ctx.set(softmax.r_addr, addr)
                ctx.set(softmax.block, block)
                for _ in range(softmax.latency + 1):
                    await ctx.tick()
                p.append(ctx.get(softmax.p))
            await write(ctx, 0, [1000, 2000, 9000, 8000], w_keep=1, w_first=0, block=0)
    run(softmax, bench)
    assert p[:4] == p[4:] == [16652, 32768, 32768, 16652]


@pytest.mark.parametrize("case", CONFIGS)
def test_spiller(case, seed):
    """All values arrive, in order, behind their command, however slow memory is; between SPILLs
    what scratch memory sends does, and nothing of other results."""
    c, rng, late = CONFIGS[case], random.Random(seed), 40
    spiller = Spiller(c, late=late)
    per_part = c.store_bytes // 2

    async def bench(ctx):
        flight: deque[tuple[int, int]] = deque()        # values on their way: when, which
        t = ready = 0
        for k in range(8):
            rows, addr, slow = rng.randrange(1, 90), rng.randrange(1 << 27), (0.0, 0.97)[k % 2]
            values = [rng.randrange(1 << 16) for _ in range(rows * c.P)]
            await ctx.tick()
            assert ctx.get(spiller.idle)
            for theirs, ours in ((spiller.from_scratch, spiller.store),
                                 (spiller.scratch_words, spiller.words)):
                given = rng.getrandbits(20)
                to, word = (Value.cast(port.payload) for port in (theirs, ours))
                ctx.set(to, given)
                ctx.set(theirs.valid, 1)
                ctx.set(ours.ready, 1)
                assert ctx.get(ours.valid) and ctx.get(theirs.ready) and ctx.get(word) == given
                ctx.set(ours.ready, 0)
                assert not ctx.get(theirs.ready)
            ctx.set(spiller.valid, 1)                   # of something else
            ctx.set(spiller.value, 77)
            await ctx.tick()
            ctx.set(spiller.valid, 0)
            for name, value in (("start", 1), ("addr", addr), ("rows", rows)):
                ctx.set(getattr(spiller, name), value)
            await ctx.tick()
            ctx.set(spiller.start, 0)
            sent, parts, commands = 0, [], []
            while not ctx.get(spiller.idle):
                if sent < rows and t >= ready and ctx.get(spiller.room):
                    for lane in range(c.P):             # as late as they may be
                        flight.append((t + late - c.P + lane, values[sent * c.P + lane]))
                    sent, ready = sent + 1, t + c.row_cycles
                ctx.set(spiller.valid, 0)
                if flight and flight[0][0] == t:
                    ctx.set(spiller.valid, 1)
                    ctx.set(spiller.value, flight.popleft()[1])
                for ours in (spiller.store, spiller.words):
                    ctx.set(ours.ready, rng.random() >= slow)
                if ctx.get(spiller.store.valid & spiller.store.ready):
                    commands.append((ctx.get(spiller.store.payload.addr),
                                     ctx.get(spiller.store.payload.chunks)))
                if ctx.get(spiller.words.valid & spiller.words.ready):
                    parts.append(ctx.get(spiller.words.payload))
                assert not ctx.get(spiller.from_scratch.ready | spiller.scratch_words.ready)
                await ctx.tick()
                t += 1
                assert t < 200000
            pairs = -(-rows // c.spilled_keys)
            assert commands == [(addr, 2 * pairs)]
            got = [part >> 16 * at & 0xffff for part in parts for at in range(per_part)]
            assert got == values + [0] * (pairs * c.spilled_keys * c.P - len(values))
            assert not flight
    run(spiller, bench)


def a_model(tmp_path, seed, **sizes):
    rng = np.random.default_rng(seed)
    model = load_model(random_model(tmp_path, seed=seed, **sizes))
    return quantise(model, rng.integers(0, model.vocab, (6, 40)).tolist(), head_pad=16), rng


def test_program(tmp_path, seed):
    """The image with SPILL and FILL gives the logits of the golden model with scores in memory:
    prompts in several passes, tokens behind them, and a batch."""
    board = get_board("virtual")
    qm, rng = a_model(tmp_path, seed, heads=4, kv_heads=2, context=100)
    plain = compile_model(qm, board, context=100)
    image = spilled(plain, board.config)
    assert image.instructions[image.model_regs["decode_pc"] - 1]["op"] == Op.END
    core, golden = golden_core(image, seed=seed), GoldenModel(qm, gemm=True)
    tokens = rng.integers(0, qm.vocab, 61).tolist()
    for at, end in ((0, 50), (50, 51), (51, 61)):
        np.testing.assert_array_equal(core.forward(tokens[at:end], at),
                                      golden.forward(tokens[at:end], at))
    # Two bytes a score of the keys that blocks see, twice there and back, and no more.
    ways = [golden_core(one, board.config, seed) for one in (plain, image)]
    for core in ways:
        core.forward(tokens[:50])
    c, words = board.config, 0
    for p in prompt_passes(c, image.model_regs, 0, 50):
        for pc, lots in walk_of(c, image.instructions, p, 0):
            if (i := image.instructions[pc])["op"] == Op.SPILL:
                assert lots is not None
                keys = sum(len(p.sees(c, i, block)) for block in lots.blocks) * len(lots.heads)
                words += -(-2 * keys * c.P // (2 * c.W)) * 2 * c.bus_per_chunk
    assert words > 0
    for name in ("bus_write_words", "bus_read_words"):
        assert ways[1].counters[name] - ways[0].counters[name] == words


def test_memory_matters(tmp_path, seed):
    """What comes back is what memory has, not what the lanes still know."""
    board = get_board("virtual")
    qm, rng = a_model(tmp_path, seed, context=60)
    image = spilled(compile_model(qm, board, context=60), board.config)
    tokens = rng.integers(0, qm.vocab, 20).tolist()
    core = golden_core(image)
    fills = [i for i in image.instructions if i["op"] == Op.FILL]
    want, found = core.forward(tokens), core.tiles.spilled
    core.tiles.spilled = lambda i, keys: found(i, keys)[::-1] if i["addr"] == fills[0]["addr"] \
        else found(i, keys)
    assert (core.forward(tokens) != want).any()


def test_simulated_board(tmp_path, seed):
    """Tokens, logits, words of memory and cycles: a prompt in blocks, and tokens behind it."""
    board = get_board("virtual")
    folder = random_model(tmp_path / "m", seed=seed, context=100)
    path = tmp_path / "gemm.mlk"
    spilled(Source(str(folder), board, draft="none").image, board.config).save(path)
    source, golden = Source(str(path), board), GoldenTarget(board)
    prompt = np.random.default_rng(seed).integers(2, 128, 37).tolist()
    with closing(SimTarget(board)) as target:
        for one in (golden, target):
            one.load(source)
        events = [[(e.token, e.crc) for e in one.generate(prompt, Sampling(), max_new=4,
                                                          stop_ids=())] for one in (golden, target)]
        assert events[0] == events[1]
        counted, told = golden.counters(), target.counters()
        assert {name: told[name] for name in counted} == counted
    cycles = predict(source.image, board, prompt=37, generate=4).cycles
    assert abs(cycles / told["cycles"] - 1) < 0.02


def test_scores_in_memory():
    assert in_memory([MASKED, MASKED + 1, -5, -1, 0, 3, 4, 131071]).tolist() == [
        -32768, -32768, -2, -1, 0, 0, 1, 32767]


@pytest.mark.parametrize("change, message", [
    (dict(board="ulx3s_85f"), "keeps attention on the chip"),
    (dict(context=129), "contexts of at most 128 tokens, not 129"),
    (dict(config=dict(prog_depth=64)), "instructions, at most 64")])
def test_refused(tmp_path, change, message):
    qm, _ = a_model(tmp_path, 1, context=200)
    board = get_board(change.get("board", "virtual"))
    image = compile_model(qm, board, context=change.get("context", 50))
    with pytest.raises(UserError, match=message):
        spilled(image, board.config.replace(**change.get("config", {})))


def test_cores_without(tmp_path):
    """An image with SPILLs needs a core that has them; one without is the same for both."""
    board = get_board("virtual")
    qm, rng = a_model(tmp_path, 1, context=50)
    plain = compile_model(qm, board, context=50)
    image = spilled(plain, board.config)
    less = replace(board, config=board.config.replace(gemm=False))
    assert "gemm" not in plain.config and image.config["gemm"]
    assert compile_model(qm, less, context=50) == plain
    plain.check_board(less)
    with pytest.raises(UserError, match="attention by GEMM, which the board virtual cannot"):
        image.check_board(less)
    with pytest.raises(ProgramError, match="SPILL on a core without gemm"):
        golden_core(image, less.config).forward([1, 2, 3])


@pytest.mark.parametrize("sizes", [dict(P=16), dict(P=3), dict(block_modes=False)])
def test_config(sizes):
    with pytest.raises(ValueError, match="gemm needs block_modes and P a power of two"):
        Config(**dict(W=16, P=4, bus_bytes=16, gemm=True) | sizes)


def test_faults():
    assert fault(Instruction(Op.SPILL, beside=1)) is None is fault(Instruction(Op.FILL))
    assert fault(Instruction(Op.FILL, beside=1)) == (
        "only a NORM reads beside the residual, only SPILL and SV know probabilities")
