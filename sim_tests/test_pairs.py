"""Lane pairs: which heads have them, and that they change nothing but cycles."""
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict, predict_batch
from meadowlark.compile.disassemble import listing
from meadowlark.compile.gemm import spilled
from meadowlark.compile.image import Image
from meadowlark.compile.pairs import Pairs
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark.run.targets import GoldenTarget, SimTarget, golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch_golden import ProgramError
from meadowlark_hdl.isa import Instruction, Op, Sink, fault
from meadowlark_hdl.link.protocol import config_facts, config_of
from meadowlark_hdl.sampler.sampler_golden import Sampling
from batches import alone_and_together
from random_model import random_model

#: Heads of 64: a row of values is four beats of 16.
SIZES = dict(heads=4, kv_heads=2, head_dim=64, layers=2)


def a_model(tmp_path, seed, **sizes):
    rng = np.random.default_rng(seed)
    model = load_model(random_model(tmp_path, seed=seed, **SIZES | sizes))
    return quantise(model, rng.integers(0, model.vocab, (6, 40)).tolist(), head_pad=16), rng


def board_of(name="virtual", **sizes):
    board = get_board(name)
    return replace(board, config=board.config.replace(**sizes))


def lanes_of(image: Image) -> set[tuple[int, int]]:
    """Lanes of query heads, and whether they are pairs, of all of an image."""
    return {(i["lanes"], i["add"]) for i in image.instructions if i["heads"]}


@pytest.mark.parametrize("sizes, config, lanes, found", [
    ({}, {}, "auto", {(4, 1)}), ({}, {}, "direct", {(2, 0)}),
    ({}, dict(lane_pairs=False), "auto", {(2, 0)}),
    (dict(heads=3, kv_heads=1), {}, "auto", {(3, 0)}),          # six lanes, of four
    (dict(heads=5, kv_heads=1), {}, "auto", {(4, 0), (2, 1)}),  # four at once, then one
    (dict(heads=5, kv_heads=1), {}, "pairs", {(4, 0), (2, 1)}),
    (dict(heads=4, kv_heads=1), dict(P=8), "auto", {(8, 1)}),
    (dict(heads=2, kv_heads=2), dict(P=8, sv_cycles=4), "auto", {(4, 1)}),
    (dict(head_dim=32), {}, "auto", {(2, 0)}),                  # two beats: four cycles either way
    (dict(head_dim=32), {}, "pairs", {(4, 1)}),
    (dict(head_dim=32), dict(P=8, sv_cycles=4), "auto", {(8, 1)})])
def test_who_has_pairs(tmp_path, sizes, config, lanes, found):
    qm, _ = a_model(tmp_path, 3, **sizes)
    image = compile_model(qm, board_of(**config), context=50, lanes=lanes)
    assert lanes_of(image) == found
    assert ("lane_pairs" in image.extras) is any(add for _, add in found)
    # Prompts know nothing of them, and nothing lies elsewhere.
    direct = compile_model(qm, board_of(**config), context=50, lanes="direct")
    assert (image.needs, image.model_regs, image.memory) == (
        direct.needs, direct.model_regs, direct.memory)
    pc = image.model_regs["decode_pc"]
    for one, other in zip(image.instructions, direct.instructions):
        assert {**one, "add": 0, "lanes": 0} == {**other, "add": 0, "lanes": 0}
    assert image.instructions[:pc] == direct.instructions[:pc]
    assert any("in pairs" in line for line in listing(image)) is (
        "lane_pairs" in image.extras)


@pytest.mark.parametrize("sizes, config", [
    ({}, {}), (dict(head_dim=32), {}), (dict(head_dim=16, heads=2), {}),
    (dict(heads=5, kv_heads=1), {}), (dict(heads=8, kv_heads=4), dict(P=8, sv_cycles=4)),
    (dict(head_dim=256), dict(P=8))])
def test_logits_are_the_same(tmp_path, sizes, config, seed):
    """By the golden core, whose lanes of a head take what they are given: prompts, tokens behind
    them, tokens of several sequences at once; and the counts of saturations."""
    board = board_of(**config)
    qm, rng = a_model(tmp_path, seed, context=100, **sizes)
    images = [compile_model(qm, board, context=100, lanes=lanes) for lanes in ("direct", "pairs")]
    assert ["lane_pairs" in image.extras for image in images] == [False, True]
    cores, golden = [golden_core(image, board.config, seed) for image in images], GoldenModel(qm)
    tokens = rng.integers(0, qm.vocab, 30).tolist()
    for at, end in ((0, 25), *((k, k + 1) for k in range(25, 30))):
        want = golden.forward(tokens[at:end], at)
        for core in cores:
            np.testing.assert_array_equal(core.forward(tokens[at:end], at), want)
    assert cores[0].counters == cores[1].counters
    direct, pairs = (predict(image, board, prompt=1, generate=40).cycles for image in images)
    assert pairs < direct


def test_cycles_of_the_docs(tmp_path):
    """SV by arithmetic: max(4, S * row_beats) cycles a key, or max(4, row_beats)."""
    board = board_of()
    for head_dim, pairs, alone in ((64, 4, 8), (32, 4, 4), (128, 8, 16)):
        qm, _ = a_model(tmp_path / str(head_dim), 3, head_dim=head_dim)
        for lanes, cycles in (("pairs", pairs), ("direct", alone)):
            image = compile_model(qm, board, context=128, lanes=lanes)
            work = [sum(spent.work for pc, spent in predict(
                image, board, prompt=1, generate=2, start_pos=position).by_pc.items()
                        if image.instructions[pc]["op"] == Op.SV) for position in (20, 120)]
            # Two passes, as many layers and KV heads.
            assert work[1] - work[0] == 100 * cycles * 2 * 2 * 2
    assert Pairs("auto", board.config, 4).quicker and not Pairs("auto", board.config, 2).quicker


def test_simulated_board(tmp_path, seed):
    """Tokens, logits, counters and cycles: a prompt, tokens behind it, greedy and sampled."""
    board = get_board("virtual")
    folder = random_model(tmp_path / "m", seed=seed, context=100, **SIZES)
    counts, golden = {}, GoldenTarget(board)
    prompt = np.random.default_rng(seed).integers(2, 128, 30).tolist()
    with closing(SimTarget(board)) as target:
        for lanes in ("pairs", "direct"):
            source = Source(str(folder), board, draft="none", lanes=lanes)
            assert ("lane_pairs" in source.image.extras) is (lanes == "pairs")
            found = []
            for one in (golden, target):
                one.load(source)
                for how in (Sampling(), Sampling(29546, 14, seed=seed)):     # temperature 0.8
                    found.append([(e.token, e.crc) for e in one.generate(
                        prompt, how, max_new=12, stop_ids=())])
            assert found[:2] == found[2:]
            counts[lanes] = found, target.counters()
            counted, told = golden.counters(), target.counters()
            assert {name: told[name] for name in counted} == counted
            cycles = predict(source.image, board, prompt=30, generate=12).cycles
            assert abs(cycles / told["cycles"] - 1) < 0.02
    assert counts["pairs"][0] == counts["direct"][0]
    assert counts["pairs"][1]["cycles"] < counts["direct"][1]["cycles"]


def test_batches(tmp_path, seed):
    """Tokens of several sequences attend one after the other, in pairs: as each would alone, and as
    with a lane a head. It takes fewer cycles."""
    board = get_board("virtual")
    qm, _ = a_model(tmp_path, seed)
    images = [compile_model(qm, board, context=64, lanes=lanes) for lanes in ("direct", "pairs")]
    found = []
    for image in images:
        alone, logits, together, tokens, places = alone_and_together(
            image, board.config, seed, 3, 40)
        np.testing.assert_array_equal(together.batch(tokens, places), logits)
        np.testing.assert_array_equal(together.memory, alone.memory)
        found.append(logits)
    np.testing.assert_array_equal(*found)
    direct, pairs = (predict_batch(image, board, sequences=4, position=60, passes=2).cycles
                     for image in images)
    assert pairs < direct


def test_refused(tmp_path):
    qm, _ = a_model(tmp_path / "a", 1)
    three, _ = a_model(tmp_path / "b", 1, heads=3, kv_heads=1)
    board, less = get_board("virtual"), board_of(lane_pairs=False)
    with pytest.raises(UserError, match="virtual has a lane for each query head; leave --lanes"):
        compile_model(qm, less, lanes="pairs")
    with pytest.raises(UserError, match="3 query heads leaves no lanes for pairs on the board"):
        compile_model(three, board, lanes="pairs")
    image = compile_model(qm, board, context=50)
    with pytest.raises(UserError, match="query heads on several lanes, which the board virtual"):
        image.check_board(less)
    with pytest.raises(UserError, match="query heads on several lanes"):
        image.check_board(board_of(sv_cycles=4))
    with pytest.raises(ProgramError, match="lanes in pairs on a core without"):
        golden_core(image, less.config).forward([1])
    with pytest.raises(UserError, match="compile with --lanes direct"):
        spilled(image, board.config)
    assert compile_model(qm, less, context=50) == compile_model(qm, board, context=50,
                                                                lanes="direct")


def test_faults_and_facts():
    what = "only lanes that are heads can be pairs"
    for op in Op.LINEAR, Op.QK, Op.SV:
        fields = {} if op == Op.QK else {"sink": Sink.ACT}
        if op == Op.QK:
            fields = {"back": 8191}
        assert fault(Instruction(op, heads=1, add=1, **fields)) is None
        assert what in (fault(Instruction(op, add=1, **fields)) or "")
    assert what in (fault(Instruction(Op.SPILL, heads=1, add=1)) or "")
    assert fault(Instruction(Op.EMBED, sink=Sink.RESIDUAL, add=1)) is None
    for on in (False, True):
        config = Config(W=16, P=4, bus_bytes=16, lane_pairs=on)
        assert config_of(config_facts(config)) == config
        assert ("lane_pairs" in config.as_dict()) is on
