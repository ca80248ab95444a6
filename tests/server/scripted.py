"""The server on a scripted engine: requests within this process or over a socket, streams taken apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx2

from mlxmtp.engine.loading import DEMO
from mlxmtp.engine.parts import OutputParser
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.engine.tokenizer import load_tokenizer
from mlxmtp.server.adapter import ApiAdapter
from mlxmtp.server.app import ADAPTERS, Service, create_app
from mlxmtp.server.body import JsonObject
from mlxmtp.server.host import Host
from mlxmtp.server.main import http_server, listening
from mlxmtp.server.prompting import PromptBuilder
from mlxmtp.server.request import Request
from mlxmtp.server.telemetry import Log
from mlxmtp.worker.messages import Event, Generate, Load
from tests.scripted_engine import Answers, Engines, ScriptedEngine, finished, said, until

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
ALL = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
HELLO: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
}
"""The least that each protocol takes for a request."""


@cache
def tokenizer() -> Any:
    """The demo's."""
    return load_tokenizer(DEMO)


def turn(text: str, reason: str = "stop", *, piece: int = 5, **changes: Any) -> Callable[[Generate], list[Event]]:
    """What the worker says of a turn in which the model writes `text`, boundaries of thinking and calls included.

    Args:
        piece: so many characters come at a time; 0: all of them at once. changes: of `Finished`.
    """

    def answers(command: Generate) -> list[Event]:
        splitter = OutputParser(tokenizer(), [0], command.opening)
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)] if piece else [text]
        parts = [[["text", one]] if command.raw else [[p.kind, p.text] for p in splitter.feed(one)] for one in pieces]
        parts += [] if command.raw else [[[p.kind, p.text] for p in splitter.finish()]]
        if not piece:
            parts = [[part for several in parts for part in several]]
        told = [replace(said("", tokens=i), segments=several) for i, several in enumerate(parts, start=1)]
        return [*told, replace(finished("", reason, tokens=len(told)), **changes)]

    return answers


class Notes(Log):
    """A log that is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Served:
    """A server, and ways to ask it.

    Args:
        http: a client.
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
        assert isinstance(self.service.log, Notes)
        return self.service.log.lines

    @property
    def command(self) -> Generate:
        """The newest turn that the engine was asked for."""
        command: Generate = self.engine.sent(Generate)[-1]
        return command

    @property
    def prompt(self) -> str:
        """What the model reads of it."""
        return str(tokenizer().decode(self.command.messages))

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return await self.http.post(path, json=HELLO[path] if body is None else body, **options)

    async def stream(self, path: str, body: Any = None) -> list[Sent]:
        """The events of a whole stream."""
        response = await self.post(path, (HELLO[path] if body is None else body) | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return sent(response.text)

    async def works(self) -> None:
        """A good request is answered, and nothing waits or runs behind it."""
        self.engines.script[Generate] = turn("fine")
        self.engine.on(Generate, turn("fine"))
        response = await self.post(CHAT)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "fine"
        await until(lambda: (self.host.queue.running, self.host.queue.waiting) == (0, 0), "an empty queue")

    @asynccontextmanager
    async def online(self) -> AsyncIterator[Served]:
        """The same over a socket, where answers come bit by bit and clients can leave."""
        with listening("127.0.0.1", 0) as door:
            server = http_server(self.app)
            serving = asyncio.create_task(server.serve([door]))
            await until(lambda: server.started, "the server")
            address = f"http://127.0.0.1:{door.getsockname()[1]}"
            try:
                async with httpx2.AsyncClient(base_url=address, timeout=20) as http:
                    yield Served(self.engines, self.service, self.app, http)
            finally:
                server.should_exit = True
                await serving


@asynccontextmanager
async def serving(
    answers: Answers = (),
    *,
    queue: int = 8,
    context: int = 4096,
    max_body: int = 1_000_000,
    defaults: GenerationOptions | None = None,
    tokens: Any = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """A server within this process.

    Args:
        answers: of the engine, to every turn. tokens: a tokenizer in place of the demo's. options: of `create_app`.
    """
    engines = Engines({Generate: answers})
    host = Host(engines, Load, queue)
    await host.open()
    prompts = PromptBuilder(tokens or tokenizer(), context)
    service = Service(host, prompts, "demo", defaults or GenerationOptions(max_tokens=None), max_body, log=Notes())
    app = create_app(service, **options)
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://server") as http:
            yield Served(engines, service, app, http)
    finally:
        await host.close()
        prompts.close()


@dataclass(frozen=True)
class Sent:
    """A server-sent event; `data` is read as JSON where it is JSON."""

    event: str | None
    data: Any


def adapter(path: str) -> ApiAdapter:
    """The adapter of a path."""
    [found] = [each for each in ADAPTERS if each.path == path]
    return found


def read(path: str, **more: Any) -> Request:
    """The request of the least body with more fields, without a server."""
    return adapter(path).parse(JsonObject(HELLO[path] | more), GenerationOptions(max_tokens=None))


def sent(text: str) -> list[Sent]:
    """The events of a stream; comments are left out. Strict: each has a line of data, and an end."""
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
            Sent(
                name[0].removeprefix("event: ") if name else None,
                content if content == "[DONE]" else json.loads(content),
            )
        )
    return events


def error(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """The error of a body, which has the shape of the path's protocol and nothing else."""
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
