"""Answers over HTTP: event streams that keep the line open, and an ear for clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mlxmtp.server.wire import KEEP_ALIVE, encoded

KEEP_ALIVE_S = 5.0
T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Json(JSONResponse):
    """A whole answer, whatever characters it has."""

    def render(self, content: Any) -> bytes:
        return encoded(content)


class EventStream(Response):
    """Server-sent events; a comment where nothing else comes for `KEEP_ALIVE_S`. Ends when the client leaves.

    Args:
        events: closed at the end, however that comes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(ClientGoneError):
            await unless_gone(self._write(send), receive)

    async def _write(self, send: Send) -> None:
        async with aclosing(kept_alive(self._events)) as events:
            async for content in events:
                await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ClientGoneError: it has left.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def kept_alive(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events, with comments in their pauses."""
    waiting: asyncio.Future[bytes] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait((waiting,), timeout=KEEP_ALIVE_S))[0]:
                yield KEEP_ALIVE
            try:
                yield waiting.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting and not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await events.aclose()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
