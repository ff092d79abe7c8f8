"""The cycle model: bounds that hold by arithmetic, and the useful work of a test."""
import gc
import time
import warnings
from dataclasses import replace

import pytest
from amaranth.hdl import UnusedElaboratable
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import ELSEWHERE, kind_of, predict
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from meadowlark_hdl.compute.vector_unit import VectorUnit
from meadowlark_hdl.control.sequencer import Sequencer
from meadowlark_hdl.core import Core
from meadowlark_hdl.isa import Op, Sink, Src
from meadowlark_hdl.sampler.sampler import Sampler
from random_model import random_model, random_texts

SHAPE = dict(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=384, vocab=512,
             context=512)


@pytest.fixture(scope="module")
def qm(tmp_path_factory):
    model = load_model(random_model(tmp_path_factory.mktemp("m"), seed=1, **SHAPE))
    return quantise(model, random_texts(model, seed=2, sequences=2))


@pytest.fixture(scope="module", params=["virtual", "ulx3s_85f"])
def case(request, qm):
    board = get_board(request.param)
    return compile_model(qm, board), board


def test_builds_no_gateware(case):
    """Nobody who asks for a prediction is told of a component that was made and not used."""
    image, board = case
    gc.collect()            # of other tests
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UnusedElaboratable)
        predict(image, board, prompt=9, generate=2)
        gc.collect()
    assert [str(each.message) for each in seen] == []


@pytest.mark.parametrize("name", ["ulx3s_85f", "ulx3s_25f", "virtual"])
def test_latencies_do_not_depend_on_what_is_elsewhere(name):
    """One vector unit answers for all cores that differ in that alone."""
    config = get_board(name).config
    others = {field: 2 * getattr(config, field) for field in ELSEWHERE - {
        "packing", "unpack_cycles", "bus_bytes", "topk", "tile_rows", "context"}} | dict(
        packing=3 - config.packing, unpack_cycles=2 if config.unpack_cycles == 1 else 1,
        bus_bytes=config.W if config.bus_bytes < config.W else 2, topk=config.topk - 1,
        tile_rows=config.tile_rows // 2, context=config.context // 2)
    assert {*others} == ELSEWHERE
    assert VectorUnit(config.replace(**others)).cycles == VectorUnit(config).cycles


def test_lower_bounds(case):
    """No test is faster than its words on the bus or its rows in the array."""
    image, board = case
    c = board.config
    for prompt, generate in ((128, 1), (1, 8), (17, 3)):
        r = predict(image, board, prompt=prompt, generate=generate)
        assert r.cycles >= r.bus_words >= r.useful_bytes / c.bus_bytes
        assert r.cycles >= r.useful_macs / (c.W * c.P)
        assert r.cycles == r.prefill_cycles + r.decode_cycles
        assert 0 < r.memory_utilisation < 1 and 0 < r.mac_utilisation < 1
        array = 0
        for p, _ in r.passes:
            at = image.model_regs["decode_pc" if p.decode else "prefill_pc"]
            for i in r.program[at:]:
                if i["op"] == Op.LINEAR:
                    rows = (i["tiles"] - 1) * i["rows"] + i["last_rows"]
                    blocks = 1 if i["last"] else p.nb
                    if not i["last"] or p.final:
                        array += rows * blocks * max(i["row_beats"], c.row_cycles)
                if i["op"] == Op.END and not (i["last"] and p.final):
                    break
        spent = sum(s.work for name, s in r.by_kind().items() if name.startswith("LINEAR"))
        assert spent == array


def test_bus_words_are_exact(case):
    """One decode pass reads the stream, two table rows and the cache once, and writes a row."""
    image, board = case
    c, s = board.config, image.shape
    r = predict(image, board, prompt=1, generate=1)
    code = r.program[image.model_regs["decode_pc"]:]
    stream = sum((i["tiles"] - 1) * i["chunks"] + i["last_chunks"] for i in code
                 if i["src"] == Src.STREAM)
    tables = sum(i["chunks"] for i in code if i["src"] in (Src.TABLE, Src.TOKEN))
    head = s["head_pad"] // c.W
    cache = 2 * 2 * s["layers"] * s["kv_heads"] * head      # read and written
    assert r.bus_words == (stream + tables + cache) * c.bus_per_chunk


def test_ulx3s_is_bound_as_designed(qm):
    board = get_board("ulx3s_85f")
    image = compile_model(qm, board)
    assert predict(image, board, prompt=1, generate=16).memory_utilisation > 0.94
    whole = compile_model(qm, board, all_tokens=True)       # the last layer of a prompt as well
    assert predict(whole, board, prompt=128, generate=1).mac_utilisation > 0.7


def test_run_ahead_is_bounded(qm):
    """After a long prefill, all of the head but what the buffers hold is yet to be read."""
    board = get_board("ulx3s_85f")
    image, c = compile_model(qm, board), board.config
    r = predict(image, board, prompt=128, generate=1)
    pc = next(pc for pc in r.by_pc if r.program[pc]["sink"] == Sink.LOGIT)
    i = r.program[pc]
    words = ((i["tiles"] - 1) * i["chunks"] + i["last_chunks"]) * c.bus_per_chunk
    ahead = c.fifo_words + 2 * i["chunks"] * c.bus_per_chunk
    # while the last tile of the layer before is in use only one half is free
    ticks = board.memory.ticks(board.clock_mhz, c.bus_bytes)
    share = 1.04 * ticks.word / ticks.core          # cycles per word, refreshes included
    assert words - ahead <= r.by_pc[pc].cycles <= words * share + i["rows"] * c.P
    small = replace(board, config=c.replace(fifo_words=c.fifo_words // 4))
    assert predict(image, small, prompt=128, generate=1).cycles > r.cycles + 500


def test_the_unpacker_bounds_packed_weights():
    """At 5 bits this memory brings 4.8 weights a cycle, of which the unpacker makes 4."""
    board = get_board("ulx3s_85f")
    image = Source("stories", board, bits=5.0).image
    r = predict(image, board, prompt=1, generate=3)
    bound = 3 * image.parameters * board.config.unpack_cycles / board.config.W
    assert 0.95 * bound <= r.cycles <= 1.1 * bound      # the embedding is no weight
    # Between segments it reads tables and fills its lanes: 12,120,639 cycles were counted for 32.
    r = predict(image, board, prompt=1, generate=32)
    assert abs(r.cycles / 12_120_639 - 1) < 0.01


def test_slower_memory_takes_longer(case):
    image, board = case
    base = predict(image, board, prompt=20, generate=4).cycles
    for change in (dict(latency_ns=2000), dict(row_miss_ns=1000, banks=1),
                   dict(refresh_interval_ns=10_000, refresh_ns=3000)):
        slow = replace(board, memory=replace(board.memory, **change))
        assert predict(image, slow, prompt=20, generate=4).cycles > base
    refresh = replace(board, memory=replace(board.memory, refresh_interval_ns=10_000,
                                            refresh_ns=3000))
    assert predict(image, refresh, prompt=20, generate=4).cycles < 1.6 * base


def test_latencies_count(case, monkeypatch):
    image, board = case
    base = predict(image, board, prompt=1, generate=4)
    monkeypatch.setattr(Sampler, "GREEDY", Sampler.GREEDY + 1000)
    monkeypatch.setattr(Sequencer, "PLAN", Sequencer.PLAN + 100)
    more = predict(image, board, prompt=1, generate=4)
    # a refresh falls elsewhere than before
    slack = 2 * board.memory.refresh_ns * board.clock_mhz / 1000
    assert abs(more.cycles - base.cycles - 4 * (1000 + 100)) <= slack


def test_shared_multipliers_cost_a_norm(case):
    """Four times the cycles of work in NORM, and elsewhere none more."""
    image, board = case
    shared = replace(board, config=board.config.replace(vector_products=8))
    plain, slow = (predict(image, b, prompt=40, generate=1).by_kind() for b in (board, shared))
    assert slow["NORM"].work == 4 * plain["NORM"].work > 0
    assert {name: s.work for name, s in slow.items() if name != "NORM"} \
        == {name: s.work for name, s in plain.items() if name != "NORM"}


def test_budget_adds_up(case):
    image, board = case
    r = predict(image, board, prompt=40, generate=3)
    assert sum(s.cycles for s in r.by_kind().values()) == r.cycles
    assert sum(cycles for _, cycles in r.passes) + Core.START == r.cycles
    text = r.budget()
    for name in ("LINEAR glu silu -> act16", "QK", "STORE", f"| all | | {r.cycles:,} |"):
        assert name in text
    kinds = {kind_of(i) for i in r.program}
    assert kinds - {"END"} <= set(r.by_kind())
    assert "LINEAR -> logit" in kinds


def test_long_context_costs_its_keys(case):
    image, board = case
    near = predict(image, board, prompt=1, generate=1, start_pos=10)
    far = predict(image, board, prompt=1, generate=1, start_pos=400)
    s, c = image.shape, board.config
    keys = 390 * 2 * s["layers"] * s["kv_heads"] * s["head_pad"]
    assert far.useful_bytes - near.useful_bytes == keys
    assert far.cycles - near.cycles >= keys // (c.bus_bytes if c.bus_bytes < c.W else c.W) // 2


def test_bad_tests_are_refused(case):
    image, board = case
    for bad in (dict(prompt=0, generate=1), dict(prompt=1, generate=-1),
                dict(prompt=1, generate=1, start_pos=-1)):
        with pytest.raises(UserError, match="^a test needs a prompt of at least 1 token"):
            predict(image, board, **bad)
    with pytest.raises(UserError, match="^520 tokens do not fit the image's context of 512$"):
        predict(image, board, prompt=500, generate=21)
    other = get_board("virtual" if board.name != "virtual" else "ulx3s_85f")
    with pytest.raises(UserError, match="compiled for a core with P"):
        predict(image, other, prompt=1, generate=1)


def test_it_is_quick(case):
    image, board = case
    began = time.process_time()
    predict(image, board, prompt=128, generate=32)
    assert time.process_time() - began < 5
