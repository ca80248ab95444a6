"""The engine's process: started, fed one turn at a time, stopped when nobody listens, replaced when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from mlxmtp.errors import MlxmtpError
from mlxmtp.server.problems import ApiError
from mlxmtp.server.queue import FairQueue
from mlxmtp.worker.messages import Command, Died, Event, Failed, Finished, Generate, Load, Loaded, Stopped, Warned

STOP_S = 120.0
"""How long a stopped turn may take to end, in a long prompt's chunk for instance, before the engine is replaced."""
CLOSING_S = 32.0
"""How long the engine may take to write its caches to disk at the end."""
ANSWERS_S = 1.0
"""How long turns may take to be told then."""
ENDINGS = (Finished, Failed, Stopped, Died)


class Engine(Protocol):
    """The engine's process (mlxmtp.worker.client.WorkerProcess)."""

    def next_id(self) -> int: ...
    def send(self, command: Command) -> None: ...
    def stop(self) -> None: ...
    def events(self) -> AsyncIterator[Event]: ...
    def kill(self) -> None: ...
    async def close(self, grace_s: float = ...) -> None: ...


class LoadError(MlxmtpError):
    """The model cannot be served."""


class Host:
    """One engine for all requests.

    Args:
        start: starts a process. load: the model, as a `Load` command with a given id. queue: how many may wait.

    `loaded` tells about the model, once `open` has returned. `restarts` counts the engines that had to be replaced.
    `warn` is told what the engine warns of.
    """

    def __init__(self, start: Callable[[], Awaitable[Engine]], load: Callable[[int], Load], queue: int) -> None:
        self.queue = FairQueue(queue)
        self.loaded: Loaded | None = None
        self.restarts = 0
        self.warn: Callable[[str], None] = lambda _: None
        self._closed = False
        self._start = start
        self._load = load
        self._engine: Engine | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._opening: asyncio.Task[Loaded] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self._engine is not None and self._opening is not None and self._opening.done()

    async def open(self) -> Loaded:
        """Start the engine and load the model, unless that is done.

        Raises:
            LoadError: it cannot be loaded.
        """
        if self._opening is None or (self._opening.done() and self._engine is None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)  # others wait for it too

    async def turn(self, client: str, command: Callable[[int], Generate]) -> AsyncGenerator[Event, None]:
        """The events of one turn, up to `Finished`; closing it early stops the turn. Waits in the queue first.

        Raises:
            ApiError: the queue is full, the engine refuses, or it dies.
        """
        await self.queue.enter(client)
        try:
            await self._reopen()
            number = self._send(command)
        except BaseException:
            self.queue.leave()
            raise
        heard: asyncio.Queue[Event] = asyncio.Queue()
        left = asyncio.Event()
        self._later(self._attend(number, heard, left))
        try:
            while True:
                event = await heard.get()
                if isinstance(event, Failed | Died):
                    raise _ending() if self._closed else _failure(event)
                yield event
                if isinstance(event, ENDINGS):
                    return
        finally:
            left.set()

    async def close(self) -> None:
        """End the engine; turns that run or wait are told so."""
        self._closed = True
        if self._opening and not self._opening.done():
            self._opening.cancel()
        engine, self._engine = self._engine, None
        self._events.put_nowait(Died(0, 0))
        if engine:
            await engine.close(CLOSING_S)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ANSWERS_S)
        for task in self._tasks:
            task.cancel()

    async def _open(self) -> Loaded:
        self._events = asyncio.Queue()
        try:
            self._engine = engine = await self._start()
        except OSError as error:
            raise LoadError(f"the engine cannot be started: {error}") from error
        self._later(self._listen(engine, self._events))
        number = self._send(self._load)
        while True:
            event = await self._next(number)
            if isinstance(event, Loaded):
                self.loaded = event
                return event
            if isinstance(event, Failed | Died):
                engine.kill()
                self._engine = None
                raise LoadError(
                    event.message if isinstance(event, Failed) else f"the engine died while it loaded ({event.why})"
                )

    async def _reopen(self) -> None:
        if self._closed:
            raise _ending()
        try:
            await self.open()
        except asyncio.CancelledError:
            if self._closed:
                raise _ending() from None
            raise
        except LoadError as error:
            message = f"the engine cannot be started again: {error}"
            raise ApiError(message, status=503, code="engine_down", retry_after=10) from error

    def _send(self, command: Callable[[int], Command]) -> int:
        assert self._engine
        number = self._engine.next_id()
        self._engine.send(command(number))
        return number

    async def _next(self, number: int) -> Event:
        while True:
            event = await self._events.get()
            if event.id == number or isinstance(event, Died):
                return event

    async def _attend(self, number: int, heard: asyncio.Queue[Event], left: asyncio.Event) -> None:
        """Take in a turn's events to its end, however slowly they are read, and free its place then."""
        stopping = asyncio.create_task(self._stop(left))
        try:
            over = False
            while not over:
                event = await self._next(number)
                heard.put_nowait(event)
                over = isinstance(event, ENDINGS)
        finally:
            stopping.cancel()
        self.queue.leave()

    async def _stop(self, left: asyncio.Event) -> None:
        """End a turn that nobody hears any more; an engine that does not come to its end is replaced."""
        await left.wait()
        if self._engine:
            self._engine.stop()
        await asyncio.sleep(STOP_S)
        if self._engine:
            self._engine.kill()

    async def _listen(self, engine: Engine, events: asyncio.Queue[Event]) -> None:
        """Pass on what an engine says until it is gone; then start another."""
        end = Died(0, -1)
        try:
            async for event in engine.events():
                if isinstance(event, Died):
                    end = event
                elif isinstance(event, Warned):
                    self.warn(event.message)
                else:
                    events.put_nowait(event)
        except (MlxmtpError, ValueError):  # what cannot be understood comes from another version, or has no end
            engine.kill()
        if engine is not self._engine:
            return  # we have left it
        self._engine = None
        served = self._opening is not None and self._opening.done()
        events.put_nowait(end)
        if served:  # one that dies while it loads would do so again
            self.restarts += 1
            self._later(self._try_again())

    async def _try_again(self) -> None:
        with suppress(LoadError):  # the next turn tries once more, and says it
            await self.open()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ending() -> ApiError:
    return ApiError("the server is shutting down", status=503, code="shutting_down", retry_after=10)


def _failure(event: Failed | Died) -> ApiError:
    if isinstance(event, Died):
        message = f"the engine died ({event.why}); another is started, send the request once more"
        return ApiError(message, status=500, code="engine_died")
    if event.kind == "refused":
        return ApiError(event.message, code="refused")
    code = "out_of_memory" if event.kind == "memory" else "engine_failed"
    hint = "; a shorter prompt needs less" if event.kind == "memory" else ""
    return ApiError(event.message + hint, status=500, code=code)
