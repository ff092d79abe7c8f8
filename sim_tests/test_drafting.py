"""How many drafts a run has, what they cost, and runs with drafts on the golden models."""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import draft_prices, predict
from meadowlark.draft.table import DraftTable
from meadowlark.errors import UserError
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.quantise import quantise
from meadowlark.quant.sampling import sampling
from meadowlark.run.bench_drafts import replay, worst
from meadowlark.run.drafting import drafting, parse
from meadowlark.run.prepare import Source
from meadowlark.run.targets import (OFF, BoardTarget, Drafting, Event, GoldenTarget, SimTarget,
                                    check)
from meadowlark_boards import get_board
from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.sampler.sampler_golden import Sampling
from draft_tables import table_of
from random_model import random_model, random_texts

#: A model whose text's drafts are accepted, but not all; of another seed's it may be none.
FIXED = 7


@pytest.fixture(scope="module")
def stories():
    return {name: Source("stories", get_board(name)).image
            for name in ("virtual", "ulx3s_85f", "ulx3s_25f", "kv260")}


def test_what_is_asked_for():
    assert [parse(text) for text in ("off", "auto", "0", "4", "31")] == [0, None, 0, 4, 31]
    for text in ("on", "-1", "1.5", "", "²"):
        with pytest.raises(UserError, match="none of off, auto and a number of drafts"):
            parse(text)


def test_drafts_of_a_run(stories):
    board, small = (GoldenTarget(get_board(name)) for name in ("ulx3s_85f", "ulx3s_25f"))
    image, none = stories["ulx3s_85f"], stories["ulx3s_25f"]
    greedy, drawn = sampling(), sampling(temperature=0.8)
    top = sampling(temperature=0.8, top_k=20), sampling(temperature=0.8, top_p=0.9)
    assert drafting(0, greedy, image, board) == OFF
    assert drafting(7, drawn, image, board) == Drafting(most=7)
    for sampled in top:
        assert drafting(None, sampled, image, board) == drafting(0, sampled, image, board) == OFF
        with pytest.raises(UserError, match="with --top-k and --top-p"):
            drafting(1, sampled, image, board)
    with pytest.raises(UserError, match="at most 7 drafts in a pass, not 8; give --draft 7"):
        drafting(8, greedy, image, board)
    assert drafting(None, greedy, none, small) == drafting(0, greedy, none, small) == OFF
    with pytest.raises(UserError, match="ulx3s_25f makes no drafts"):
        drafting(1, greedy, none, small)


def test_prices_are_kept(stories, tmp_path, monkeypatch):
    """They are worked out once for an image and a board."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    made, board = [], get_board("ulx3s_85f")
    monkeypatch.setattr("meadowlark.compile.cycles.draft_prices",
                        lambda *of: made.append(of) or [0.01] * 7)
    greedy, target = sampling(), GoldenTarget(board)
    first = drafting(None, greedy, stories["ulx3s_85f"], target)
    assert drafting(None, greedy, stories["ulx3s_85f"], target) == first
    assert len(made) == 1 and first.most == 7
    slow = replace(board, memory=replace(board.memory, latency_ns=999))
    drafting(None, greedy, stories["ulx3s_85f"], GoldenTarget(slow))
    assert len(made) == 2


def test_prices(stories):
    """Lanes are there anyway, so a pass with drafts costs little where memory is slow."""
    for name, dearest in (("ulx3s_85f", 0.03), ("kv260", 1.2)):
        board = get_board(name)
        prices = draft_prices(stories[name], board, board.config.P - 1)
        assert len(prices) == board.config.P - 1 and 0 < min(prices) and max(prices) < dearest
        chosen = drafting(None, Sampling(), stories[name], GoldenTarget(board))
        assert chosen.price == max(1, round(256 * prices[chosen.most - 1]))
        # No other number takes less time for a token that is as easy to guess.
        assert (chosen.most == board.config.P - 1) is (name == "ulx3s_85f")


@pytest.mark.parametrize(("name", "position"), [("ulx3s_85f", 16), ("ulx3s_85f", 400),
                                                ("kv260", 16)])
def test_nothing_is_accepted(stories, name, position, seed):
    """A run is hardly slower for it: 100 tokens, of which the account's first pass is one."""
    board, image = get_board(name), stories[name]
    way = drafting(None, Sampling(), image, GoldenTarget(board))
    left = worst(image, board, way, position=position, generate=100, seed=seed)
    print(f"{name}, position {position}: {left:.4f} of the speed without drafts, none accepted")
    assert way.most and 0.97 < left < 1
    each = worst(image, board, replace(way, price=0), position=position, generate=100, seed=seed)
    assert each < 0.75 if name == "kv260" else each <= left


def test_nothing_of_smollm2_is_accepted(seed, smollm2):
    board = get_board("ecpix5_85f")
    image = Source("smollm2", board).image
    way = drafting(None, Sampling(), image, GoldenTarget(board))
    for position in (16, 400):
        left = worst(image, board, way, position=position, generate=64, seed=seed)
        print(f"{board.name}, SmolLM2, position {position}: {left:.4f}")
        assert 0.97 < left < 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_model(random_model(tmp_path_factory.mktemp("m"), seed=3, context=64))
    return quantise(model, random_texts(model, seed=3))


def guesser(text, right, rng):
    """A drafter that knows the text and says a part of it right."""
    def guess(seen, k):
        assert seen == text[:len(seen)]
        return [token if rng.random() < right else int(rng.integers(128))
                for token in text[len(seen):len(seen) + rng.integers(0, k + 1)]]
    return guess


def test_golden_decoder_with_drafts(model, seed):
    """Tokens and logits are those of a run without, whatever the drafts are and wherever it ends;
    the cache too, as far as the text goes."""
    rng, saved = np.random.default_rng(seed), 0
    for _ in range(12):
        draw = sampling(temperature=float(rng.choice([0, 2])), seed=int(rng.integers(1 << 32)))
        prompt = rng.integers(2, 128, rng.integers(1, 12)).tolist()
        plain, golden = GoldenModel(model), GoldenModel(model)
        max_new = int(rng.integers(1, 80))
        text = list(plain.generate(prompt, draw, max_new=max_new))
        stop = {text[len(text) // 2][0]} if rng.random() < 0.3 else set(model.stop_ids)
        text = list(plain.generate(prompt, draw, max_new=max_new, stop_ids=stop))
        said = [*prompt, *(token for token, _ in text)]
        found = list(golden.generate(
            prompt, draw, max_new=max_new, stop_ids=stop, draft_most=int(rng.integers(1, 9)),
            draft_price=int(rng.choice([0, 100])), drafter=guesser(said, rng.random(), rng)))
        assert [token for token, _ in found] == [token for token, _ in text]
        for (_, logits), (_, want) in zip(found, text, strict=True):
            np.testing.assert_array_equal(logits, want)
        assert [token for turn in golden.turns for token in turn.tokens] == said[len(prompt):]
        assert golden.text[:len(said)].tolist() == said
        seen = len(said) - 1
        np.testing.assert_array_equal(golden.keys[:, :, :seen], plain.keys[:, :, :seen])
        np.testing.assert_array_equal(golden.values[:, :, :seen], plain.values[:, :, :seen])
        saved += sum(turn.accepted for turn in golden.turns)
    assert saved


def test_text_before_a_run_is_drafted_from(model, seed):
    """A conversation goes on: the drafter has all of its text."""
    golden, seen = GoldenModel(model), []
    golden.forward([5, 6, 7, 8])

    def spy(text, k):
        seen.append(list(text))
        return draft(text, k)
    first = [token for token, _ in golden.generate([9, 5], max_new=6, stop_ids=(), start_pos=4,
                                                   draft_most=3, drafter=spy)]
    assert seen[0] == [5, 6, 7, 8, 9, 5, first[0]]


def sources(tmp_path, seed):
    """A model whose table of drafts is of what it writes itself, and its image."""
    folder, board = random_model(tmp_path / "m", seed=seed, layers=1, heads=2, kv_heads=2), \
        get_board("virtual")
    source = Source(str(folder), board)
    prompt, draw = source.prompt("Hello 12"), sampling(temperature=3.0, seed=seed)
    target = GoldenTarget(board)
    target.load(source)
    text = [*prompt, *(e.token for e in target.generate(prompt, draw, max_new=40, stop_ids=()))]
    entries = table_of([text], 40, rng=np.random.default_rng(seed), vocab=source.outline.vocab,
                       right=0.9)
    table, path = tmp_path / "t.mld", tmp_path / "m.mlk"
    DraftTable.of(source.outline, entries, 5, "its own text").save(table)
    source = Source(str(folder), board, draft=str(table))
    source.image.save(path)
    return source, Source(str(path), board), prompt, draw


@pytest.mark.parametrize("which", [FIXED, None])
def test_golden_models_count_alike(tmp_path, seed, which):
    """The model in integers and the image's program: tokens, CRCs, drafts and what came of them."""
    found = []
    for source in (both := sources(tmp_path, seed if which is None else which))[:2]:
        target = GoldenTarget(source.board)
        target.load(source)
        for drafts in (OFF, Drafting(most=3), Drafting(most=3, price=120), Drafting(most=1)):
            events = [(e.token, e.crc) for e in target.generate(
                *both[2:], max_new=40, stop_ids=(), drafts=drafts)]
            counters = target.counters()
            found.append((events, counters["drafted"], counters["accepted"]))
    assert found[:4] == found[4:] and all(events == found[0][0] for events, *_ in found)
    assert found[0][1:] == (0, 0) and all(drafted >= accepted for _, drafted, accepted in found)
    if which == FIXED:          # what another seed writes may be nothing that can be foreseen
        assert all(drafted > accepted > 0 for _, drafted, accepted in found[1:3])
        # The turns of the run say which passes there are.
        assert found[1][2] > found[3][2]


def test_prediction_of_a_run_with_drafts(tmp_path):
    source, _, prompt, draw = sources(tmp_path, FIXED)
    golden = GoldenModel(source.quantised, context=source.image.context)
    entries = source.image.draft_entries
    list(golden.generate(prompt, draw, max_new=40, stop_ids=(), draft_most=3,
                         drafter=lambda text, k: draft(text, k, entries, least=5)))
    way = dict(prompt=len(prompt), generate=40)
    plain = predict(source.image, source.board, **way)
    found = predict(source.image, source.board, **way, turns=golden.turns)
    passes = [p for p, _ in found.passes]
    assert [(p.pos0, p.n) for p in passes[1:]] == [(t.position, t.n) for t in golden.turns[1:]]
    assert found.prefill_cycles == plain.prefill_cycles
    assert len(passes) < len(plain.passes) and found.decode_cycles < plain.decode_cycles
    # No drafts, no difference.
    list(golden.generate(prompt, draw, max_new=40, stop_ids=()))
    again = predict(source.image, source.board, **way, turns=golden.turns)
    assert again.cycles == plain.cycles and again.by_pc == plain.by_pc


def test_check_compares_drafts():
    event = Event(token=1, crc=2)
    ways = {"counters": ({"drafted": 3, "accepted": 2}, lambda: {"drafted": 3, "accepted": 2})}
    assert check([event], iter([event]), **ways).bit_exact
    ways = {"counters": ({"drafted": 3, "accepted": 2}, lambda: {"drafted": 3, "accepted": 1})}
    found = check([event], iter([event]), **ways)
    assert not found.bit_exact and "counts 2 drafts accepted, the golden model 1" \
        in found.first_difference
    assert check([event], iter([event]), whole=False, **ways).bit_exact     # cut short


def test_board_is_told(tmp_path, seed):
    """What the driver writes into the board's registers."""
    source = Source(str(random_model(tmp_path / "m", seed=seed, layers=1)), get_board("virtual"))
    fake = FakeBoard(source.board.config, memory_bytes=source.board.memory.size_bytes,
                     next_token=lambda history: (5, 0))
    target = BoardTarget("fake", Driver(fake))
    target.load(source)
    for drafts in (OFF, Drafting(most=3, price=77)):
        list(target.generate([1, 2], Sampling(), max_new=2, stop_ids=(), drafts=drafts))
        found = [target.driver.read_register(f"draft_{name}") for name in ("most", "price")]
        assert found == [drafts.most, drafts.price]


def test_compiled_registers(tmp_path, seed):
    model = load_model(random_model(tmp_path / "m", seed=seed, head_dim=16, layers=1))
    image = compile_model(quantise(model, random_texts(model, seed=2)), get_board("virtual"))
    assert image.model_regs["draft_buckets"] == 0 and image.draft_least == 2
    assert image.draft is image.draft_entries is None


def test_simulated_board(tmp_path):
    """Runs with drafts on by default: tokens, logits and counts of the golden model; the cycles
    that its passes stand for."""
    _, source, prompt, draw = sources(tmp_path, FIXED)
    golden, target = GoldenTarget(source.board), SimTarget(source.board)
    for one in (golden, target):
        one.load(source)
    try:
        spent = []
        for drafts in (Drafting(most=3), Drafting(most=3, price=200), OFF):
            ways = dict(max_new=40, stop_ids=(), drafts=drafts)
            events = list(target.generate(prompt, draw, **ways))
            found = check(events, golden.generate(prompt, draw, **ways),
                          counters=(target.counters(), golden.counters))
            assert found.bit_exact and found.tokens == 40, found.first_difference
            counted = target.counters()
            assert all(event.logits is not None for event in events) and target.messages == 0
            turns = replay(source.image, prompt, [e.token for e in events], drafts, 40,
                           ())
            predicted = predict(source.image, source.board, prompt=len(prompt), generate=40,
                                turns=turns)
            assert counted["cycles"] == pytest.approx(predicted.cycles, rel=0.01)
            assert counted["passes"] == len(predicted.passes)
            assert (counted["accepted"] > 0) is (drafts != OFF)
            spent.append(counted["cycles"])
        assert spent[0] < spent[2]
    finally:
        target.close()
