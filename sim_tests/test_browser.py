"""The server's page in a real browser, headless: typed into, read, stopped, on a telephone."""
import os
import shutil
import threading

import pytest
from axe_playwright_python.sync_playwright import Axe
from meadowlark.api.together import Together
from meadowlark.serve.status import of_a_token
from playwright.sync_api import expect, sync_playwright
from test_serve import LONG, START, serving, until

import meadowlark as ml

CHROMIUM = shutil.which("chromium")
#: Of a desktop, and of the smallest telephone in use; in CSS pixels.
WIDE, PHONE = dict(width=1200, height=800), dict(width=320, height=640)
ANSWER, MILLISECONDS = ".said >> nth=1", 1000 * LONG


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        sentence = "no chromium here, which tries the page (Debian package chromium)"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        # Root, as in CI, has no sandbox to give it.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served():
    """(chip for what is expected, scheduler, address) of a server."""
    model = ml.load("stories")
    with model.on("golden") as twin, model.on("golden") as chip, serving(
            chip, predict=lambda: of_a_token(model, chip.board)) as (scheduler, port):
        yield twin, scheduler, f"http://127.0.0.1:{port}"


@pytest.fixture
def opened(browser, served):
    """opened(width and height, ...) -> the page in a window of that size. At the end nothing may
    have been written to the console, but what the browser says of an answer with the status
    `refused`, and others may not have been asked."""
    address, contexts, wrong = served[2], [], []

    def look(size=WIDE, refused="none", **options):
        context = browser.new_context(viewport=size, **options)
        context.set_default_timeout(MILLISECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: f"a status of {refused}" in message.text
                or wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "data:"))
                or wrong.append(f"asked {request.url}"))
        page.goto(address)
        expect(page.locator("#what")).to_have_text("stories on the golden model of virtual")
        return page
    yield look
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def tokens(monkeypatch):
    """A semaphore: so many tokens come."""
    allowed, watch = threading.Semaphore(0), Together._watch

    def held(*args):
        assert allowed.acquire(timeout=LONG)
        return watch(*args)
    monkeypatch.setattr(Together, "_watch", held)
    yield allowed
    allowed.release(1000)


def ask(page, text=START, *, most=12, **fields):
    """Fill in the form and send it."""
    for name, value in dict(temperature=0, most=most, **fields).items():
        page.fill(f"#{name}", str(value))
    page.fill("#text", text)
    page.press("#text", "Enter")


def answered(page):
    """Wait for the end of the answer; -> its text."""
    expect(page.locator("#send")).to_be_enabled()
    return page.locator(f"{ANSWER} >> span >> nth=1").text_content()


def test_typed_and_streamed(opened, served, tokens):
    """By keyboard alone: the text comes token by token, and is that of `generate`; beside it stands
    what it took."""
    twin, scheduler, _ = served
    want = twin.generate(START, max_tokens=12, temperature=0.9, seed=5)
    page = opened()
    page.keyboard.type(START)                   # where one types has the focus
    for value in ("0.9", "12", "5"):            # the next fields
        page.keyboard.press("Tab")
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
    page.keyboard.press("Enter")
    tokens.release(4)
    first = twin.generate(START, max_tokens=4, temperature=0.9, seed=5).text
    expect(page.locator(f"{ANSWER} >> span >> nth=1")).to_have_text(first.strip())
    expect(page.locator("#send")).to_be_disabled()
    tokens.release(100)
    assert answered(page) == want.text
    assert page.evaluate("document.activeElement.id") == "text"
    expect(page.locator("#pass")).not_to_have_text("-")
    assert page.locator("#tokens").text_content() == "12"
    assert float(page.locator("#speed").text_content()) > 0
    # Its latest pass: memory's bus, operators with their cycles, layers.
    position = want.prompt_tokens + 12 - 2
    expect(page.locator("#passed")).to_contain_text(f"position {position}.")
    labels = [row.get_attribute("aria-label") for row in page.locator(".track").all()]
    assert labels[0].startswith("memory's bus moves") and labels[1].startswith("LINEAR: ")
    assert labels[-1] == ", ".join(["embedding", *(f"layer {k}" for k in range(6)), "head"])
    assert page.locator("#layers tr").count() == 8
    assert not scheduler.tickets()


@pytest.mark.parametrize("way", ["button", "Escape", "New"])
def test_stopped(opened, served, tokens, way):
    """What has come stays, or all goes with New; the sequence is free, and the next one is
    answered."""
    twin, scheduler, _ = served
    page = opened()
    before = scheduler.totals.cancelled
    ask(page, most=200)
    tokens.release(3)
    want = twin.generate(START, max_tokens=3).text
    expect(page.locator(f"{ANSWER} >> span >> nth=1")).to_have_text(want.strip())
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#stop" if way == "button" else "#anew")
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator(".said")).to_have_count(0 if way == "New" else 2)
    until(lambda: all(ticket.cancelled for ticket in scheduler.tickets()))
    tokens.release(300)
    until(lambda: not scheduler.tickets())
    assert scheduler.totals.cancelled == before + 1
    page.click("#anew")
    ask(page, "The dog", most=4)
    assert answered(page) == twin.generate("The dog", max_tokens=4).text


def test_a_refusal_is_shown(opened):
    """The server's sentence, where the answer would be; then the next one is sent."""
    page = opened(refused="400 (Bad Request)")
    ask(page, "word " * 700)
    expect(page.locator(".said.bad")).to_contain_text("context holds")
    page.click("#anew")
    ask(page, most=1)
    answered(page)


def test_on_a_telephone(opened, served):
    """Touched, narrow, with a text that has no place to break: nothing is wider than the screen."""
    page = opened(PHONE, has_touch=True, is_mobile=True)
    page.tap("#text")
    page.fill("#text", "W" * 90)
    page.fill("#most", "3")
    page.tap("#send")
    answered(page)
    expect(page.locator("#pass")).not_to_have_text("-")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("document.getElementById('log').scrollWidth") <= PHONE["width"]
    for name in ("text", "send", "stop", "anew", "most", "course", "layers"):
        box = page.locator(f"#{name}").bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= PHONE["width"], name
        assert box["height"] >= 24, f"{name} is too small for a finger"


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_for_all(opened, size, colours):
    """axe finds no serious fault: contrast, names, roles, order."""
    page = opened(size, color_scheme=colours)
    ask(page, most=3)
    answered(page)
    expect(page.locator("#pass")).not_to_have_text("-")
    found = Axe().run(page).response["violations"]
    serious = [(fault["id"], fault["help"], [node["html"] for node in fault["nodes"]])
               for fault in found if fault["impact"] in ("serious", "critical")]
    assert serious == []
