"""``meadowlark serve``."""
from __future__ import annotations

import importlib.util
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING

import click

from ..errors import UserError, how_to_add
from . import interrupts
from .options import Asked, asked_board, board_option, model_options, target_option
from .terminal import Progress, say, warn

if TYPE_CHECKING:
    from ..serve.app import Service

#: Seconds that answers may take once the server is to end.
PATIENCE = 60.0


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Address to listen on. By default only programs on this computer reach it.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), metavar="N",
              help="Port to listen on; 0 takes a free one.")
@click.option("--api-key", envvar="MEADOWLARK_API_KEY", default="", metavar="KEY",
              help="Key that clients must send. Others can see the command line, so it is better "
                   "in the environment, as MEADOWLARK_API_KEY.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN",
              help="Let web pages of this origin ask, such as https://example.org. May be given "
                   "several times; by default none may.")
@click.option("--queue", default=64, show_default=True, type=click.IntRange(min=0), metavar="N",
              help="Sequences that wait, at most; requests beyond get status 429.")
@click.option("--parallel", type=click.IntRange(min=1), metavar="N",
              help="Sequences at once, at most. By default as many as a pass of the chip takes.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(min=1),
              metavar="S", help="Seconds that an answer may take, waiting included.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N",
              help="Tokens of an answer, at most. By default as many as the context holds.")
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(min=1024),
              metavar="BYTES", help="Bytes of a request, at most.")
@model_options()
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("golden", "sim", "pins")
def serve(host: str, port: int, api_key: str, origins: tuple[str, ...], queue: int,
          parallel: int | None, timeout: float, max_tokens: int | None, max_body: int,
          asked: Asked, board: str, target: str) -> int:
    """Serve a model over HTTP, to OpenAI's clients and to browsers.

    It answers /v1/chat/completions, /v1/completions and /v1/models as OpenAI does, and /health,
    /props, /slots, /metrics, /tokenize and /detokenize as llama-server does. A page to chat with
    the model is at /. Ctrl-C ends it when what runs is answered, and a second one at once.
    """
    _check_installed()
    from ..serve.app import Limits, Service
    from ..serve.scheduler import Shared
    from ..serve.server import is_local, listening
    from ..serve.status import of_a_token
    sock = listening(host, port)
    try:
        with Progress() as progress:
            model = asked.load(progress)
            chip = model.on(target, board=asked_board(board))
    except BaseException:
        sock.close()
        raise
    with chip:
        local = is_local(host)
        scheduler = Shared(chip, waiting=queue, parallel=parallel)
        service = Service(
            chip=chip, scheduler=scheduler, name=chip.image.name, target=target,
            likely=target == "golden", predict=partial(of_a_token, model, chip.board),
            limits=Limits(body=max_body, tokens=max_tokens, seconds=timeout), api_key=api_key,
            hosts=frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if local else None)
        if not local and not api_key:
            warn(f"whoever reaches {host} can use this server; give it an --api-key")
        return _until_told(service, sock, origins)


def _until_told(service: Service, sock: socket.socket, origins: tuple[str, ...]) -> int:
    """Serve until a signal comes, then finish what runs."""
    from ..serve.app import application
    from ..serve.server import Server
    ends = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
            if hasattr(signal, name)]
    with interrupts.patience(signals=ends):
        try:
            with Server(application(service, origins=origins), sock, patience=PATIENCE) as server:
                address, port = sock.getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                say(f"{service.name} on {service.target}: http://{shown}:{port}/ has a page, and "
                    f"http://{shown}:{port}/v1 is for OpenAI's clients; Ctrl-C ends it")
                try:
                    server.wait()
                except KeyboardInterrupt:
                    interrupts.dealt_with()
                    say("ending, when what runs is answered; Ctrl-C again ends at once")
        finally:
            service.scheduler.close()
    return 0


def _check_installed() -> None:
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the server needs the package {name}; run {how_to_add('serve')}")
