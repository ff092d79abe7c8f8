#!/usr/bin/env python3
"""Take the picture of the server's page: a model is served, asked in a headless browser, and seen.

    scripts/screenshot.py -o docs/images/page.png

The browser is Debian's chromium. The picture has 64 colours, to be small.
"""
from __future__ import annotations

import io
import shutil
from functools import partial
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import sync_playwright

import meadowlark as ml
from meadowlark.files import write_atomic
from meadowlark.serve.app import Service, application
from meadowlark.serve.scheduler import Shared
from meadowlark.serve.server import Server, listening
from meadowlark.serve.status import of_a_token

COLOURS = 64
#: Milliseconds that an answer may take.
PATIENCE = 600_000


def seen(address: str, width: int, height: int, prompt: str, tokens: int) -> bytes:
    """The page as a PNG file, once the prompt is answered."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise click.ClickException("no chromium here; install the Debian package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        for name, value in (("text", prompt), ("most", str(tokens)), ("seed", "7")):
            page.fill(f"#{name}", value)
        page.press("#text", "Enter")
        page.locator(".said").nth(1).wait_for()
        page.locator("#send:not([disabled])").wait_for()
        page.get_by_text("-", exact=True).first.wait_for(state="detached")  # figures have come
        taken = page.screenshot()
        browser.close()
    return taken


@click.command()
@click.option("-o", "--output", required=True, type=Path, help="PNG file to write.")
@click.option("--target", default="sim", show_default=True, help="What the model runs on.")
@click.option("--board", default="ulx3s_85f", show_default=True, help="Board to simulate.")
@click.option("--width", default=1120, show_default=True, help="Of the window, in pixels.")
@click.option("--height", default=740, show_default=True, help="Of the window, in pixels.")
@click.option("--tokens", default=48, show_default=True, help="Tokens of the answer, at most.")
@click.argument("prompt", default="Once upon a time")
def main(output: Path, target: str, board: str, width: int, height: int, tokens: int,
         prompt: str) -> None:
    """Take a picture of the page, with the answer to PROMPT."""
    model = ml.load("stories")
    with model.on(target, board=board) as chip:
        scheduler = Shared(chip)
        service = Service(chip=chip, scheduler=scheduler, name=chip.image.name, target=target,
                          likely=False, predict=partial(of_a_token, model, chip.board))
        try:
            with Server(application(service), listening("127.0.0.1", 0), patience=1) as server:
                taken = seen(f"http://127.0.0.1:{server.port}/", width, height, prompt, tokens)
        finally:
            scheduler.close()
    file = io.BytesIO()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True)
    write_atomic(output, file.getvalue())
    click.echo(f"{output}: {width} x {height}, {len(file.getvalue()):,} bytes")


if __name__ == "__main__":
    main()
