"""Answers over HTTP: event streams that keep the line open, and an ear for clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, Generic, Self, TypeVar

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


class Begun(Generic[T]):
    """The values of a generator that is under way already: to close one that has not begun does nothing."""

    def __init__(self, values: AsyncGenerator[T, None]) -> None:
        self._values = values
        self._first: asyncio.Future[T] | None = asyncio.ensure_future(anext(values))

    async def peek(self, seconds: float) -> None:
        """Wait so long for the first value; raises what comes in its place."""
        assert self._first
        try:
            await asyncio.wait((self._first,), timeout=seconds)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._first.done():
            self._first.result()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        first, self._first = self._first, None
        return await (first or anext(self._values))

    async def aclose(self) -> None:
        if self._first:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._values.aclose()


class EventStream(Response):
    """Server-sent events; a comment where nothing else comes for `KEEP_ALIVE_S`. Ends when the client leaves.

    Args:
        source: what the events are made of; closed at the end, however that comes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], source: Begun[Any]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):
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
