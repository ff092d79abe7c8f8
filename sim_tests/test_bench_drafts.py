"""Test ``sg`` of the bench: generation with drafts on given texts."""
from dataclasses import replace

import pytest
from meadowlark.errors import UserError
from meadowlark.run import bench, bench_drafts
from meadowlark.run.prepare import Source
from meadowlark.run.targets import OFF, Drafting, GoldenTarget
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling

TEXTS = ["Once upon a time there was a dog named Max. Max liked to play in the park with his ball.",
         "", "One day, a little girl"]


class Counting(GoldenTarget):
    """The golden model, with cycles: 1,000 a pass, 100 for a draft."""

    def counters(self):
        found = super().counters()
        assert self._golden is not None
        passes = len(self._golden.turns)
        return {**found, "cycles": 1000 * passes + 100 * found["drafted"],
                "cycles_first_token": 1000, "stall_memory": 7}


@pytest.fixture(scope="module")
def source():
    return Source("stories", get_board("virtual"))


@pytest.fixture
def target(source):
    made = Counting(source.board)
    made.load(source)
    return made


def test_prompts(source):
    found = bench_drafts.prompts(source, TEXTS, 20)
    assert [len(ids) for ids in found] == [16, len(source.prompt(TEXTS[2]))]
    assert found[0] == source.prompt(TEXTS[0])[:16]
    with pytest.raises(UserError, match="no texts to go on with"):
        bench_drafts.prompts(source, ["", " "], 20)
    with pytest.raises(UserError, match="a prompt of 16 tokens and 500 behind it do not fit"):
        bench_drafts.prompts(source, TEXTS, 500)


def test_replay_is_the_run(source, target):
    """The passes of a run follow from its tokens."""
    for most, price in ((3, 0), (2, 150), (0, 0)):
        prompt = source.prompt(TEXTS[2])
        way = Drafting(most=most, price=price)
        events = list(target.generate(prompt, Sampling(), max_new=50, drafts=way,
                                      stop_ids=source.image.stop_ids))
        assert target._golden is not None
        found = bench_drafts.replay(source.image, prompt, [e.token for e in events], way, 50,
                                    source.image.stop_ids)
        assert found == target._golden.turns


def test_sg(source, target):
    begun = bench_drafts.prompts(source, TEXTS, 40)
    told = []
    found = bench_drafts.run(target, source.image, source.board, begun, 40,
                             progress=lambda *step: told.append(step))
    assert list(found) == ["sg40", "sg40 off"] and len(told) == 4
    with_, off = found.values()
    assert with_.drafts is not None and off.drafts is not None
    assert with_.tokens == off.tokens == 2 * 39
    assert off.drafts.passes == [78] and off.drafts.tokens_per_pass == 1 and off.cycles == 78_000
    passes = with_.drafts.passes
    assert len(passes) == 4 == with_.drafts.most + 1
    assert sum(n * count for n, count in enumerate(passes)) == with_.drafts.accepted
    assert sum((1 + n) * count for n, count in enumerate(passes)) == 78
    assert with_.drafts.tokens_per_pass == 78 / sum(passes) > 1.3
    assert with_.cycles == 1000 * sum(passes) + 100 * with_.drafts.drafted
    assert with_.predicted_cycles is not None and off.predicted_cycles is not None
    assert with_.predicted_cycles < off.predicted_cycles
    result = bench.as_json(found, source.image, source.board)
    assert result["speedup"] == {"sg40": off.cycles / with_.cycles}
    assert result["tests"]["sg40"]["drafts"]["passes"] == passes
    table = bench.as_table(found, source.image, source.board, form="md")
    rows = table.split("\n\n")
    assert rows[1].startswith(f"sg40: {with_.drafts.tokens_per_pass:.2f} tokens per pass, ")
    assert len(rows) == 3 and len(rows[2].splitlines()) == 2 + 4
    assert "sg40" in bench.as_table(found, source.image, source.board, form="csv")


def test_prices_of_fewer_and_more(source):
    """A board whose drafts never pay, or that has none, says so."""
    small = get_board("ulx3s_25f")
    with pytest.raises(UserError, match="drafts bring nothing on the board ulx3s_25f"):
        bench_drafts.run(GoldenTarget(small), Source("stories", small).image, small, [[5]], 4)


@pytest.mark.parametrize("wrong, words", [
    ({"accepted": 1}, "counts .* drafts accepted, and its text stands for"),
    ({"drafted": -1}, "counts .* drafts drafted")])
def test_wrong_counts(source, target, monkeypatch, wrong, words):
    counters = target.counters
    monkeypatch.setattr(target, "counters", lambda: {
        name: value + wrong.get(name, 0) for name, value in counters().items()})
    with pytest.raises(UserError, match=f"^prompt 0 of sg20 {words}"):
        bench_drafts.run(target, source.image, source.board, [[5, 6, 7]], 20)


def test_another_text(source, target, monkeypatch):
    generate = target.generate

    def spoilt(*args, drafts, **ways):
        for event in generate(*args, drafts=drafts, **ways):
            yield event if drafts != OFF else replace(event, token=(event.token + 1) % 2048)
    monkeypatch.setattr(target, "generate", spoilt)
    with pytest.raises(UserError, match="^sg20 has another text with drafts than without"):
        bench_drafts.run(target, source.image, source.board, [[5, 6, 7]], 20)
