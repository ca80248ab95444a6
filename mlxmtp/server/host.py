"""Turns on the one engine: several at once, queued, stopped when their client has left, failures told as API errors.

The engine's process is the business of `worker.client.EngineClient`. Here are the server's own rules: the model is
loaded at the start, an engine that dies is replaced at once, and so is one that ignores a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from mlxmtp.errors import MlxmtpError
from mlxmtp.server.errors import OUT_OF_MEMORY, ApiError
from mlxmtp.server.queue import FairQueue
from mlxmtp.worker.client import EngineClient, EngineStartError, Reply
from mlxmtp.worker.messages import CheckProgress, Died, Event, Failed, Generate, Load, Loaded, Warned
from mlxmtp.worker.process import StartTransport

STOP_S = 120.0
"""Seconds that a stopped turn has to end, in a chunk of a long prompt for instance; then the engine is replaced."""
CLOSING_S = 32.0
"""Seconds that the engine has to write its caches to disk when the server ends."""


class LoadError(MlxmtpError):
    """The model cannot be served."""


class Host:
    """The one engine of all requests.

    Args:
        start: starts an engine process.
        load: makes the `Load` command of the model, with a given id.
        queue: number of turns that may wait. How many run at once, the engine says when its model is loaded.

    Attributes:
        loaded: describes the model, once `open` has returned.
        restarts: number of engines that were replaced.
        warn: called with each warning of the engine.
        on_check: called with the progress of a measurement of exactness while a model loads.
    """

    def __init__(self, start: StartTransport, load: Callable[[int], Load], queue: int) -> None:
        self.queue = FairQueue(queue)
        self.loaded: Loaded | None = None
        self.restarts = 0
        self.warn: Callable[[str], None] = lambda _: None
        self.on_check: Callable[[CheckProgress], None] = lambda _: None
        self._closed = False
        self._load = load
        self._client = EngineClient(start, self._on_event)
        self._opening: asyncio.Task[Loaded] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether a model is loaded."""
        return self._client.running and self._opening is not None and self._opening.done()

    async def open(self) -> Loaded:
        """Start the engine and load the model, unless that is done.

        Raises:
            LoadError: the model cannot be loaded.
        """
        if self._opening is None or (self._opening.done() and not self._client.running):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)  # other turns wait for it too

    async def turn(self, client: str, command: Callable[[int], Generate]) -> AsyncGenerator[Event, None]:
        """Wait in the queue, then yield the events of one turn up to `Finished`. Closing it early stops the turn.

        Raises:
            ApiError: the queue is full, the engine refuses, or it dies.
        """
        await self.queue.enter(client)
        try:
            await self._reopen()
            reply = self._client.request(command)
        except BaseException:
            self.queue.leave(client)
            raise
        reply.ended.add_done_callback(lambda _: self.queue.leave(client))
        try:
            async for event in reply:
                if isinstance(event, Failed | Died):
                    raise _shutting_down() if self._closed else _api_error(event, self.loaded)
                yield event
        finally:
            if not reply.ended.done():
                self._in_background(self._stop(reply))

    async def close(self) -> None:
        """End the engine. Turns that run or wait fail with `shutting_down`."""
        self._closed = True
        if self._opening and not self._opening.done():
            self._opening.cancel()
        await self._client.close(CLOSING_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warn(event.message)
        elif isinstance(event, CheckProgress):
            self.on_check(event)
        elif isinstance(event, Died) and self._opening and self._opening.done():  # else the load reports it
            self.warn(f"the engine died ({event.why}); another is started")

    async def _open(self) -> Loaded:
        try:
            await self._client.start()
        except EngineStartError as error:
            raise LoadError(str(error)) from error
        event = await self._client.request(self._load).last()
        if isinstance(event, Loaded):
            self.loaded = event
            self.queue.places = event.parallel
            self._in_background(self._replace())
            return event
        await self._client.kill()
        if isinstance(event, Failed):
            raise LoadError(event.message)
        why = event.why if isinstance(event, Died) else repr(event)
        raise LoadError(f"the engine died while it loaded ({why})")

    async def _reopen(self) -> None:
        if self._closed:
            raise _shutting_down()
        try:
            await self.open()
        except asyncio.CancelledError:
            if self._closed:
                raise _shutting_down() from None
            raise
        except LoadError as error:
            message = f"the engine cannot be started again: {error}"
            raise ApiError(message, status=503, code="engine_down", retry_after=10) from error

    async def _replace(self) -> None:
        """Start another engine once this one is gone. One that dies while it loads is not replaced: so would others."""
        await self._client.wait()
        if not self._closed:
            self.restarts += 1
            with suppress(LoadError):  # the next turn tries once more and reports it
                await self.open()

    async def _stop(self, reply: Reply) -> None:
        """End a turn whose client has left."""
        reply.stop()
        await asyncio.wait([reply.ended], timeout=STOP_S)
        if not reply.ended.done():
            await self._client.kill()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shutting_down() -> ApiError:
    return ApiError("the server is shutting down", status=503, code="shutting_down", retry_after=10)


def _api_error(event: Failed | Died, loaded: Loaded | None) -> ApiError:
    if isinstance(event, Died):
        message = f"the engine died ({event.why}); another is started, send the request once more"
        if loaded and loaded.ranks:  # a machine can be away for a while
            return ApiError(f"{loaded.ranks}: {message}", status=503, code="engine_died", retry_after=10)
        return ApiError(message, status=500, code="engine_died")
    if event.kind == "refused":
        return ApiError(event.message, code="refused")
    code = OUT_OF_MEMORY if event.kind == "memory" else "engine_failed"
    hint = "; a shorter prompt needs less" if event.kind == "memory" else ""
    return ApiError(event.message + hint, status=500, code=code)
