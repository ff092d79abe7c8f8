"""Drafts: the golden models against their definitions, and the replay of all positions at once
against them."""
import numpy as np
import pytest
from meadowlark.draft.conversations import Conversations
from meadowlark.draft.make import make
from meadowlark.draft.replay import Replay, contexts, lookups, matches, measure, replay, right
from meadowlark_hdl.draft.choice_golden import GIVEN, MOST, MOST_PRICE, START, Choice
from meadowlark_hdl.draft.context_match_golden import WINDOW, match
from meadowlark_hdl.draft.drafter_golden import NEVER, draft
from meadowlark_hdl.draft.run_golden import turns
from meadowlark_hdl.draft.table_lookup_golden import (EMPTY, LENGTHS, SLOTS, bucket, lookup, mix,
                                                      start, tag)


def chats(rng, count=30, vocab=8, most=40):
    """Conversations that repeat themselves; some have no prompt, some no answer."""
    phrases = [rng.integers(0, vocab, rng.integers(2, 9)).tolist() for _ in range(12)]
    pairs = []
    for _ in range(count):
        tokens = [t for k in rng.integers(0, 12, most // 4) for t in phrases[k]][:most]
        cut = int(rng.choice([0, 1, len(tokens), rng.integers(0, len(tokens))]))
        pairs.append((tokens[:cut], tokens[cut:]))
    return Conversations.of(pairs)


def defined(tokens, window):
    """The match by its definition: -> (position behind it, length)."""
    n = len(tokens)
    best = None
    for at in range(1, n):
        for length in (2, 3, 4):
            first = at - length
            if first >= max(0, n - 1 - window) and tokens[first:at] == tokens[n - length:] \
                    and (best is None or length >= best[1]):
                best = at, length
    return best


@pytest.mark.parametrize("window", [1, 2, 3, 7, 30, WINDOW])
def test_the_longest_match_and_of_equals_the_newest(seed, window):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(400):
        tokens = rng.integers(0, rng.integers(1, 6), rng.integers(0, 40)).tolist()
        found.append(match(tokens, window))
        assert found[-1] == defined(tokens, window), (tokens, window)
    assert {f[1] for f in found if f} == {n for n in (2, 3, 4) if n <= window}


def test_the_hash_keeps_states_apart_and_spreads(seed):
    """Those of contexts of one token, and of two with one in common, fill buckets evenly."""
    rng = np.random.default_rng(seed)
    states = np.unique(rng.integers(0, 1 << 32, 10000))
    assert len(np.unique(mix(states, start(states) * 0 + 5))) == len(states)
    assert [mix(int(s), 77) for s in states[:20]] == mix(states[:20], states[:20] * 0 + 77).tolist()
    for vocab, buckets in ((256, 64), (2048, 30), (2048, 1000), (50000, 1000), (50000, 131071)):
        for older in (0, int(rng.integers(vocab))):
            tokens = np.arange(vocab)
            state = mix(mix(start(tokens), tokens), older) if older else mix(start(tokens), tokens)
            at = bucket(state, buckets)
            assert 0 <= at.min() and at.max() < buckets
            mean = vocab / buckets              # and of chance, the variance
            assert np.bincount(at, minlength=buckets).var() <= 2 * mean + 1
            assert len(np.unique(tag(state))) >= min(vocab, 1 << 13) // 2


def test_the_format_does_not_change():
    """What docs/drafts.md says: tables that were made stay good."""
    state = mix(mix(start(0), 17), 42)
    assert (mix(start(0), 17), state) == (0x60908B55, 0x84E8411A)
    assert (bucket(state, 1000), tag(state)) == (519, 0x11A)


def put(table, context, token, slot):
    """An entry behind a context, the newest token last."""
    state = start(0)
    for older in context[::-1]:
        state = mix(state, older)
    table[bucket(state, len(table)), slot] = tag(state) << 19 | token


@pytest.mark.parametrize("buckets", [1, 3, 1000])
def test_the_longest_entry_counts(seed, buckets):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 1 << 19, 9).tolist()
    table = np.full((buckets, SLOTS), EMPTY, np.uint32)
    assert lookup(table, text) is None
    for slot, n in enumerate(LENGTHS):          # one bucket has place for all
        put(table, text[-n:], 100 + n, slot)
        assert lookup(table, text) == (100 + n, n)
        assert lookup(table, text[-n:]) == (100 + n, n)
        if n > 1:
            assert lookup(table, text[-n + 1:]) != (100 + n, n)
    put(table, text[-2:], 7, 0)                 # of two that fit, the first
    assert lookup(table, text[-2:])[0] in (7, 102)


def test_an_empty_place_fits_nothing():
    """Though its tag is one that contexts have."""
    table = np.full((5, SLOTS), EMPTY, np.uint32)
    tokens = next(t for t in range(1 << 19) if tag(mix(start(0), t)) == (1 << 13) - 1)
    assert lookup(table, [tokens]) is None
    put(table, [tokens], 3, 1)
    assert lookup(table, [tokens]) == (3, 1)


def test_the_rule():
    """A match that is long enough, else the table, else the match; it goes on while it is what is
    drafted."""
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    table = np.full((64, SLOTS), EMPTY, np.uint32)
    put(table, [1, 2, 3], 50, 0)
    put(table, [50], 51, 1)
    assert draft(text, 7) == [4, 5, 6, 9, 1, 2, 3]
    assert draft(text, 7, table, least=2) == [4, 5, 6, 9, 1, 2, 3]
    assert draft(text, 7, table, least=3) == [4, 5, 6, 9, 1, 2, 3]
    assert draft(text, 7, table, least=4) == [50, 51]
    assert draft(text, 3, table, least=NEVER) == [50, 51]
    assert draft(text, 7, table, context=False) == [50, 51]
    assert draft(text, 2) == [4, 5] and draft(text, 0) == [] and draft([], 5) == []
    table[:] = EMPTY
    put(table, [1, 2, 3], 4, 0)                 # says as the match, which so becomes long enough
    put(table, [4], 60, 1)
    assert draft(text, 3, table, least=4) == [4, 5, 6]
    assert draft(text, 3, table, least=NEVER) == [4, 60]
    put(table, [8, 8], 5, 3)
    assert draft([8, 8, 8], 4) == [8, 8, 8, 8]
    assert draft([8, 8, 8], 4, table, least=4) == [5]
    assert draft([8, 8, 8], 2, None) == [8, 8]


@pytest.mark.parametrize("least", range(2, NEVER + 1))
def test_replay_equals_the_golden_model(seed, least):
    """At every token of an answer: how many drafts are right, of context, table and both; and the
    passes, one behind the other."""
    rng = np.random.default_rng([seed, least])
    said, k = chats(rng), int(rng.integers(1, 9))
    table, _ = make(chats(rng), int(rng.choice([64, 400, 4000])))
    table = np.where(rng.random(table.shape) < 0.2, rng.permutation(table), table)
    matched, says = matches(said, contexts(said, 4)), lookups(said, table)
    ways = {"together": (table, True), "context": (None, True), "table": (table, False)}
    counts = {"together": right(said, k, matched, says, least),
              "context": right(said, k, matched, None, least),
              "table": right(said, k, None, says, least)}
    measured = measure(said, k, table, least)
    for way, (entries, context) in ways.items():
        accepted = [0] * (k + 1)
        for begin, prompt, length in zip(said.starts, said.prompt_lengths, said.lengths,
                                         strict=True):
            text = said.tokens[begin:begin + length].tolist()
            true = {}
            for at in range(prompt + 1, length):
                drafts = draft(text[:at], k, entries, least=least, context=context)
                rest = text[at:]
                true[at] = next((j for j, token in enumerate(drafts)
                                 if j >= len(rest) or token != rest[j]), len(drafts))
                assert min(counts[way][begin + at], len(rest)) == true[at]
            at = prompt + 1
            while at < length:
                n = min(true[at], length - at - 1)
                accepted[n] += 1
                at += 1 + n
        assert measured[way] == replay(said, k, counts[way]) == Replay(accepted=tuple(accepted))
        assert measured[way].tokens == said.drafted.sum()


@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_replay_sees_the_window(seed, window):
    said = chats(np.random.default_rng(seed), most=60)
    at, length = matches(said, contexts(said, 4), window)
    for begin, size in zip(said.starts, said.lengths, strict=True):
        text = said.tokens[begin:begin + size].tolist()
        for n in range(size):
            expected = match(text[:n], window) or (-1 - begin, 0)
            assert (at[begin + n] - begin, length[begin + n]) == expected


def test_nothing_to_draft():
    said = Conversations.of([([1, 2], []), ([3], [4]), ([], [5])])
    assert not said.drafted.any()
    found = measure(said, 3, None, 2)
    assert list(found) == ["context"] and found["context"].tokens_per_pass == 1.0


def runs(rng, count=200):
    """Runs with drafts: -> their parameters, what they say, and the passes it takes."""
    for _ in range(count):
        limit = int(rng.integers(8, 60))
        text = rng.integers(0, 3, int(rng.integers(1, limit + 1))).tolist()
        said = [*text, *rng.integers(0, 3, limit + 2 - len(text)).tolist()]
        ways = {"most": int(rng.integers(0, 8)), "max_new": int(rng.integers(0, 60)),
                "price": int(rng.choice([0, 5, 100, 400, MOST_PRICE])), "limit": limit,
                "stop_ids": (int(rng.integers(0, 3)),) if rng.random() < 0.2 else ()}
        right = rng.random()

        def draw(position, drafts):
            for j in range(1 + len(drafts)):
                yield said[position + 1 + j]

        def guess(seen, k):
            assert seen == said[:len(seen)]
            return [said[len(seen) + j] if rng.random() < right else 3
                    for j in range(rng.integers(0, k + 1))]
        yield text, said, ways, list(turns(text, draw, guess, **ways))


def test_runs_with_drafts_have_the_same_text(seed):
    rng, ends = np.random.default_rng(seed), set()
    for text, said, ways, found in runs(rng):
        at, new = len(text), [token for turn in found for token in turn.tokens]
        assert new == said[at:at + len(new)]
        reasons = {"stop": bool(new) and new[-1] in ways["stop_ids"],
                   "new": len(new) == ways["max_new"],
                   "context": at + len(new) == ways["limit"] + 1}
        assert any(reasons.values()) and not set(new[:-1]) & set(ways["stop_ids"])
        ends |= {name for name, is_so in reasons.items() if is_so}
        for turn in found:
            assert turn.position == at - 1 and turn.n == 1 + len(turn.drafts) <= 1 + ways["most"]
            assert at + len(turn.drafts) <= ways["limit"]       # keys: those of a run without
            assert len(turn.drafts) < max(1, len(text) + ways["max_new"] - at)
            right = next((j for j, token in enumerate(turn.drafts) if token != said[at + j]),
                         len(turn.drafts))
            assert turn.accepted == right or turn is found[-1] and turn.accepted < right
            at += len(turn.tokens)
    assert ends == {"stop", "new", "context"}


@pytest.mark.parametrize("price", [0, 1, 5, 6, 7, 100, 384, MOST_PRICE])
def test_drafts_that_bring_nothing_cost_little(price):
    choice, cost = Choice(price), 0
    had = []
    for passes in range(1, 2000):
        had.append(choice.drafts())
        cost += price * had[-1]
        assert cost <= START + GIVEN * passes
    assert sum(had[-1000:]) in (1000 * GIVEN // max(price, GIVEN) + k for k in (0, 1))


def test_drafts_that_pay_stay(seed):
    """After a time without, too: as soon as the account has their price."""
    rng, choice = np.random.default_rng(seed), Choice(100)
    for _ in range(1000):
        choice.drafts()
    had = []
    for _ in range(1000):
        had.append(choice.drafts())
        for _ in range(rng.integers(0, 3) * had[-1]):
            choice.accepted()
        assert 0 <= choice.account <= MOST
    assert all(had[300:])
    with pytest.raises(ValueError, match="price must be in 0..1023"):
        Choice(-1)
