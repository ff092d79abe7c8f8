"""The server: OpenAI's client, llama-server's addresses, and clients that mean no good."""
import gc
import http.client
import json
import mmap
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from meadowlark.api.together import Text, Together
from meadowlark.quant.quantise import LOGIT_FRAC
from meadowlark.run.batch import Running
from meadowlark.serve.app import Limits, Service, application
from meadowlark.serve.requests import Bad, parse, read
from meadowlark.serve.run import Runs
from meadowlark.serve.scheduler import Closed, Ended, Full, Job, Shared, Ticket
from meadowlark.serve.server import Server, is_local, listening
from meadowlark.serve.status import of_a_token
from random_model import random_model
from test_chat import TURNS

import meadowlark as ml

START = "Once upon a time"
#: Longer than any of these runs takes on a slow machine.
LONG = 60
#: Requests of test_load and of test_hostile_requests; `make long` has more.
LOAD, HOSTILE = int(os.environ.get("LOAD", "48")), int(os.environ.get("HOSTILE", "400"))


class Gate:
    """Tokens of a chip, held until they are let go."""

    def __init__(self, monkeypatch):
        self.open, self.begun = threading.Event(), threading.Event()
        watch = Together._watch

        def held(*args):
            self.begun.set()
            assert self.open.wait(LONG)
            return watch(*args)
        monkeypatch.setattr(Together, "_watch", held)


@contextmanager
def serving(chip, *, waiting=64, parallel=1, origins=(), **options):
    """A server of a chip: (its scheduler, its port). parallel: None is all that a pass takes."""
    scheduler = Shared(chip, waiting=waiting, parallel=parallel)
    service = Service(
        chip=chip, scheduler=scheduler, name=chip.image.name, target="golden",
        hosts=frozenset({"localhost", "127.0.0.1"}),
        **dict(likely=True, predict=lambda: {"layers": []}) | options)
    try:
        with Server(application(service, origins=origins), listening("127.0.0.1", 0),
                    patience=LONG) as server:
            yield scheduler, server.port
    finally:
        scheduler.close()


def client(port, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0,
                         timeout=LONG)


def ask(port, path, body=None, method=None, **headers):
    """(status, headers, text) of a request by hand; body: an object or bytes."""
    with_ = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if raw is not None else {}
    with_.request(method or ("GET" if raw is None else "POST"), path, raw,
                  sent | {name.replace("_", "-"): value for name, value in headers.items()})
    got = with_.getresponse()
    text = got.read().decode()
    with_.close()
    return got.status, dict(got.getheaders()), text


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def chip():
    with ml.load("stories").on("golden") as chip:
        yield chip


@pytest.fixture(scope="module")
def twin():
    """The same, for what is expected."""
    with ml.load("stories").on("golden") as chip:
        yield chip


@pytest.fixture(scope="module")
def stories():
    """A server all passes of which are shared; the chip is its own."""
    with ml.load("stories").on("golden") as chip, serving(chip, parallel=None) as served:
        yield served


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """(model, port) of one that answers conversations."""
    folder = random_model(tmp_path_factory.mktemp("model"), seed=5, heads=2, kv_heads=2)
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")))
    model = ml.load(folder)
    with model.on("golden") as chip, serving(chip) as (_, port):
        yield model, port


# ---- OpenAI's client

@pytest.mark.parametrize("options", [
    {}, dict(temperature=0.8, seed=7), dict(stop=["little ", "girl"]), dict(stop="girl"),
    dict(temperature=1.2, top_p=0.9, seed=3, extra_body=dict(top_k=5))])
def test_texts_are_those_of_generate(stories, twin, options):
    _, port = stories
    own = {**options, **options.get("extra_body", {})}
    own.pop("extra_body", None)
    want = twin.generate(START, max_tokens=12, **own)
    whole: Any = client(port).completions.create(model="stories", prompt=START, max_tokens=12,
                                                 **options)
    choice, = whole.choices
    assert choice.text == want.text
    assert choice.finish_reason == ("stop" if want.ended == "stop text" else "length")
    assert whole.usage.completion_tokens == len(want.tokens)
    assert whole.usage.prompt_tokens == want.prompt_tokens
    pieces: Any = list(client(port).completions.create(
        model="stories", prompt=START, max_tokens=12, stream=True,
        stream_options={"include_usage": True}, **options))
    assert "".join(p.choices[0].text for p in pieces[:-1]) == want.text
    assert [p.choices[0].finish_reason for p in pieces[:-1] if p.choices[0].finish_reason] \
        == [choice.finish_reason]
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == len(want.tokens)
    assert len(pieces) > 4


def test_conversations(answering):
    model, port = answering
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on"}]
    with model.on("golden") as chip:
        want = chip.chat(messages, max_tokens=8, temperature=0.7, seed=2)
    asked = dict(model=model.compile().name, max_tokens=8, temperature=0.7, seed=2)
    whole = client(port).chat.completions.create(messages=messages, **asked)
    assert whole.choices[0].message.content == want.text
    assert whole.choices[0].message.role == "assistant"
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    as_parts[0]["role"] = "developer"
    pieces = list(client(port).chat.completions.create(messages=as_parts, stream=True, **asked))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == want.text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_answers(stories, twin):
    """Choices of a prompt differ in their seed; prompts come one after the other."""
    _, port = stories
    found: Any = client(port).completions.create(
        model="stories", prompt=[START, "The dog"], n=2, temperature=1.0, seed=11, max_tokens=6)
    want = [twin.generate(prompt, temperature=1.0, seed=11 + k, max_tokens=6)
            for prompt in (START, "The dog") for k in range(2)]
    assert [c.text for c in found.choices] == [one.text for one in want]
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert found.usage.completion_tokens == sum(len(one.tokens) for one in want)
    assert found.usage.prompt_tokens == want[0].prompt_tokens + want[2].prompt_tokens
    ids = twin.encode("The dog")
    by_ids = client(port).completions.create(model="stories", prompt=ids, max_tokens=6)
    assert by_ids.choices[0].text == twin.generate("The dog", max_tokens=6).text
    streamed = client(port).completions.create(
        model="stories", prompt=START, n=2, temperature=1.0, seed=11, max_tokens=6, stream=True)
    texts = ["", ""]
    for piece in streamed:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == [one.text for one in want[:2]]


def test_without_a_seed_texts_differ(stories):
    _, port = stories
    found = {client(port).completions.create(model="stories", prompt=START, temperature=1.5,
                                             max_tokens=10).choices[0].text for _ in range(4)}
    assert len(found) > 1


def test_logprobs(stories, answering, twin):
    """Those of the distribution at temperature 1, whatever the token was drawn from."""
    steps = [s for s in twin.steps(START, max_tokens=5, temperature=0.9, seed=1)
             if s.token is not None]
    found: Any = client(stories[1]).completions.create(
        model="stories", prompt=START, max_tokens=5, temperature=0.9, seed=1, logprobs=3)
    logs = found.choices[0].logprobs
    assert len(logs.token_logprobs) == len(steps) == 5
    for step, log, top in zip(steps, logs.token_logprobs, logs.top_logprobs, strict=True):
        x = step.logits / 2.0**LOGIT_FRAC
        want = x - np.logaddexp.reduce(x)
        assert log == pytest.approx(want[step.token], abs=1e-9)
        assert sorted(top.values(), reverse=True) == pytest.approx(np.sort(want)[::-1][:len(top)])
    assert "".join(logs.tokens) == found.choices[0].text
    model, port = answering
    asked = dict(model=model.compile().name, messages=[{"role": "user", "content": "Hello"}],
                 max_tokens=4, logprobs=True, top_logprobs=2)
    whole = client(port).chat.completions.create(**asked)
    content = whole.choices[0].logprobs.content
    assert content and all(len(one.top_logprobs) == 2 for one in content)
    assert all(one.logprob <= 0 for one in content)
    streamed = [one for piece in client(port).chat.completions.create(stream=True, **asked)
                if piece.choices[0].logprobs for one in piece.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]


def test_eight_at_once(stories, twin):
    _, port = stories
    prompts = [f"{START} there was a {what}" for what in (
        "dog", "cat", "boy", "girl", "bird", "tree", "fish", "bear")]
    want = [twin.generate(prompt, max_tokens=8, draft="off").text for prompt in prompts]

    def one(prompt):
        return "".join(p.choices[0].text for p in client(port).completions.create(
            model="stories", prompt=prompt, max_tokens=8, stream=True))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, prompts)) == want


def test_errors_reach_the_client(stories):
    _, port = stories
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client(port).completions.create(model="stories", prompt=START, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="this server has stories"):
        client(port).completions.create(model="gpt-4", prompt=START)
    with pytest.raises(openai.BadRequestError, match="without a chat template.*completions"):
        client(port).chat.completions.create(
            model="stories", messages=[{"role": "user", "content": "Hello"}])
    assert [one.id for one in client(port).models.list()] == ["stories"]
    assert client(port).models.retrieve("stories").id == "stories"
    with pytest.raises(openai.NotFoundError, match="stories"):
        client(port).models.retrieve("other")


# ---- What makes no sense

def sentence(status, text, low=400, high=499):
    """A refusal is one sentence in OpenAI's form."""
    assert low <= status <= high, (status, text)
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in text
    return error["message"]


@pytest.mark.parametrize("body, words", [
    (b"", "not JSON"), (b"[]", "JSON object"), (b"{", "not JSON"), (b"\xff", "not JSON"),
    (b'{"prompt": NaN}', "NaN"), (b"[" * 100_000, "not JSON"), ({}, "prompt is missing"),
    (b'{"prompt": "\\ud800"}', "not JSON"),
    (dict(prompt=7), "prompt must be"), (dict(prompt=[]), "prompt must be"),
    (dict(prompt=[1, "a"]), "prompt must be"), (dict(prompt=[99999]), "no token 99999"),
    (dict(prompt=START, max_tokens=0), "max_tokens"), (dict(prompt=START, max_tokens=1.5), "1.5"),
    (dict(prompt=START, max_tokens=True), "true"), (dict(prompt=START, n=99), "n must be"),
    (dict(prompt=START, temperature="warm"), '"warm"'),
    (dict(prompt=START, temperature=1000), "temperature"),
    (dict(prompt=START, top_p=0), "top_p"), (dict(prompt=START, top_k=33), "top_k"),
    (dict(prompt=START, seed=-1), "seed"), (dict(prompt=START, stop=[""]), "stop"),
    (dict(prompt=START, stop=["a"] * 17), "at most 16"), (dict(prompt=START, stream=1), "stream"),
    (dict(prompt=START, echo=True), "echo is not supported"),
    (dict(prompt=START, logit_bias={"5": 1}), "logit_bias"),
    (dict(prompt=START, presence_penalty=0.5), "presence_penalty"),
    (dict(prompt=START, wings=2), "no parameter"), (dict(prompt="a " * 600), "context holds"),
    (dict(prompt=START, stream_options=[1]), "stream_options")])
def test_bodies_that_make_no_sense(stories, body, words):
    status, _, text = ask(stories[1], "/v1/completions", body)
    assert words in sentence(status, text, 400, 400)


@pytest.mark.parametrize("messages, words", [
    ([], "list of messages"), ("Hello", "list of messages"), ([7], "messages[0]"),
    ([{"role": "robot", "content": "a"}], '"robot"'), ([{"role": "user"}], "content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "no text"),
    ([{"role": "user", "content": "a", "tool_calls": [1]}], "tool_calls"),
    ([{"role": "assistant", "content": "a"}], "ends with a message of the user"),
    ([{"role": "user", "content": " "}], "empty"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": "a"}], "in turn"),
    ([{"role": "user", "content": "word " * 500}], "shorten the prompt"),
    ([{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "a"},
      {"role": "user", "content": "word " * 400}], "leave out the oldest")])
def test_conversations_that_make_no_sense(answering, messages, words):
    status, _, text = ask(answering[1], "/v1/chat/completions", dict(messages=messages))
    assert words in sentence(status, text, 400, 400)


def test_what_is_read():
    """Names of OpenAI's that ask for nothing are taken, null is as good as absent."""
    asked = read(parse(json.dumps(dict(
        messages=[{"role": "user", "content": "a"}], n=None, user="me", tools=[],
        response_format={"type": "text"}, max_tokens=3, max_completion_tokens=5,
        presence_penalty=0.0)).encode()), chat=True)
    assert asked.options == {"max_tokens": 5} and asked.choices == 1 and asked.likely is None
    assert read({"prompt": "a", "logprobs": 0}, chat=False).likely == 0
    with pytest.raises(Bad, match="logprobs to be true"):
        read({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, chat=True)


def mutated(rng, raw):
    """Some bytes changed, left out, put in or said twice."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0: raw[at:at + 1] = bytes([rng.randrange(256)])
            case 1: del raw[at:at + rng.randint(1, 9)]
            case 2: raw[at:at] = rng.choice([b"null", b"[]", b"{}", b"-1", b'"', b"\\ud8", b"1e999",
                                             b"true", b",", b"9" * 30, b"\0", b":"])
            case 3: raw[at:at] = raw[at:at + 20]
    return bytes(raw)


def test_hostile_requests(stories, answering, seed, capfd):
    """Whatever comes: an answer that makes sense or one sentence, and the server stays."""
    rng = random.Random(seed)
    bodies = {"/v1/completions": dict(prompt=START, max_tokens=1, n=1, stop=["x"], seed=1,
                                      temperature=0.5, top_p=0.9, logprobs=1, stream=False),
              "/v1/chat/completions": dict(messages=[{"role": "user", "content": "Hi"}],
                                           max_tokens=1, stream=False, logprobs=True),
              "/tokenize": dict(content="a dog", add_special=True),
              "/detokenize": dict(tokens=[5, 6, 7])}
    refused = 0
    for _ in range(HOSTILE):
        path = rng.choice(list(bodies))
        port = answering[1] if "chat" in path else stories[1]
        status, headers, text = ask(port, path, mutated(rng, json.dumps(bodies[path]).encode()))
        if status != 200:
            sentence(status, text)
            refused += 1
        elif headers["content-type"] == "application/json":
            json.loads(text)
    assert refused > HOSTILE // 4
    assert ask(stories[1], "/health")[0] == ask(answering[1], "/health")[0] == 200
    assert "Traceback" not in capfd.readouterr().err
    until(lambda: not stories[0].tickets())


def test_raw_bytes_on_the_socket(stories, seed):
    """What is no HTTP is no matter either."""
    rng = random.Random(seed)
    for raw in (b"\0" * 50, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"
                b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
                rng.randbytes(300), b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", stories[1]), timeout=LONG) as to:
            to.sendall(raw)
    assert ask(stories[1], "/health")[0] == 200


# ---- Queue, clients that leave, and the end

def test_a_full_queue(chip, monkeypatch):
    gate = Gate(monkeypatch)
    with serving(chip, waiting=1) as (scheduler, port), ThreadPoolExecutor(3) as threads:
        body = dict(prompt=START, max_tokens=2)
        first = threads.submit(ask, port, "/v1/completions", body)
        assert gate.begun.wait(LONG)
        second = threads.submit(ask, port, "/v1/completions", body)
        until(lambda: len(scheduler.tickets()) == 2)
        status, headers, text = ask(port, "/v1/completions", body)
        assert status == 429 and "full" in sentence(status, text)
        assert int(headers["retry-after"]) > 0
        with pytest.raises(openai.RateLimitError):
            client(port).completions.create(model="stories", **body)
        shown = json.loads(ask(port, "/slots")[2])
        assert shown[0]["is_processing"] and len(shown) == 1
        figures = ask(port, "/metrics")[2]
        assert "\nllamacpp:requests_processing 1\n" in figures
        assert "\nllamacpp:requests_deferred 1\n" in figures
        gate.open.set()
        assert first.result()[0] == second.result()[0] == 200
    # All choices of a request, or none.
    with serving(chip, waiting=2) as (_, port):
        assert ask(port, "/v1/completions", body | dict(n=4))[0] == 429
        assert ask(port, "/v1/completions", body | dict(n=3))[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_chip(chip, monkeypatch, stream):
    """The one that runs and the ones that wait; then others are served."""
    gate = Gate(monkeypatch)
    with serving(chip) as (scheduler, port):
        body = json.dumps(dict(prompt=START, max_tokens=400, stream=stream)).encode()
        left = []
        for _ in range(3):
            with_ = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
            with_.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            left.append(with_)
        until(lambda: len(scheduler.tickets()) == 3)
        tickets = scheduler.tickets()
        for with_ in left:
            with_.close()
        until(lambda: all(ticket.cancelled for ticket in tickets))
        gate.open.set()
        until(lambda: not scheduler.tickets())
        assert all(ticket.tokens < 3 for ticket in tickets) and scheduler.totals.cancelled == 3
        assert ask(port, "/v1/completions", dict(prompt=START, max_tokens=2))[0] == 200


def alive():
    """Objects of requests that are still there."""
    gc.collect()
    return sum(type(one) in (Job, Ticket, Running, Runs, Text) for one in gc.get_objects())


def resident():
    """Bytes of memory that this process holds; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def test_load(stories, twin, seed):
    """Many clients, of whom a third leaves early: nobody gets a wrong text, nothing is left, and
    the second half of them takes no memory that the first did not."""
    scheduler, port = stories
    rng, asks = random.Random(seed), client(port)
    prompts = ["Once", "The dog", START, "A girl"]
    want = {prompt: twin.generate(prompt, max_tokens=5, draft="off").text for prompt in prompts}
    jobs = [(rng.choice(prompts), k % 3 == 0) for k in range(LOAD)]

    def one(job):
        prompt, leaves = job
        stream = asks.completions.create(model="stories", prompt=prompt, max_tokens=5,
                                         stream=True)
        if leaves:
            next(iter(stream))
            stream.close()
            return True
        return "".join(piece.choices[0].text for piece in stream) == want[prompt]
    held, cancelled, before = [], scheduler.totals.cancelled, alive()
    with ThreadPoolExecutor(32) as threads:
        for half in (jobs[::2], jobs[1::2]):
            assert all(threads.map(one, half))
            until(lambda: not scheduler.tickets())
            held.append(resident())
    assert scheduler.totals.cancelled <= cancelled + -(-len(jobs) // 3)
    asks.close()
    until(lambda: alive() <= before + 5)        # the latest one of each kind
    assert held[1] - held[0] < 16 << 20


def test_time_is_limited(chip, monkeypatch):
    gate = Gate(monkeypatch)
    with serving(chip, limits=Limits(seconds=0.3)) as (scheduler, port), \
            ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, port, "/v1/completions", dict(prompt=START, max_tokens=99))
        assert gate.begun.wait(LONG)
        status, _, text = ask(port, "/v1/completions", dict(prompt=START))     # it only waits
        assert status == 503 and "did not begin" in sentence(status, text, 503, 503)
        gate.open.set()
        status, _, text = first.result()
        choice, = json.loads(text)["choices"]
        assert status == 200 and choice["finish_reason"] == "length"
        until(lambda: not scheduler.tickets())


def test_what_runs_is_finished(chip, twin, monkeypatch):
    """The end waits for it, and refuses those that wait."""
    gate = Gate(monkeypatch)
    want = twin.generate(START, max_tokens=6).text
    with ThreadPoolExecutor(3) as threads:
        with serving(chip) as (scheduler, port):
            first = threads.submit(ask, port, "/v1/completions", dict(prompt=START, max_tokens=6))
            assert gate.begun.wait(LONG)
            second = threads.submit(ask, port, "/v1/completions", dict(prompt=START))
            until(lambda: len(scheduler.tickets()) == 2)
            ending = threads.submit(scheduler.close)
            until(lambda: len(scheduler.tickets()) == 1)
            assert second.result()[0] == 503
            assert ask(port, "/v1/completions", dict(prompt=START))[0] == 503
            gate.open.set()
            ending.result()
        assert json.loads(first.result()[2])["choices"][0]["text"] == want


def test_a_fault_of_the_chip(chip, monkeypatch):
    """Is told in a sentence, and the next one runs."""
    def broken(self):
        raise ml.UserError("the board is gone; plug it in")

    def faulty(self):
        raise ZeroDivisionError
    with serving(chip) as (scheduler, port):
        for step, words in ((broken, "plug it in"), (faulty, "ZeroDivisionError")):
            with monkeypatch.context() as patch:
                patch.setattr(Together, "step", step)
                status, _, text = ask(port, "/v1/completions", dict(prompt=START))
                assert words in sentence(status, text, 500, 500)
                streamed = ask(port, "/v1/completions", dict(prompt=START, stream=True))[2]
                assert words in streamed and "[DONE]" not in streamed
        assert ask(port, "/v1/completions", dict(prompt=START, max_tokens=1))[0] == 200
        assert scheduler.totals.failed == 4


def test_passes_are_shared(twin, monkeypatch):
    """Jobs that run at once are in the same passes, each with the text that it has alone; one that
    is ended leaves the others as they are."""
    passes = []
    with ml.load("stories").on("golden") as chip:
        together = chip.target.run_together

        def counted(tokens, places, *args, **options):
            passes.append(len(tokens))
            return together(tokens, places, *args, **options)
        monkeypatch.setattr(chip.target, "run_together", counted)
        gate, scheduler, got = Gate(monkeypatch), Shared(chip), [[], [], [], [], []]
        asked = [dict(max_tokens=n, temperature=0.8, seed=n) for n in (9, 12, 15, 40, 7)]
        tickets = scheduler.submit([
            (Job(prompt=chip.encode(START), options=options), part.append)
            for options, part in zip(asked, got, strict=True)])
        assert gate.begun.wait(LONG)
        assert [ticket.state for ticket in tickets] == 4 * ["running"] + ["waiting"]
        scheduler.cancel(tickets[3])
        gate.open.set()
        until(lambda: not scheduler.tickets())
        scheduler.close()
    assert max(passes) >= 3 and min(passes) > 1
    for k, (options, part) in enumerate(zip(asked, got, strict=True)):
        done, want = part[-1].done, twin.generate(START, **options)
        if k == 3:                      # its steps are told until it was ended
            assert done.ended == "left" and want.tokens[:len(done.tokens)] == done.tokens
        else:
            assert (done.text, done.tokens, done.ended) == (want.text, want.tokens, want.ended)
            assert "".join(step.text for step in part[:-1]) == want.text
            assert part[-1].seconds >= 0 and done.prompt_tokens == want.prompt_tokens


def test_the_scheduler_alone(chip):
    got = []
    scheduler = Shared(chip, waiting=0, parallel=1)
    ticket, = scheduler.submit([(Job(prompt=chip.encode(START), options=dict(max_tokens=3)),
                                 got.append)])
    with pytest.raises(Full):
        scheduler.submit(2 * [(ticket.job, got.append)])
    until(lambda: ticket.state == "ended")
    until(lambda: isinstance(got[-1], Ended))
    assert [step.token for step in got[:-1]] == list(got[-1].done.tokens) and len(got) == 4
    scheduler.cancel(ticket)            # changes nothing
    scheduler.close()
    with pytest.raises(Closed):
        scheduler.submit([(ticket.job, got.append)])
    assert len(got) == 4 and scheduler.totals.tokens == 3


# ---- Who may ask

def test_api_key(chip):
    with serving(chip, api_key="swordfish") as (_, port):
        for path in ("/v1/models", "/metrics", "/slots", "/props", "/status"):
            for headers in ({}, dict(Authorization="Bearer wrong"), dict(Authorization="swordfish"),
                            dict(Authorization="Bearer swordfish2")):
                status, _, text = ask(port, path, **headers)
                assert status == 401 and "API key" in sentence(status, text)
        with pytest.raises(openai.AuthenticationError):
            client(port).models.list()
        assert [m.id for m in client(port, "swordfish").models.list()] == ["stories"]
        assert ask(port, "/health")[0] == ask(port, "/")[0] == 200
        assert ask(port, "/v1/completions", b"x" * 10)[0] == 401


def test_web_pages_of_others(chip):
    """They may not ask: neither by a form, nor by a name that leads here, nor with permission."""
    origin = "https://example.org"
    with serving(chip) as (_, port):
        status, headers, _ = ask(port, "/v1/models", Origin=origin)
        assert "access-control-allow-origin" not in headers
        assert ask(port, "/v1/completions", b"{}", Content_Type="text/plain")[0] == 415
        for host in ("example.org", "example.org:80", "127.0.0.1.example.org", ""):
            assert ask(port, "/v1/models", Host=host)[0] == 421
        assert ask(port, "/v1/models", Host=f"LOCALHOST:{port}")[0] == 200
    with serving(chip, origins=[origin], api_key="k") as (_, port):
        status, headers, _ = ask(port, "/v1/models", method="OPTIONS", Origin=origin,
                                 Access_Control_Request_Method="GET")
        assert status == 200 and headers["access-control-allow-origin"] == origin
        assert "access-control-allow-origin" not in ask(port, "/health", Origin="https://x.org")[1]


def test_bodies_are_limited(chip):
    with serving(chip, limits=Limits(body=2000, tokens=3)) as (_, port):
        status, _, text = ask(port, "/v1/completions", dict(prompt="a" * 3000))
        assert status == 413 and "2,000 bytes" in sentence(status, text)
        found = json.loads(ask(port, "/v1/completions", dict(prompt=START))[2])
        assert found["usage"]["completion_tokens"] == 3
        found = json.loads(ask(port, "/v1/completions", dict(prompt=START, max_tokens=99))[2])
        assert found["usage"]["completion_tokens"] == 3


def test_no_logprobs_where_logits_are_not_seen(chip):
    with serving(chip, likely=False) as (_, port):
        status, _, text = ask(port, "/v1/completions", dict(prompt=START, logprobs=1))
        assert status == 400 and "target golden" in sentence(status, text)


# ---- llama-server's addresses, and the page's

def test_facts(stories, twin):
    scheduler, port = stories
    assert json.loads(ask(port, "/health")[2]) == {"status": "ok"}
    props = json.loads(ask(port, "/props")[2])
    assert props["total_slots"] == len(json.loads(ask(port, "/slots")[2])) == scheduler.slots == 4
    assert props["default_generation_settings"]["n_ctx"] == twin.image.context
    ids = json.loads(ask(port, "/tokenize", dict(content=START))[2])["tokens"]
    assert [twin.image.bos_id, *ids] == twin.encode(START)
    assert json.loads(ask(port, "/tokenize", dict(content=START, add_special=True))[2])[
        "tokens"] == twin.encode(START)
    assert json.loads(ask(port, "/detokenize", dict(tokens=ids))[2])["content"] == START
    for path, body in (("/tokenize", {}), ("/tokenize", dict(content=5)),
                       ("/detokenize", dict(tokens=[10**9])), ("/detokenize", dict(tokens="a"))):
        sentence(*ask(port, path, body)[::2])
    for path, status in (("/nowhere", 404), ("/v1/completions", 405)):
        got, _, text = ask(port, path)
        assert got == status and sentence(got, text)


def test_metrics_are_prometheus(stories):
    """Each figure has a kind and a text, and grows by what was done."""
    _, port = stories

    def figures():
        text, found = ask(port, "/metrics")[2], {}
        for name, value in re.findall(r"^([a-z_:]+) ([-+.e\d]+)$", text, re.M):
            assert f"# TYPE {name} " in text and f"# HELP {name} " in text
            found[name] = float(value)
        assert len(found) == sum(not line.startswith("#") for line in text.splitlines())
        return found
    before = figures()
    ask(port, "/v1/completions", dict(prompt=START, max_tokens=4))
    until(lambda: figures()["meadowlark:runs_total"] > before["meadowlark:runs_total"])
    after = figures()
    assert after["llamacpp:tokens_predicted_total"] \
        == before["llamacpp:tokens_predicted_total"] + 4
    assert after["llamacpp:prompt_tokens_total"] == before["llamacpp:prompt_tokens_total"] + 5


def test_status(chip):
    model = ml.load("stories")
    with serving(chip, predict=lambda: of_a_token(model, chip.board)) as (scheduler, port):
        assert json.loads(ask(port, "/status")[2])["last"] is None
        ask(port, "/v1/completions", dict(prompt=START, max_tokens=4))
        until(lambda: scheduler.totals.last is not None)
        found = json.loads(ask(port, "/status")[2])
        assert found["last"]["tokens"] == 4 and found["last"]["tokens_per_pass"] >= 1
        by = model.predict(board=chip.board, prompt=1, generate=1,
                           position=chip.image.context // 2).prediction
        assert found["predicted"]["cycles"] == by.cycles
        assert sum(part["cycles"] for part in found["predicted"]["layers"]) == by.cycles
        prompt = len(chip.encode(START))
        course = found["pass"]
        assert (course["position"], course["sequences"]) == (prompt + 4 - 2, 1)
        assert sum(cycles for _, cycles, *_ in course["slices"]) <= course["cycles"]
        layers = list(dict.fromkeys(layer for *_, layer, _ in course["slices"]))
        assert layers == [part["name"] for part in found["predicted"]["layers"][:-1]]


class Page(HTMLParser):
    """Ids, labels and outside references of the page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.labelled, self.outside, self.fields, self._label = [], set(), [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.outside += [v for k, v in attrs if k in ("src", "href") and v != "data:,"]
        self._label += tag == "label"
        if tag in ("input", "textarea"):
            self.fields.append(found["id"])
            if self._label:
                self.labelled.add(found["id"])
        if tag == "label" and "for" in found:
            self.labelled.add(found["for"])

    def handle_endtag(self, tag):
        self._label -= tag == "label"


def test_page(stories):
    """One file that asks nobody else, whose script knows its parts, and whose fields have names."""
    status, headers, text = ask(stories[1], "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    page = Page(text)
    assert not page.outside and "http://" not in text and "https://" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert set(re.findall(r'\$\("(\w+)"\)', text)) <= set(page.ids)
    assert page.fields and set(page.fields) == page.labelled
    assert "innerHTML" not in text and "insertAdjacent" not in text     # texts are no markup
    for address in re.findall(r'"(/[\w/]+)"', text):
        assert ask(stories[1], address)[0] in (200, 405)


def test_addresses():
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost")
    assert not is_local("0.0.0.0") and not is_local("example.org")
    with listening("127.0.0.1", 0) as sock:
        with pytest.raises(ml.UserError, match="--port"):
            listening("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(ml.UserError, match="--host"):
        listening("256.256.256.256", 0)


# ---- The command

def test_command(tmp_path):
    """Started, asked, and told to end: what runs is answered, and the status is 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "meadowlark.cli", "serve", "--port", "0", "--max-tokens", "5"],
        stderr=subprocess.PIPE, text=True)
    found = None
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                break
        assert found is not None
        text = client(int(found[1])).completions.create(model="stories", prompt=START)
        assert text.usage is not None and text.usage.completion_tokens == 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
        assert "ending" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
