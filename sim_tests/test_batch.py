"""Many sequences on one chip: each has the tokens that it would have alone."""
import random
from collections import Counter

import pytest
from meadowlark.errors import UserError
from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.fake_board import FakeBoard, invented
from meadowlark.quant.sampling import sampling
from meadowlark.run.batch import CHUNK_BLOCKS, PASSES, Batch
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget, Drafting, GoldenTarget
from meadowlark_boards import get_board
from meadowlark_hdl.control.errors import Error
from meadowlark_hdl.sampler.sampler_golden import Sampling
from random_model import random_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random model with a context of 128."""
    return Source(str(random_model(tmp_path_factory.mktemp("m"), seed=3, layers=1, heads=2,
                                   kv_heads=2)), get_board("virtual"))


def fake(source, loss=0.0, seed=0):
    def next_token(history):
        token, crc = invented(history)
        return token % source.image.shape["vocab"], crc
    board = FakeBoard(source.board.config, memory_bytes=source.board.memory.size_bytes,
                      next_token=next_token, loss=loss, seed=seed)
    return BoardTarget("fake", Driver(board, retries=40))


@pytest.fixture(params=["golden", "image", "fake", "bad link"])
def targets(request, source, seed, tmp_path, monkeypatch):
    """A target for many sequences, and one for each alone."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    both = [fake(source), fake(source)] if request.param == "fake" else \
        [fake(source, 0.02, seed), fake(source)] if request.param == "bad link" else \
        [GoldenTarget(), GoldenTarget()]
    if request.param == "image":
        source.image.save(tmp_path / "m.mlk")
        source = Source(str(tmp_path / "m.mlk"), source.board)
    for target in both:
        target.load(source)
    return both


def some_draw(rng):
    return rng.choice([Sampling(), sampling(temperature=0.9, seed=rng.randrange(3)),
                       sampling(temperature=2.0, seed=rng.randrange(3)),
                       sampling(temperature=1.0, top_k=4, seed=rng.randrange(3))])


def alone(target, sequence, max_new, stop_ids):
    return [(e.token, e.crc) for e in target.generate(
        sequence.prompt, sequence.sampling, max_new=max_new, stop_ids=stop_ids)]


def of(sequence):
    return [(e.token, e.crc) for e in sequence.events]


def test_sequences_come_and_go(targets, source, seed):
    """At any time, with stops of all kinds; whatever becomes of one, the others are untouched."""
    target, single = targets
    rng, ends = random.Random(seed), Counter()
    image, stems = source.image, [[rng.randrange(2, 60) for _ in range(50)] for _ in range(3)]
    asked, running = {}, []

    def begin():
        stem = rng.choice(stems)
        prompt = [*stem[:rng.choice([1, 7, rng.randint(1, 50)])], rng.randrange(2, 60)]
        max_new = rng.choice([1, 5, rng.randint(1, 40), 200])
        stops = rng.sample(range(60), rng.choice([0, 0, 1, 6]))
        after = rng.choice([None, None, rng.randint(1, 9)])     # what a stop text does
        seen = []
        made = batch.submit(prompt, some_draw(rng), max_new=max_new, stop_ids=stops,
                            watch=lambda event: bool(seen.append(event) or len(seen) == after))
        asked[made] = max_new, stops, after
        running.append(made)
    with Batch(target, image, drafts=Drafting(most=3)) as batch:
        for _ in range(150):
            if rng.random() < 0.12 or not any(not s.ended for s in running):
                begin()
            if rng.random() < 0.04:
                rng.choice(running).cancel()
            batch.step()
        while batch.step():
            pass
        assert all(s.ended for s in running) and len(running) > 10
    for s in running:
        max_new, stops, after = asked[s]
        want = alone(single, s, max_new, stops)
        got = of(s)
        assert got == want[:len(got)]
        ends["whole" if got == want else "watched" if len(got) == after else "cancelled"] += 1
        ends["cached"] += s.cached > 0
    assert ends["whole"]
    # It was the batch's target: its own runs begin anew.
    assert [e.token for e in target.generate([5, 6], Sampling(), max_new=3, stop_ids=(),
                                             reuse=True)] == [
        e.token for e in single.generate([5, 6], Sampling(), max_new=3, stop_ids=())]
    assert target.cached == 0


def test_no_sequence_waits_longer_than_a_chunk(targets, source, monkeypatch):
    """A long prompt comes while others decode: between two of its chunks each goes on by a pass."""
    target, chunk = targets[0], CHUNK_BLOCKS * source.board.config.P
    work = []
    run, together = target.run, target.run_together
    monkeypatch.setattr(target, "run", lambda tokens, *a, **k: (
        work.append(("prompt", len(tokens))), run(tokens, *a, **k))[1])
    monkeypatch.setattr(target, "run_together", lambda tokens, *a, **k: (
        work.append((k["max_new"], len(tokens))), together(tokens, *a, **k))[1])
    with Batch(target, source.image) as batch:
        some = [batch.submit([5, 6, k], Sampling(), max_new=60) for k in range(3)]
        while not all(s.events for s in some):
            assert batch.step()
        for _ in range(4):
            batch.step()
        work.clear()
        late = batch.submit([k % 60 for k in range(2 * chunk + 9)], Sampling(), max_new=5)
        while not late.events:
            assert batch.step()
        assert [item for item in work if item[0] == "prompt"] == [
            ("prompt", chunk), ("prompt", chunk), ("prompt", 9)]
        kinds = [item[0] for item in work]
        assert "prompt" not in {a for a, b in zip(kinds, kinds[1:]) if a == b}
        assert all(item == (1, 3) for item in work if item[0] != "prompt")
        while batch.step():
            pass
        assert (PASSES, 4) not in work and (4, 4) in work       # together until one ends


def test_who_shares_a_pass(targets, source, monkeypatch):
    """Sequences that are drawn alike; each kind has its turn."""
    target, turns = targets[0], []
    run, together = target.run, target.run_together
    monkeypatch.setattr(target, "run", lambda tokens, draw, **k: (
        turns.append([draw]), run(tokens, draw, **k))[1])
    monkeypatch.setattr(target, "run_together", lambda tokens, places, draws, **k: (
        turns.append(list(draws)), together(tokens, places, draws, **k))[1])
    warm = sampling(temperature=0.9, seed=1)
    draws = [warm, Sampling(), sampling(temperature=0.9, seed=2), sampling(temperature=1, top_k=3)]
    with Batch(target, source.image) as batch:
        some = [batch.submit([9, k], draw, max_new=30) for k, draw in enumerate(draws)]
        while not all(s.events for s in some):
            assert batch.step()
        turns.clear()
        while all(len(s.events) < 20 for s in some):
            assert batch.step()
    assert [draws[0], draws[2]] in turns and [draws[1]] in turns and [draws[3]] in turns
    assert all(a != b for a, b in zip(turns, turns[1:]))


def test_one_sequence_has_the_drafts(source, monkeypatch):
    target, asked = GoldenTarget(), []
    target.load(source)
    run = target.run
    monkeypatch.setattr(target, "run", lambda *a, drafts, **k: (
        asked.append(drafts.most), run(*a, drafts=drafts, **k))[1])
    with Batch(target, source.image, drafts=Drafting(most=2)) as batch:
        first = batch.submit([5, 6, 7], Sampling(), max_new=20)
        batch.step()
        assert asked == [2]
        second = batch.submit([5, 6, 8], Sampling(), max_new=4)
        while not second.ended:
            assert batch.step()
        assert set(asked[1:]) == {0}
        while batch.step():
            pass
        assert asked[-1] == 2 and len(first.events) == 20
    want = [e.token for e in target.generate([5, 6, 7], Sampling(), max_new=20, stop_ids=())]
    assert [e.token for e in first.events] == want


def test_what_a_cache_held_is_taken(source):
    """A prompt goes into the free cache that begins most alike."""
    target = GoldenTarget()
    target.load(source)
    with Batch(target, source.image) as batch:
        system = list(range(2, 32))
        for k, prompt in enumerate((system + [40], [50] * 20, system + [41], [50] * 19)):
            made = batch.submit(prompt, Sampling(), max_new=2)
            assert len(list(made)) == 2
            assert made.cached == (0, 0, 30, 18)[k]


def test_cancel_and_close(targets, source):
    target, single = targets
    batch = Batch(target, source.image)
    some = [batch.submit([5, k], Sampling(), max_new=50) for k in range(6)]
    for _ in range(12):
        batch.step()
    waiting = some[5]
    waiting.cancel()
    assert waiting.ended and not list(waiting)
    some[0].cancel()
    before = len(some[0].events)
    assert len(list(some[1])) == 50 and len(some[0].events) == before
    batch.close()
    assert all(s.ended for s in some) and not batch.step()
    want = [e.token for e in single.generate([5, 1], Sampling(), max_new=50, stop_ids=())]
    assert [e.token for e in some[1].events] == want
    assert [e.token for e in target.generate([5, 1], Sampling(), max_new=50, stop_ids=())] == want


def test_refusals(source):
    target = fake(source)
    target.load(source)
    most = source.image.sequences(source.board.memory.size_bytes)
    for wrong in (0, most + 1):
        with pytest.raises(UserError, match=f"takes {most} sequences of .* not {wrong}; give a"):
            Batch(target, source.image, parallel=wrong)
    batch = Batch(target, source.image)
    some = [batch.submit([5, k], Sampling(), max_new=50) for k in range(3)]
    for _ in range(9):
        batch.step()
    target.driver.transport.fail_with = Error.BAD_DATA
    with pytest.raises(BoardError):
        while batch.step():
            pass
    assert all(s.ended for s in some) and not batch.step()


def test_counters_are_of_the_run(source, monkeypatch):
    """Drafts of a run before it are none of a batch's."""
    monkeypatch.setattr("meadowlark.run.targets.draft", lambda *of, **how: [1])
    target = GoldenTarget()
    target.load(source)
    assert len(list(target.generate([5, 6, 7], Sampling(), max_new=3, stop_ids=(),
                                    drafts=Drafting(most=1)))) == 3
    assert target.counters()["drafted"] > 0
    assert len(list(target.run_together([5, 6], [(0, 3), (1, 0)], [Sampling()] * 2, max_new=2,
                                        stop_ids=()))) == 4
    assert target.counters()["drafted"] == target.counters()["accepted"] == 0
