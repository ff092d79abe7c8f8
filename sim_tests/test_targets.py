"""Targets: what stays in the KV cache from run to run."""
import random
from contextlib import closing

import pytest
from meadowlark.link.driver import Driver
from meadowlark.link.fake_board import FakeBoard, invented
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget, GoldenTarget
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import Sampling
from random_model import random_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random model with a context of 128."""
    return Source(str(random_model(tmp_path_factory.mktemp("m"), seed=3, layers=1, heads=2,
                                   kv_heads=2)),
                  get_board("virtual"))


def board(source):
    def next_token(history):
        token, crc = invented(history)
        return token % source.image.shape["vocab"], crc
    fake = FakeBoard(source.board.config, memory_bytes=source.board.memory.size_bytes,
                     next_token=next_token)
    return BoardTarget("fake", Driver(fake))


@pytest.fixture(params=["golden", "image", "fake"])
def targets(request, source, tmp_path, monkeypatch):
    """A target that goes on and one that begins anew each time."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path))
    both = [board(source) if request.param == "fake" else GoldenTarget() for _ in range(2)]
    if request.param == "image":
        source.image.save(tmp_path / "m.mlk")
        source = Source(str(tmp_path / "m.mlk"), source.board)
    for target in both:
        target.load(source)
    return both


def run(target, tokens, *, max_new, stop_ids=(), after=None, reuse=True):
    """Tokens of a run, closed after some of them."""
    out = []
    with closing(target.generate(tokens, Sampling(), max_new=max_new, stop_ids=stop_ids,
                                 reuse=reuse)) as events:
        for event in events:
            out.append(event.token)
            if len(out) == after:
                break
    return out


def test_what_is_kept(targets, seed):
    """Whatever came before, a prompt gives the tokens of a run from scratch."""
    rng = random.Random(seed)
    target, fresh = targets
    held = []                           # what the cache must hold
    kinds = []
    for _ in range(60):
        kind = rng.choice(("on", "on", "on", "off", "new", "again"))
        known = held[:rng.randrange(len(held) + 1)] if kind == "off" else \
            [] if kind == "new" else held
        tokens = known + [rng.randrange(2, 60) for _ in range(rng.randint(0 if known else 1, 9))]
        if len(tokens) > 120:
            tokens = tokens[:5]
        most, after = rng.randint(1, 8), rng.choice((None, None, 1, 2))
        want = run(fresh, tokens, max_new=most, reuse=False)
        stops = rng.choice(((), (want[-1],)))
        got = run(target, tokens, max_new=most, stop_ids=stops, after=after)
        assert got == want[:len(got)] and got
        common = next((i for i, (a, b) in enumerate(zip(held, tokens)) if a != b),
                      min(len(held), len(tokens)))
        assert target.cached == min(common, len(tokens) - 1)
        held = tokens + got[:-1]        # the last token's keys and values are not there yet
        kinds.append(target.cached > 0)
    assert 20 < sum(kinds) < 60


def test_a_run_that_gave_nothing(targets):
    """Closed before its first token, a run leaves only what it did not touch."""
    target, fresh = targets
    first = [5, 6, 7, 8, 9]
    run(target, first, max_new=2)
    broken = target.generate([5, 6, 7, 30, 31, 32], Sampling(), max_new=3, stop_ids=(), reuse=True)
    real, target.run = target.run, lambda *_, **__: iter_of(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        next(broken)
    target.run = real
    assert run(target, first, max_new=2) == run(fresh, first, max_new=2, reuse=False)
    assert target.cached == 3


def iter_of(error):
    raise error
    yield


def test_the_model_of_another_load_is_forgotten(targets, source):
    target = targets[0]
    run(target, [5, 6, 7], max_new=2)
    target.load(source)
    run(target, [5, 6, 7], max_new=2)
    assert target.cached == 0
    run(target, [5, 6, 7], max_new=2, reuse=False)
    assert target.cached == 0


def test_the_context_fills(targets, source):
    """The last answer ends where the context does; nothing is sent twice on the way."""
    target, fresh = targets
    context = source.image.context
    tokens = list(range(2, 2 + context - 20))
    tokens += run(target, tokens, max_new=10)
    want = run(fresh, tokens, max_new=1000, reuse=False)
    assert run(target, tokens, max_new=1000) == want and len(want) == 11
    assert target.cached == context - 11


def test_only_new_tokens_are_sent(source):
    target = board(source)
    target.load(source)
    tokens = list(range(2, 32))
    tokens += run(target, tokens, max_new=4)
    run(target, [*tokens, 3, 4, 5], max_new=4)
    assert target.cached == 33
    assert target.driver.read_register("start_pos") == 33
    assert target.driver.read_register("prompt") == 4
