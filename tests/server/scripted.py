"""The server with a scripted engine, for requests in this process or over a socket; and a parser of its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx2

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.output import OutputParser
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.adapter import ApiAdapter
from mlxmtp.server.app import ADAPTERS, Service, create_app
from mlxmtp.server.body import JsonObject
from mlxmtp.server.connections import Connections
from mlxmtp.server.host import Host
from mlxmtp.server.main import http_server, listening
from mlxmtp.server.prompting import PromptBuilder
from mlxmtp.server.request import Request
from mlxmtp.server.telemetry import Log
from mlxmtp.worker.messages import Event, Generate, Load
from tests.scripted_engine import Answers, Engines, ScriptedEngine, finished, loaded, said, until

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
ALL = tuple(each.path for each in ADAPTERS)
JSON = {"content-type": "application/json"}
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
}
"""The smallest request of each protocol."""


@cache
def tokenizer() -> Any:
    """The tokenizer of the demo model."""
    return load_tokenizer(DEMO)


def turn(text: str, reason: str = "stop", *, piece: int = 5, **changes: Any) -> Callable[[Generate], list[Event]]:
    """The worker's events of a turn in which the model generates `text`, with the tags of thinking and calls.

    Args:
        piece: characters in an event; 0: all in one.
        changes: fields of `Finished`.
    """

    def answers(command: Generate) -> list[Event]:
        parser = OutputParser(tokenizer(), [0], command.opening)
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)] if piece else [text]
        rounds = [[["text", one]] if command.raw else [[s.kind, s.text] for s in parser.feed(one)] for one in pieces]
        rounds += [] if command.raw else [[[s.kind, s.text] for s in parser.finish()]]
        if not piece:
            rounds = [[segment for segments in rounds for segment in segments]]
        deltas = [replace(said("", tokens=i), segments=segments) for i, segments in enumerate(rounds, start=1)]
        return [*deltas, replace(finished("", reason, tokens=len(deltas)), **changes)]

    return answers


class RecordedLog(Log):
    """Keeps the lines of the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class LocalServer:
    """A server in this process.

    Args:
        http: a client that is connected to it.
    """

    def __init__(self, engines: Engines, service: Service, app: Any, http: httpx2.AsyncClient) -> None:
        self.engines = engines
        self.service = service
        self.app = app
        self.http = http

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines.newest

    @property
    def host(self) -> Host:
        return self.service.host

    @property
    def log(self) -> list[str]:
        assert isinstance(self.service.log, RecordedLog)
        return self.service.log.lines

    @property
    def command(self) -> Generate:
        """The last `Generate` command that the engine got."""
        command: Generate = self.engine.sent(Generate)[-1]
        return command

    @property
    def prompt(self) -> str:
        """The text of its prompt."""
        return str(tokenizer().decode(self.command.messages))

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return await self.http.post(path, json=MINIMAL[path] if body is None else body, **options)

    async def stream(self, path: str, body: Any = None) -> list[ServerSentEvent]:
        """Post a request and parse its whole stream."""
        response = await self.post(path, (MINIMAL[path] if body is None else body) | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.text)

    async def assert_works(self) -> None:
        """A valid request is answered, and then the queue is empty."""
        self.engines.script[Generate] = turn("fine")
        self.engine.on(Generate, turn("fine"))
        response = await self.post(CHAT)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "fine"
        await until(lambda: (self.host.queue.running, self.host.queue.waiting) == (0, 0), "an empty queue")

    @asynccontextmanager
    async def over_socket(self) -> AsyncIterator[LocalServer]:
        """The same server over a socket, where answers arrive in pieces and clients can disconnect."""
        with listening("127.0.0.1", 0) as door:
            server = http_server(self.app, Connections(self.service.log.line))
            serving = asyncio.create_task(server.serve([door]))
            await until(lambda: server.started, "the server")
            address = f"http://127.0.0.1:{door.getsockname()[1]}"
            try:
                async with httpx2.AsyncClient(base_url=address, timeout=20, headers=JSON) as http:
                    yield LocalServer(self.engines, self.service, self.app, http)
            finally:
                server.should_exit = True
                await serving


@asynccontextmanager
async def serving(
    answers: Answers = (),
    *,
    queue: int = 8,
    parallel: int = 1,
    apart_because: str | None = None,
    context: int = 4096,
    max_body: int = 1_000_000,
    defaults: GenerationOptions | None = None,
    tokens: Any = None,
    **options: Any,
) -> AsyncIterator[LocalServer]:
    """A server in this process.

    Args:
        answers: the engine's events of every turn.
        parallel, apart_because: what the engine says of turns at once.
        tokens: a tokenizer in place of the demo's.
        options: of `create_app`.
    """
    ready = loaded(parallel=parallel, apart_because=apart_because)
    engines = Engines({Generate: answers, Load: [ready]})
    host = Host(engines, Load, queue)
    await host.open()
    prompts = PromptBuilder(tokens or tokenizer(), context, len(tokens or tokenizer()))
    service = Service(
        host, prompts, "demo", defaults or GenerationOptions(max_tokens=None), max_body, log=RecordedLog()
    )
    app = create_app(service, **options)
    try:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", headers=JSON) as http:
            yield LocalServer(engines, service, app, http)
    finally:
        await host.close()
        prompts.close()


@dataclass(frozen=True)
class ServerSentEvent:
    """A server-sent event. `data` is the parsed JSON, or the text "[DONE]"."""

    event: str | None
    data: Any


def adapter(path: str) -> ApiAdapter:
    """The adapter of a path."""
    [found] = [each for each in ADAPTERS if each.path == path]
    return found


def parse(path: str, **more: Any) -> Request:
    """Parse the smallest body with more fields, without a server."""
    return adapter(path).parse(JsonObject(MINIMAL[path] | more), GenerationOptions(max_tokens=None))


def parse_events(text: str) -> list[ServerSentEvent]:
    """Parse the events of a stream, without its comments. Every event must have one line of data and an end."""
    assert not text or text.endswith("\n\n")
    events = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            assert "\n" not in block
            continue
        *name, data = block.split("\n")
        assert data.startswith("data: "), block
        assert not name or (len(name) == 1 and name[0].startswith("event: ")), block
        content = data.removeprefix("data: ")
        events.append(
            ServerSentEvent(
                name[0].removeprefix("event: ") if name else None,
                content if content == "[DONE]" else json.loads(content),
            )
        )
    return events


def parse_error(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """The error in a body, which must have exactly the shape of the path's protocol."""
    if path.startswith(MESSAGES):
        assert content.keys() == {"type", "error"}
        assert content["type"] == "error"
        assert content["error"].keys() == {"type", "message"}
    else:
        assert content.keys() == {"error"}
        assert content["error"].keys() == {"message", "type", "code", "param"}
    about: dict[str, Any] = content["error"]
    assert about["message"]
    return about
