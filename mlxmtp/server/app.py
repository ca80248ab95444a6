"""The HTTP application: the registry of the protocols, the routes, and the way of a request to its answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.adapter import ApiAdapter, ResponseContext, StreamWriter
from mlxmtp.server.asgi import (
    ClientDisconnectError,
    EventStream,
    JsonResponse,
    Prefetched,
    cancel_on_disconnect,
)
from mlxmtp.server.body import HeldBodies, JsonObject, read_body
from mlxmtp.server.chat_completions import ChatCompletionsAdapter
from mlxmtp.server.completions import CompletionsAdapter
from mlxmtp.server.errors import ApiError, internal_error
from mlxmtp.server.guards import ApiKeyCheck, PageCheck
from mlxmtp.server.host import Host
from mlxmtp.server.messages import MessagesAdapter
from mlxmtp.server.prompting import PromptBuilder
from mlxmtp.server.responses import ResponsesAdapter
from mlxmtp.server.telemetry import CLIENT_DISCONNECTED, Log, Metrics, RequestLog, RequestRecord
from mlxmtp.server.turn import TurnEnd, TurnEvent, TurnResult, generate_turn

ADAPTERS: tuple[ApiAdapter, ...] = (
    ChatCompletionsAdapter(),
    CompletionsAdapter(),
    ResponsesAdapter(),
    MessagesAdapter(),
)
"""Every protocol of the server. On a path of no protocol, errors have the shape of the first."""
FIRST_EVENT_S = 0.25
"""Seconds to wait for the first event of a stream. An error within this time has an HTTP status of its own; a later
one is an event of the stream."""


@dataclass(frozen=True)
class Service:
    """What all endpoints use.

    Args:
        host: the engine.
        prompts: renders and tokenizes prompts.
        name: the name of the model.
        defaults: options that requests leave out.
        max_body: limit of a request's body, in bytes.
        started: seconds since 1970.
    """

    host: Host
    prompts: PromptBuilder
    name: str
    defaults: GenerationOptions
    max_body: int
    started: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=Log)

    @cached_property
    def bodies(self) -> HeldBodies:
        return HeldBodies(self.max_body)


def create_app(
    service: Service,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
    hosts: tuple[str, ...] | None = None,
) -> Starlette:
    """The application.

    Args:
        api_key: key that clients must send; None: none.
        origins, hosts: as in `PageCheck`.
    """
    counting = [adapter for adapter in ADAPTERS if adapter.count_path]
    counts = {str(adapter.count_path): _CountEndpoint(service, adapter) for adapter in counting}
    turns = {adapter.path: _TurnEndpoint(service, adapter) for adapter in ADAPTERS}
    pages = _Pages(service)
    routes = [
        *[Route(path, endpoint, methods=["POST"]) for path, endpoint in {**turns, **counts}.items()],
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
        Route("/api/hello", pages.hello),
        Route("/", pages.hello),
    ]
    known_paths = (*counts, *turns, "/v1/models", "/api/hello", "/")
    middleware = [Middleware(RequestLog, log=service.log, metrics=service.metrics, known_paths=known_paths)]
    middleware.append(Middleware(PageCheck, origins=origins, hosts=hosts, respond=error_response))
    if origins:
        every = ("*",)
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=every,
                allow_headers=every,
                allow_private_network=True,  # browsers ask before a page of the web reaches into a private network
            )
        )
    if api_key:
        middleware.append(Middleware(ApiKeyCheck, key=api_key, respond=error_response))
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _unrouted})


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error, in the shape of the path's protocol."""
    adapter = next((adapter for adapter in ADAPTERS if path.startswith(adapter.path)), ADAPTERS[0])
    return adapter.error_body(error)


def error_response(path: str, error: ApiError) -> JsonResponse:
    """The answer to a request that failed before its stream began."""
    return JsonResponse(error_body(path, error), error.status, error.headers)


class _Endpoint:
    """An ASGI application for the POST requests of one route. Whatever fails becomes an error response."""

    def __init__(self, service: Service, adapter: ApiAdapter) -> None:
        self._service = service
        self._adapter = adapter

    async def _respond(self, request: Request, record: RequestRecord) -> Response:
        raise NotImplementedError

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        record = RequestRecord(request, self._service.log, self._service.metrics)
        try:
            response = await self._respond(request, record)
        except (ClientDisconnect, ClientDisconnectError):
            record.end(CLIENT_DISCONNECTED)
            return
        except Exception as exception:
            error = exception if isinstance(exception, ApiError) else internal_error(exception)
            record.end(error.status, error=str(error))
            response = error_response(request.url.path, error)
            del error  # its traceback holds the body, and would be part of a circle with this frame
        await response(scope, receive, send)


class _TurnEndpoint(_Endpoint):
    """Generates turns."""

    async def _respond(self, request: Request, record: RequestRecord) -> Response:
        service, tokenizer = self._service, self._service.prompts.tokenizer
        with service.bodies.hold() as held:
            body = await read_body(request, service.max_body, held)
            turn = replace(self._adapter.parse(body, service.defaults), client=_client(request, body))
            record.dropped = turn.dropped
            service.host.queue.check()  # a full queue refuses before the work of tokenizing
            prompt = await cancel_on_disconnect(service.prompts.prepare(turn), request.receive)
            del body  # the wait in the queue is long
        context = ResponseContext(turn, prompt, service.name, service.prompts.vocabulary, int(time.time()))
        events = _recorded(generate_turn(service.host, tokenizer, turn, prompt), record)
        if turn.stream:
            prefetched = Prefetched(events)
            await prefetched.wait_for_first(FIRST_EVENT_S)
            return EventStream(_encoded(self._adapter.stream_writer(context), prefetched), prefetched)
        result = await cancel_on_disconnect(_collected(events), request.receive)
        return JsonResponse(self._adapter.build_response(context, result))


class _CountEndpoint(_Endpoint):
    """Counts the tokens of prompts."""

    async def _respond(self, request: Request, record: RequestRecord) -> Response:
        service = self._service
        with service.bodies.hold() as held:
            turn = self._adapter.parse(await read_body(request, service.max_body, held), service.defaults)
            tokens = await cancel_on_disconnect(service.prompts.count(turn), request.receive)
        record.end(200)
        return JsonResponse({"input_tokens": tokens})


class _Pages:
    """The endpoints that need no engine."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, _: Request) -> Response:
        model = self._model()
        ends = {"first_id": model["id"], "last_id": model["id"], "has_more": False}
        return JsonResponse({"object": "list", "data": [model], **ends})

    async def model(self, _: Request) -> Response:
        return JsonResponse(self._model())  # under any name

    async def health(self, _: Request) -> Response:
        ready = self._service.host.ready
        return JsonResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        text = self._service.metrics.text(self._service.host)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def hello(self, _: Request) -> Response:
        return JsonResponse({"message": "mlxmtp", "model": self._service.name})

    def _model(self) -> dict[str, Any]:
        """The model, with the fields of OpenAI's list and of Anthropic's."""
        service = self._service
        return {
            "id": service.name,
            "object": "model",
            "created": service.started,
            "owned_by": "mlxmtp",
            "max_model_len": service.prompts.context,
            "type": "model",
            "display_name": service.name,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.started)),
        }


def _client(request: Request, body: JsonObject) -> str:
    """Identifies the client in the queue: its address and program, with a session where it names one."""
    metadata = body.get("metadata")
    session = (
        body.get("prompt_cache_key")
        or body.get("user")
        or (metadata.get("user_id") if isinstance(metadata, dict) else None)
        or request.headers.get("session_id")
        or request.headers.get("authorization")
        or request.headers.get("x-api-key")
    )
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('user-agent', '')} {session or ''}"


async def _recorded(events: AsyncGenerator[TurnEvent, None], record: RequestRecord) -> AsyncGenerator[TurnEvent, None]:
    """The events; their end, of whatever kind, is recorded."""
    status, turn_end, message = CLIENT_DISCONNECTED, None, ""
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TurnEnd):
                    status, turn_end = 200, event
                yield event
    except ApiError as error:
        status, message = error.status, str(error)
        raise
    except Exception as error:
        status, message = 500, repr(error)
        raise internal_error(error) from error
    finally:
        record.end(status, turn_end, message)


async def _encoded(writer: StreamWriter, events: AsyncIterator[TurnEvent]) -> AsyncGenerator[bytes, None]:
    """The events of a turn as server-sent events of its protocol."""
    yield b"".join(writer.begin())
    try:
        async for event in events:
            if content := b"".join(writer.write(event)):
                yield content
    except Exception as error:
        yield b"".join(writer.fail(error if isinstance(error, ApiError) else internal_error(error)))


async def _collected(events: AsyncGenerator[TurnEvent, None]) -> TurnResult:
    result = TurnResult()
    async with aclosing(events):
        async for event in events:
            result.add(event)
    return result


async def _unrouted(request: Request, error: Exception) -> Response:
    """The answer where there is no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = f"{path} does not take {request.method}; expected {allowed}", "method_not_allowed"
    else:
        served = ", ".join(adapter.path for adapter in ADAPTERS)
        message, code = f"there is no {path} here; served: POST {served}", "not_found"
    response = error_response(path, ApiError(message, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response
