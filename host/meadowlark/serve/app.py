"""The addresses of the server, and what each answers."""
from __future__ import annotations

import asyncio
import hmac
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api.chip import Chip
from ..api.results import Completion
from ..errors import UserError, brief
from .answers import Choice, Form, Piece, event, finish_of, usage_of
from .metrics import metrics
from .requests import Asked, Bad, parse, read
from .run import Runs
from .scheduler import Ended, Job, Scheduler
from .status import of_a_pass

#: Seconds that a client may take to send a body.
BODY_SECONDS = 30
#: What a browser may do with the page: nothing but its own script and style, and ask this server.
_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
           "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
           "frame-ancestors 'none'")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may take. body: bytes. tokens: generated, of an answer, None: what fits the
    context. seconds: from its arrival on."""
    body: int = 1 << 20
    tokens: int | None = None
    seconds: float = 600.0


@dataclass(kw_only=True)
class Service:
    """What the addresses answer from.

    chip: asked for facts and ids alone. name: of the model. target: what it runs on. likely: it
    shows the logits of each token. predict: gives what :func:`.status.of_a_token` does. api_key:
    that clients must have, or "". hosts: names by which the server is known, None: any.
    """
    chip: Chip
    scheduler: Scheduler
    name: str
    target: str
    likely: bool
    predict: Callable[[], dict]
    limits: Limits = field(default_factory=Limits)
    api_key: str = ""
    hosts: frozenset[str] | None = None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._encoding = asyncio.Lock()     # tokenizer and template are one thread's at a time
        self._prediction: dict | None = None
        self._pass: tuple[list[tuple[int, int]], dict] = [], {}

    # ---- Questions

    async def question(self, request: Request) -> dict[str, Any]:
        """The JSON object that a client sent. Raises :class:`Bad`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # No web page of others can send this without asking first.
            raise Bad("the body must be JSON with Content-Type: application/json", status=415)
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > self.limits.body:
                        raise Bad(f"the body has more than {self.limits.body:,} bytes; send less",
                                  status=413)
                    parts.append(part)
        except TimeoutError:
            raise Bad(f"the body did not come within {BODY_SECONDS} seconds", status=408) from None
        return parse(b"".join(parts))

    async def _jobs(self, asked: Asked) -> list[Job]:
        """A job for each choice of each prompt. Raises Bad or UserError."""
        if asked.model not in (None, self.name):
            raise Bad(f"there is no model {brief(asked.model)!r} here; this server has "
                      f"{self.name}", status=404, param="model", code="model_not_found")
        if asked.likely is not None and not self.likely:
            raise Bad("logprobs need the logits of each token, which only the target golden has; "
                      "leave them out", param="logprobs")
        options = dict(asked.options)
        if self.limits.tokens is not None:
            options["max_tokens"] = min(options.get("max_tokens", self.limits.tokens),
                                        self.limits.tokens)
        ignore_eos = options.pop("ignore_eos", False)
        self.chip.check(**options)
        options["ignore_eos"] = ignore_eos
        seed = options.pop("seed", None)
        if seed is None:
            seed = random.getrandbits(32)
        async with self._encoding:
            prompts = [await asyncio.to_thread(self.chip.encode, one) for one in asked.prompts]
        return [Job(prompt=ids, options=options | {"seed": (seed + k) % (1 << 32)})
                for ids in prompts for k in range(asked.choices)]

    async def complete(self, request: Request, *, chat: bool) -> Response:
        """``/v1/chat/completions`` and ``/v1/completions``."""
        asked = read(await self.question(request), chat=chat)
        if chat and not self.chip.has_template:
            raise Bad(f"the model {self.name} came without a chat template, so it goes on with "
                      "texts alone; ask /v1/completions", param="messages")
        jobs = await self._jobs(asked)
        prompt_tokens = sum(len(job.prompt) for job in jobs[::asked.choices])
        runs = Runs(self.scheduler, jobs, self.chip.tokenizer, self.chip.image.stop_ids,
                    likely=asked.likely, seconds=self.limits.seconds)
        form = Form(chat=chat, model=self.name, likely=asked.likely is not None)
        if asked.stream:
            return Streamed(runs, _events(runs, form, len(jobs), prompt_tokens, asked.usage))
        try:
            return await while_there(request.receive, _whole(runs, form, len(jobs), prompt_tokens))
        finally:
            runs.cancel()

    # ---- Facts

    async def models(self, request: Request) -> Response:
        """``/v1/models``."""
        image = self.chip.image
        one = {"id": self.name, "object": "model", "created": int(self.started),
               "owned_by": "meadowlark",
               "meta": {"n_ctx": image.context, "n_params": image.parameters,
                        "n_vocab": image.shape["vocab"], "n_embd": image.shape["hidden"],
                        "size": len(image.memory)}}
        wanted = request.path_params.get("model")
        if wanted is None:
            return JSONResponse({"object": "list", "data": [one]})
        if wanted != self.name:
            raise Bad(f"there is no model {brief(wanted)!r} here; this server has {self.name}",
                      status=404, param="model", code="model_not_found")
        return JSONResponse(one)

    async def props(self, request: Request) -> Response:
        """``/props``."""
        chat = self.chip.image.chat
        return JSONResponse({
            "model_alias": self.name, "model_path": self.name, "total_slots": self.scheduler.slots,
            "chat_template": "" if chat is None else chat.template,
            "bos_token": "" if chat is None else chat.bos,
            "eos_token": "" if chat is None else chat.eos,
            "modalities": {"vision": False, "audio": False},
            "default_generation_settings": {
                "n_ctx": self.chip.image.context,
                "params": {"n_predict": -1 if self.limits.tokens is None else self.limits.tokens,
                           "temperature": 0.0, "top_k": 0, "top_p": 1.0, "stream": False}},
            "board": self.chip.board.name, "target": self.target})

    async def slots(self, request: Request) -> Response:
        """``/slots``: the sequences that run."""
        running = [t for t in self.scheduler.tickets() if t.state == "running"]
        found = [{"id": at, "n_ctx": self.chip.image.context, "is_processing": False}
                 for at in range(self.scheduler.slots)]
        for slot, ticket in zip(found, running):
            slot |= {"is_processing": True, "id_task": ticket.number,
                     "n_prompt_tokens": len(ticket.job.prompt), "n_decoded": ticket.tokens}
        return JSONResponse(found)

    async def metrics(self, request: Request) -> Response:
        """``/metrics``."""
        return PlainTextResponse(metrics(self.scheduler),
                                 media_type="text/plain; version=0.0.4; charset=utf-8")

    async def tokenize(self, request: Request) -> Response:
        """``/tokenize``: a text -> ids."""
        body = await self.question(request)
        content, special = body.get("content"), body.get("add_special", False)
        if not isinstance(content, str) or not isinstance(special, bool):
            raise Bad("content must be a text, and add_special true or false", param="content")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise Bad("content has half a character", param="content") from None
        tokenizer, bos = self.chip.tokenizer, self.chip.image.bos_id
        async with self._encoding:
            ids = await asyncio.to_thread(
                partial(tokenizer.opened, content, bos) if special else
                partial(tokenizer.encode, content, special=False))
        return JSONResponse({"tokens": ids})

    async def detokenize(self, request: Request) -> Response:
        """``/detokenize``: ids -> a text."""
        ids, vocab = (await self.question(request)).get("tokens"), self.chip.image.shape["vocab"]
        if not isinstance(ids, list) or not all(
                isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab for i in ids):
            raise Bad(f"tokens must be a list of whole numbers from 0 to {vocab - 1}",
                      param="tokens")
        async with self._encoding:
            text = await asyncio.to_thread(self.chip.tokenizer.decode, ids, special=True)
        return JSONResponse({"content": text})

    async def status(self, request: Request) -> Response:
        """``/status``: what the page shows beside the text."""
        if self._prediction is None:
            self._prediction = await asyncio.to_thread(self.predict)
        totals = self.scheduler.totals
        places = totals.last_pass or [(0, self.chip.image.context // 2)]
        if self._pass[0] != places:
            self._pass = places, await asyncio.to_thread(
                of_a_pass, self.chip.image, self.chip.board, places)
        return JSONResponse({
            "model": self.name, "board": self.chip.board.name, "target": self.target,
            "chat": self.chip.has_template, "context": self.chip.image.context,
            "clock_mhz": self.chip.board.clock_mhz, "predicted": self._prediction,
            "pass": self._pass[1],
            "last": last_run(totals.last, totals.last_seconds, self.chip)})

    # ---- All of it

    def routes(self) -> list[Route]:
        """Address -> what answers there."""
        return [
            Route("/", _page), Route("/health", _health), Route("/v1/health", _health),
            Route("/v1/chat/completions", partial(self.complete, chat=True), methods=["POST"]),
            Route("/v1/completions", partial(self.complete, chat=False), methods=["POST"]),
            Route("/v1/models", self.models), Route("/v1/models/{model:path}", self.models),
            Route("/props", self.props), Route("/slots", self.slots),
            Route("/metrics", self.metrics), Route("/status", self.status),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"])]


def last_run(done: Completion | None, seconds: float, chip: Chip) -> dict | None:
    """Of the latest run: tokens, those of a pass, and where cycles are counted the share of the
    memory's bandwidth."""
    if done is None:
        return None
    tokens, accepted = len(done.tokens), done.counters.get("accepted", 0)
    found: dict[str, Any] = {
        "tokens": tokens, "seconds": seconds,
        "tokens_per_pass": tokens / max(tokens - accepted, 1),
        "cached_tokens": done.cached_tokens, "prompt_tokens": done.prompt_tokens}
    cycles = done.counters.get("cycles")
    if cycles:
        moved = done.counters.get("bus_read_words", 0) * chip.board.config.bus_bytes
        found |= {"cycles": cycles, "memory": moved / (cycles * chip.board.bytes_per_cycle),
                  "chip_seconds": cycles / chip.board.clock_mhz / 1e6}
    return found


async def _page(request: Request) -> Response:
    page = files("meadowlark.serve").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY,
                                       "X-Content-Type-Options": "nosniff",
                                       "Referrer-Policy": "no-referrer"})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


# ---- Answers

async def _whole(runs: Runs, form: Form, count: int, prompt_tokens: int) -> Response:
    """All answers at once."""
    choices, done = [Choice() for _ in range(count)], list[Completion | None]()
    async with aclosing(runs.pieces()) as pieces:
        async for at, item in pieces:
            if isinstance(item, Piece):
                choices[at].take(item)
                continue
            check(item)
            choices[at].finish = finish_of(item.done)
            done.append(item.done)
    return JSONResponse(form.whole(choices, usage_of(done, prompt_tokens)))


async def _events(runs: Runs, form: Form, count: int, prompt_tokens: int, usage: bool,
                  ) -> AsyncGenerator[bytes, None]:
    """Answers in pieces, as server-sent events."""
    done = list[Completion | None]()
    async with aclosing(runs.pieces()) as pieces:
        if form.chat:
            for at in range(count):
                yield event(form.piece(at, first=True))
        async for at, item in pieces:
            if isinstance(item, Piece):
                yield event(form.piece(at, item))
                continue
            try:
                check(item)
            except Bad as bad:
                yield event(bad.as_json())
                return
            done.append(item.done)
            yield event(form.piece(at, finish=finish_of(item.done)))
        if usage:
            yield event(form.last(usage_of(done, prompt_tokens)))
        yield event("[DONE]")


def check(ended: Ended) -> None:
    """Raise :class:`Bad` unless a job ran."""
    if ended.error:
        raise Bad(ended.error, status=500, code="server_error")
    if ended.done is None:
        raise Bad("the run did not begin before its time was over, or the server ends; ask again "
                  "later", status=503, code="server_error")


async def while_there(receive: Receive, work: Awaitable[Response]) -> Response:
    """Do the work unless the client goes away before; it then ends, and frees what it holds."""
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return Response(status_code=499)
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


class Streamed(Response):
    """Server-sent events of runs; a client that goes away ends both."""
    media_type = "text/event-stream"

    def __init__(self, runs: Runs, events: AsyncGenerator[bytes, None]) -> None:
        self._runs, self._events = runs, events
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> Response:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for part in events:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return self
        try:
            await while_there(receive, write())
        except OSError:         # it went while something was being sent
            pass
        finally:
            self._runs.cancel()


# ---- Who may ask

class Guard:
    """Lets in who knows the key, and calls the server by a name of its own: a page of others that
    makes its name lead here does not."""

    #: Without a key: the page, which holds nothing, and whether the server is there.
    OPEN = ("/", "/health", "/v1/health")

    def __init__(self, app: ASGIApp, *, key: str, hosts: frozenset[str] | None) -> None:
        self._app, self._key, self._hosts = app, key.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (bad := self._refused(scope)) is not None:
            await _refusal(bad)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> Bad | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return Bad("this server is known by another name; ask it by its address", status=421)
        if self._key and scope["path"] not in self.OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(),
                                                                   self._key):
                return Bad("the API key is wrong or missing; send it as Authorization: Bearer KEY",
                           status=401, code="invalid_api_key",
                           headers={"WWW-Authenticate": "Bearer"})
        return None


def _host(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _refusal(bad: Bad) -> Response:
    return JSONResponse(bad.as_json(), status_code=bad.status, headers=bad.headers)


async def _on_bad(request: Request, error: Exception) -> Response:
    if isinstance(error, Bad):
        return _refusal(error)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    if isinstance(error, HTTPException):
        sentence = {404: f"there is nothing at {brief(request.url.path)}",
                    405: f"{brief(request.url.path)} does not answer {request.method}"}.get(
                        error.status_code, brief(error.detail))
        return _refusal(Bad(sentence, status=error.status_code))
    assert isinstance(error, UserError)
    return _refusal(Bad(str(error)))


async def _on_fault(request: Request, error: Exception) -> Response:
    return _refusal(Bad("this request met a fault of the server; its log says more", status=500,
                        code="server_error"))


def application(service: Service, *, origins: Sequence[str] = ()) -> Starlette:
    """The server as an ASGI application. origins: of web pages of others that may ask it."""
    handlers: dict[Any, Any] = dict.fromkeys((Bad, UserError, HTTPException, ClientDisconnect),
                                             _on_bad)
    middleware = [Middleware(Guard, key=service.api_key, hosts=service.hosts)]
    if origins:
        middleware.insert(0, Middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"]))
    return Starlette(routes=service.routes(), middleware=middleware,
                     exception_handlers=handlers | {Exception: _on_fault})
