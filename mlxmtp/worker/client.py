"""The one client of the engine's process, for the server and the terminal chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.lines import ProtocolError
from mlxmtp.worker.messages import Command, Died, Event, Stop, ends_command
from mlxmtp.worker.process import GRACE_S, StartTransport, Transport, WorkerProcess

MakeCommand = Callable[[int], Command]
"""Makes a command with the id that the client gives it."""


class EngineStartError(MlxmtpError):
    """The engine's process cannot be started."""


class Reply:
    """The events of one command, in order, up to the last; an asynchronous iterator.

    Events are kept until they are read, so a slow reader delays no other command.

    Attributes:
        id: of the command.
        ended: resolves to the last event (`ends_command`). Not to be cancelled: await `last` instead.
    """

    def __init__(self, client: EngineClient, id: int) -> None:
        self.id = id
        self.ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._client = client
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._exhausted = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._exhausted:
            raise StopAsyncIteration
        event = await self._events.get()
        self._exhausted = ends_command(event)
        return event

    async def last(self) -> Event:
        """Wait for the last event."""
        return await asyncio.shield(self.ended)

    def stop(self) -> None:
        """Ask the engine to end the command soon. Its events go on until the last."""
        self._client.stop(self.id)

    def _add(self, event: Event) -> None:
        self._events.put_nowait(event)
        if ends_command(event):
            self.ended.set_result(event)


class EngineClient:
    """Keeps at most one engine process: starts it, numbers its commands, routes its events, notices its death.

    Several commands can be under way: each event carries the id of its command.

    Args:
        start: starts a process.
        on_event: called with every event of the present process, those of no command included (`Warned`, `Died`).
            It must not block. An exception in it ends the process.
    """

    def __init__(
        self, start: StartTransport = WorkerProcess.start, on_event: Callable[[Event], None] = lambda _: None
    ) -> None:
        self._start = start
        self._on_event = on_event
        self._process: Transport | None = None
        self._reader: asyncio.Task[None] | None = None
        self._replies: dict[int, Reply] = {}
        self._last_id = 0

    @property
    def running(self) -> bool:
        """Whether there is a process; it may still be importing."""
        return self._process is not None

    async def start(self) -> None:
        """Start a process if there is none. It waits for the end of the one before: two models may not fit.

        Raises:
            EngineStartError: the process cannot be started.
        """
        if self._process:
            return
        await self.wait()
        try:
            self._process = await self._start()
        except OSError as error:
            raise EngineStartError(f"the engine cannot be started: {error}") from error
        self._reader = asyncio.create_task(self._read(self._process))

    def send(self, command: MakeCommand) -> int:
        """Send a command; `on_event` gets its events. Without a process the command is dropped.

        Returns:
            The id of the command, larger than any before.
        """
        self._last_id += 1
        if self._process:
            self._process.send(command(self._last_id))
        return self._last_id

    def request(self, command: MakeCommand) -> Reply:
        """Send a command and collect its events. Without a process the reply is `Died` at once."""
        reply = Reply(self, self.send(command))
        if self._process:
            self._replies[reply.id] = reply
        else:
            reply._add(Died(0, 0))
        return reply

    def stop(self, id: int) -> None:
        """Ask the engine to end one command soon; what is generated until then is kept."""
        if self._process:
            self._process.send(Stop(id))

    async def wait(self) -> None:
        """Wait until the process is gone, whatever its end; returns at once where there is none."""
        if self._reader:
            await asyncio.wait([self._reader])

    async def kill(self) -> None:
        """End the process at once and wait until it is gone. `on_event` is not called, open replies get `Died`."""
        if self._process:
            self._process.kill()
        await self.close()

    async def close(self, grace_s: float = GRACE_S) -> None:
        """As `kill`, but the process has `grace_s` seconds to write its caches."""
        process, self._process = self._process, None
        self._end_replies(Died(0, 0))
        if process:
            await process.close(grace_s)
        await self.wait()

    async def _read(self, process: Transport) -> None:
        died = Died(0, -1)
        try:
            async for event in process.events():
                if isinstance(event, Died):
                    died = event
                elif process is self._process:
                    self._route(event)
        except Exception as error:  # nobody reads this process any more, so it must not run on
            process.kill()
            reported = (
                str(error) if isinstance(error, ProtocolError) else f"{error!r}; this should not be, please report it"
            )
            died = Died(0, -1, garbled=reported)
        if process is self._process:
            self._process = None
            self._end_replies(died)
            self._on_event(died)

    def _route(self, event: Event) -> None:
        self._on_event(event)
        if reply := self._replies.get(event.id):
            reply._add(event)
            if ends_command(event):
                del self._replies[event.id]

    def _end_replies(self, died: Died) -> None:
        for reply in self._replies.values():
            reply._add(died)
        self._replies.clear()
