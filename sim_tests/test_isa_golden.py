"""The golden core: an image's program against the model in integers, and against damage."""
from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from batches import alone_and_together
from draft_tables import table_of, with_draft_table
from gguf_files import write_gguf
from meadowlark.compile.compiler import compile_model
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import quantise
from meadowlark.quant.sampling import sampling
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl import isa_golden
from meadowlark_hdl.compute import tiling_engine_golden
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Lots, Place
from meadowlark_hdl.isa import (FIELDS, MODEL_REGS, NO_WINDOW, Fn, Instruction, Kind, Op, Pair,
                                Sink, Src)
from meadowlark_hdl.control.fetch_golden import ProgramError
from meadowlark_hdl.isa_golden import GoldenCore
from meadowlark_hdl.issue import issue_golden
from meadowlark_hdl.sampler.sampler_golden import Sampling
from random_model import packable, random_model, random_texts

CONFIG = Config(W=8, P=4, bus_bytes=2, act_words=256, residual_values=4096, score_depth=128,
                rope_pairs=512, tile_beats=256, tile_rows=16, fifo_words=512, burst_words=64,
                context=128, packing=3)
BOARD = replace(get_board("virtual"), config=CONFIG)


@pytest.fixture(scope="module")
def qm(tmp_path_factory):
    """A quantised model, of which packing makes some matrices smaller."""
    folder = random_model(tmp_path_factory.mktemp("m"), seed=1, hidden=96, layers=2, heads=6,
                          kv_heads=2, head_dim=24, ffn=208, vocab=301, tied=False)
    model = load_model(folder)
    return packable(quantise(model, random_texts(model, seed=2)))


@pytest.fixture(scope="module")
def image(qm):
    """An image with tensors of both packings."""
    found = compile_model(qm, BOARD)
    assert {t["mode"] for t in found.tensors} >= {"entropy", "meadow"}
    return found


def random_shape(rng) -> dict:
    kv_heads, group = int(rng.integers(1, 3)), int(rng.integers(1, 6))
    return dict(hidden=int(rng.integers(8, 40)) * 2, layers=int(rng.integers(1, 3)),
                heads=kv_heads * group, kv_heads=kv_heads, head_dim=int(rng.integers(3, 9)) * 2,
                ffn=int(rng.integers(10, 90)), vocab=int(rng.integers(64, 150)),
                tied=bool(rng.integers(2)), attention_bias=bool(rng.integers(2)),
                mlp_bias=bool(rng.integers(2)))


def cached(core: GoldenCore, like: np.ndarray, positions: int) -> np.ndarray:
    """What STOREs have put into memory: int8[caches, 2, kv_heads, positions, head].

    like: int8[caches, kv_heads, ...].
    """
    stores = [i for i in core.program[core.model["decode_pc"]:] if i["op"] == Op.STORE]
    rows = [core.memory[i["addr"] * CONFIG.W:][:positions * core.head] for i in stores]
    return np.stack(rows).view(np.int8).reshape(len(like), 2, like.shape[1], positions, -1)


@pytest.mark.parametrize("blocks", [False, True])
def test_random_models(tmp_path, seed, blocks):
    """Logits, cache and counts, of prompts and of single tokens."""
    rng = np.random.default_rng(seed)
    for k in range(3):
        shape = random_shape(rng)
        if blocks:          # rows of whole blocks
            shape |= dict(hidden=64, ffn=64, heads=2, kv_heads=int(rng.integers(1, 3)), head_dim=32)
        folder = random_model(tmp_path / str(k), seed=int(rng.integers(1 << 30)), **shape)
        model = load_model(write_gguf(tmp_path / f"{k}.gguf", folder, kind=str(
            rng.choice(["Q8_0", "Q4_0", "Q4_1"]))) if blocks else folder)
        qm = quantise(model, random_texts(model, seed=1, sequences=2))
        golden = GoldenModel(qm)
        all_tokens = bool(rng.integers(2))
        core = golden_core(compile_model(qm, BOARD, all_tokens=all_tokens), CONFIG, seed)
        tokens = rng.integers(0, qm.vocab, int(rng.integers(1, 60))).tolist()
        draw = sampling(temperature=0.9, seed=int(rng.integers(1 << 30)))
        want = list(golden.generate(tokens, draw, max_new=3, stop_ids=()))
        got = list(core.generate(tokens, draw, max_new=3))
        assert [t for t, _ in got] == [t for t, _ in want], shape
        for (_, a), (_, b) in zip(got, want):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == np.int32
        found = cached(core, golden.keys, golden.length)
        for which, want in enumerate((golden.keys, golden.values)):
            np.testing.assert_array_equal(found[:, which], want[:, :, :golden.length])
        counted, most = core.counters["score_saturations"], golden.saturations["scores"]
        assert counted == most if all_tokens else counted <= most


@pytest.mark.parametrize("shape", [{}, {"head_dim": 24, "heads": 10, "kv_heads": 2}],
                         ids=["some", "more heads than lanes"])
def test_a_batch_is_its_decodes(tmp_path, seed, shape):
    """Tokens of several sequences in a pass: their logits and caches as of one after the other."""
    rng = np.random.default_rng(seed)
    for k in range(3):
        folder = random_model(tmp_path / str(k), seed=int(rng.integers(1 << 30)),
                              **random_shape(rng) | shape)
        model = load_model(folder)
        image = compile_model(quantise(model, random_texts(model, seed=1, sequences=2)), BOARD)
        count = int(rng.integers(1, image.facts["batch"] + 1))
        alone, logits, together, tokens, places = alone_and_together(image, CONFIG, seed, count, 50)
        np.testing.assert_array_equal(together.batch(tokens, places), logits)
        np.testing.assert_array_equal(together.memory, alone.memory)


def test_sequences_go_on_together(image, seed):
    """As each would alone, in a cache of its own: pass after pass, until one draws a stop id."""
    rng = np.random.default_rng(seed)
    room = image.needs["memory_bytes"] - len(image.memory)
    wide = replace(image, needs=image.needs | {"memory_bytes": len(image.memory) + 4 * room})
    for stop in (False, True):
        core, tokens, places, draws, alone = golden_core(wide, CONFIG, seed), [], [], [], []
        for k in range(CONFIG.P):
            prompt = rng.integers(0, image.model_regs["vocab"], rng.integers(1, 20)).tolist()
            draws.append(sampling(temperature=0.9, seed=int(rng.integers(3))))
            base = k * room // CONFIG.W
            alone.append(list(core.generate(prompt, draws[-1], max_new=6, base=base)))
            tokens.append(alone[-1][0][0])
            places.append(Place(base, len(prompt)))
        stops = [alone[1][3][0]] if stop else []
        found = list(core.batches(tokens, places, draws, max_new=5, stop_ids=stops))
        want = list(zip(*(events[1:] for events in alone)))
        drawn = [[token for token, _ in row] for row in want]
        passes = next((k for k, row in enumerate(drawn, 1) if set(row) & set(stops)), 5)
        assert len(found) == passes
        for together, one in zip(found, want):
            assert [token for token, _ in together] == [token for token, _ in one]
            np.testing.assert_array_equal([row for _, row in together], [row for _, row in one])


def test_a_batch_of_one_is_a_decode(image, seed):
    """In counts as well."""
    one, other = (golden_core(image, CONFIG, seed) for _ in range(2))
    for core in (one, other):
        core.forward([5, 6, 7])
        core.clear()
    np.testing.assert_array_equal([one.forward([8], 3)], other.batch([8], [Place(0, 3)]))
    assert one.counters == other.counters
    np.testing.assert_array_equal(one.memory, other.memory)


def test_neighbours_may_be_of_one_sequence(image, seed):
    """All keys of a layer are stored before one of them is read."""
    one, other = (golden_core(image, CONFIG, seed) for _ in range(2))
    for core in (one, other):
        core.forward([5, 6, 7])
    want = one.check([8, 9, 10], 3)
    np.testing.assert_array_equal(
        want, other.batch([8, 9, 10], [Place(0, position) for position in (3, 4, 5)]))
    np.testing.assert_array_equal(one.memory, other.memory)


def test_runs_with_a_drafter_change_no_text(image, seed):
    """Greedy and drawn, with and without a table, whatever it says: tokens and logits are those of
    a run without drafts, and each accepted draft saves a pass."""
    rng = np.random.default_rng(seed)
    plain = golden_core(image, CONFIG, seed)
    for most, certain in [*((most, False) for most in range(1, CONFIG.P)), (2, True)]:
        drawn = Sampling(int(rng.integers(1 << 12, 1 << 14)), 12, seed=int(rng.integers(1 << 32)))
        length = int(rng.integers(5, 40) if most > 1 else rng.integers(110, 120))
        prompt = rng.integers(0, 301, length).tolist()      # one at the end of the context
        text = list(plain.generate(prompt, drawn, max_new=20))
        right = 1.0 if certain else float(rng.choice([0, 0.8, 1]))
        table = table_of([[*prompt, *(token for token, _ in text)]],
                         512 if certain else int(rng.integers(8, 40)),
                         rng=rng, vocab=301, right=right)
        with_table, at, raw = with_draft_table(image, table, 5)
        core = golden_core(with_table, CONFIG, seed)
        core.memory[at:at + len(raw)] = np.frombuffer(raw, np.uint8)
        found = list(core.generate(prompt, drawn, max_new=20, draft_most=most,
                                   draft_price=0 if certain else int(rng.choice([0, 50, 500]))))
        assert [token for token, _ in found] == [token for token, _ in text]
        for (_, logits), (_, want) in zip(found, text, strict=True):
            np.testing.assert_array_equal(logits, want)
        counted = core.counters
        prompt_passes = -(-len(prompt) // (CONFIG.P * image.model_regs["blocks"]))
        assert counted["passes"] == prompt_passes + len(text) - 1 - counted["accepted"]
        assert counted["accepted"] <= counted["drafted"] <= most * 19
    assert counted["accepted"], "a table of the very text saved no pass"


def test_a_table_beyond_the_memory(image):
    broken, _, _ = with_draft_table(image, np.zeros((9, 4), np.uint32), 5)
    broken.model_regs["draft_buckets"] = 10
    with pytest.raises(ProgramError, match="^model registers that cannot be: a table of drafts"):
        golden_core(broken, CONFIG)


def test_more_drafts_than_lanes(image):
    with pytest.raises(ValueError, match="more drafts than lanes"):
        golden_core(image, CONFIG).check([1] * 5)


@pytest.mark.parametrize("tokens, places, words", [
    ([], 0, "tokens must be ids in 0..300"), ([301], 1, "tokens must be ids in 0..300"),
    ([1] * 5, 5, "no place for each"), ([1, 2], 1, "no place for each")])
def test_batches_that_cannot_be(image, tokens, places, words):
    with pytest.raises(ValueError, match=words):
        golden_core(image, CONFIG).batch(tokens, [Place(0, 1)] * places)


def test_weights_are_converted_at_each_use_or_kept(image, monkeypatch):
    """A large model's codes stay integers; its products come in pieces."""
    want = golden_core(image, CONFIG).forward([5, 6, 7, 8, 9])
    monkeypatch.setattr(isa_golden, "FLOATS_KEPT", 0)
    monkeypatch.setattr(tiling_engine_golden, "AT_ONCE", 100)
    core = golden_core(image, CONFIG)
    told = []
    core.read_stream(lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(core.forward([5, 6, 7, 8, 9]), want)
    kinds = {rows.values.dtype for rows, _ in core.tiles._kept.values()}
    assert kinds == {np.dtype(np.int8), np.dtype(np.int16)}
    assert told[-1][0] == told[-1][1] and sorted(told[:len(told) // 2]) == told[:len(told) // 2]


def test_a_broken_off_pass_leaves_no_trace(qm, seed):
    """Wherever a pass ends, the packed weights behind that place are read right the next time:
    with the tables that stand before it, as those of a head's queries do before the next one's."""
    image = compile_model(qm, BOARD, packing="entropy")
    assert "entropy" in {t["mode"] for t in image.tensors if t["name"].endswith(".q")}
    want = golden_core(image, CONFIG).forward([5, 6])
    ops = [at for at, i in enumerate(image.instructions[:image.model_regs["decode_pc"]])
           if i["op"] == Op.LINEAR and i["sink"] == Sink.ACT and i["pair"] == Pair.ROPE]
    for at in [ops[1], *np.random.default_rng(seed).choice(ops, 2)]:
        core = golden_core(image, CONFIG)
        linear = core._execute[Op.LINEAR]

        def broken(i):
            if i is core.program[at]:
                raise KeyboardInterrupt
            linear(i)
        core._execute[Op.LINEAR] = broken
        with pytest.raises(KeyboardInterrupt):
            core.forward([5, 6])
        core._execute[Op.LINEAR] = linear
        np.testing.assert_array_equal(core.forward([5, 6]), want)


class Lanes:
    """The array in the plainest way: what the beats of an instruction do in its lanes.

    rows: [row, block] -> its results, int[P]. scores: [address] -> (int[P], hidden bool[P]).
    probability: [head, slot of the lots' blocks, key].
    """

    def __init__(self, core: GoldenCore, i: Instruction, act: np.ndarray, values: np.ndarray,
                 lots: Lots | None = None, probability: np.ndarray | None = None) -> None:
        c, p, P = core.config, core._pass, core.config.P
        words = act.reshape(P, -1, c.W).astype(np.int64)
        acc, sums = np.zeros(P, np.int64), np.zeros((P, 64), np.int64)
        total = sums[:, 0]
        slices = np.zeros((P, c.acc_slots, c.sv_columns), np.int64)
        self.rows, self.scores, begun = {}, {}, set()
        for e in issue_golden.beats(c, core.model, p, i, lots):
            if "tile" in e:
                row, at = divmod(e["beat"], i["row_beats"])
                beat = values[e["tile"] * i["rows"] + row].reshape(-1, c.W)[at]
            if "dot_keep" in e:
                acc = acc * e["dot_keep"] + words[:, e["x_addr"]] @ beat
            if "sc_en" in e:
                lanes = np.arange(P)
                self.scores[e["sc_addr"]] = acc, (lanes < e["sc_from"]) | (lanes > e["sc_until"])
                assert e["sc_first"] == (e["sc_block"] not in begun)
                begun.add(e["sc_block"])
            if "acc_en" in e:
                assert lots
                mine = np.zeros(P, np.int64)        # of lanes that have a query
                head, block = divmod(e["m_block"], len(lots.blocks))
                there = probability[head, block * P:][
                    :P, e["s_addr"] - e["m_block"] * p.ctx - lots.keys.start]
                mine[:len(there)] = there
                assert e["acc_addr"] == e["acc_to"]
                slices[:, e["acc_to"]] = slices[:, e["acc_to"]] * e["acc_keep"] + np.outer(
                    mine, beat[e["part"]::c.sv_cycles])
                if "sum_en" in e:
                    sums[:, e["sum_block"]] = sums[:, e["sum_block"]] * e["sum_keep"] + mine
            if "res_en" in e:
                drained = slices[:, e.get("acc_addr", 0), e.get("dr_sel", 0)]
                result = {Kind.ROW: acc, Kind.SUM: sums[:, e.get("sum_block", 0)],
                          Kind.DRAIN: drained}[e["res_kind"]]
                if e["res_kind"] == Kind.SUM:       # has no row: that of the first element
                    assert (e["element"], e["by"]) == (i["mant"], i["shift"])
                    total = result.copy()
                    continue
                row = e["element"] - (i["y"] << (i["pair"] == Pair.GLU))
                if e["res_kind"] == Kind.ROW:       # a head for each lane
                    row += e["to_lane"] * core.head
                key = e["res_kind"], row, e["block"]
                assert key not in self.rows, "a result twice"
                self.rows[key] = result.copy()
                if e["res_kind"] == Kind.DRAIN and row % core.head == 0:
                    self.rows[Kind.SUM, row, e["block"]] = total

    def of(self, kind: int, slots: np.ndarray, count: int, first: int = 0, token: int = 0,
           ) -> np.ndarray:
        """Results of a kind, int[slots, count], from row ``first`` on; of lanes that are heads of a
        token."""
        P = len(next(iter(self.rows.values())))
        return np.array([[self.rows[kind, row, s // P + token][s % P]
                          for row in range(first, first + count)] for s in slots])


@pytest.mark.parametrize("sv_cycles", [2, 4])
def test_by_beats(image, monkeypatch, sv_cycles):
    """What Issue presents, beat by beat, makes what the program says: prefill, decode and batch,
    one tile of keys and two, windows that hide all of the first one, a part of it, nothing."""
    core, done = golden_core(image, CONFIG.replace(sv_cycles=sv_cycles)), set()
    seen = []

    def recorded(function):
        def call(a, b):
            seen.append((a, b, function(a, b)))
            return seen[-1][-1]
        return call
    monkeypatch.setattr(isa_golden, "dot", recorded(isa_golden.dot))
    monkeypatch.setattr(isa_golden, "broadcast", recorded(isa_golden.broadcast))

    def checked(op):
        def call(i, *of_attention):
            act = core._act.copy()
            seen.clear()
            given = execute[op](i, *of_attention)
            p, P, lots = core._pass, core.config.P, None
            slots = np.arange(p.n)
            if op == Op.LINEAR:
                slots = core._of_pass(i)[-len(core._logits) if i["sink"] == Sink.LOGIT else 0:]
                want = np.concatenate([acc for *_, acc in seen], axis=1)
                lanes = Lanes(core, i, act, np.concatenate([rows for rows, *_ in seen]))
                np.testing.assert_array_equal(lanes.of(Kind.ROW, slots, want.shape[1]), want)
            elif op == Op.QK:
                slots, lots = of_attention
                [(keys, _, want)] = seen
                lanes, first = Lanes(core, i, act, keys, lots), lots.blocks.start
                for h, k in np.ndindex(want.shape[:2]):
                    for column, key in enumerate(lots.keys):
                        position = p.positions[lots.heads.start if i["heads"] else slots[k]]
                        hidden = key > position and not i["ahead"] or key < position - i["back"]
                        lot = h * len(lots.blocks) + (0 if i["heads"] else slots[k] // P - first)
                        if (at := lot * p.ctx + key) in lanes.scores or not hidden:
                            acc, masked = lanes.scores[at]
                            lane = slots[k] % P
                            assert acc[lane] == want[h, k, column] and masked[lane] == hidden
            else:
                slots, lots, *_ = of_attention
                probability = np.stack([probability for probability, *_ in seen])
                lanes = Lanes(core, i, act, seen[0][1], lots, probability)
                for h, (each, _, want) in zip(lots.heads, seen, strict=True):
                    first, token = (0, h) if i["heads"] else (h * core.head, 0)
                    np.testing.assert_array_equal(
                        lanes.of(Kind.DRAIN, slots, core.head, first, token), want)
                    np.testing.assert_array_equal(
                        lanes.of(Kind.SUM, slots, 1, first, token)[:, 0], each.sum(axis=1))
            done.add((op, p.decode, lots is not None and len(lots.keys) > i["rows"]))
            return given
        return call
    execute = core._execute | {Op.QK: core._qk, Op.SV: core._sv}
    core._execute[Op.LINEAR] = checked(Op.LINEAR)
    core._qk, core._sv = checked(Op.QK), checked(Op.SV)
    for back, ahead in ((NO_WINDOW, 0), (0, 0), (5, 0), (40, 0), (5, 1)):
        for i in core.program:
            if i["op"] in (Op.QK, Op.SV):
                i.update(back=back, ahead=ahead)
        core.forward(list(range(2, 11)), 0)
        core.forward(list(range(2, 11)), 60)
        core.forward([5], 69)
        core.batch([5, 6, 7, 8], [Place(0, position) for position in (68, 69, 3, 40)])
    assert {(op, decode, True) for op in (Op.QK, Op.SV) for decode in (False, True)} <= done


def test_ends(image):
    """Of a run: its number of tokens, a stop id, the last position."""
    core = golden_core(image, CONFIG)
    tokens = list(range(2, 2 + 120))
    drawn = [token for token, _ in core.generate(tokens, max_new=1000)]
    assert len(drawn) == 9                  # positions 120..127, and one that has none
    assert core.counters["passes"] == 8 + len([*_passes(core, 120)])
    stop = drawn[3]
    assert [t for t, _ in core.generate(tokens, max_new=1000, stop_ids=(stop,))] == \
        drawn[:drawn.index(stop) + 1]
    assert list(core.generate(tokens, max_new=0)) == []
    for wrong in ([], [301], [-1]):
        with pytest.raises(ValueError, match=r"^tokens must be ids in 0\.\.300, at least one"):
            core.forward(wrong)


def _passes(core, n):
    from meadowlark_hdl.control.sequencer_golden import prompt_passes
    return prompt_passes(core.config, core.model, 0, n)


@pytest.mark.parametrize("op, which, change, words", [
    (Op.LINEAR, 0, dict(row_beats=600), "a tile of"), (Op.LINEAR, 0, dict(tiles=0), "no tiles"),
    (Op.LINEAR, 0, dict(chunks=7, packed=0), "a tile in 7 chunks"),
    (Op.LINEAR, 2, dict(y=32760), "activations beyond"),
    (Op.LINEAR, 0, dict(sink=7), "no results for sink 7"),
    (Op.LINEAR, 0, dict(src=Src.NONE), "no stream"),
    (Op.LINEAR, -1, dict(sink=Sink.RESIDUAL), "beyond the residual"),
    (Op.LINEAR, -1, dict(sink=Sink.ACT), "activations beyond|head is missing"),
    (Op.LINEAR, -1, dict(sink=Sink.SCRATCH), "beyond a token's part"),
    (Op.LINEAR, 0, dict(y=4000), "beyond a token's part"),
    (Op.LINEAR, -1, dict(sink=Sink.BESIDE), "beyond values beside"),
    (Op.LINEAR, 0, dict(diagonal=1), "rows of a beat"),
    (Op.NORM, 0, dict(beside=1), "gammas of another width"),
    (Op.LINEAR, 0, dict(heads=1, lanes=1), "scratch memory has no lanes"),
    (Op.STORE, 0, dict(x=4000), "STORE beyond a token's part"),
    (Op.STORE, 0, dict(row_beats=3), "STORE of 3 words"),
    (Op.LINEAR, -1, dict(sink=Sink.ACT, pair=Pair.GLU, fn=Fn.SILU), "a pair with one row"),
    (Op.LINEAR, -3, dict(last_rows=2, packed=0), "a tile in"),
    (Op.NORM, 1, dict(op=12), "no operator 12"), (Op.NORM, 0, dict(row_beats=3), "a tile in"),
    (Op.STORE, 0, dict(addr=0), "STORE outside of"), (Op.QK, 0, dict(src=Src.NONE), "no cache"),
    (Op.LINEAR, 2, dict(lanes=9), "9 heads of 1 tokens"), (Op.QK, 0, dict(rows=0), "no cache"),
    (Op.SV, 0, dict(addr=1 << 26), "beyond the memory"), (Op.SV, 0, dict(heads=0), "without its"),
    (Op.SV, 0, dict(more=1), "without its"), (Op.SV, 0, dict(row_beats=128), "SV of 1024 columns"),
    (Op.EMBED, 0, dict(row_beats=3), "another width"),
    (Op.ROPE, 0, dict(row_beats=3), "another head"),
    (Op.END, -1, dict(last=1), "past the program's end")])
def test_programs_that_cannot_be(image, op, which, change, words):
    """One instruction of the decode list is wrong: the sentence names it."""
    core = golden_core(image, CONFIG)
    program = list(core.program)
    at = [k for k, i in enumerate(program) if i["op"] == op and k >= core.model["decode_pc"]][which]
    program[at] = Instruction(**(dict(program[at]) | change))
    core = GoldenCore(CONFIG, program=program, model=core.model, memory=image.memory,
                      memory_bytes=len(core.memory))
    with pytest.raises(ProgramError, match=rf"^instruction \d+: .*({words})") as caught:
        core.forward([5])
    # Or the one that waits for it: a KV for its store, END for the head.
    assert caught.value.pc is not None and 0 <= caught.value.pc - at <= (
        99 if op == Op.STORE else 1)


@pytest.mark.parametrize("name, value", [
    ("head_log2", 1), ("head_log2", 9), ("group", 0), ("hidden", 0), ("stride", 0),
    ("blocks", 0), ("blocks", 63),
    ("eps", 0), ("block_words", 8191), ("token_words", 4095)])
def test_registers_that_cannot_be(image, name, value):
    with pytest.raises(ProgramError, match="^model registers that cannot be: "):
        golden_core(replace(image, model_regs=image.model_regs | {name: value}), CONFIG)


def test_whatever_an_image_holds(image, seed):
    """Fields, registers and memory at random: logits, or one sentence, and soon."""
    rng = np.random.default_rng(seed)
    refused, started = 0, time.process_time()
    for _ in range(30):
        program, regs = image.instructions, dict(image.model_regs)
        memory = bytearray(image.memory)
        for _ in range(int(rng.integers(1, 4))):
            kind = rng.integers(0, 8)
            if kind == 0:
                field = MODEL_REGS[rng.integers(len(MODEL_REGS))]
                regs[field.name] = int(rng.integers(0, 1 << int(rng.integers(1, field.bits + 1))))
            elif kind < 3:
                at = int(rng.integers(len(memory)))
                memory[at] ^= 1 << int(rng.integers(8))
            else:
                field = FIELDS[rng.integers(len(FIELDS))]
                i = program[rng.integers(len(program))]
                i[field.name] = int(rng.integers(0, 1 << int(rng.integers(1, field.bits + 1))))
        try:
            core = GoldenCore(CONFIG, program=program, model=regs, memory=bytes(memory),
                              memory_bytes=image.needs["memory_bytes"])
            core.read_stream()
            core.forward([5, 6, 7, 8, 9])
            core.forward([5], 5)
        except ProgramError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 200
        except ValueError as error:         # the model's own limits: fewer ids
            assert str(error).startswith("tokens must be")
    assert refused > 3
    assert time.process_time() - started < 120
