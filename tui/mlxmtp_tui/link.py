"""The way to the engine's process, whichever one it is at the time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mlxmtp.worker.lines import ProtocolError
from mlxmtp.worker.messages import Command, Died, Event, Warned
from mlxmtp_tui.roles import Engine


class Link:
    """Sends commands to an engine and hands on what it says, until it is replaced.

    Args:
        start: starts an engine. hear: is told every event. gone: is told why there is no engine any more.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Engine]], hear: Callable[[Event], None], gone: Callable[[str], None]
    ) -> None:
        self._start = start
        self._hear = hear
        self._gone = gone
        self._engine: Engine | None = None
        self._listening: asyncio.Task[None] | None = None
        self._command = 0

    @property
    def up(self) -> bool:
        return self._engine is not None

    async def open(self) -> None:
        """Start an engine."""
        try:
            self._engine = await self._start()
        except OSError as error:
            self._lose(f"the engine cannot be started: {error}")
            return
        self._listening = asyncio.create_task(self._listen(self._engine))

    def send(self, command: Callable[[int], Command]) -> None:
        """Send the command with the next id; from now on its events are those that were asked for."""
        if self._engine:
            self._command = self._engine.next_id()
            self._engine.send(command(self._command))

    def asked(self, event: Event) -> bool:
        """Whether it belongs to the newest command, or to all."""
        return event.id == self._command or isinstance(event, Died | Warned)

    def stop(self) -> None:
        """End the command; its events go on until it has ended."""
        if self._engine:
            self._engine.stop()

    def drop(self) -> None:
        """End the command and hear no more of it."""
        self.stop()
        self._command = 0

    async def cut(self) -> None:
        """Kill the engine."""
        engine, self._engine = self._engine, None
        if engine:
            engine.kill()
        if self._listening:
            await self._listening

    async def close(self) -> None:
        """End the engine in peace."""
        engine, self._engine = self._engine, None
        if engine:
            await engine.close()
        if self._listening:
            await self._listening

    async def _listen(self, engine: Engine) -> None:
        try:
            async for event in engine.events():
                if engine is not self._engine:
                    continue  # it was replaced
                if isinstance(event, Died):
                    self._engine = None
                self._hear(event)
        except Exception as error:  # a fault of ours must not end in silence, with an engine that nobody hears
            engine.kill()
            why = str(error) if isinstance(error, ProtocolError) else f"{error!r}; this should not be, please report it"
            if engine is self._engine:
                self._lose(f"the engine cannot be understood: {why}")

    def _lose(self, why: str) -> None:
        self._engine = None
        self._gone(why)
