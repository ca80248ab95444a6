"""The HTTP layer below the endpoints: event streams with keep-alives, and clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, Generic, Self, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mlxmtp.server.adapter import encode_json

KEEP_ALIVE_S = 5.0
"""Seconds without an event after which a stream sends a comment. Clients allow 10 or more."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment of server-sent events; every client ignores it."""
T = TypeVar("T")


class ClientDisconnectError(Exception):
    """The client has closed its connection."""


class JsonResponse(JSONResponse):
    """A JSON body that may contain any characters."""

    def render(self, content: Any) -> bytes:
        return encode_json(content)


class Prefetched(Generic[T]):
    """An async generator whose first value is requested at once.

    Closing a generator that has not begun would not run its `finally`; this one has begun.
    """

    def __init__(self, values: AsyncGenerator[T, None]) -> None:
        self._values = values
        self._first: asyncio.Future[T] | None = asyncio.ensure_future(anext(values))

    async def wait_for_first(self, seconds: float) -> None:
        """Wait up to `seconds` for the first value. Raises what the generator raises in its place."""
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
    """A stream of server-sent events. It ends when the client disconnects.

    Args:
        events: the encoded events.
        source: what the events are made from; it is closed at the end in every case.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], source: Prefetched[Any]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        async with aclosing(self._source):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(ClientDisconnectError):
                await cancel_on_disconnect(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(with_keep_alive(self._events)) as events:
            async for content in events:
                await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def cancel_on_disconnect(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client disconnects.

    Raises:
        ClientDisconnectError: the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectError
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def with_keep_alive(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events, with a comment after every `KEEP_ALIVE_S` without one."""
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


async def _disconnect(receive: Receive) -> None:
    """Returns when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
