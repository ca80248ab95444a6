"""The HTTP application: routes, and the way of a request through the core."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server import anthropic, chat_completions, completions, responses
from mlxmtp.server.guard import KeyCheck, client_of, read_body
from mlxmtp.server.host import Host
from mlxmtp.server.log import WATCHED, Log, RequestLog
from mlxmtp.server.metrics import Metrics
from mlxmtp.server.problems import ApiError
from mlxmtp.server.prompting import Prompter
from mlxmtp.server.streaming import Begun, ClientGoneError, EventStream, Json, unless_gone
from mlxmtp.server.turn import Event, Outcome, TurnEnd, answer
from mlxmtp.server.wire import ApiAdapter, ResponseContext, Writer

WIRES: dict[str, ApiAdapter] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/responses": responses,
    "/v1/messages": anthropic,
}
PEEK_S = 0.25
"""A refusal that comes within this time has a status of its own; later ones come in the stream."""
GONE = 499
"""The status of a request whose client has left; nginx's."""


@dataclass(frozen=True)
class Service:
    """All that answering takes.

    Args:
        name: of the model. defaults: for what requests leave out. max_body: bytes of a request.
    """

    host: Host
    prompter: Prompter
    name: str
    defaults: GenerationOptions
    max_body: int
    started: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=Log)


def create_app(service: Service, api_key: str | None = None, origins: tuple[str, ...] = ()) -> Starlette:
    """The application.

    Args:
        origins: of web pages that may ask; "*" for all.
    """
    turns = [Route(path, _Turns(service, wire), methods=["POST"]) for path, wire in WIRES.items()]
    pages = _Pages(service)
    routes = [
        *turns,
        Route("/v1/messages/count_tokens", _Counts(service), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
        Route("/api/hello", pages.hello),
        Route("/", pages.hello),
    ]
    known = ("/v1/messages/count_tokens", *WIRES, "/v1/models", "/api/hello", "/")
    guards = [Middleware(RequestLog, log=service.log, count=service.metrics.request, known=known)]
    if origins:
        guards.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=("*",), allow_headers=("*",)))
    if api_key:
        guards.append(Middleware(KeyCheck, key=api_key, shape=shape))
    return Starlette(routes=routes, middleware=guards, exception_handlers={HTTPException: _unrouted})


def shape(path: str, problem: ApiError) -> dict[str, Any]:
    """An error's body, in the shape of the path's protocol."""
    wire = anthropic if path.startswith("/v1/messages") else WIRES["/v1/chat/completions"]
    return wire.error(problem)


def error_response(path: str, problem: ApiError) -> Json:
    headers = {"retry-after": str(problem.retry_after)} if problem.retry_after else None
    return Json(shape(path, problem), problem.status, headers)


class _Endpoint:
    """Answers what is posted, whatever goes wrong with it; an ASGI application for its route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _answer(self, request: Request, watch: _Watch) -> Response:
        raise NotImplementedError

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        watch = _Watch(self._service, request)
        try:
            response = await self._answer(request, watch)
        except (ClientDisconnect, ClientGoneError):
            watch.end(GONE)
            return
        except ApiError as problem:
            response = watch.refuse(problem)
        except Exception as error:  # a fault of ours: said, and the server goes on
            response = watch.refuse(_fault(error))
        await response(scope, receive, send)


class _Turns(_Endpoint):
    """The turns of one protocol."""

    def __init__(self, service: Service, wire: ApiAdapter) -> None:
        super().__init__(service)
        self._wire = wire

    async def _answer(self, request: Request, watch: _Watch) -> Response:
        service = self._service
        body = await read_body(request, service.max_body)
        asked = self._wire.read(body, service.defaults)
        asked = replace(asked, client=client_of(request, body))
        watch.dropped = asked.dropped
        service.host.queue.check()  # before the work of tokenising
        prepared = await unless_gone(service.prompter.prepare(asked), request.receive)
        context = ResponseContext(asked, prepared, service.name, service.prompter.tokenizer, int(time.time()))
        events = watch.over(answer(service.host, service.prompter.tokenizer, asked, prepared))
        if asked.stream:
            begun = Begun(events)
            await begun.peek(PEEK_S)
            return EventStream(_written(self._wire.writer(context), begun), begun)
        outcome = await unless_gone(_collected(events), request.receive)
        return Json(self._wire.whole(context, outcome))


class _Counts(_Endpoint):
    """The tokens of prompts in Anthropic's protocol."""

    async def _answer(self, request: Request, watch: _Watch) -> Response:
        service = self._service
        asked = anthropic.read(await read_body(request, service.max_body), service.defaults)
        tokens = await unless_gone(service.prompter.count(asked), request.receive)
        watch.end(200)
        return Json({"input_tokens": tokens})


class _Watch:
    """What the log and the metrics are told about one request, once."""

    def __init__(self, service: Service, request: Request) -> None:
        self.dropped: tuple[str, ...] = ()
        self._service = service
        self._request = request
        self._started = time.perf_counter()
        request.scope[WATCHED] = True

    async def over(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The events, watched to their end."""
        status, done, said = GONE, None, ""
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, TurnEnd):
                        status, done = 200, event
                    yield event
        except ApiError as problem:
            status, said = problem.status, str(problem)
            raise
        except Exception as error:
            status, said = 500, repr(error)
            raise _fault(error) from error
        finally:
            self.end(status, done, said)

    def refuse(self, problem: ApiError) -> Response:
        self.end(problem.status, said=str(problem))
        return error_response(self._request.url.path, problem)

    def end(self, status: int, done: TurnEnd | None = None, said: str = "") -> None:
        if self._started < 0:
            return
        service, request = self._service, self._request
        seconds, self._started = time.perf_counter() - self._started, -1.0
        service.metrics.request(request.url.path, status)
        if done:
            service.metrics.turn(done.reason, done.stats, done.cache_bytes)
        said = "; ".join([said] * bool(said) + [f"dropped: {', '.join(self.dropped)}"] * bool(self.dropped))
        service.log.request(
            f"{request.method} {request.url.path}",
            status,
            seconds,
            agent=request.headers.get("user-agent", ""),
            stats=done.stats if done else None,
            reason=done.reason if done else "",
            said=said,
        )


class _Pages:
    """The endpoints that need no turn."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, _: Request) -> Response:
        about = self._about()
        ends = {"first_id": about["id"], "last_id": about["id"], "has_more": False}
        return Json({"object": "list", "data": [about], **ends})

    async def model(self, _: Request) -> Response:
        return Json(self._about())  # any name is answered with the served model

    async def health(self, _: Request) -> Response:
        ready = self._service.host.ready
        return Json({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        text = self._service.metrics.text(self._service.host)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def hello(self, _: Request) -> Response:
        return Json({"message": "mlxmtp", "model": self._service.name})

    def _about(self) -> dict[str, Any]:
        """The model, as OpenAI's and Anthropic's lists describe one."""
        service = self._service
        day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.started))
        return {
            "id": service.name,
            "object": "model",
            "created": service.started,
            "owned_by": "mlxmtp",
            "max_model_len": service.prompter.context,
            "type": "model",
            "display_name": service.name,
            "created_at": day,
        }


async def _written(writer: Writer, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    yield b"".join(writer.begin())
    try:
        async for event in events:
            if content := b"".join(writer.feed(event)):
                yield content
    except Exception as error:
        yield b"".join(writer.fail(error if isinstance(error, ApiError) else _fault(error)))


async def _collected(events: AsyncGenerator[Event, None]) -> Outcome:
    outcome = Outcome()
    async with aclosing(events):
        async for event in events:
            outcome.add(event)
    return outcome


def _fault(error: Exception) -> ApiError:
    return ApiError(f"{error!r}; this should not be, please report it", status=500, code="internal_error")


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such endpoint, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        what, code = f"{path} does not take {request.method}; expected {allowed}", "method_not_allowed"
    else:
        what, code = f"there is no {path} here; served: POST {', '.join(WIRES)}", "not_found"
    response = error_response(path, ApiError(what, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response
