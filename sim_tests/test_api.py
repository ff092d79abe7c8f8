"""Meadowlark from Python: the same texts as the command line, and what it refuses."""
import dataclasses
import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from random_model import random_model
from test_chat import TURNS

import meadowlark as ml
from meadowlark import api, cli
from meadowlark.api import chip, drafts, facts, model
from meadowlark.compile.cycles import predict
from meadowlark.models.registry import load_model
from meadowlark.run.evaluate import perplexity
from meadowlark.run.targets import Event, GoldenTarget, SimTarget

ROOT = Path(__file__).resolve().parents[1]
START = "Once upon a time"


@pytest.fixture(scope="module")
def stories():
    with ml.load("stories").on("golden") as chip:
        yield chip


@pytest.fixture
def folder(tmp_path, monkeypatch, seed):
    """A random model that answers questions."""
    monkeypatch.setenv("MEADOWLARK_CACHE", str(tmp_path / "cache"))
    made = random_model(tmp_path / "model", seed=seed, heads=2, kv_heads=2)
    (made / "tokenizer_config.json").write_text(json.dumps(dict(
        chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")))
    return made


def test_its_documentation(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [doctest.testmod(module) for module in (api, chip, drafts, facts, model)]
    found.append(doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False))
    assert sum(f.attempted for f in found) >= 29 and not any(f.failed for f in found)


def test_all_that_is_offered():
    for name in ml.__all__:
        assert getattr(ml, name).__doc__


@pytest.mark.parametrize("options, arguments", [
    ({}, []), (dict(stop="girl"), ["--stop", "girl"]),
    (dict(stop=["little ", "girl"]), ["--stop", "girl", "--stop", "little "]),
    (dict(temperature=0.8, seed=7), ["--temp", "0.8", "--seed", "7"]),
    (dict(temperature=1.5, top_k=5, top_p=0.9, seed=1),
     ["--temp", "1.5", "--top-k", "5", "--top-p", "0.9", "--seed", "1"])])
def test_texts_of_the_command_line(stories, capsys, options, arguments):
    pieces = list(stories.stream(START, max_tokens=12, **options))
    assert all(pieces) and "".join(pieces) == stories.last.text
    assert cli.main(["generate", START, "--target", "golden", "-n", "12", "--json", "-",
                     *arguments]) == 0
    want = json.loads(capsys.readouterr().out)
    assert list(stories.last.tokens) == want["tokens"] and stories.last.text == want["text"]
    assert stories.last.ended == want["end"]
    assert stories.last.prompt_tokens == want["prompt_tokens"]


def test_a_loop_that_is_left(stories, monkeypatch):
    closed = []
    real = GoldenTarget.run

    def watched(self, *args, **kw):
        try:
            yield from real(self, *args, **kw)
        finally:
            closed.append(True)
    monkeypatch.setattr(GoldenTarget, "run", watched)
    run = stories.stream(START, max_tokens=50)
    first = next(run)
    run.close()
    left = stories.last
    assert closed and left and left.ended == "left" and left.text == first
    again = stories.generate(START, max_tokens=3)
    assert again.text.startswith(first) and again.cached_tokens > 0


def test_ended_by_the_model(stories):
    end = stories.generate("One day,", temperature=0.5, seed=3)
    assert end.ended == "stop id" and end.tokens[-1] in stories.image.stop_ids
    more = stories.generate("One day,", temperature=0.5, seed=3, ignore_eos=True,
                            max_tokens=len(end.tokens) + 2)
    assert more.tokens[:len(end.tokens)] == end.tokens and more.ended == "number of tokens"


def test_conversation(folder, capsys):
    arguments = ["--model", str(folder), "--target", "golden", "-n", "3", "--json", "-"]
    with ml.load(folder).on("golden") as chip:
        messages = [{"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hello"}]
        first = chip.chat(messages, max_tokens=3)
        assert cli.main(["generate", "Hello", "--chat", "--system", "Be brief.", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["tokens"] == list(first.tokens)
        messages += [{"role": "assistant", "content": first.text},
                     {"role": "user", "content": "Good"}]
        second = chip.chat(messages, max_tokens=3)
        # It went on where it was, token by token.
        assert second.cached_tokens >= first.prompt_tokens
        other = chip.chat([{"role": "user", "content": "Good"}], max_tokens=3)
        assert other.prompt_tokens < second.prompt_tokens
    with ml.load(folder).on("golden") as chip:      # told by somebody else
        streamed, last = "".join(chip.stream(messages, max_tokens=3)), chip.last
        assert last and streamed == last.text
        assert last.cached_tokens == 0 and len(last.tokens) == 3


@pytest.mark.parametrize("messages, sentence", [
    ([], "ends with a message of the user"),
    ([{"role": "assistant", "content": "Hello"}], "ends with a message of the user"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "in turn"),
    ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"},
      {"role": "user", "content": "c"}], "in turn"),
    ([{"role": "user"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
     "message 1 must have"),
    ([{"role": "user", "content": " "}], "empty"), ("Hello", "use generate()")])
def test_conversations_that_are_none(folder, messages, sentence):
    with ml.load(folder).on("golden") as chip:
        with pytest.raises(ml.UserError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
            chip.chat(messages)
        assert chip.chat([{"role": "user", "content": "Hello"}], max_tokens=1).tokens


@pytest.mark.parametrize("options, sentence", [
    (dict(max_tokens=0), "max_tokens must be at least 1"), (dict(stop=["a", ""]), "empty"),
    (dict(temperature=-1), "temperature"), (dict(top_p=0), "top_p"), (dict(seed=-1), "seed"),
    (dict(draft="never"), "--draft"), (dict(draft=99), "at most")])
def test_options_out_of_range(stories, options, sentence):
    with pytest.raises(ml.UserError, match=sentence):
        stories.stream(START, **options)        # at the call, not at the first piece


@pytest.mark.parametrize("call, sentence", [
    (lambda: ml.load("nobody"), "no model"), (lambda: ml.load(weights="int3"), "int3"),
    (lambda: ml.load(packing="zip"), "zip"), (lambda: ml.load(bits=99), "bits"),
    (lambda: ml.load().on("sim", board="nobody"), "nobody"),
    (lambda: ml.load().on("/dev/nothing"), "/dev/nothing"),
    (lambda: ml.load().predict(prompt=0), "at least 1"),
    (lambda: ml.load().compile(attention="tphd"), "one of tphs and gemm, not 'tphd'"),
    (lambda: ml.load().compile(fence="x"), "give one of operators, layers"),
    (lambda: ml.load().on("golden").bench(), "no clock to measure"),
    (lambda: ml.load().on("sim", load=False).bench(generates=[], texts=["a"]), "above 0"),
    (lambda: ml.build(seeds=0), "^seeds must be at least 1, not 0"),
    (lambda: ml.load().drafts.own(1, prompts=[" "]), "all prompts are empty"),
    (lambda: ml.load().perplexity("\n"), "no tokens")])
def test_refused(call, sentence):
    with pytest.raises(ml.UserError, match=sentence):
        call()


def test_a_chip_and_its_prediction():
    model = ml.load("stories")
    with model.on("sim", board="virtual") as chip:
        done = chip.generate(START, max_tokens=5, draft="off")
    expected = model.predict(board="virtual", prompt=done.prompt_tokens, generate=5)
    counted = done.counters["cycles"]
    assert abs(expected.prediction.cycles - counted) < 0.01 * counted
    assert done.cycles_per_token == pytest.approx(expected.prediction.decode_cycles / 4, rel=0.01)
    assert expected.tokens_per_s == pytest.approx(
        expected.clock_mhz * 1e6 / done.cycles_per_token, rel=0.01)


def test_predicted_as_by_the_cycle_model():
    model = ml.load("stories", packing="raw")
    image = model.compile("ulx3s_85f")
    found = model.predict(board="ulx3s_85f", prompt=16, generate=3, position=5, exact=True)
    board = model._board("ulx3s_85f")
    want = predict(image, board, prompt=16, generate=3, start_pos=5)
    assert found.prediction.cycles == want.cycles
    assert found.first_token_s == want.prefill_cycles / board.clock_mhz / 1e6
    assert found.prompt_tokens_per_s == 16 / found.first_token_s
    near = model.predict(board=board, prompt=16, generate=1)
    assert near.tokens_per_s == 0 and near.whole.cycles == near.prediction.cycles


def test_image(tmp_path):
    path = tmp_path / "stories.mlk"
    image = ml.load("stories", context=64).compile(path=path)
    assert image.context == 64 and repr(image).startswith("<image of stories for virtual, 2,")
    with ml.load(path).on("golden") as chip:
        again = chip.generate(START, max_tokens=4)
    with ml.load("stories", context=64).on("golden") as chip:
        assert chip.generate(START, max_tokens=4).tokens == again.tokens
    with pytest.raises(ml.UserError, match="image"):
        ml.load(path).perplexity()


def test_perplexity():
    text = "Once upon a time there was a cat.\nThe cat was happy."
    model = ml.load("stories")
    found = model.perplexity(text, max_tokens=9)
    source = model._source(model._board(None))
    want = perplexity(load_model("stories"), source.quantised, text.splitlines(), 9)
    assert found == want and found.tokens == 9
    assert np.isfinite(found.ppl_fixed)


def test_many_texts(stories):
    """Each as it is alone, with a seed for each, or one for all."""
    prompts = [START, "A cat", "The big dog", START, "Tom"]
    for seed in (4, [1, 2, 3, 4, 5]):
        options = dict(temperature=0.9, max_tokens=12, stop="mm")
        found = stories.many(prompts, seed=seed, **options)
        for prompt, one, number in zip(prompts, found, seed if isinstance(seed, list) else 5 * [4]):
            alone = stories.generate(prompt, seed=number, **options)
            assert (one.text, one.tokens, one.ended) == (alone.text, alone.tokens, alone.ended)
    assert stories.many([]) == []
    with pytest.raises(ml.UserError, match="^5 prompts need as many seeds, not 2; "):
        stories.many(prompts, seed=[1, 2])
    with pytest.raises(ml.UserError, match="at once, not 100000; give a number"):
        stories.many(prompts, parallel=100_000)


def test_texts_come_and_go(stories):
    """One that begins while another is on its way; one that is given up; what each counts."""
    alone = [stories.generate(START, max_tokens=12), stories.generate("A cat", max_tokens=6)]
    told = []
    with stories.together() as texts:
        first = texts.begin(START, told.append, max_tokens=12)
        while len(told) < 3:
            assert texts.step() and first.done is None
        second, third = texts.begin("A cat", max_tokens=6), texts.begin("The sun", max_tokens=50)
        while not third._running.events:
            texts.step()
        third.cancel()
        while texts.step():
            pass
        for text, want in zip((first, second), alone, strict=True):
            assert (text.done.text, text.done.tokens, text.done.ended) == (
                want.text, want.tokens, want.ended)
        assert third.done.ended == "left" and 0 < len(third.done.tokens) < 50
        assert first.done and "".join(step.text for step in told) == first.done.text
        assert sum(text.done.counters["accepted"] for text in (first, second, third)) == \
            texts.counters["accepted"] > 0
        left = texts.begin(START, max_tokens=5)
    assert left.done and left.done.ended == "left" and left.done.tokens == ()
    assert stories.generate(START, max_tokens=12).text == alone[0].text


def test_loaded_with_the_first_run(monkeypatch):
    """What is wrong with a prompt is said before."""
    loads, load = [], SimTarget.load
    monkeypatch.setattr(SimTarget, "load", lambda self, source: (loads.append(source),
                                                                 load(self, source)))
    with ml.load("stories").on("sim", load=False) as chip:
        for prompt, options in (("word " * 900, {}), (START, dict(top_p=2)),
                                (START, dict(draft=99)), ([1 << 20], {})):
            with pytest.raises(ml.UserError):
                chip.stream(prompt, **options)
        assert not loads
        for _ in range(2):
            chip.generate(START, max_tokens=2)
        assert len(loads) == 1


def test_verified(monkeypatch):
    """A whole run, one that is left, one of several; and each difference is found."""
    with ml.load("stories").on("sim") as chip:
        with pytest.raises(ml.UserError, match="nothing to compare yet"):
            chip.verify()
        done = chip.generate(START, max_tokens=6, temperature=0.7, seed=3)
        found = chip.verify()
        assert found.bit_exact and found.tokens == len(done.tokens) == 6
        run = chip.stream(START, max_tokens=9)
        next(run)
        run.close()
        assert chip.last and chip.last.ended == "left" and chip.verify().bit_exact
        with chip.together() as texts:
            text = texts.begin("A cat", max_tokens=3)
            while texts.step():
                pass
        assert chip.verify(text).tokens == 3
        text.run.events[1] = dataclasses.replace(text.run.events[1], crc=5, logits=None)
        assert "token 1: the CRC" in chip.verify(text).first_difference
    with ml.load("stories").on("golden") as chip:
        chip.generate(START, max_tokens=2)
        with pytest.raises(ml.UserError, match="nothing to be compared with"):
            chip.verify()


def test_a_run_that_fails(stories, monkeypatch):
    """What came until then is known; the next run is whole."""
    real = GoldenTarget.run

    def broken(self, *args, **kw):
        for at, event in enumerate(real(self, *args, **kw)):
            if at == 2:
                raise OSError("unplugged")
            yield event
    with monkeypatch.context() as patch:
        patch.setattr(GoldenTarget, "run", broken)
        with pytest.raises(OSError, match="unplugged"):
            stories.generate(START, max_tokens=5, draft="off")
    assert (len(stories.last.tokens), stories.last.ended, stories.last.counters) == (2, "left", {})
    assert len(stories.generate(START, max_tokens=5).tokens) == 5


def test_talk(folder):
    """Turn by turn as the whole conversation is; another begins after reset()."""
    with ml.load(folder).on("golden") as one, ml.load(folder).on("golden") as other:
        talk = one.talk("Be brief.", max_tokens=3)
        said = [{"role": "system", "content": "Be brief."}]
        for question in ("Hello", "Good"):
            text = "".join(step.text for step in talk.ask(question))
            said.append({"role": "user", "content": question})
            assert one.last and one.last.tokens == other.chat(said, max_tokens=3).tokens
            said.append({"role": "assistant", "content": text})
        first = one.last.prompt_tokens if one.last else 0
        for wrong in (" ", "a" * 400, "\udcff"):
            with pytest.raises(ml.UserError):
                talk.ask(wrong)
        talk.reset()
        for _ in talk.ask("Hello"):
            pass
        assert one.last and one.last.prompt_tokens < first and talk.forgotten == 0
        with pytest.raises(ml.UserError, match="one of recent, system, not 'all'"):
            one.talk(keep="all")
        with pytest.raises(ml.UserError, match="the system message is not valid"):
            other.chat([{"role": "system", "content": "\udcff"}, said[1]])


def test_recorded(tmp_path):
    timeline, waves = ml.Timeline(2), ml.Waves(str(tmp_path / "w.vcd"), 0, 50)
    with pytest.raises(ml.UserError, match='only what "sim" simulates is recorded, not golden'):
        ml.load("stories").on("golden", trace=timeline)
    with pytest.raises(ml.UserError, match="not golden"):
        ml.load("stories").on("golden", waves=waves)


def test_bench_against_raw_and_back(monkeypatch):
    """The chip has its own weights again behind it."""
    loads = []
    monkeypatch.setattr(GoldenTarget, "load", lambda self, source: loads.append(source.packing))
    monkeypatch.setattr(GoldenTarget, "generate", lambda self, tokens, draw, *, max_new, **kw: (
        event for event in [Event(token=5, crc=0)] * max_new))
    monkeypatch.setattr(GoldenTarget, "counters", lambda self: {"cycles": 1000})
    monkeypatch.setattr(GoldenTarget, "name", "counted")
    with ml.load("stories").on("golden", load=False) as chip:
        found = chip.bench(prompts=[4], generates=[], against_raw=True)
        assert [*found.results] == ["pp4", "pp4 raw"] and found.predicted["pp4"].cycles > 100
        assert found.as_dict()["speedup"] == {"pp4": 1.0}
        chip.generate(START, max_tokens=1, draft="off")
    assert loads == ["auto", "raw", "auto"]
